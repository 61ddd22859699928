# cython: freethreading_compatible=True, annotation_typing=False
"""Who hears of a cancellation, and when: `Cancellation` for the task of a request, `Resumed` for its handler.

One task answers a request, and two parties wait in it by turns: the handler, at an `await` of its own, and this package,
in `ResponseConnection.room()`, while the handler is suspended at a `yield`. A cancellation lands where the task waits:

    the handler waits       Python raises it in the handler, at that await
    this package waits      `Answer` catches it, and `Resumed` throws it into the handler, at its yield

So the handler gets every cancellation, from each of its sources: an `asyncio.timeout` or a `TaskGroup` around its `yield`
(they cancel the task in which they were entered), a shutdown past its deadline, or the end of the grace period after the
router stopped the answer. The handler decides what follows: it may yield more, raise another error, or end.

The handler does not get a cancellation in two waits: the dial, which has a time limit of its own and which a shutdown does
not cancel, and the last write of the answer, which does not wait.

An iterator that is no generator has no yield to throw into: a cancellation in `room()` ends its answer.

Where there is a compiler, Cython translates this very file, with the types in `cancellation.pxd` (see setup.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

__all__ = ["Cancellation", "Resumed"]


class Cancellation:
    """Cancels the task that answers one request.

    The request owns it, says which `task` it is, and calls `ended`. The response connection calls `cut_short`, the endpoint
    `shut_down`.
    """

    __slots__ = ("_grace", "_has_ended", "_loop", "_timer", "handler_called", "task", "was_cut_short")

    def __init__(self, loop: asyncio.AbstractEventLoop, grace: float) -> None:
        """`grace`: how long a handler may take to notice that its context was stopped, in seconds."""
        self.handler_called = False
        """Whether the handler was called: set by the request. Before that, a shutdown cancels nothing."""
        self.was_cut_short = False
        """Whether the answer ended before the handler did."""
        self._loop = loop
        self._grace = grace
        self._has_ended = False
        self.task: asyncio.Task[Any] | None = None
        """The task that answers the request, from the time that it runs until `ended`: set by the request."""
        self._timer: asyncio.TimerHandle | None = None

    def ended(self) -> None:
        """The request has its answer: cancel nothing any more."""
        self._has_ended = True
        if self._timer is not None:
            self._timer.cancel()
        self.task = None  # break the reference cycle

    def cut_short(self) -> None:
        """The answer goes nowhere. The context of the handler says so; cancel the handler if it does not end by itself."""
        if self._has_ended:  # a connection that was never dialled hears of its context later
            return
        self.was_cut_short = True
        self._timer = self._loop.call_later(self._grace, self._cancel)

    def shut_down(self) -> None:
        """Cancel the handler now, if it was called."""
        if self.handler_called and self.task is not None:
            self.task.cancel()

    def _cancel(self) -> None:
        assert self.task is not None
        self._timer = self._loop.call_later(self._grace, self._cancel)
        self.task.cancel()


class Resumed:
    """A handler that goes on after a cancellation that came while it was suspended at a yield.

    It is the rest of `iterator`: the first item is what `iterator` does about `cancellation`. `Answer` iterates over it.
    Raises `cancellation` if nothing can be thrown into `iterator`.
    """

    __slots__ = ("_cancellation", "_iterator")

    def __init__(self, iterator: AsyncIterator[Any], cancellation: asyncio.CancelledError) -> None:
        self._iterator = iterator
        self._cancellation: asyncio.CancelledError | None = cancellation

    def __aiter__(self) -> Resumed:
        return self

    async def __anext__(self) -> Any:
        cancellation, self._cancellation = self._cancellation, None
        if cancellation is None:
            return await self._iterator.__anext__()
        try:
            throw = getattr(self._iterator, "athrow", None)
            if throw is None:
                raise cancellation
            return await throw(cancellation)
        finally:
            del cancellation  # its traceback refers to this frame
