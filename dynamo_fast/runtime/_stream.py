# cython: freethreading_compatible=True, annotation_typing=False
"""`AsyncResponseStream`, as `dynamo.runtime` has it (runtime.md 4.3)."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dynamo_fast.egress.call import Call
from dynamo_fast.egress.response_stream import ResponseStream
from dynamo_fast.errors import DynamoError
from dynamo_fast.runtime._arrived import FutureItems
from dynamo_fast.runtime.exceptions import at_iterate

__all__ = ["AsyncResponseStream"]


class AsyncResponseStream(FutureItems):
    """The items of an answer.

    A call of `Client` makes it, and the caller owns it. It ends after the last item or an error. If the caller drops it
    before that, or cancels the wait for an item, the worker is told to stop. Iterate it on the client's event loop (asyncio
    raises RuntimeError elsewhere); it may be dropped on any thread.
    """

    __slots__ = ("_call", "_pending", "_unlink")

    if TYPE_CHECKING:
        _stream: ResponseStream[Any]

    def __init__(
        self, call: Call, stream: ResponseStream[Any], annotated: bool, unlink: Callable[[], None] | None
    ) -> None:
        self._stream, self._loop, self._waits = stream, stream.loop, 0
        stream._bare = not annotated
        self._call = call
        self._unlink = unlink
        self._pending: deque[_Wait] | None = None

    def __aiter__(self) -> AsyncResponseStream:
        return self

    def _later(self) -> asyncio.Future[Any]:
        wait = _Wait(self)
        if self._pending is None:
            self._pending = deque()
        self._pending.append(wait)
        self._waits += 1
        if self._waits == 1:
            self._stream.listen(self._serve)
        return wait

    def _serve(self) -> None:
        """Frames have come, or the end has: give them to those who wait."""
        pending, stream = self._pending, self._stream
        assert pending is not None
        stream.listen(None)  # what `pull` does may end the stream, which would call this again
        while pending:
            try:
                value = stream.pull()
            except BaseException as error:
                pending.popleft().settle(error=self._raised(error))
            else:
                if value is None:
                    stream.listen(self._serve)
                    return
                pending.popleft().settle(value)
            self._waits -= 1

    def _left(self, wait: _Wait) -> None:
        """`wait` was cancelled."""
        assert self._pending is not None
        self._pending.remove(wait)
        self._waits -= 1
        if not self._pending:
            self._stream.listen(None)
            self._stream.wait_cancelled(self._call.release_from_any_thread)

    def _failed(self, error: BaseException) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = self._loop.create_future()
        future.set_exception(self._raised(error))
        return future

    def _raised(self, error: BaseException) -> BaseException:
        """The end of the answer, as the caller sees it."""
        self._end()
        if isinstance(error, DynamoError):
            self._call.failed(error)
            return at_iterate(error)
        if isinstance(error, StopAsyncIteration):
            self._call.completed()
            return StopAsyncIteration("Stream exhausted")
        self._call.release()
        if isinstance(error, (Exception, asyncio.CancelledError)):  # of the caller's own input
            return error
        raise error

    def _end(self) -> None:
        unlink, self._unlink = self._unlink, None
        if unlink is not None:
            unlink()

    def __del__(self) -> None:
        self._end()


class _Wait(asyncio.Future[Any]):
    """The wait for an item that has not come. The stream fulfils it from the callback that reads the frame.

    It keeps its stream alive, and leaves it at once if it is cancelled: then the stream may end, too.
    """

    __slots__ = ("_stream",)

    def __init__(self, stream: AsyncResponseStream) -> None:
        super().__init__(loop=stream._loop)
        self._stream: AsyncResponseStream | None = stream

    def settle(self, value: Any = None, error: BaseException | None = None) -> None:
        """The item has come, or the end."""
        self._stream = None
        if error is None:
            self.set_result(value)
        else:
            self.set_exception(error)

    def cancel(self, msg: Any | None = None) -> bool:
        """See asyncio.Future."""
        cancelled = super().cancel(msg)
        stream, self._stream = self._stream, None
        if stream is not None:
            stream._left(self)
        return cancelled
