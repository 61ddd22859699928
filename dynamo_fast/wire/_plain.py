# cython: freethreading_compatible=True, annotation_typing=False
"""`is_plain`: whether a value may go straight to the fast writers; `encode_plain` sends it there; `PlainItems` keeps
what came out until it is sent.

A module of its own for what is done with every item, and with every part of it: where there is a compiler, Cython
translates this very file, with the types that `_plain.pxd` adds (see setup.py), and the look costs a tenth.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

ENVELOPE_MARK = "_dynamo_annotated"
"""The key of a dict that is an annotated item itself."""
UNWRITABLE = (TypeError, ValueError, OverflowError, RecursionError)
"""What a fast writer raises at a plain value with an integer of more than 64 bits, a text that is not Unicode, or (in
JSON) bytes."""

_SCALARS = frozenset({str, int, float, bool, type(None), bytes})
_MAX_DEPTH = 100


def is_plain(value: object, depth: int = _MAX_DEPTH) -> bool:
    """Whether `value` is made of None, bool, int, float, str, bytes, lists, tuples and dicts with str keys only.

    Subclasses do not count, and neither does what is nested deeper than `depth` (or contains itself): somebody slower
    has a look at those.
    """
    kind = type(value)
    if kind is dict:
        for key, each in value.items():  # type: ignore[attr-defined]  # mypy does not follow `kind`
            if type(key) is not str:
                return False
            if type(each) not in _SCALARS and (depth == 0 or not is_plain(each, depth - 1)):
                return False
        return True
    if kind is list or kind is tuple:
        for each in value:  # type: ignore[attr-defined]  # the same  # noqa: SIM110  # a generator would cost more
            if type(each) not in _SCALARS and (depth == 0 or not is_plain(each, depth - 1)):
                return False
        return True
    return kind in _SCALARS


def encode_plain(write: Callable[[object], bytes], value: object) -> bytes | None:
    """What `write` makes of a plain `value`; None if somebody slower must have a look at it."""
    if not is_plain(value) or (type(value) is dict and ENVELOPE_MARK in value):
        return None
    try:
        return write(value)
    except UNWRITABLE:
        return None


class PlainItems:
    """The data of a worker's plain items, which wait to be written together until they are many, large or old."""

    def __init__(self, write: Callable[[object], bytes], max_items: int, max_bytes: int) -> None:
        self.data: list[bytes] = []
        """The items, encoded by `write`."""
        self.bytes = 0
        """Their bytes, and those of whatever else waits with them."""
        self.until = 0.0
        """When, by the monotonic clock, they are to be written at the latest."""
        self.paused = False
        """Whether nothing can be written now."""
        self._write = write
        self._max_items = max_items
        self._max_bytes = max_bytes

    def add(self, value: object) -> bool | None:
        """Keep what a plain `value` is written as; None if somebody slower must have a look at it.

        Returns whether it is time to write, or to wait until that is possible.
        """
        data = encode_plain(self._write, value)
        if data is None:
            return None
        self.data.append(data)
        self.bytes += len(data)
        return self.is_due(len(self.data))

    def is_due(self, items: int) -> bool:
        """Whether it is time to write, or to wait until that is possible; `items` wait."""
        if items >= self._max_items or self.bytes >= self._max_bytes or self.paused:
            return True
        now = monotonic()
        return now >= self.until
