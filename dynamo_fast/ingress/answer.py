# cython: freethreading_compatible=True, annotation_typing=False
"""`Answer`: calls the handler of an endpoint and sends what it yields to the router (transport.md 4.8; runtime.md 4.2).

An error of the request or of the handler becomes an error prologue (the handler was not started) or an error item (it
was). Who gets a cancellation: see `cancellation`.

This runs for every request and item. Where there is a compiler, Cython translates this very file, with the types in
`answer.pxd` (see setup.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from types import AsyncGeneratorType
from typing import Any, Protocol

from dynamo_fast import reasons
from dynamo_fast.context import Context
from dynamo_fast.errors import InvalidRequest, RemoteError, SerializationError
from dynamo_fast.ingress.cancellation import Resumed
from dynamo_fast.ingress.response_connection import ResponseConnection
from dynamo_fast.ingress.response_sender import Pushed, ResponseSender
from dynamo_fast.logs import get_logger
from dynamo_fast.observability.worker_metrics import EndpointMetrics
from dynamo_fast.wire.address import EndpointId
from dynamo_fast.wire.control import ResponseStreamPrologue
from dynamo_fast.wire.error import from_exception, text_of
from dynamo_fast.wire.payload import PayloadCodec

__all__ = ["Answer", "Batch", "HandlingEndpoint"]

logger = get_logger(__name__)


class Batch:
    """Several items that are ready at once: `yield Batch(items)` sends each in its own frame, all in one write.

    The caller gets the same items as if they were yielded one by one; the worker saves a turn of the generator for each.
    """

    __slots__ = ("items",)

    def __init__(self, items: Iterable[Any]) -> None:
        self.items = items


class HandlingEndpoint(Protocol):
    """What an answer asks of the endpoint whose handler it calls."""

    endpoint: EndpointId
    metrics: EndpointMetrics
    cancelled: bool
    """Whether the worker shuts down and has cancelled its handlers."""

    @property
    def handler_name(self) -> str: ...

    pushes: bool
    """Whether the handler takes a `ResponseSender`."""

    def call(self, request: Any, context: Context, sender: ResponseSender | None = None) -> AsyncIterator[Any]: ...

    def sender(self, stream: ResponseConnection, codec: PayloadCodec) -> ResponseSender: ...


class Answer:
    """The answer of one request: it drives the handler, and writes to the response stream.

    The request owns it, calls `refuse` or `start` once, and awaits `push`.
    """

    __slots__ = ("_codec", "_endpoint", "_has_dropped", "_stream")

    def __init__(self, endpoint: HandlingEndpoint, stream: ResponseConnection, codec: PayloadCodec) -> None:
        self._endpoint = endpoint
        self._stream = stream
        self._codec = codec
        self._has_dropped = False

    def refuse_request(self, error: Exception) -> None:
        """The request is not valid: end the stream with an error prologue, without a call of the handler."""
        text = str(error)
        self._refuse(f"Invalid request: {text}", _invalid_request(text))

    def refuse_shutdown(self) -> None:
        """The worker shuts down: the same."""
        self._refuse("Generate Error: the worker is shutting down", _engine_shutdown())

    def start(self, request: Any, context: Context) -> AsyncIterator[Any] | None:
        """Call the handler. Returns its iterator; None if the call failed, and the router was told."""
        sender = self._endpoint.sender(self._stream, self._codec) if self._endpoint.pushes else None
        try:
            iterator = self._endpoint.call(request, context, sender)
        except BaseException as error:  # every error of the handler goes to the caller
            self._endpoint.metrics.error("generate")
            logger.error("the handler of %s cannot be called", self._endpoint.endpoint, exc_info=error)
            text = f"{type(error).__name__}: {text_of(error)}"
            self._refuse(f"Generate Error: {text}", RemoteError(text))
            return None
        self._stream.start()
        if sender is None:
            return iterator
        sender.begin()
        return Pushed(iterator, sender)

    async def push(self, iterator: AsyncIterator[Any]) -> None:
        """Send what `iterator` yields, and how it ended. Raises nothing."""
        stream = self._stream
        exhausted = False
        rest: Any = iterator  # or what it does about a cancellation
        try:
            while rest is not None:
                async for item in rest:
                    must_wait = self._send(item)
                    if must_wait is None:
                        rest = None
                        break
                    if must_wait:
                        try:
                            await stream.room()
                        except asyncio.CancelledError as cancellation:  # while this waited: the handler must get it
                            rest, self._has_dropped = Resumed(iterator, cancellation), False
                            break
                else:
                    exhausted, rest = True, None
        except BaseException as error:  # as above
            self._failed(error)
        rest = None  # the traceback of a cancellation may refer to this frame
        if stream.abandoned:
            return
        stream.finish(self._codec.final)
        if not exhausted or type(iterator) is not AsyncGeneratorType:  # else there is nothing left to close
            await _close(iterator)

    def _refuse(self, text: str, error: RemoteError) -> None:
        self._stream.refuse(ResponseStreamPrologue(text, error))

    def _send(self, item: Any) -> bool | None:
        """Send what the handler has yielded. Returns whether `room()` must be awaited; None if it may not go on."""
        stream = self._stream
        if not stream.open:
            # A handler that noticed may yield once more, which is dropped, and end by itself. Others are closed.
            if self._has_dropped:
                return None
            self._has_dropped = True
            return False
        must_wait = stream.corked.add(item)
        if must_wait is not None:
            return must_wait
        try:
            return (
                self._send_batch(item.items) if item.__class__ is Batch else stream.send(self._codec.encode_item(item))
            )
        except SerializationError as error:
            self._unserialisable(error)
            return None

    def _send_batch(self, items: Iterable[Any]) -> bool:
        """All in one write. Returns whether `room()` must be awaited."""
        stream, corked = self._stream, self._stream.corked
        for item in items:
            if not stream.open:
                break
            if not corked.hold(item):
                stream.cork(self._codec.encode_item(item))
        return stream.uncork()

    def _unserialisable(self, error: SerializationError) -> None:
        self._endpoint.metrics.error("serialization")
        logger.error("the handler of %s yielded an item that cannot be sent: %s", self._endpoint.endpoint, error)
        # The caller gets Dynamo's own text, which does not say where in the item the value stands.
        text = f"critical error: failed serializing Python response as {self._codec.value}: {error.problem}"
        self._stream.send(self._codec.encode_error_item(RemoteError(text)))

    def _failed(self, error: BaseException) -> None:
        encode, endpoint = self._codec.encode_error_item, self._endpoint
        if self._stream.open and isinstance(error, asyncio.CancelledError):
            logger.info("the handler of %s was cancelled", endpoint.endpoint)
            self._stream.send(encode(_engine_shutdown() if endpoint.cancelled else from_exception(error)))
        elif self._stream.open:
            logger.warning("the handler of %s failed", endpoint.endpoint, exc_info=error)
            self._stream.send(encode(from_exception(error)))
        elif not isinstance(error, (asyncio.CancelledError, GeneratorExit)):  # these two come from this package
            logger.warning("the handler of %s failed after its answer was cut short", endpoint.endpoint, exc_info=error)


def _invalid_request(text: str) -> RemoteError:
    return RemoteError(
        text,
        error_type=InvalidRequest.error_type,
        error_class=InvalidRequest.error_class,
        reason=InvalidRequest.reason,
    )


def _engine_shutdown() -> RemoteError:
    """The error for a handler that a shutdown cancelled, in Dynamo's words: callers try another worker."""
    return RemoteError.of(reasons.BACKEND_ENGINE_SHUTDOWN, "engine shutting down")


async def _close(iterator: AsyncIterator[Any]) -> None:
    """Run the `finally` blocks of a generator that was not exhausted."""
    aclose = getattr(iterator, "aclose", None)
    if aclose is None:
        return
    try:
        await aclose()
    except BaseException as error:  # a TaskGroup wraps the GeneratorExit that closes it in a BaseExceptionGroup
        logger.warning("a handler did not end cleanly", exc_info=error)
