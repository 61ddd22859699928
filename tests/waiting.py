"""Waiting without sleeping: for a condition on a real clock, and for a deadline on a turned one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from dynamo_fast.testing import clock

__all__ = ["LIMIT", "happens_after", "until", "until_in_thread"]

LIMIT = 20.0
"""Seconds after which a test that waits fails."""
_PAUSE = 0.002
_HAIR = 0.002
"""More than the millisecond by which `Deadlines` may be early, for uvloop's sake."""


async def until(condition: Callable[[], object]) -> None:
    """Let the loop turn until `condition()` is true. Raises asyncio.TimeoutError after `LIMIT` seconds.

    For what has no event to wait for: a counter, the size of a table, a file. Other threads get their turn, too.
    """

    async def turn() -> None:
        while not condition():
            await asyncio.sleep(_PAUSE)

    await asyncio.wait_for(turn(), LIMIT)


async def happens_after(seconds: float, happened: Callable[[], object]) -> None:
    """Turn the clock by `seconds`: `happened()` must be true then, and must not be true a moment before."""
    await clock.advance(seconds - _HAIR)
    assert not happened(), f"it happened before {seconds:g} s were over"
    await clock.advance(2 * _HAIR)
    assert happened(), f"it did not happen within {seconds:g} s"


def until_in_thread(condition: Callable[[], object], limit: float = LIMIT, pause: float = _PAUSE) -> None:
    """The same without an event loop. Raises TimeoutError after `limit` seconds.

    `pause` is the time between two looks, in seconds: a longer one for a condition that costs another process work.
    """
    deadline = time.monotonic() + limit
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{condition} was not true within {limit:g} s")
        time.sleep(pause)
