"""`Abandonment`: closes an answer whose consumer was cancelled while it waited for an item, and does not come back.

A web framework cancels its task when its client leaves, and that task waits for the next item nearly all the time. The
traceback of the cancellation keeps the task's frames alive, and they keep the stream: it would live, and its worker would
go on, until a full garbage collection. But a consumer that polls, `asyncio.wait_for(anext(stream), 0.5)` in a loop, cancels
its waits as well, and must lose nothing. The difference is what follows: the consumer that polls asks again at once.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable
from typing import Protocol

from dynamo_fast.errors import Cancelled
from dynamo_fast.logs import get_logger

__all__ = ["Abandonment"]

logger = get_logger(__name__)

_HAIR = 0.001
"""uvloop's clock has whole milliseconds."""


class AbandonedStream(Protocol):
    """What this asks of the stream."""

    _asked: bool
    """Whether something has asked for an item since a wait was cancelled."""

    def close(self) -> None: ...


class Abandonment:
    """Looks after one stream, from its first cancelled wait to its end.

    The stream owns it, calls `wait_cancelled`, and ends it with `stop`. It refers to the stream weakly, so that a stream
    that is dropped is closed at once.
    """

    __slots__ = ("_loop", "_on_close", "_request_id", "_seconds", "_since", "_stream", "_timer", "error")

    def __init__(
        self, stream: AbandonedStream, request_id: str, loop: asyncio.AbstractEventLoop, seconds: float
    ) -> None:
        """`seconds`: how long the consumer may take to ask again."""
        self._stream = weakref.ref(stream)
        self._request_id = request_id
        self._loop = loop
        self._seconds = seconds
        self._since = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._on_close: Callable[[], None] | None = None
        self.error: Cancelled | None = None
        """For a consumer that asks after the stream was closed: it must not take that for the end of the answer."""

    def wait_cancelled(self, on_close: Callable[[], None] | None) -> None:
        """The time begins (again). `on_close` is called if the stream is closed because of it."""
        self._since = self._loop.time()
        self._on_close = on_close or self._on_close
        if self._timer is None:
            self._timer = self._loop.call_later(self._seconds, self._look)

    def stop(self) -> None:
        """The stream has ended."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._on_close = None

    def _look(self) -> None:
        """One timer serves a consumer that polls: it looks at the clock when it fires."""
        self._timer = None
        stream = self._stream()
        if stream is None or stream._asked:
            return
        due = self._since + self._seconds
        if due > self._loop.time() + _HAIR:
            self._timer = self._loop.call_at(due, self._look)
        else:
            self._close(stream)

    def _close(self, stream: AbandonedStream) -> None:
        self.error = Cancelled(
            "the answer was closed: a wait for its next item was cancelled, and "
            f"{self._seconds:g} s later nothing had asked for an item again (DYNAMO_FAST_ABANDONED_AFTER)"
        )
        logger.warning(
            "request %s is abandoned: the wait for its next item was cancelled, and nothing has asked for an item for "
            "%g s; closing it (`async with` closes a stream at once)",
            self._request_id,
            self._seconds,
        )
        on_close = self._on_close
        stream.close()
        if on_close is not None:
            on_close()
