"""The event loops that asynchronous tests run on, and that end although a test has left something open."""

from __future__ import annotations

import asyncio
import sys
import warnings
from collections.abc import Callable

__all__ = ["LOOPS", "NewLoop"]

NewLoop = Callable[[], asyncio.AbstractEventLoop]

LOOPS: dict[str, NewLoop] = {"asyncio": asyncio.new_event_loop}
if sys.platform != "win32":
    import uvloop

    class ClosingLoop(uvloop.Loop):
        """uvloop, whose `close` ends, and raises what it warns of.

        uvloop's own `close` warns of each server and transport that is open, closes it, and waits until all are closed.
        Where the warning is an error, it closes nothing and waits for ever: one failed test held up all that follow.
        """

        def close(self) -> None:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                super().close()
            for each in caught:
                warnings.warn(each.message, stacklevel=2)

    LOOPS["uvloop"] = ClosingLoop
