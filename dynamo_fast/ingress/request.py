# cython: freethreading_compatible=True, annotation_typing=False
"""`Request`: one request that an endpoint has accepted, from its bytes to the end of its answer.

    made        in the read callback: decode the control message. Whom to answer must be known before it is acknowledged
    run         in a task of its own: dial the router, decode the body, then `Answer`

An accepted request is always answered. (Dynamo's own worker drops requests that it cannot read, without a word:
transport.md 2.7.)

This runs for every request. Where there is a compiler, Cython translates this very file, with the types in `request.pxd`
(see setup.py).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, Protocol, cast

from dynamo_fast.codec import TwoPartCodec, TwoPartDecoder, TwoPartMessage, TwoPartMessageType
from dynamo_fast.config import WorkerConfig
from dynamo_fast.context import Context
from dynamo_fast.errors import (
    ControlError,
    InvalidAddress,
    PayloadError,
    ProtocolError,
    TrailingBytes,
    TransportError,
)
from dynamo_fast.ingress.admission import Admission
from dynamo_fast.ingress.answer import Answer, HandlingEndpoint
from dynamo_fast.ingress.buffered_bytes import BufferedBytes
from dynamo_fast.ingress.cancellation import Cancellation
from dynamo_fast.ingress.dialler import Dialler
from dynamo_fast.ingress.mux_sender import MuxSender
from dynamo_fast.ingress.request_stream import RequestStream
from dynamo_fast.ingress.response_addresses import ResponseAddresses
from dynamo_fast.ingress.response_connection import ResponseConnection, Uncorking
from dynamo_fast.net._direct import DirectTransport
from dynamo_fast.observability.current import current_request
from dynamo_fast.observability.spans import EndpointTracer, TracedContext
from dynamo_fast.observability.worker_metrics import WorkerMetrics
from dynamo_fast.wire.control import (
    MAX_CONTROL_MESSAGE_SIZE,
    RequestControlMessage,
    RequestType,
    TcpStreamConnectionInfo,
)
from dynamo_fast.wire.mux import MuxOffer
from dynamo_fast.wire.text import shown

__all__ = ["AcceptingEndpoint", "Host", "Request", "endpoint_of"]

_TWO_PART = TwoPartCodec(views=True)
_HEADER_AND_DATA, _HEADER_ONLY = TwoPartMessageType.HEADER_AND_DATA, TwoPartMessageType.HEADER_ONLY
_NO_MESSAGE = TwoPartMessage.from_parts(b"", b"")
_now = time.monotonic


class Host(Protocol):
    """What the requests of all endpoints share: the worker."""

    config: WorkerConfig
    dialler: Dialler
    admission: Admission
    buffered: BufferedBytes
    metrics: WorkerMetrics


class AcceptingEndpoint(HandlingEndpoint, Protocol):
    """What a request asks of the endpoint that accepted it."""

    worker: Host
    addresses: ResponseAddresses
    bidirectional: bool
    tracer: EndpointTracer | None
    """Begins the span of each request; None: traces are not followed."""

    def began(self, request: Request) -> None: ...

    def ended(self, request: Request) -> None: ...


class Request:
    """One accepted request: a `Job` of the admission, which awaits `run`.

    It owns its context, its response stream, its input if it is bidirectional, and its cancellation. It ends with `run`.
    """

    __slots__ = (
        "_answer",
        "_control",
        "_info",
        "_input",
        "_input_info",
        "_message",
        "_offer",
        "accepted_at",
        "cancellation",
        "context",
        "descriptors",
        "endpoint",
        "size",
        "stream",
    )

    def __init__(self, endpoint: AcceptingEndpoint, payload: bytes | memoryview, headers: Mapping[str, str]) -> None:
        """Raises ProtocolError or InvalidAddress if it does not say whom to answer, Unavailable if that is not allowed."""
        self._message = _two_part(payload)
        header = self._message.header
        if len(header) > MAX_CONTROL_MESSAGE_SIZE:  # its texts live as long as the request
            raise ControlError(
                f"a control message of {len(header)} bytes exceeds the limit of {MAX_CONTROL_MESSAGE_SIZE}"
            )
        self._control = RequestControlMessage.decode(header)
        self._info = TcpStreamConnectionInfo.from_connection_info(self._control.connection_info)
        endpoint.addresses.check(self._info.address)
        self._input_info: TcpStreamConnectionInfo | None = None
        self._offer = self._control.mux
        self.descriptors = 1
        """See `Job`."""
        self.size = len(payload)
        """See `Job`."""
        if self._offer is not None:
            self._consider(self._offer, endpoint.worker.dialler)
        if endpoint.bidirectional and (info := self._control.request_stream_connection_info) is not None:
            self._input_info = TcpStreamConnectionInfo.from_connection_info(info)
            endpoint.addresses.check(self._input_info.address)
            self.descriptors += 1
        self.endpoint = endpoint
        """That accepted it."""
        self.context = _context(endpoint, self._control, headers)
        worker, codec = endpoint.worker, self._control.payload_codec
        self.cancellation = Cancellation(worker.dialler.loop, worker.config.cancel_grace)
        self.stream = ResponseConnection(worker.dialler, self.context, codec, self.cancellation)
        self._answer = Answer(endpoint, self.stream, codec)
        self._input: RequestStream | None = None
        self.accepted_at = _now()
        """Seconds, for metrics and logs."""

    def _consider(self, offer: MuxOffer, dialler: Dialler) -> None:
        """The router offers a session: whether this worker takes the offer, and whether that session is open already."""
        if dialler.sessions is None:
            self._offer = None
        elif dialler.sessions.find(self._info.address, offer) is not None:
            self.descriptors = 0

    def run(self) -> Uncorking:
        """A coroutine: dial, call the handler, and stream its items. Raises nothing."""
        return Uncorking(self.stream, self._run(), self)

    async def _run(self) -> None:
        endpoint, stream = self.endpoint, self.stream
        self.cancellation.task = asyncio.current_task(endpoint.worker.dialler.loop)
        endpoint.began(self)
        current_request.set(self.context)
        if endpoint.tracer is not None:
            cast(TracedContext, self.context).span.enter()
        try:
            if self._input_info is not None:
                await self._dial_for_the_input()
            transport = self._dial_directly()
            if transport is not None and transport.connected:
                stream.dialled(transport)
            else:
                stream.dialled(await self._connected(transport))
            iterator = self._start()
            # The answer may last, and what the request says takes a kilobyte.
            self._control = self._info = self._offer = None  # type: ignore[assignment]  # nothing asks for them again
            if iterator is not None:
                await self._answer.push(iterator)
        except (TransportError, InvalidAddress, ControlError) as error:
            endpoint.metrics.error("response_stream")
            stream.not_dialled(error)
        finally:
            if not stream.abandoned:
                self._ended()

    def _ended(self) -> None:
        self.cancellation.ended()
        if self._input is not None:
            self._input.close()
        self.endpoint.ended(self)
        if self.endpoint.tracer is not None:
            span = cast(TracedContext, self.context).span
            span.event("request completed")
            span.end()

    async def _dial_for_the_input(self) -> None:
        """The input of a bidirectional request is dialled before the answer, as Dynamo does."""
        assert self._input_info is not None
        worker = self.endpoint.worker
        codec, limit = self._control.payload_codec, worker.config.max_input_size
        stream = RequestStream(self.context, codec, limit, worker.buffered)
        worker.admission.dials(self)
        await worker.dialler.dial(self._input_info, stream)
        self._input = stream

    def _dial_directly(self) -> DirectTransport | MuxSender | None:
        """Dial for the answer, without a wait if that can be. See `_connected` if it is not connected."""
        admission, dialler = self.endpoint.worker.admission, self.endpoint.worker.dialler
        if self._offer is not None and dialler.sessions is not None:
            session = dialler.sessions.find(self._info.address, self._offer)
            return None if session is None else session.open(self.stream, self._info.subject)
        if self.descriptors:  # none was promised for a stream on a session
            admission.dials(self)
        return dialler.dial_directly(self._info, self.stream)

    async def _connected(
        self, transport: DirectTransport | MuxSender | None
    ) -> asyncio.Transport | DirectTransport | MuxSender:
        """Wait until the answer is dialled: on `transport` if there is one."""
        dialler, info = self.endpoint.worker.dialler, self._info
        if self._offer is not None:
            sender = await dialler.open_stream(info, self._offer, self.stream)
            if sender is not None:
                if self.descriptors:  # of the session
                    self.endpoint.worker.admission.dials(self)
                return sender
            self._offer = None  # there is no session: as if it had not been offered
            transport = self._dial_directly()
            if transport is not None and transport.connected:
                return transport
        if not isinstance(transport, DirectTransport):
            return await dialler.dial(info, cast(asyncio.Protocol, self.stream))
        await dialler.connected(info, transport)
        return transport

    def _start(self) -> AsyncIterator[Any] | None:
        """The iterator of the handler; None if there is none, and the router was told."""
        endpoint = self.endpoint
        if endpoint.cancelled:
            self._answer.refuse_shutdown()
            return None
        try:
            request = self._decode()
        except ProtocolError as error:
            endpoint.metrics.error("invalid_message")
            self._answer.refuse_request(error)
            return None
        self.cancellation.handler_called = True
        iterator = self._answer.start(request, self.context)
        if iterator is not None:
            first_response = endpoint.worker.metrics.time_to_first_response
            first_response.observe(_now() - self.accepted_at)
        return iterator

    def _decode(self) -> Any:
        """The argument for the handler. Releases the message. Raises ProtocolError."""
        message, self._message = self._message, _NO_MESSAGE
        admission = self.endpoint.worker.admission
        admission.decoded(self)
        if self._info.context != self._control.id:
            raise ControlError(
                f"its id is {shown(self._control.id)}, but its response stream belongs to {shown(self._info.context)}"
            )
        if self.endpoint.bidirectional:
            return self._checked_input(message)
        if message.message_type is not _HEADER_AND_DATA:
            raise PayloadError("it has no body")
        return self._control.payload_codec.decode(message.data)

    def _checked_input(self, message: TwoPartMessage) -> RequestStream:
        if self._control.request_type is not RequestType.MANY_IN:
            raise ControlError("this endpoint takes a stream of requests (many_in), not a single one")
        if message.message_type is not _HEADER_ONLY:
            raise PayloadError("it has a body, though its items come as a stream")
        if self._input is None:
            raise ControlError("it does not say where its request stream is to be dialled")
        return self._input


def endpoint_of(task: asyncio.Task[Any]) -> AcceptingEndpoint | None:
    """The endpoint whose request `task` answers; None if it is the task of something else."""
    coroutine = task.get_coro()
    if not isinstance(coroutine, Uncorking):
        return None
    request: Request = coroutine.request
    return request.endpoint


def _context(endpoint: AcceptingEndpoint, control: RequestControlMessage, headers: Mapping[str, str]) -> Context:
    if endpoint.tracer is None:
        return Context(control.id, control.metadata)
    return endpoint.tracer.accept(control.id, control.metadata, headers)


def _two_part(payload: bytes | memoryview) -> TwoPartMessage:
    """The message of a request frame. Raises CodecError."""
    try:
        return _TWO_PART.decode_message(payload)
    except TrailingBytes:  # Dynamo's own worker ignores them
        return TwoPartDecoder().feed(payload)[0]
