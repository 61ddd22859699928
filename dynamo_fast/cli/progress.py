"""`Progress`: how far a command is, on one line of standard error that is written again and again. Only on a terminal."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from dynamo_fast.wire.text import printable

__all__ = ["Progress", "showing"]

_EVERY = 0.2
"""Seconds between two looks."""
_QUIET_SECONDS = 1.0
"""What is done sooner shows nothing."""
_ERASE = "\r\x1b[K"


class Progress:
    """The line. Its owner calls `show` as often as it likes, and ends it with `close`, which erases the line."""

    def __init__(self, *, hidden: bool = False, quiet: float = _QUIET_SECONDS) -> None:
        """`hidden`: show nothing, because the command writes to the same terminal."""
        self._visible = sys.stderr.isatty() and not hidden
        self._due = time.monotonic() + quiet
        self._is_shown = False

    @property
    def due(self) -> bool:
        """Whether it is time to show how far the command is."""
        return self._visible and time.monotonic() >= self._due

    def show(self, text: str) -> None:
        """Write the line, if it is time."""
        if self.due:
            self._due = time.monotonic() + _EVERY
            self._is_shown = True
            print(f"{_ERASE}{printable(text)}", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Erase the line."""
        if self._is_shown:
            print(_ERASE, end="", file=sys.stderr, flush=True)


@asynccontextmanager
async def showing(text: Callable[[], str]) -> AsyncIterator[None]:
    """Show what `text` returns as long as the block runs."""
    progress = Progress(quiet=0.0)

    async def follow() -> None:
        while True:
            await asyncio.sleep(_EVERY)
            progress.show(text())

    task = asyncio.ensure_future(follow())
    try:
        yield
    finally:
        task.cancel()
        progress.close()
