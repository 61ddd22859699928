"""`Termination`: SIGTERM and SIGINT while a worker runs."""

from __future__ import annotations

import asyncio
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from dynamo_fast.logs import get_logger

__all__ = ["Termination"]

logger = get_logger(__name__)


class Termination:
    """Hears SIGTERM and SIGINT from the beginning of a `with` block to its end, on the loop that runs there.

    These are Python's own signal handlers, not the loop's: `dynamo.common.backend.Worker` switches the loop's off, so that
    no engine replaces the worker's. Further signals change nothing, as in Dynamo. In a thread other than the main thread
    no signal can be heard, and `asked` is never set.
    """

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        """Set by the first signal."""
        self._loop = asyncio.get_running_loop()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Termination:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._on_signal)
        else:
            logger.warning("SIGTERM and SIGINT do not end this worker: it does not run in the main thread")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._loop.call_soon_threadsafe(self._ask, signal.Signals(number).name)

    def _ask(self, name: str) -> None:
        if not self.asked.is_set():
            logger.info("%s received: the worker leaves", name)
        self.asked.set()
