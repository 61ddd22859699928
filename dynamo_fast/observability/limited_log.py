"""`LimitedLog`: rate-limited warnings, for what a peer can cause as often as it likes."""

from __future__ import annotations

import asyncio
import logging

__all__ = ["LimitedLog"]


class LimitedLog:
    """Logs the first warning of a cause at once, then at most one line each `seconds` with the count and the last one.

    Owned by a server, which calls `tell` on its event loop and `close` at its end. A cause is a fixed word of the program,
    so there are few. Each cause that was logged lately has one timer.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, logger: logging.Logger, seconds: float = 5.0) -> None:
        self._loop = loop
        self._logger = logger
        self._seconds = seconds
        self._causes: dict[str, _Cause] = {}

    def tell(self, cause: str, message: str, *args: object) -> None:
        """Log `message % args`, or count it if the same cause was logged less than `seconds` ago."""
        known = self._causes.get(cause)
        if known is None:
            self._logger.warning(message, *args)
            timer = self._loop.call_later(self._seconds, self._expire, cause)
            self._causes[cause] = _Cause(timer)
        else:
            known.count += 1
            known.message, known.args = message, args

    def close(self) -> None:
        """Log what was counted, and stop the timers."""
        for cause in list(self._causes):
            self._causes[cause].timer.cancel()
            self._tell(self._causes.pop(cause))

    def _expire(self, cause: str) -> None:
        known = self._causes.pop(cause)
        if known.count:
            self._tell(known)
            timer = self._loop.call_later(self._seconds, self._expire, cause)
            self._causes[cause] = _Cause(timer)

    def _tell(self, known: _Cause) -> None:
        if known.count:
            self._logger.warning(
                "%d more within %g s, the last: " + known.message, known.count, self._seconds, *known.args
            )


class _Cause:
    __slots__ = ("args", "count", "message", "timer")

    def __init__(self, timer: asyncio.TimerHandle) -> None:
        self.timer = timer
        self.count = 0
        self.message = ""
        self.args: tuple[object, ...] = ()
