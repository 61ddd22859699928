"""A clock that tests turn instead of waiting: `TurnedEventLoop`, and functions for a coroutine that runs on one.

    def test_a_call_times_out() -> None:
        async def main() -> None:
            call = asyncio.ensure_future(asyncio.wait_for(never_answers(), 3600))
            await clock.advance(3599)
            assert not call.done()
            await clock.advance(1)
            assert call.done()

        clock.run(main())               # takes milliseconds

The loop never waits for a timer. When no callback is ready and the sockets are quiet, it turns its clock to the next timer
and runs that. So a test may also await the end itself: the clock is turned as far as that takes, and `now` says how far.

The clock does not turn `time.time`, `time.monotonic`, other threads or other processes. It stands still while a function
runs in the loop's executor. A test that waits for a process, or for a thread of its own, needs a real clock.

uvloop has its clock in C: it cannot be turned. docs/testing.md shows how to use this with pytest.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Executor
from typing import Any, TypeVar

__all__ = ["TurnedEventLoop", "advance", "now", "run", "settle"]

_T = TypeVar("_T")

_START = 1000.0
_QUIET_SECONDS = 0.002
"""Real time without an event after which the sockets are quiet. The loopback interface delivers faster than that."""


class TurnedEventLoop(asyncio.SelectorEventLoop):
    """asyncio's own loop over real sockets. Its clock jumps to the next timer when nothing else is left to do.

    It owns the clock and the selector. One test uses it, on one thread; `close()` ends it.
    """

    def __init__(self) -> None:
        self._now = _START
        self._in_executor = 0
        self._settling: list[asyncio.Future[None]] = []
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        """The turned clock, in seconds. It starts at 1000."""
        return self._now

    def run_in_executor(self, executor: Executor | None, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        """As asyncio's. The clock stands still until `func` has returned."""
        future = super().run_in_executor(executor, func, *args)
        self._in_executor += 1
        future.add_done_callback(self._executed)
        return future

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """As asyncio's, without a time limit: the clock stands still until the threads have ended."""
        self._in_executor += 1
        try:
            await super().shutdown_default_executor()
        finally:
            self._in_executor -= 1

    async def settle(self) -> None:
        """See the function `settle`."""
        settled: asyncio.Future[None] = self.create_future()
        self._settling.append(settled)
        await settled

    def _executed(self, _: asyncio.Future[Any]) -> None:
        self._in_executor -= 1

    def _quiet(self, timeout: float | None) -> None:
        """Nothing is left to do before the next timer, which is due in `timeout` seconds; None: there is no timer."""
        if self._settling:
            settling, self._settling = self._settling, []
            for each in settling:
                if not each.done():
                    each.set_result(None)
        elif timeout is not None:
            self._now += timeout


class _JumpingSelector(selectors.BaseSelector):
    """The platform's selector. It turns the clock where that one would wait for a timer.

    Owned by its loop, which closes it.
    """

    def __init__(self, loop: TurnedEventLoop) -> None:
        self._loop = loop
        self._real = selectors.DefaultSelector()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout <= 0:
            return self._real.select(timeout)
        if self._loop._in_executor:
            return self._real.select(None)  # the end of the function wakes the selector
        if timeout is None and not self._loop._settling:
            return self._real.select(None)
        events = self._real.select(0) or self._real.select(_QUIET_SECONDS)
        if not events:
            self._loop._quiet(timeout)
        return events

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._real.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.modify(fileobj, events, data)

    def close(self) -> None:
        self._real.close()

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._real.get_map()


def now() -> float:
    """The time of the running loop, in seconds."""
    return asyncio.get_running_loop().time()


async def advance(seconds: float) -> None:
    """Turn the clock by `seconds`. Timers that are due until then fire, in their order, each at its time.

    Returns when everything has happened that follows from them, also over sockets (see `settle`).
    Raises TypeError on any other loop: there it would wait.
    """
    loop = _turned_loop()
    await asyncio.sleep(seconds)
    await loop.settle()


async def settle() -> None:
    """Wait until no callback is ready and the sockets are quiet, without turning the clock.

    Raises TypeError on any other loop, which cannot tell.
    """
    await _turned_loop().settle()


def _turned_loop() -> TurnedEventLoop:
    loop = asyncio.get_running_loop()
    if not isinstance(loop, TurnedEventLoop):
        raise TypeError(f"a turned clock needs a TurnedEventLoop, and {type(loop).__name__} runs: see docs/testing.md")
    return loop


def run(main: Coroutine[Any, Any, _T]) -> _T:
    """Run `main` on a loop of its own with a turned clock, and close the loop. Raises what `main` raises.

    Tasks that `main` leaves behind are cancelled, as `asyncio.run` does.
    """
    loop = TurnedEventLoop()
    try:
        return loop.run_until_complete(main)
    finally:
        _cancel_tasks(loop)
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


def _cancel_tasks(loop: asyncio.AbstractEventLoop) -> None:
    if tasks := asyncio.all_tasks(loop):
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
