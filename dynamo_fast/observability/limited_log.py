"""`LimitedLog`: warnings that a peer can cause as often as it likes, without a line for each."""

from __future__ import annotations

import asyncio
import logging

__all__ = ["LimitedLog"]


class LimitedLog:
    """One line for each cause at once; what follows within `seconds` is counted and told in one more line.

    Owned by a server, used on its event loop. A cause is a fixed word of the program, so there are only a few; each has a
    timer while there is something to count.
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
        """Tell what was counted, and forget it."""
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
