"""A clock that tests turn instead of waiting: `TurnedEventLoop`, and `run`, which runs a coroutine on one.

    def test_a_call_times_out() -> None:
        async def main() -> None:
            began = asyncio.get_running_loop().time()
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(never_answers(), 3600)
            assert asyncio.get_running_loop().time() - began == pytest.approx(3600)

        clock.run(main())               # takes milliseconds

When no callback is ready and the sockets are quiet, the loop does not wait for its next timer: its clock jumps there.
Timers fire in their order, so `await asyncio.sleep(60)` runs everything that is due in the next minute.

What the clock does not turn: `time.time`, `time.monotonic`, other threads and other processes. While a function runs in
the loop's executor, the clock stands still. A test whose peer is another process or a thread of its own needs a real clock.

uvloop has its clock in C: it cannot be turned.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Executor
from typing import Any, TypeVar

__all__ = ["TurnedEventLoop", "run"]

_T = TypeVar("_T")

_START = 1000.0
_QUIET_SECONDS = 0.002
"""Real time without an event after which the sockets are quiet. The loopback interface delivers faster than that."""


class TurnedEventLoop(asyncio.SelectorEventLoop):
    """asyncio's own loop over real sockets, with a clock that jumps to the next timer when nothing else is left to do.

    Owned by one test and used on one thread, as every event loop; it ends with `close()`.
    """

    def __init__(self) -> None:
        self._now = _START
        self._in_executor = 0
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

    def _executed(self, _: asyncio.Future[Any]) -> None:
        self._in_executor -= 1

    def _jump(self, seconds: float) -> None:
        self._now += seconds


class _JumpingSelector(selectors.BaseSelector):
    """The platform's selector. It turns the clock where that one would wait for a timer."""

    def __init__(self, loop: TurnedEventLoop) -> None:
        self._loop = loop
        self._real = selectors.DefaultSelector()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or timeout <= 0:
            return self._real.select(timeout)
        if self._loop._in_executor:
            return self._real.select(None)  # the end of the function wakes the selector
        events = self._real.select(0) or self._real.select(_QUIET_SECONDS)
        if not events:
            self._loop._jump(timeout)
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
