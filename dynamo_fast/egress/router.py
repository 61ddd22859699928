# cython: freethreading_compatible=True, annotation_typing=False
"""`AddressedPushRouter`: sends a request to a worker whose address is known, and streams its answer (transport.md 5)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Literal, TypeVar, overload

import msgspec

from dynamo_fast.codec import encode_two_part
from dynamo_fast.config import NvtxConfig, TlsConfig
from dynamo_fast.context import Context
from dynamo_fast.egress.request_client import Ack, RequestPlaneClient
from dynamo_fast.egress.request_sender import ManyIn
from dynamo_fast.egress.response_receiver import ResponseReceiver
from dynamo_fast.egress.response_server import TcpStreamServer
from dynamo_fast.egress.response_stream import ResponseStream
from dynamo_fast.egress.sink import Delivery, Sink
from dynamo_fast.egress.tcp_client import TcpRequestClient
from dynamo_fast.egress.transports import RequestClients
from dynamo_fast.errors import Cancelled, Disconnected, RequestTooLarge
from dynamo_fast.observability.metrics import (
    REQUEST_PLANE,
    RequestPlaneMetrics,
    RequestTiming,
)
from dynamo_fast.observability.nvtx import RequestRanges, load_nvtx
from dynamo_fast.wire._plain import encode_plain
from dynamo_fast.wire.address import EndpointInstanceId
from dynamo_fast.wire.control import (
    MAX_CONTROL_MESSAGE_SIZE,
    RequestControlMessage,
    RequestType,
    encode_plain_single_in,
    encode_single_in,
)
from dynamo_fast.wire.headers import REQUEST_ID
from dynamo_fast.wire.instance import Instance, TransportType, not_offered
from dynamo_fast.wire.payload import Annotated, ItemReader, PayloadCodec

__all__ = ["AddressedPushRouter", "AddressedRequest", "EncodedBody", "MarkedPushRouter", "encoded"]

_T = TypeVar("_T")
_JSON = PayloadCodec.JSON


class EncodedBody(msgspec.Struct, frozen=True):
    """The `data` of a request that was encoded before, with the codec that the request names."""

    body: bytes


class AddressedRequest(msgspec.Struct, frozen=True):
    """A request and its destination.

    `data` is any value that `payload_codec` can express, or `ManyIn` for a bidirectional endpoint. `kind` and `address`
    are the transport of the worker's record; the address of kind `tcp` is `[tcp://]IP:PORT/PATH`.
    With `instance` the request fails at once if that worker is removed from discovery before it has answered.
    `headers` are sent with the request (for example `traceparent`); they go before those of the context.
    `inactivity_timeout`: how many seconds to wait for the next item of the answer; None: as the router says.
    """

    data: Any
    address: str
    instance: EndpointInstanceId | None = None
    payload_codec: PayloadCodec = PayloadCodec.JSON
    headers: Mapping[str, str] = {}  # msgspec copies the default for each object
    inactivity_timeout: float | None = None
    kind: str = "tcp"
    mux: int | None = None
    """The newest version of the multiplexed response plane that the worker speaks, as its record says; None: none."""

    @classmethod
    def new(cls, data: Any, address: str) -> AddressedRequest:
        """A request to a TCP address of which nothing else is known. Its body is JSON, which every worker reads."""
        return cls(data, address)

    @classmethod
    def with_instance(cls, data: Any, address: str, instance: EndpointInstanceId) -> AddressedRequest:
        """The same, to a worker that is in discovery."""
        return cls(data, address, instance)

    @classmethod
    def for_instance(cls, data: Any, instance: Instance) -> AddressedRequest:
        """A request to a worker as its record says: the transport, the identity, and the codec that it asks for."""
        transport = instance.transport
        codec = instance.request_plane_codec or _JSON
        return cls(data, transport.address, instance.endpoint_instance_id, codec, kind=transport.kind, mux=instance.mux)


class AddressedPushRouter:
    """Requests out, answers in.

        async with await AddressedPushRouter.create() as router:
            stream = await router.generate(AddressedRequest({"prompt": "hi"}, address))
            async for item in stream:
                print(item.data())

    One event loop; any number of requests at once.
    """

    def __init__(
        self,
        client: RequestPlaneClient,
        response_server: TcpStreamServer,
        *,
        metrics: RequestPlaneMetrics = REQUEST_PLANE,
        inactivity_timeout: float | None = None,
    ) -> None:
        """`client`: for requests of kind `tcp`; those of other kinds are made when they are needed (see `transports`).

        `inactivity_timeout`: for requests that have none, in seconds; None: as the response server's configuration.
        """
        self.client = client
        """Carries the requests of kind `tcp`."""
        self.clients = RequestClients({"tcp": client}, metrics)
        self.response_server = response_server
        self.metrics = metrics
        self.inactivity_timeout = inactivity_timeout or response_server.config.inactivity_timeout
        """How long to wait for the next item of an answer, in seconds; None: for ever."""

    @classmethod
    async def create(
        cls,
        client: RequestPlaneClient | None = None,
        response_server: TcpStreamServer | None = None,
        *,
        inactivity_timeout: float | None = None,
        tls: TlsConfig | None = None,
    ) -> AddressedPushRouter:
        """A router on `client` and `response_server`; what is not given is made as `tls` and the environment say.

        Raises InvalidConfig, and OSError if the response server cannot listen.
        """
        kind = cls
        if cls is AddressedPushRouter and NvtxConfig.from_env().enabled:
            load_nvtx()
            kind = MarkedPushRouter
        client = client or TcpRequestClient(tls=tls)
        server = response_server or await TcpStreamServer.create(tls=tls)
        return kind(client, server, inactivity_timeout=inactivity_timeout)

    async def close(self) -> None:
        """Cut every answer under way, tell the workers, and close all connections."""
        await self.response_server.close()
        await self.clients.close()

    async def __aenter__(self) -> AddressedPushRouter:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    @overload
    async def generate(
        self, request: AddressedRequest, context: Context | None = None, *, raw: Literal[True]
    ) -> ResponseStream[bytes]: ...

    @overload
    async def generate(
        self, request: AddressedRequest, context: Context | None = None, *, response_type: type[_T]
    ) -> ResponseStream[_T]: ...

    @overload
    async def generate(
        self,
        request: AddressedRequest,
        context: Context | None = None,
        *,
        raw: Literal[True],
        sink: Sink[Annotated[bytes]],
    ) -> Delivery: ...

    @overload
    async def generate(
        self,
        request: AddressedRequest,
        context: Context | None = None,
        *,
        response_type: type[_T],
        sink: Sink[Annotated[_T]],
    ) -> Delivery: ...

    @overload
    async def generate(
        self, request: AddressedRequest, context: Context | None = None, *, sink: Sink[Annotated[Any]]
    ) -> Delivery: ...

    @overload
    async def generate(self, request: AddressedRequest, context: Context | None = None) -> ResponseStream[Any]: ...

    async def generate(
        self,
        request: AddressedRequest,
        context: Context | None = None,
        *,
        raw: bool = False,
        response_type: Any = None,
        sink: Sink[Any] | None = None,
    ) -> ResponseStream[Any] | Delivery:
        """Send `request`; returns its answer once the worker's handler was started.

        `raw`: the data of an item is the bytes that the worker sent, in the format that the request names. `response_type`:
        it is a value of that type; an item that does not fit ends the answer with a PayloadError. `sink`: takes the items,
        and the answer is its `Delivery`.

        Every wait ends: the acknowledgement has `DYN_TCP_REQUEST_TIMEOUT`, the worker's call home
        `DYNAMO_FAST_CALL_HOME_TIMEOUT`, or about a second once the connection to the worker is lost. Each wait for an item
        has the inactivity timeout, which is not set by default.

        Raises, with nothing sent: TypeError (the type cannot be decoded), InvalidAddress, SerializationError,
        RequestTooLarge, Disconnected (the worker was removed from discovery), Cancelled (the context was killed). After
        that: CannotConnect, ConnectionTimeout, Unavailable, ResourceExhausted or RequestRefused (the worker's server said
        no), CannotConnect or RemoteError (its handler could not be started), Disconnected (it died), Cancelled.
        """
        exchange = self.begin(request, request.payload_codec.reader(response_type, raw), context)
        try:
            await exchange.receiver.established
        except BaseException:
            exchange.give_up()
            raise
        stream = exchange.stream()
        return stream if sink is None else Delivery(stream, sink).begin()

    def begin(
        self,
        request: AddressedRequest,
        reader: ItemReader,
        context: Context | None = None,
        established: asyncio.Future[Any] | None = None,
    ) -> Exchange:
        """Send `request`, and wait for nothing. Raises what `generate` raises with nothing sent.

        `reader` reads the items. `established` is told when the answer begins, or why it does not; by default a future of
        its own is.
        """
        context = Context() if context is None else context
        timing = RequestTiming(self.metrics)
        receiver = self.response_server.register(context, established, request.mux)
        self.metrics.inflight += 1
        exchange = Exchange(self, request, reader, receiver)
        try:
            if context.is_killed():  # looked at after the registration: another thread may kill it at any moment
                raise Cancelled("Request cancelled before response stream was established")
            exchange.ack = self._send(request, receiver, timing)
        except BaseException:
            exchange.give_up()
            raise
        return exchange

    def _send(
        self, request: AddressedRequest, receiver: ResponseReceiver, timing: RequestTiming
    ) -> asyncio.Future[Ack] | None:
        server, kind = self.response_server, request.kind
        client = self.client if kind == "tcp" else self.clients.get(kind)
        if client is None:
            raise not_offered(request.instance or "the worker", TransportType(kind, request.address))
        if request.instance is not None and not server.associate_instance(receiver.subject, request.instance):
            raise Disconnected("Worker removed before request could be sent (tombstoned instance)")
        payload = _payload(request, receiver, server)
        timing.sending()
        receiver.follow(timing)
        return self._hand_over(client, request, payload, receiver)

    def _hand_over(
        self, client: RequestPlaneClient, request: AddressedRequest, payload: bytes, receiver: ResponseReceiver
    ) -> asyncio.Future[Ack] | None:
        """Returns the acknowledgement, or None if the client tells the receiver of it."""
        if type(client) is not TcpRequestClient:
            return self._ask(client, request, payload, receiver)
        tcp = client
        tcp.send(request.address, payload, _encoded_headers(request, receiver.context), receiver)
        return None

    def _ask(
        self, client: RequestPlaneClient, request: AddressedRequest, payload: bytes, receiver: ResponseReceiver
    ) -> asyncio.Future[Ack]:
        """As every client offers it: with a future of the acknowledgement."""
        ack = client.send_request(request.address, payload, _headers(request, receiver.context))
        ack.add_done_callback(receiver.on_ack)
        return ack


class _Established:
    """Stands for a future that is done: the one of an answer that has begun need not be kept."""

    def done(self) -> bool:
        return True


_ESTABLISHED: Any = _Established()


class Exchange:
    """A request that was sent, until its answer begins.

    `AddressedPushRouter.begin` makes it, and the caller owns it. When `receiver.established` is done it ends with `stream`,
    or, if that failed or is no longer waited for, with `give_up`.
    """

    __slots__ = ("_reader", "_request", "_router", "ack", "receiver")

    def __init__(
        self, router: AddressedPushRouter, request: AddressedRequest, reader: ItemReader, receiver: ResponseReceiver
    ) -> None:
        self._router = router
        self._request = request
        self._reader = reader
        self.receiver = receiver
        self.ack: asyncio.Future[Ack] | None = None
        """The acknowledgement; None before the request is sent, and where the receiver is told of it."""

    async def answer(self) -> ResponseStream[Any]:
        """Wait until the answer begins. Raises why it does not."""
        try:
            await self.receiver.established
        except BaseException:
            self.give_up()
            raise
        return self.stream()

    def stream(self) -> ResponseStream[Any]:
        """The answer, which has begun."""
        receiver, request, router = self.receiver, self._request, self._router
        receiver.established = _ESTABLISHED
        inactivity_timeout = request.inactivity_timeout or router.inactivity_timeout
        if inactivity_timeout is not None:
            receiver.limit_inactivity(inactivity_timeout)
        server = router.response_server
        return ResponseStream(receiver, self._reader, server.loop, router.metrics, server.config.abandoned_after)

    def give_up(self) -> None:
        """The answer is no longer waited for: tell the worker to stop."""
        if self.ack is not None:
            self.ack.cancel()  # no effect on one that has come
        self.receiver.drop()
        self._router.metrics.inflight -= 1


class MarkedPushRouter(AddressedPushRouter):
    """A router that marks the steps of each request for NVIDIA's profilers. `AddressedPushRouter.create` makes it."""

    def _hand_over(
        self, client: RequestPlaneClient, request: AddressedRequest, payload: bytes, receiver: ResponseReceiver
    ) -> asyncio.Future[Ack]:
        ranges = RequestRanges(request.kind)
        try:
            ack = self._ask(client, request, payload, receiver)
        except BaseException:
            ranges.end()
            raise
        ack.add_done_callback(ranges.acknowledged)
        receiver.established.add_done_callback(ranges.end)
        return ack


def encoded(codec: PayloadCodec, value: Any) -> bytes:
    """As `codec.encode`, faster for a plain value."""
    plain = encode_plain(codec.write, value)
    return codec.encode(value) if plain is None else plain


def _headers(request: AddressedRequest, context: Context) -> dict[str, str]:
    return {**(context.trace_headers() or {}), **request.headers, REQUEST_ID: context.id()}


def _encoded_headers(request: AddressedRequest, context: Context) -> bytes:
    """The same as `TcpRequestClient.send` takes them. Nearly every request has its id alone."""
    if request.headers or context.trace_headers() or not context.id_needs_no_escape():
        return TcpRequestClient.encoded(_headers(request, context))
    return f'{{"{REQUEST_ID}":"{context.id()}"'.encode()


def _control(context: Context, address: str, subject: str, codec: PayloadCodec) -> bytes:
    if context._metadata or not context.id_needs_no_escape():
        return encode_single_in(context.id(), address, subject, codec, context.metadata)
    return encode_plain_single_in(context.id(), address, subject, codec)


def _payload(request: AddressedRequest, receiver: ResponseReceiver, server: TcpStreamServer) -> bytes:
    """The two-part message of the request: control message and body, which a bidirectional one has not."""
    context, codec, data = receiver.context, request.payload_codec, request.data
    if isinstance(data, ManyIn):
        sender = server.register_input(data, codec, receiver)
        control = RequestControlMessage(
            id=context.id(),
            connection_info=receiver.connection_info.to_connection_info(),
            request_type=RequestType.MANY_IN,
            payload_codec=codec,
            metadata=context.metadata,
            request_stream_connection_info=sender.connection_info(server.address).to_connection_info(),
        ).encode()
        body = b""
    else:
        control = _control(context, server.address, receiver.subject, codec)
        body = data.body if type(data) is EncodedBody else encoded(codec, data)
    if len(control) > MAX_CONTROL_MESSAGE_SIZE:
        raise RequestTooLarge(
            f"Generic error: request control message too large: {len(control)} bytes exceeds limit "
            f"{MAX_CONTROL_MESSAGE_SIZE}",
            size=len(control),
            limit=MAX_CONTROL_MESSAGE_SIZE,
        )
    if receiver.offer is not None:
        offered = receiver.offer.added_to(control)
        if len(offered) <= MAX_CONTROL_MESSAGE_SIZE:  # else the answer has a connection of its own
            control = offered
    return encode_two_part(control, body)
