# cython: freethreading_compatible=True, annotation_typing=False
"""`Context`: the id, the metadata and the cancellation of one request, shared by caller, router, worker and handler.

A context goes one way: running, then stopped, then killed (killed implies stopped; either may be reached at once).
*Stopped* asks the worker to finish early: what still comes is delivered. *Killed* ends the answer now.

What must act on the change registers a callback (`on_cancel`); there is no monitor task, so a request costs none.

Threads: an engine may stop or kill a context from a thread of its own. The flags change at once, for every thread. A
callback belongs to the event loop that it was registered for: it runs on that loop, at once if the change was made there,
else in the loop's next turn (`call_soon_threadsafe`).
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from dynamo_fast.logs import get_logger
from dynamo_fast.wire.ids import random_uuid
from dynamo_fast.wire.text import needs_no_escape

__all__ = ["Context", "Watcher"]

logger = get_logger(__name__)

# Two threads may take the same step at once, and it is told once. One lock for all contexts: it is held for two
# assignments, and only when a context is cancelled.
_STEP = threading.Lock()


class Watcher(Protocol):
    """What acts on the steps of a context for one request. `loop` is the one that it belongs to."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop: ...

    def context_changed(self) -> None:
        """The context was stopped or killed."""


class Context:
    """Identity and cancellation of one request.

    `id` is any text, by default a random UUID (Dynamo wants it unique among requests in flight). `metadata` is a
    mapping of text to text that travels with the request. Both reach the handler's context on the worker.
    """

    __slots__ = (
        "__weakref__",
        "_callbacks",
        "_id",
        "_killed",
        "_metadata",
        "_needs_no_escape",
        "_stopped",
        "_trace_headers",
        "_watchers",
        "parent_span_id",
    )

    def __init__(
        self,
        id: str | None = None,
        metadata: Mapping[str, str] | None = None,
        trace_headers: Mapping[str, str] | None = None,
    ) -> None:
        if id is not None and not isinstance(id, str):
            raise TypeError(f"id must be str, not {type(id).__name__}")
        self._id = random_uuid() if id is None else id
        self._needs_no_escape = id is None  # True or, for an id that was given, not looked at yet
        # Nearly every context has no metadata, and lives as long as its request: no empty dict for it.
        self._metadata: dict[str, str] | None = _checked_metadata(metadata) if metadata else None
        self._trace_headers = None if trace_headers is None else dict(trace_headers)
        self.parent_span_id: str | None = None
        """The span that the request came from, at a worker that follows traces."""
        self._stopped = False
        self._killed = False
        # Made when first needed, as the metadata. What the planes register: see `watch`.
        self._watchers: list[Watcher] | None = None
        # Each callback and its loop. A dict for its order and its cheap removal.
        self._callbacks: dict[Callable[[], None], asyncio.AbstractEventLoop | None] | None = None

    def __repr__(self) -> str:
        state = "killed" if self._killed else "stopped" if self._stopped else "running"
        return f"<Context {self._id!r} {state}>"

    def id(self) -> str:
        """The request id, as on the wire."""
        return self._id

    def id_needs_no_escape(self) -> bool:
        """Whether the id stands in JSON as it is."""
        if not self._needs_no_escape:
            self._needs_no_escape = needs_no_escape(self._id)
        return self._needs_no_escape

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata; assigning replaces the contents."""
        if self._metadata is None:
            self._metadata = {}
        return self._metadata

    @metadata.setter
    def metadata(self, metadata: Mapping[str, str]) -> None:
        contents = _checked_metadata(metadata)
        present = self.metadata
        present.clear()
        present.update(contents)

    def trace_headers(self) -> dict[str, str] | None:
        """W3C trace headers (`traceparent`, ...): those that came with the request, or are to go out with it."""
        return self._trace_headers

    def is_stopped(self) -> bool:
        """Whether the answer is no longer wanted (true for a killed context, too)."""
        return self._stopped

    def is_killed(self) -> bool:
        """Whether the answer was cut off."""
        return self._killed

    def stop_generating(self) -> None:
        """Ask for an early end: the worker is told to stop, items under way are still delivered. From any thread."""
        with _STEP:
            if self._stopped:
                return
            self._stopped = True
        self._notify()

    def kill(self) -> None:
        """End the answer now: the worker is told to quit, nothing more is delivered. From any thread."""
        with _STEP:
            if self._killed:
                return
            self._stopped = self._killed = True
        self._notify()

    async def async_killed_or_stopped(self) -> bool:
        """Wait until the context is stopped or killed; returns True. On any event loop."""
        loop = asyncio.get_running_loop()
        changed = loop.create_future()

        def wake() -> None:
            if not changed.done():
                changed.set_result(None)

        self.on_cancel(wake, loop)
        try:
            if not self._stopped:  # looked at after the registration: another thread may stop it at any moment
                await changed
        finally:
            self.off_cancel(wake)
        return True

    def on_cancel(self, callback: Callable[[], None], loop: asyncio.AbstractEventLoop | None = None) -> None:
        """Call `callback()` at each step down (stop, then kill) from now on; remove it with `off_cancel`.

        It runs on `loop`, by default the loop that runs now; without either, on the thread that takes the step. What it
        raises is logged. A step that was taken before is not told again: look at `is_stopped()` after this.
        """
        if self._callbacks is None:
            self._callbacks = {}
        self._callbacks[callback] = loop or asyncio._get_running_loop()

    def off_cancel(self, callback: Callable[[], None]) -> None:
        """Stop calling `callback`; nothing happens if it is not there."""
        if self._callbacks is not None:
            self._callbacks.pop(callback, None)

    def watch(self, watcher: Watcher) -> None:
        """As `on_cancel` with a method of an object that every request has: without a bound method and a dict's entry.

        A context has few of them, and tells them before the callbacks. `unwatch` removes it.
        """
        if self._watchers is None:
            self._watchers = [watcher]
        else:
            self._watchers.append(watcher)

    def unwatch(self, watcher: Watcher) -> None:
        """Stop telling `watcher`; nothing happens if it is not there."""
        if self._watchers is not None and watcher in self._watchers:
            self._watchers.remove(watcher)

    def link_child(self, child: Context) -> Callable[[], None]:
        """Stop and kill `child` whenever this context is stopped or killed, now included.

        Returns the function that unlinks them: a parent that outlives its children would keep them all otherwise.
        """

        def follow() -> None:
            if self._killed:
                child.kill()
            elif self._stopped:
                child.stop_generating()

        if self._callbacks is None:
            self._callbacks = {}
        self._callbacks[follow] = None  # on any thread: the child's own callbacks find their loops
        follow()
        return lambda: self.off_cancel(follow)

    def _notify(self) -> None:
        # Copies, made at once: a callback, or another thread, may register and remove some meanwhile.
        if self._watchers:
            for watcher in self._watchers.copy():
                self._tell(self._call_watcher, watcher, watcher.loop)
        if self._callbacks:
            for callback, loop in self._callbacks.copy().items():
                self._tell(self._call, callback, loop)

    def _tell(self, call: Callable[[Any], None], whom: Any, loop: asyncio.AbstractEventLoop | None) -> None:
        if loop is None or loop is asyncio._get_running_loop():
            call(whom)
        else:
            # Where the loop is closed, what this would have ended is gone.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(call, whom)

    def _call_watcher(self, watcher: Watcher) -> None:
        if self._watchers is not None and watcher in self._watchers:  # else it was removed since
            self._run(watcher.context_changed)

    def _call(self, callback: Callable[[], None]) -> None:
        if self._callbacks is not None and callback in self._callbacks:  # as above
            self._run(callback)

    def _run(self, callback: Callable[[], None]) -> None:
        try:
            callback()
        except Exception:
            logger.exception("a callback of the context %r failed", self._id)


def _checked_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    contents = dict(metadata)
    for key, value in contents.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"metadata maps str to str, not {type(key).__name__} to {type(value).__name__} ({key!r})")
    return contents
