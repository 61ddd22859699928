"""`clock_of`: the clock that decides how long items are corked and requests wait."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

__all__ = ["clock_of"]


def clock_of(loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    """Returns `loop.time` if the loop has a clock of its own (see `dynamo_fast.testing.clock`), else `time.monotonic`.

    uvloop's `time` stands still while a callback runs: it does not show that a handler runs on and on. asyncio's `time` is
    `time.monotonic` behind one more call, which every item would pay for.
    """
    has_own_clock = isinstance(loop, asyncio.BaseEventLoop) and type(loop).time is not asyncio.BaseEventLoop.time
    return loop.time if has_own_clock else time.monotonic
