"""`Watchdog`: names the handler that blocks the event loop.

A handler that computes or sleeps on the thread of the loop stops every other request of its worker. Another thread passes
a callback to the loop once a second. If the callback has not run a second later, it logs what the thread of the loop
executes: the endpoint, the handler, and the line. Requests pay nothing for it. Its clock is the real one: a blocked loop
cannot turn its own.
"""

from __future__ import annotations

import asyncio
import sys
import threading

from dynamo_fast.ingress.request import AcceptingEndpoint, endpoint_of
from dynamo_fast.logs import get_logger

__all__ = ["Watchdog"]

logger = get_logger(__name__)

_BLOCKED_SECONDS = 1.0
_QUIET_SECONDS = 10.0


class Watchdog:
    """One thread for a worker, from `Worker.start` to `Worker.close`. Made on the loop that it watches.

    The thread holds only the loop. It ends by `close`, or with the loop.
    """

    def __init__(self, blocked_seconds: float = _BLOCKED_SECONDS, quiet_seconds: float = _QUIET_SECONDS) -> None:
        """A handler that blocks for `blocked_seconds` is logged, and then none for `quiet_seconds`."""
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._blocked_seconds = blocked_seconds
        self._quiet_seconds = quiet_seconds
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name="dynamo_fast watchdog", daemon=True).start()

    def close(self) -> None:
        """Stop watching. May be called twice."""
        self._closed.set()

    def _watch(self) -> None:
        alive = threading.Event()
        while not self._closed.wait(self._blocked_seconds):
            if not self._loop.is_running():  # stopped or not started: callbacks would pile up
                if self._loop.is_closed():
                    return
                continue
            alive.clear()
            try:
                self._loop.call_soon_threadsafe(alive.set)
            except RuntimeError:  # closed since
                return
            if not alive.wait(self._blocked_seconds) and self._report():
                self._closed.wait(self._quiet_seconds)

    def _report(self) -> bool:
        """Log the handler that runs now. Returns whether there is one."""
        found = self._endpoint()
        frame = sys._current_frames().get(self._loop_thread)
        if frame is None or found is None:
            return False
        logger.warning(
            "the handler %s of %s has blocked the event loop for more than %g s, now at %s:%d in %s: no other request "
            "is served meanwhile. Let it await, or move the work to a thread (asyncio.to_thread)",
            found.handler_name,
            found.endpoint,
            self._blocked_seconds,
            frame.f_code.co_filename,
            frame.f_lineno,
            frame.f_code.co_name,
        )
        return True

    def _endpoint(self) -> AcceptingEndpoint | None:
        """The endpoint whose request the loop serves now."""
        task = asyncio.current_task(self._loop)
        return None if task is None else endpoint_of(task)
