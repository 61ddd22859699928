"""Waiting for a condition, for tests on a real clock. (On a turned clock: `dynamo_fast.testing.clock.settle`.)"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

__all__ = ["LIMIT", "until", "until_in_thread"]

LIMIT = 20.0
"""Seconds after which a test that waits fails."""
_PAUSE = 0.002


async def until(condition: Callable[[], object]) -> None:
    """Let the loop turn until `condition()` is true. Raises asyncio.TimeoutError after `LIMIT` seconds.

    For what has no event to wait for: a counter, the size of a table, a file. Other threads get their turn, too.
    """

    async def turn() -> None:
        while not condition():
            await asyncio.sleep(_PAUSE)

    await asyncio.wait_for(turn(), LIMIT)


def until_in_thread(condition: Callable[[], object]) -> None:
    """The same without an event loop. Raises TimeoutError."""
    deadline = time.monotonic() + LIMIT
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{condition} was not true within {LIMIT:g} s")
        time.sleep(_PAUSE)
