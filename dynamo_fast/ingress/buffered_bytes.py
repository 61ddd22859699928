"""`BufferedBytes`: limits the memory that a worker holds for unfinished messages of its peers."""

from __future__ import annotations

from typing import Protocol

__all__ = ["BufferedBytes", "Holder"]


class Holder(Protocol):
    """A connection that holds bytes."""

    def crowded_out(self, total: int, limit: int) -> None:
        """All connections hold `total` bytes, more than `limit`. This one holds most of them: it must close now."""


class BufferedBytes:
    """The bytes that the connections of one worker hold, and the limit of their sum.

    The worker owns it. Connections report what they hold whenever it changes, and release it when they are lost. A
    connection that holds nothing is not in the table and costs nothing.
    """

    __slots__ = ("_held", "limit", "total")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.total = 0
        """Bytes held by all connections together."""
        self._held: dict[Holder, int] = {}

    def hold(self, holder: Holder, size: int) -> None:
        """`holder` holds `size` bytes now. If the sum exceeds the limit, close the connection that holds most."""
        self.total += size - self._held.get(holder, 0)
        if size:
            self._held[holder] = size
            if self.total > self.limit:
                self._close_largest()
        else:
            self._held.pop(holder, None)

    def release(self, holder: Holder) -> None:
        """`holder` holds nothing now."""
        self.total -= self._held.pop(holder, 0)

    def _close_largest(self) -> None:
        while self.total > self.limit:
            total, largest = self.total, max(self._held, key=self._held.__getitem__)
            self.release(largest)
            largest.crowded_out(total, self.limit)
