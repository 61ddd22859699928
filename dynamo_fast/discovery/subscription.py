"""`Subscription`: passes the events of a bucket to one listener, on the listener's event loop."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

from dynamo_fast.discovery.store import RecordEvent, RecordListener, RecordPut, RecordRemoved, Watch
from dynamo_fast.logs import get_logger

__all__ = ["Subscription"]

logger = get_logger(__name__)

MOST_WAITING = 10_000
"""Events that may wait for a blocked event loop; then only the last events of each record are kept."""

_T = TypeVar("_T")


class Subscription(Watch, Generic[_T]):
    """One listener, and the events that it has not heard yet, in order.

    Made by `Bucket.watch` on the listener's event loop. `tell` is called from any thread, by the bucket; the listener is
    called on its own loop. Ends with `close`: by the listener's side, by the bucket, or when that loop is closed.
    """

    def __init__(
        self, prefix: str, listener: RecordListener[_T], on_close: Callable[[Subscription[Any]], None]
    ) -> None:
        self.prefix = prefix
        """How the keys begin that the listener wants to hear of."""
        self._loop = asyncio.get_running_loop()
        self._listener: RecordListener[_T] | None = listener
        self._on_close = on_close
        self._events: deque[RecordEvent[_T]] = deque()
        self._lock = threading.Lock()
        self._scheduled = False
        self._has_raised = False

    def tell(self, event: RecordEvent[_T]) -> None:
        """Pass an event on: at once on the listener's own loop, else as soon as that loop turns."""
        with self._lock:
            self._events.append(event)
            if len(self._events) > MOST_WAITING:
                self._events = deque(_last_events(self._events))
            scheduled, self._scheduled = self._scheduled, True
        if _running_loop() is self._loop:
            self.deliver()
        elif not scheduled:
            try:
                self._loop.call_soon_threadsafe(self.deliver)
            except RuntimeError:  # that loop is closed
                self.close()

    def deliver(self) -> None:
        """Call the listener with everything that waits. Called on the listener's loop."""
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

    def _call(self, listener: RecordListener[_T], event: RecordEvent[_T]) -> None:
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


def _last_events(events: Iterable[RecordEvent[_T]]) -> list[RecordEvent[_T]]:
    """For each record its last event; two, if that is a `RecordPut` after a `RecordRemoved`."""
    last: dict[str, list[RecordEvent[_T]]] = {}
    for event in events:
        before = last.pop(event.key, [])
        removed = [each for each in before if isinstance(each, RecordRemoved)] if isinstance(event, RecordPut) else []
        last[event.key] = [*removed[:1], event]
    return [event for each in last.values() for event in each]
