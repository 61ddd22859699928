"""`Deadlines`: one timer for many waits of the same length.

Since every wait of one kind has the same length, the order in which they begin is the order in which they end: an
insertion-ordered dict is the queue, its first key the next to expire, and one timer for that key is enough. Adding and
discarding cost a dict operation, where a timer per wait would cost a handle each, nearly all of them cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

__all__ = ["Deadlines"]

_Key = TypeVar("_Key", bound=Hashable)


class Deadlines(Generic[_Key]):
    """Calls `expire(key)` for each key that stays for `seconds`."""

    __slots__ = ("_deadlines", "_expire", "_loop", "_timer", "seconds")

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, expire: Callable[[_Key], None]) -> None:
        self.seconds = seconds
        self._loop = loop
        self._expire = expire
        self._deadlines: dict[_Key, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._deadlines)

    def __contains__(self, key: _Key) -> bool:
        return key in self._deadlines

    def __iter__(self) -> Iterator[_Key]:
        """The keys that wait, oldest first; none may be added or discarded meanwhile."""
        return iter(self._deadlines)

    def keys(self) -> list[_Key]:
        """The keys that wait, oldest first."""
        return list(self._deadlines)

    def oldest(self) -> _Key:
        """The key that has waited for longest. Raises StopIteration if none waits."""
        return next(iter(self._deadlines))

    def add(self, key: _Key) -> None:
        """Start the wait of `key`, which must not be waiting already."""
        self._deadlines[key] = self._loop.time() + self.seconds
        if self._timer is None:
            self._timer = self._loop.call_later(self.seconds, self._wake)

    def discard(self, key: _Key) -> None:
        """End the wait of `key`, if it has one."""
        self._deadlines.pop(key, None)

    def close(self) -> None:
        """Forget every wait."""
        self._deadlines.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wake(self) -> None:
        self._timer = None
        # uvloop's clock has whole milliseconds: a timer may fire a fraction before the time that was computed for it.
        now = self._loop.time() + 0.001
        try:
            while self._deadlines:
                key, deadline = next(iter(self._deadlines.items()))
                if deadline > now:
                    break
                del self._deadlines[key]
                self._expire(key)
        finally:  # the others are waited for, whatever `expire` raises
            if self._deadlines and self._timer is None:  # it may have added a key, and with it a timer
                self._timer = self._loop.call_at(next(iter(self._deadlines.values())), self._wake)
