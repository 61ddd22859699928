# cython: freethreading_compatible=True, annotation_typing=False
"""`Deadlines`: one timer for many waits of the same length.

All waits of one kind have the same length, so they end in the order in which they began. A dict keeps that order: its first
key is the next to expire, and one timer for that key is enough. To add or to discard a key costs one dict operation. A
timer for each wait would cost a handle each, and nearly all of them would be cancelled.

The clock is the event loop's: a test can turn it (`testing.clock`).

Each request has several of these waits: where there is a compiler, Cython translates this file, with the types in
`deadlines.pxd`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Iterator
from typing import TYPE_CHECKING, TypeVar

from dynamo_fast._native import Native

if TYPE_CHECKING:
    from typing import Generic
else:
    from dynamo_fast._native import Generic

__all__ = ["Deadlines"]

_Key = TypeVar("_Key", bound=Hashable)


class Deadlines(Native, Generic[_Key]):
    """Calls `expire(key)` for each key that stays for `seconds`.

    It owns the keys that wait and one timer. Its owner adds and discards keys, on the loop's thread, and ends it with
    `close`. A key leaves the table before `expire` is called with it; `expire` may add it again.
    """

    __slots__ = ("_deadlines", "_expire", "_loop", "_time", "_timer", "seconds")

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, expire: Callable[[_Key], None]) -> None:
        self.seconds = seconds
        self._loop = loop
        self._time = loop.time
        self._expire = expire
        self._deadlines: dict[_Key, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._deadlines)

    def __contains__(self, key: _Key) -> bool:
        return key in self._deadlines

    def __iter__(self) -> Iterator[_Key]:
        """The keys that wait, oldest first. Do not add or discard one during the iteration: see `keys`."""
        return iter(self._deadlines)

    def keys(self) -> list[_Key]:
        """A copy of the keys that wait, oldest first."""
        return list(self._deadlines)

    def oldest(self) -> _Key:
        """The key that has waited for longest. Raises StopIteration if none waits."""
        return next(iter(self._deadlines))

    def add(self, key: _Key) -> None:
        """Start the wait of `key`. Discard it first if it waits already: it would keep its place in the order."""
        self._deadlines[key] = self._time() + self.seconds
        if self._timer is None:
            self._timer = self._loop.call_later(self.seconds, self._wake)

    def discard(self, key: _Key) -> None:
        """End the wait of `key`, if it has one."""
        self._deadlines.pop(key, None)

    def close(self) -> None:
        """End every wait: nothing expires any more."""
        self._deadlines.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wake(self) -> None:
        self._timer = None
        # uvloop's clock has whole milliseconds: a timer may fire up to one millisecond before its time.
        now = self._time() + 0.001
        try:
            while self._deadlines:
                key, deadline = next(iter(self._deadlines.items()))
                if deadline > now:
                    break
                del self._deadlines[key]
                self._expire(key)
        finally:  # the other keys keep their time even if `expire` raises
            if self._deadlines and self._timer is None:  # it may have added a key, and with it a timer
                self._timer = self._loop.call_at(next(iter(self._deadlines.values())), self._wake)
