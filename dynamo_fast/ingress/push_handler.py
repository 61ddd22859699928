"""`PushHandler`: one endpoint. Takes its requests, calls the handler, and streams each answer to the router that asked.

    accept      in the read callback: decode the control message; whom to answer must be known before we say yes
    answer      in a task of its own: dial the router, decode the body, call the handler, write what it yields

A request that was accepted is always answered: what is wrong with it, or with the handler, becomes an error prologue
(the handler was not started) or an error item (it was). Dynamo's own worker drops such requests without a word
(transport.md 2.7). (Source: transport.md 6.2 to 6.4, 4.8; runtime.md 4.2.)

Cancellation
------------

One task answers a request, and two parties wait in it by turns: the handler, at an `await` of its own, and the framework,
in `room()`, while the handler is suspended at a `yield`. A cancellation of the task lands where the task waits:

    the handler waits       Python raises it in the handler, at that await
    the framework waits     `_send_items` returns it, and `Resumed` throws it into the handler, at its yield

So the handler gets every cancellation, whoever asked for it: an `asyncio.timeout` or a `TaskGroup` around its `yield`
(they cancel the task that they were entered in), a shutdown past its deadline, or the end of the grace period after the
caller has gone. What the handler does then is its answer: it may yield more, raise another error, or end. Two waits are
not the handler's: the dial, which has a time limit of its own and during which a shutdown does not cancel, and the
answer's last write, which does not wait.

An iterator that is no generator has no yield to throw into: a cancellation in `room()` ends its answer.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable
from types import FrameType
from typing import Any

from dynamo_fast import reasons
from dynamo_fast.codec import TcpRequestMessage, TwoPartCodec, TwoPartDecoder, TwoPartMessage, TwoPartMessageType
from dynamo_fast.config import WorkerConfig
from dynamo_fast.context import Context
from dynamo_fast.errors import (
    ControlError,
    InvalidAddress,
    InvalidRequest,
    PayloadError,
    ProtocolError,
    RemoteError,
    SerializationError,
    TrailingBytes,
    TransportError,
    Unavailable,
)
from dynamo_fast.ingress.admission import Admission, Submit
from dynamo_fast.ingress.buffered_bytes import BufferedBytes
from dynamo_fast.ingress.request_stream import RequestStream
from dynamo_fast.ingress.response_addresses import ResponseAddresses
from dynamo_fast.ingress.response_client import Dialler, ResponseConnection
from dynamo_fast.ingress.resumed import Resumed
from dynamo_fast.logs import get_logger
from dynamo_fast.observability import tracing
from dynamo_fast.observability.metrics import Histogram
from dynamo_fast.observability.worker_metrics import EndpointMetrics, WorkerMetrics
from dynamo_fast.wire.address import EndpointId
from dynamo_fast.wire.control import (
    MAX_CONTROL_MESSAGE_SIZE,
    RequestControlMessage,
    RequestType,
    ResponseStreamPrologue,
    TcpStreamConnectionInfo,
)
from dynamo_fast.wire.error import from_exception, text_of
from dynamo_fast.wire.headers import FRONTEND_SEND_TS_NS, decode_headers
from dynamo_fast.wire.text import shown

__all__ = ["Batch", "Handler", "PushHandler", "handler_of", "takes_context"]

_TWO_PART = TwoPartCodec()
_HEADER_AND_DATA = TwoPartMessageType.HEADER_AND_DATA
_MAX_TIME_DIGITS = 20  # of an unsigned 64-bit number
_NO_MESSAGE = TwoPartMessage.from_parts(b"", b"")

logger = get_logger(__name__)

Handler = Callable[..., AsyncIterator[Any]]
"""Called as `handler(request)`, or `handler(request, context=context)` if it has a parameter of that name.

That of a bidirectional endpoint gets an async iterator of requests (`RequestStream`)."""


class Batch:
    """Several items that are ready at once: `yield Batch(items)` sends each in its own frame, all in one write.

    The caller sees no difference to the items yielded one by one; the worker saves a turn of the generator for each.
    """

    __slots__ = ("items",)

    def __init__(self, items: Iterable[Any]) -> None:
        self.items = items


class PushHandler:
    """One endpoint and its handler; `accept` is what `SharedTcpServer.register` wants."""

    def __init__(
        self,
        handler: Handler,
        endpoint: EndpointId,
        *,
        dialler: Dialler,
        admission: Admission,
        buffered: BufferedBytes,
        config: WorkerConfig,
        metrics: EndpointMetrics,
        worker_metrics: WorkerMetrics,
        bidirectional: bool = False,
    ) -> None:
        self.endpoint = endpoint
        self.admission = admission
        self.buffered = buffered
        self.addresses = ResponseAddresses(config)
        self.bidirectional = bidirectional
        self.dialler = dialler
        self.config = config
        self.metrics = metrics
        self.worker_metrics = worker_metrics
        self._handler = handler
        self._takes_context = takes_context(handler)
        self.traces = tracing.active()
        """Whether handlers are told which trace their request belongs to."""
        self._drained: asyncio.Future[None] | None = None
        self._running: set[_Request] = set()
        self._items_sent = 0
        self.cancelled = False
        """Whether `cancel` was called."""

    def accept(self, frame: TcpRequestMessage, submit: Submit) -> None:
        """Submit the job that answers this request.

        Raises Unavailable if it cannot be told whom to answer, or may not be answered there, and what `submit` raises.
        """
        try:
            request = _Request(self, frame)
        except (ProtocolError, InvalidAddress) as error:
            self.metrics.error("deserialization")
            raise Unavailable(f"Server unavailable: unreadable request: {error}") from error
        submit(request)
        self.metrics.requests += 1
        self.metrics.inflight += 1
        self.metrics.request_bytes += len(frame.payload)
        _observe_transit(self.worker_metrics.network_transit, frame.headers)

    def call(self, request: Any, context: Context) -> AsyncIterator[Any]:
        """Call the handler. Raises what it raises, and AttributeError if it returns no async iterator."""
        returned: Any = self._handler(request, context=context) if self._takes_context else self._handler(request)
        if not hasattr(type(returned), "__anext__"):
            if inspect.iscoroutine(returned):
                returned.close()  # nobody will await it, and nobody needs to be told
            raise AttributeError(f"'{type(returned).__name__}' object has no attribute '__anext__'")
        iterator: AsyncIterator[Any] = returned
        return iterator

    async def drained(self) -> None:
        """Wait until no accepted request is without its answer."""
        while self.metrics.inflight:
            self._drained = asyncio.get_running_loop().create_future()
            await self._drained

    def cancel(self) -> None:
        """The process shuts down: cancel the handlers that run, and call none for the requests that wait.

        Callers get the error EngineShutdown, with which both releases of Dynamo try another worker, unless the handler
        answers its cancellation otherwise.
        """
        self.cancelled = True
        for request in self._running:
            request.cancel()

    @property
    def handler_name(self) -> str:
        """The handler's own name, for logs."""
        name: str = getattr(self._handler, "__qualname__", None) or type(self._handler).__qualname__
        return name

    @property
    def items_sent(self) -> int:
        """Items of all answers so far."""
        return self._items_sent + sum(request.items for request in self._running)

    def began(self, request: _Request) -> None:
        """A request is being answered."""
        self._running.add(request)

    def ended(self, request: _Request) -> None:
        """A request has its answer."""
        self._running.discard(request)
        self._items_sent += request.items
        self.metrics.inflight -= 1
        if not self.metrics.inflight and self._drained is not None and not self._drained.done():
            self._drained.set_result(None)


class _Request:
    """One accepted request, a `Job`.

    Raises ProtocolError or InvalidAddress if it cannot be told whom to answer, Unavailable if it may not be answered there.
    """

    __slots__ = (
        "_accepted_at",
        "_called",
        "_context",
        "_control",
        "_grace",
        "_handler",
        "_info",
        "_input",
        "_input_info",
        "_message",
        "_stream",
        "_task",
        "_was_cut_short",
        "descriptors",
        "size",
    )

    def __init__(self, handler: PushHandler, frame: TcpRequestMessage) -> None:
        self._message = _two_part(frame.payload)
        header = self._message.header
        if len(header) > MAX_CONTROL_MESSAGE_SIZE:  # what it says lives as long as the request
            raise ControlError(
                f"a control message of {len(header)} bytes exceeds the limit of {MAX_CONTROL_MESSAGE_SIZE}"
            )
        self._control = RequestControlMessage.decode(header)
        self._info = TcpStreamConnectionInfo.from_connection_info(self._control.connection_info)
        handler.addresses.check(self._info.address)
        self._input_info: TcpStreamConnectionInfo | None = None
        self.descriptors = 1
        self.size = len(frame.payload)
        if handler.bidirectional and (info := self._control.request_stream_connection_info) is not None:
            self._input_info = TcpStreamConnectionInfo.from_connection_info(info)
            handler.addresses.check(self._input_info.address)
            self.descriptors = 2
        self._handler = handler
        self._context = _context(self._control, frame.headers if handler.traces else None)
        codec = self._control.payload_codec
        self._stream = ResponseConnection(handler.dialler, self._context, codec, self._cut_short)
        self._input: RequestStream | None = None
        self._accepted_at = time.monotonic()
        self._called = False
        self._grace: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[Any] | None = None
        self._was_cut_short = False

    async def run(self) -> None:
        """Dial, call the handler, and stream its items. Raises nothing."""
        await self._stream.uncorking(self._answer())

    async def _answer(self) -> None:
        self._task = asyncio.current_task(self._handler.dialler.loop)
        self._handler.began(self)
        try:
            await self._dial()
            iterator = self._start()
            if iterator is not None:
                await self._push(iterator)
        except (TransportError, InvalidAddress, ControlError) as error:
            self._handler.metrics.error("response_stream")
            self._stream.end = str(error)
        finally:
            if not self._stream.abandoned:
                self._ended()

    def _ended(self) -> None:
        if self._grace is not None:
            self._grace.cancel()
        if self._input is not None:
            self._input.close()
        self._account()
        self._handler.ended(self)
        self._task = None  # as in `ResponseConnection`: who holds whom

    @property
    def items(self) -> int:
        """Items sent."""
        return self._stream.items

    def cancel(self) -> None:
        """Cancel the handler, if it was called; if not, `_start` will not call it."""
        if self._called and self._task is not None:
            self._task.cancel()

    async def _dial(self) -> None:
        """The input of a bidirectional request first, as Dynamo does; then the answer."""
        handler = self._handler
        if self._input_info is not None:
            stream = RequestStream(
                self._context, self._control.payload_codec, handler.config.max_input_size, handler.buffered
            )
            handler.admission.dials(self)
            await handler.dialler.dial(self._input_info, stream)
            self._input = stream
        handler.admission.dials(self)
        self._stream.dialled(await handler.dialler.dial(self._info, self._stream))

    def _start(self) -> AsyncIterator[Any] | None:
        """What the handler returned; None if there is nothing, which the router has been told."""
        if self._handler.cancelled:
            self._refuse("Generate Error: the worker is shutting down", _engine_shutdown())
            return None
        try:
            request = self._decode()
        except ProtocolError as error:
            self._handler.metrics.error("invalid_message")
            self._refuse(f"Invalid request: {error}", _invalid_request(str(error)))
            return None
        self._called = True
        try:
            iterator = self._handler.call(request, self._context)
        except BaseException as error:  # whatever the handler raises is the caller's to hear
            self._handler.metrics.error("generate")
            logger.error("the handler of %s cannot be called", self._handler.endpoint, exc_info=error)
            text = f"{type(error).__name__}: {text_of(error)}"
            self._refuse(f"Generate Error: {text}", RemoteError(text))
            return None
        self._stream.start()
        self._handler.worker_metrics.time_to_first_response.observe(time.monotonic() - self._accepted_at)
        return iterator

    def _decode(self) -> Any:
        """The request that the handler gets; lets go of the bytes."""
        message, self._message = self._message, _NO_MESSAGE
        self._handler.admission.decoded(self)
        if self._info.context != self._control.id:
            raise ControlError(
                f"its id is {shown(self._control.id)}, but its response stream belongs to {shown(self._info.context)}"
            )
        if self._handler.bidirectional:
            return self._checked_input(message)
        if message.message_type is not _HEADER_AND_DATA:
            raise PayloadError("it has no body")
        return self._control.payload_codec.decode(message.data)

    def _checked_input(self, message: TwoPartMessage) -> RequestStream:
        if self._control.request_type is not RequestType.MANY_IN:
            raise ControlError("this endpoint takes a stream of requests (many_in), not a single one")
        if message.message_type is not TwoPartMessageType.HEADER_ONLY:
            raise PayloadError("it has a body, though its items come as a stream")
        if self._input is None:
            raise ControlError("it does not say where its request stream is to be dialled")
        return self._input

    def _refuse(self, text: str, error: RemoteError) -> None:
        self._stream.refuse(ResponseStreamPrologue(text, error))

    async def _push(self, iterator: AsyncIterator[Any]) -> None:
        """Send what `iterator` yields, and how it ended."""
        try:
            cancellation = await self._send_items(iterator)
            while cancellation is not None:
                cancellation = await self._send_items(Resumed(iterator, cancellation))
        except BaseException as error:  # as above
            self._failed(error)
        cancellation = None  # its traceback may hold this frame
        if self._stream.abandoned:
            return
        self._stream.finish(self._control.payload_codec.final)
        await _close(iterator)

    async def _send_items(self, iterator: AsyncIterator[Any]) -> asyncio.CancelledError | None:
        """Send what `iterator` yields. Returns the cancellation that came meanwhile, which is the handler's to hear."""
        stream, encode = self._stream, self._control.payload_codec.encode_item
        add_plain = stream.plain.add
        said_goodbye = False
        async for item in iterator:
            if not stream.open:
                # A handler that noticed may say goodbye, which nobody hears, and leave by itself. Others are closed.
                if said_goodbye:
                    return None
                said_goodbye = True
                continue
            try:
                must_wait = add_plain(item)
                if must_wait is None:
                    must_wait = self._send_batch(item.items) if item.__class__ is Batch else stream.send(encode(item))
            except SerializationError as error:
                self._unserialisable(error)
                return None
            if must_wait:
                try:
                    await stream.room()
                except asyncio.CancelledError as cancellation:
                    return cancellation
        return None

    def _send_batch(self, items: Iterable[Any]) -> bool:
        """All in one write. Returns whether `room()` must be awaited."""
        stream, encode = self._stream, self._control.payload_codec.encode_item
        for item in items:
            if not stream.open:
                break
            if stream.plain.add(item) is None:
                stream.cork(encode(item))
        return stream.uncork()

    def _unserialisable(self, error: SerializationError) -> None:
        codec = self._control.payload_codec
        self._handler.metrics.error("serialization")
        logger.error("the handler of %s yielded what cannot be sent: %s", self._handler.endpoint, error)
        # The caller gets Dynamo's own text, which does not say where in the item the culprit stands.
        text = f"critical error: failed serializing Python response as {codec.value}: {error.problem}"
        self._stream.send(codec.encode_error_item(RemoteError(text)))

    def _failed(self, error: BaseException) -> None:
        encode = self._control.payload_codec.encode_error_item
        if self._stream.open and isinstance(error, asyncio.CancelledError):
            logger.info("the handler of %s was cancelled", self._handler.endpoint)
            self._stream.send(encode(_engine_shutdown() if self._handler.cancelled else from_exception(error)))
        elif self._stream.open:
            logger.warning("the handler of %s failed", self._handler.endpoint, exc_info=error)
            self._stream.send(encode(from_exception(error)))
        elif not isinstance(error, (asyncio.CancelledError, GeneratorExit)):  # which are our own doing
            logger.warning(
                "the handler of %s failed after its answer was cut short", self._handler.endpoint, exc_info=error
            )

    def _cut_short(self) -> None:
        """Nobody wants the answer any more. The handler's context says so; if it does not look, it is cancelled."""
        self._was_cut_short = True
        self._grace = asyncio.get_running_loop().call_later(self._handler.config.cancel_grace, self._cancel)

    def _cancel(self) -> None:
        assert self._task is not None
        self._grace = asyncio.get_running_loop().call_later(self._handler.config.cancel_grace, self._cancel)
        self._task.cancel()

    def _account(self) -> None:
        metrics, stream = self._handler.metrics, self._stream
        seconds = time.monotonic() - self._accepted_at
        metrics.duration.observe(seconds)
        metrics.response_bytes += stream.bytes
        metrics.cancellations += self._was_cut_short
        logger.log(
            logging.INFO if stream.orderly else logging.WARNING,
            "request %s for %s was %s after %d items, %d bytes, %.3f s",
            self._context.id(),
            self._handler.endpoint,
            stream.end,
            stream.items,
            stream.bytes,
            seconds,
        )


def _context(control: RequestControlMessage, headers: bytes | memoryview | None) -> Context:
    if headers is None:
        return Context(control.id, control.metadata)
    span = tracing.follow(decode_headers(headers))
    context = Context(control.id, control.metadata, span.headers)
    context.parent_span_id = span.parent_span_id
    return context


def handler_of(frame: FrameType) -> PushHandler | None:
    """The endpoint whose request `frame` works on, if it is the frame that calls or iterates a handler."""
    if frame.f_code not in _HANDLER_CALLERS:
        return None
    request = frame.f_locals.get("self")
    return request._handler if isinstance(request, _Request) else None


# Where a request's handler runs: below its call, and below the loop over its items.
_HANDLER_CALLERS = frozenset({_Request._start.__code__, _Request._push.__code__})


def takes_context(handler: Handler) -> bool:
    """Whether the handler has a parameter named `context` that can be given by name."""
    try:
        parameter = inspect.signature(handler).parameters.get("context")
    except (TypeError, ValueError):  # not callable, which its first call will tell; or written in C
        return False
    return parameter is not None and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)


def _two_part(payload: bytes | memoryview) -> TwoPartMessage:
    """The message of a request frame. Raises CodecError."""
    try:
        return _TWO_PART.decode_message(payload)
    except TrailingBytes:  # which Dynamo's own worker ignores
        return TwoPartDecoder().feed(payload)[0]


def _observe_transit(histogram: Histogram, headers: bytes | memoryview) -> None:
    sent_at = decode_headers(headers).get(FRONTEND_SEND_TS_NS, "")
    if sent_at.isdecimal() and len(sent_at) <= _MAX_TIME_DIGITS:
        histogram.observe(max(0, time.time_ns() - int(sent_at)) / 1e9)


def _invalid_request(text: str) -> RemoteError:
    return RemoteError(
        text,
        error_type=InvalidRequest.error_type,
        error_class=InvalidRequest.error_class,
        reason=InvalidRequest.reason,
    )


def _engine_shutdown() -> RemoteError:
    """What callers are told of a handler that a shutdown cancelled: in Dynamo's words, and migratable there."""
    return RemoteError.of(reasons.BACKEND_ENGINE_SHUTDOWN, "engine shutting down")


async def _close(iterator: AsyncIterator[Any]) -> None:
    """Run what the handler has to do at its end, if it is a generator that was not exhausted."""
    aclose = getattr(iterator, "aclose", None)
    if aclose is None:
        return
    try:
        await aclose()
    except BaseException as error:  # a TaskGroup wraps the GeneratorExit that closes it in a BaseExceptionGroup
        logger.warning("a handler did not end cleanly", exc_info=error)
