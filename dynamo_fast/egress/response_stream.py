# cython: freethreading_compatible=True, annotation_typing=False
"""`ResponseStream`: the answer as the caller sees it, an asynchronous iterator of `Annotated` items."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import TYPE_CHECKING, Any

from dynamo_fast.egress._items import Items, begin
from dynamo_fast.egress.abandonment import Abandonment
from dynamo_fast.egress.response_receiver import ResponseReceiver
from dynamo_fast.errors import Disconnected, DynamoError, PayloadError, ProtocolError, ResponseTimeout
from dynamo_fast.observability.metrics import RequestPlaneMetrics
from dynamo_fast.wire.payload import Annotated, Data, ItemReader

if TYPE_CHECKING:
    from typing import Generic
else:
    from dynamo_fast._native import Generic

__all__ = ["ResponseStream"]

# From the final item to the sentinel, which workers write right behind it.
_SENTINEL_SECONDS = 1.0


class ResponseStream(Items, Generic[Data]):
    """The items of one answer, in order; `T` is the type of their data.

        async for item in stream:
            print(item.data())

    The answer is complete only if the worker said so. Any other end is raised once, and then the iterator is exhausted
    (transport.md 5.2):

    * RemoteError: the worker's handler failed (the items before it were good);
    * Disconnected: the stream ended before the answer did, because the worker died or broke the protocol
      (`__cause__` says which);
    * ResponseTimeout: no item came for the inactivity timeout, if there is one;
    * ProtocolError, PayloadError: a frame that is not an item.

    * Cancelled: a wait for an item was cancelled, and nothing asked again for too long (see `wait_cancelled`).

    After the context was stopped or killed the end is never an error. Closing the stream, or dropping it, tells the
    worker to quit. The items are taken on the router's event loop; the stream may be closed from any thread.
    """

    __slots__ = ("_metrics", "_patience", "loop")

    def __init__(
        self,
        receiver: ResponseReceiver,
        reader: ItemReader,
        loop: asyncio.AbstractEventLoop,
        metrics: RequestPlaneMetrics,
        patience: float,
    ) -> None:
        """`metrics` have it in flight, up to its end.

        `patience`: how long a consumer may take to ask again after a wait of it was cancelled; 0: without limit.
        """
        self._read(receiver, reader)
        self.loop = loop
        self._metrics = metrics
        self._patience = patience

    def __aiter__(self) -> ResponseStream[Data]:
        return self

    def __anext__(self) -> Coroutine[Any, Any, Annotated[Data]]:
        return begin(self)

    def _unusual(self, frame: bytes | memoryview) -> Annotated[Data] | None:
        """The item in a frame; None for the final marker. Raises what the item says, if it is an error."""
        if frame == self._final and not self._final_seen:
            self._finish()
            return None
        try:
            wrapper = self._decode(frame)
        except PayloadError:
            self._close()
            raise
        if self._final_seen:
            raise self._failed(ProtocolError("Response received after generation ended - this should never happen"))
        if wrapper.complete_final:
            self._finish()
        item = wrapper.data
        if item is not None:
            if item.is_error():
                raise self._failed(item.error())
            return item
        if not wrapper.complete_final:
            raise self._failed(ProtocolError("Empty response received - this should never happen"))
        return None

    def _finish(self) -> None:
        """The answer is complete, with or without the sentinel: wait for it a moment only."""
        self._final_seen = True
        receiver = self._receiver
        if not receiver.ended:
            receiver.limit_inactivity(_SENTINEL_SECONDS)

    def _end(self) -> None:
        receiver = self._receiver
        self._close()
        error = receiver.input_error
        if error is None and not self._final_seen and not receiver.context.is_stopped():
            error = receiver.error
            if not isinstance(error, ResponseTimeout):
                raise Disconnected("Stream ended before generation completed") from error
        if error is not None:
            receiver.input_error = receiver.error = None
            try:
                raise error
            finally:
                del error

    # An error refers to the frames that it passes. If one of these, or what it owns, referred to the error, the caller's
    # frame and all that it holds would live until the garbage collector came.

    def _failed(self, error: DynamoError | None) -> DynamoError:
        """End the answer; returns `error`, to be raised."""
        self._close()
        assert error is not None
        return error

    def close(self) -> None:
        """End the answer: if it has not ended yet, the worker is told to quit. Never blocks; may be called again.

        From another thread it takes effect in the next turn of the router's loop.
        """
        if not self._open:
            return
        if asyncio._get_running_loop() is self.loop:
            self._close()
        elif not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._close)

    def _close(self) -> None:
        if self._open:
            receiver = self._receiver
            self._open = False
            if self._abandonment is not None:
                self._abandonment.stop()
            receiver.drop()
            self._metrics.inflight -= 1
            receiver.wake()

    def wait_cancelled(self, on_close: Callable[[], None] | None = None) -> None:
        """A wait for an item was cancelled. If nothing asks for an item again within the patience, the stream is closed.

        The consumer that asks later gets the error Cancelled, once. `on_close` is called if it comes to that. Called by
        what waits for the items; on the router's event loop only.
        """
        self._asked = False
        if not self._open or not self._patience:
            return
        if self._abandonment is None:
            self._abandonment = Abandonment(self, self._receiver.context.id(), self.loop, self._patience)
        self._abandonment.wait_cancelled(on_close)

    async def aclose(self) -> None:
        """The same as `close`, under the name that asynchronous generators give it."""
        self.close()

    async def __aenter__(self) -> ResponseStream[Data]:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # The garbage collector may run on any thread, and transports belong to the loop's.
        if self._open and not self.loop.is_closed():
            if asyncio._get_running_loop() is self.loop:
                self._close()
            else:
                self.loop.call_soon_threadsafe(_drop, self._receiver)
                self._metrics.inflight -= 1


def _drop(receiver: ResponseReceiver) -> None:
    receiver.drop()
