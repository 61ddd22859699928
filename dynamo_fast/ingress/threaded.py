"""`Threaded`: the items of a generator that is not asynchronous. It runs in a thread of its own, from its call to its end.

The thread stays ahead of the worker by a few items and then waits, so that a slow router holds the generator back. When the
answer is cut short, the generator is closed at its next `yield`: Python cannot interrupt what it does until then. It sees
sooner that nothing more is wanted if it asks `context.is_stopped()`, which may be called from any thread.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

__all__ = ["Threaded", "Threads"]

_AHEAD = 16
"""Items that the thread may be ahead."""


class Threads(asyncio.Semaphore):
    """How many generators of one endpoint may run at once; the others wait for their turn. One event loop."""


class Threaded(AsyncIterator[Any]):
    """What one generator yields. `Answer` iterates over it, and ends it with `aclose`.

    It owns the thread, which begins with the first item that is asked for, and a place among the `threads` as long as the
    thread runs. The thread is a daemon: a process may end while a generator computes.
    """

    def __init__(self, make: Callable[[], Iterator[Any]], threads: Threads) -> None:
        """`make` is called in the thread."""
        self._make = make
        self._threads = threads
        self._loop = asyncio.get_running_loop()
        self._has_begun = False
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._items: deque[Any] = deque()
        self._closed = False
        """Whether no more items are wanted."""
        self._error: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._ended: asyncio.Future[None] = self._loop.create_future()
        """Done when the generator has been closed, and its thread is about to end."""

    async def __anext__(self) -> Any:
        """Raises what the generator raises."""
        if not self._has_begun:
            await self._begin()
        while not self._items:
            if self._ended.done():
                self._raise()
            self._waiter = self._loop.create_future()
            await self._waiter
        with self._lock:
            item = self._items.popleft()
            self._room.notify()
        return item

    async def aclose(self) -> None:
        """Close the generator at its next `yield`, and wait until it has ended."""
        with self._lock:
            self._closed = True
            self._room.notify()
        if self._has_begun:
            await asyncio.shield(self._ended)

    async def _begin(self) -> None:
        await self._threads.acquire()
        run = contextvars.copy_context().run
        thread = threading.Thread(target=run, args=(self._run,), name="dynamo-fast-handler", daemon=True)
        try:
            thread.start()
        except BaseException:  # the system has no thread left
            self._threads.release()
            raise
        self._has_begun = True

    def _raise(self) -> None:
        error, self._error = self._error, None
        if isinstance(error, StopAsyncIteration):  # it would look like the end of the answer
            error = RuntimeError("the generator raised StopAsyncIteration")
        try:
            raise StopAsyncIteration if error is None else error
        finally:
            del error  # its traceback refers to this frame

    # On the loop

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _end(self) -> None:
        self._threads.release()
        self._ended.set_result(None)
        self._wake()

    # In the thread

    def _run(self) -> None:
        try:
            self._produce()
        except BaseException as error:  # it goes to the caller
            self._error = error
        self._tell_loop(self._end)

    def _produce(self) -> None:
        iterator = self._make()
        try:
            for item in iterator:
                if not self._put(item):
                    return
        finally:
            close = getattr(iterator, "close", None)
            if close is not None:
                close()

    def _put(self, item: Any) -> bool:
        """Hand an item over, and wait for room. Returns whether more are wanted."""
        with self._lock:
            self._items.append(item)
            if len(self._items) == 1:
                self._tell_loop(self._wake)
            while len(self._items) >= _AHEAD and not self._closed:
                self._room.wait()
            return not self._closed

    def _tell_loop(self, call: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(call)
        except RuntimeError:  # the loop is closed: the program has ended
            self._closed = True
