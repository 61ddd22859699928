# cython: freethreading_compatible=True, annotation_typing=False
"""`Cork`: the encoded items of one answer that wait to be written together.

This runs for every item. Where there is a compiler, Cython translates this very file, with the types in `_cork.pxd`
(see setup.py).
"""

from __future__ import annotations

from collections.abc import Callable

from dynamo_fast.wire._plain import encode_plain


class Cork:
    """Holds the data of plain items until they are due: many, large, or old; or until the transport can take no more.

    One response connection owns it and writes what it holds. The answer of the request adds items.
    """

    def __init__(
        self,
        write: Callable[[object], bytes],
        clock: Callable[[], float],
        max_items: int,
        max_bytes: int,
        max_seconds: float,
    ) -> None:
        """`write` encodes a plain item, `clock` returns seconds. The limits say when items are due."""
        self.data: list[bytes] = []
        """The items, encoded by `write`."""
        self.bytes = 0
        """Their size, and the size of everything else that waits to be written with them."""
        self.paused = False
        """Whether the transport takes nothing now."""
        self._write = write
        self._clock = clock
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._max_seconds = max_seconds
        self._until = 0.0

    def restart(self) -> None:
        """The handler runs again: what it yields from now on is due `max_seconds` from now at the latest."""
        self._until = self._clock() + self._max_seconds

    def add(self, value: object) -> bool | None:
        """Encode and hold `value`. Returns None, and holds nothing, if it is not plain: the full encoder must take it.

        Else returns whether what waits is due.
        """
        if not self.hold(value):
            return None
        return self.is_due(len(self.data))

    def hold(self, value: object) -> bool:
        """Encode and hold `value`, one item of a batch that is written when it is complete.

        Returns False, and holds nothing, if it is not plain.
        """
        data = encode_plain(self._write, value)
        if data is None:
            return False
        self.data.append(data)
        self.bytes += len(data)
        return True

    def is_due(self, items: int) -> bool:
        """Whether what waits must be written now, or cannot be written now; `items` wait."""
        if items >= self._max_items or self.bytes >= self._max_bytes or self.paused:
            return True
        now = self._clock()
        return now >= self._until
