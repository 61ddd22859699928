"""Waiting for what another thread or process does: `until` for a condition, `Clock` for time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from dynamo_fast.discovery import background

__all__ = ["LIMIT", "Clock", "until"]

LIMIT = 20
"""Seconds after which a test that waits fails."""
_SETTLED = 10
"""Turns of a loop in which every task has reached its next pause; a heartbeat has three."""


async def until(condition: Callable[[], Any]) -> None:
    """Wait until `condition()`, or what it awaits, is true. For files and other processes, which tell of no change."""
    deadline = time.monotonic() + LIMIT
    while True:
        met = condition()
        if asyncio.iscoroutine(met):
            met = await met
        if met:
            return
        assert time.monotonic() < deadline, "it did not happen"
        await asyncio.sleep(0.01)


class Clock:
    """The clock of every store's thread that is started while the fixture `clock` is there. It stands still until turned.

    Owned by a test, called on the test's own event loop.
    """

    def __init__(self) -> None:
        self.now = 1000.0
        self._loops: list[_TurnedLoop] = []

    def make_loop(self) -> background.ThreadLoop:
        """In place of `ThreadLoop`."""
        self._loops.append(_TurnedLoop(self))
        return self._loops[-1]

    async def turn(self, seconds: float) -> None:
        """Let that time pass: everything that is due happens in its order, at its time."""
        target = self.now + seconds
        while True:
            due = [when for when in await self._settle() if when <= target]
            if not due:
                break
            self.now = max(self.now, min(due))
        self.now = target
        await self._settle()

    async def jump(self, seconds: float) -> None:
        """Let that time pass while this process is paused: what was due happens once, too late."""
        self.now += seconds
        await self._settle()

    async def _settle(self) -> list[float]:
        """Wait until the loops have nothing to do now. Returns when they next have."""
        running = [each for each in self._loops if each.is_running()]
        return [
            when
            for each in running
            for when in await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(each.settle(), each))
        ]


class _TurnedLoop(background.ThreadLoop):
    """The loop of one thread, on the test's clock."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        super().__init__()

    def time(self) -> float:
        return self._clock.now

    async def settle(self) -> list[float]:
        for _ in range(_SETTLED):
            await asyncio.sleep(0)
        return [handle.when() for handle in self._scheduled if not handle.cancelled()]  # type: ignore[attr-defined]
