"""`Subscription`: passes the events of discovery to one listener, on the listener's event loop."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable

from dynamo_fast.discovery.base import Added, DiscoveryEvent, Listener, Removed, Watch
from dynamo_fast.logs import get_logger
from dynamo_fast.wire.address import EndpointInstanceId

__all__ = ["Subscription"]

logger = get_logger(__name__)

MOST_WAITING = 10_000
"""Events that may wait for a blocked event loop; then only the last news of each instance are kept."""


class Subscription(Watch):
    """One listener and the events that it has not heard yet, in order.

    Owned by the backend until it is closed, by the listener's side or by the backend. `tell` is called from any thread;
    the listener is called on the event loop on which the subscription was made.
    """

    def __init__(self, listener: Listener, on_close: Callable[[Subscription], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._listener: Listener | None = listener
        self._on_close = on_close
        self._events: deque[DiscoveryEvent] = deque()
        self._lock = threading.Lock()
        self._scheduled = False
        self._has_raised = False

    def tell(self, event: DiscoveryEvent) -> None:
        """Pass an event on: at once on the listener's own loop, else as soon as that loop turns."""
        with self._lock:
            self._events.append(event)
            if len(self._events) > MOST_WAITING:
                self._events = deque(_last_news(self._events))
            scheduled, self._scheduled = self._scheduled, True
        if _running_loop() is self._loop:
            self.deliver()
        elif not scheduled:
            try:
                self._loop.call_soon_threadsafe(self.deliver)
            except RuntimeError:  # that loop is closed
                self.close()

    def deliver(self) -> None:
        """Call the listener with everything that waits."""
        self._scheduled = False
        while self._listener is not None:
            with self._lock:
                if not self._events:
                    return
                event = self._events.popleft()
            self._call(self._listener, event)

    def close(self) -> None:
        if self._listener is not None:
            self._listener = None
            self._on_close(self)

    def _call(self, listener: Listener, event: DiscoveryEvent) -> None:
        try:
            listener(event)
        except Exception:
            if not self._has_raised:
                self._has_raised = True
                logger.exception("a listener of discovery raised; its later errors are not logged: %r", listener)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _last_news(events: deque[DiscoveryEvent]) -> list[DiscoveryEvent]:
    """For each instance its last event; two, if that is an `Added` after a `Removed`."""
    news: dict[EndpointInstanceId, list[DiscoveryEvent]] = {}
    for event in events:
        before = news.pop(event.instance.endpoint_instance_id, [])
        removed = [each for each in before if isinstance(each, Removed)] if isinstance(event, Added) else []
        news[event.instance.endpoint_instance_id] = [*removed[:1], event]
    return [event for each in news.values() for event in each]
