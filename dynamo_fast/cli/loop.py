"""The event loop of a command, uvloop if it is installed, and the signals that end it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from types import FrameType
from typing import Any, NoReturn, TypeVar

__all__ = ["Termination", "end_now", "run", "run_until_told"]

_T = TypeVar("_T")


def run(main: Coroutine[Any, Any, _T]) -> _T:
    """Run `main` to its end."""
    try:
        import uvloop
    except ImportError:  # Windows
        return asyncio.run(main)
    return uvloop.run(main)


def run_until_told(main: Callable[[Termination], Coroutine[Any, Any, int]]) -> int:
    """Run a command that ends with a signal; returns its status, 128 + the signal if that came while it was starting."""

    async def told() -> int:
        termination = Termination()
        try:
            return await main(termination)
        except asyncio.CancelledError:
            if termination.number is None:
                raise
            return 128 + termination.number

    return run(told())


class Termination:
    """SIGINT and SIGTERM, once this is made: the first asks the command to end, the second ends the process at once.

    A command that is still starting, which may wait for a server, is cancelled by the first signal; `began` ends that
    time. Made on the running loop, in the main thread, by the task of the command. These are Python's own signal handlers,
    not the loop's: the second signal is obeyed also while something blocks the loop.
    """

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        """Set by the first signal."""
        self.number: int | None = None
        """The first signal."""
        self._loop = asyncio.get_running_loop()
        self._starting = asyncio.current_task()
        self._count = itertools.count()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if next(self._count):  # in one step: this may itself be interrupted by the other signal
            end_now(128 + number)
        self.number = number
        with contextlib.suppress(RuntimeError):  # the loop has ended by itself
            self._loop.call_soon_threadsafe(self.end)

    def end(self) -> None:
        """What the first signal does."""
        self.asked.set()
        if self._starting is not None:
            self._starting.cancel()

    def began(self) -> None:
        """The command does what it is for: from now on it looks at `asked`."""
        self._starting = None


def end_now(status: int) -> NoReturn:
    """End the process, whatever still runs in it: its connections are closed by the system."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # a signal may have come in the middle of another flush
            stream.flush()
    os._exit(status)
