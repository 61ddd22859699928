"""`AddressedPushRouter`: sends a request to a worker whose address is known, and streams its answer (transport.md 5)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import TracebackType
from typing import Any, NamedTuple

import msgspec

from dynamo_fast.codec import encode_two_part
from dynamo_fast.config import NvtxConfig, TlsConfig
from dynamo_fast.context import Context
from dynamo_fast.egress.request_client import Ack, RequestPlaneClient
from dynamo_fast.egress.request_sender import ManyIn
from dynamo_fast.egress.response_receiver import ResponseReceiver
from dynamo_fast.egress.response_server import TcpStreamServer
from dynamo_fast.egress.response_stream import ResponseStream
from dynamo_fast.egress.tcp_client import TcpRequestClient
from dynamo_fast.egress.transports import RequestClients
from dynamo_fast.errors import Cancelled, Disconnected, RequestTooLarge
from dynamo_fast.observability.metrics import (
    REQUEST_PLANE,
    RequestPlaneMetrics,
    RequestTiming,
)
from dynamo_fast.observability.nvtx import RequestRanges, load_nvtx
from dynamo_fast.wire.address import EndpointInstanceId
from dynamo_fast.wire.control import MAX_CONTROL_MESSAGE_SIZE, RequestControlMessage, RequestType, encode_single_in
from dynamo_fast.wire.headers import REQUEST_ID
from dynamo_fast.wire.instance import Instance, TransportType, not_offered
from dynamo_fast.wire.payload import PayloadCodec

__all__ = ["AddressedPushRouter", "AddressedRequest", "EncodedBody", "MarkedPushRouter"]


class EncodedBody(NamedTuple):
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
        return cls(data, transport.address, instance.endpoint_instance_id, instance.payload_codec, kind=transport.kind)


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

    async def generate(self, request: AddressedRequest, context: Context | None = None) -> ResponseStream:
        """Send `request`; returns its answer once the worker's handler was started.

        Every wait ends: the acknowledgement has `DYN_TCP_REQUEST_TIMEOUT`, the worker's call home
        `DYNAMO_FAST_CALL_HOME_TIMEOUT`, or about a second once the connection to the worker is lost. Each wait for an item
        has the inactivity timeout, which is not set by default.

        Raises, with nothing sent: InvalidAddress, SerializationError, RequestTooLarge, Disconnected (the worker was
        removed from discovery), Cancelled (the context was killed). After that: CannotConnect, ConnectionTimeout,
        Unavailable, ResourceExhausted or RequestRefused (the worker's server said no), CannotConnect or RemoteError
        (its handler could not be started), Disconnected (it died), Cancelled.
        """
        context = Context() if context is None else context
        timing = RequestTiming(self.metrics)
        receiver = self.response_server.register(context)
        self.metrics.inflight += 1
        ack = None
        try:
            if context.is_killed():  # looked at after the registration: another thread may kill it at any moment
                raise Cancelled("Request cancelled before response stream was established")
            ack = self._send(request, receiver, timing)
            await receiver.established
        except BaseException:
            if ack is not None:
                ack.cancel()  # no effect on one that has come
            receiver.drop()
            self._leave()
            raise
        inactivity_timeout = request.inactivity_timeout or self.inactivity_timeout
        if inactivity_timeout is not None:
            receiver.limit_inactivity(inactivity_timeout)
        return ResponseStream(receiver, request.payload_codec, self.response_server.loop, self._leave)

    def _leave(self) -> None:
        self.metrics.inflight -= 1

    def _send(
        self, request: AddressedRequest, receiver: ResponseReceiver, timing: RequestTiming
    ) -> asyncio.Future[Ack]:
        server, context = self.response_server, receiver.context
        client = self.clients.get(request.kind)
        if client is None:
            raise not_offered(request.instance or "the worker", TransportType(request.kind, request.address))
        if request.instance is not None and not server.associate_instance(receiver.subject, request.instance):
            raise Disconnected("Worker removed before request could be sent (tombstoned instance)")
        payload = _payload(request, receiver, server)
        headers = {**(context.trace_headers() or {}), **request.headers, REQUEST_ID: context.id()}
        timing.sending()
        ack = client.send_request(request.address, payload, headers)
        receiver.follow(ack, timing)
        return ack


class MarkedPushRouter(AddressedPushRouter):
    """A router that marks the steps of each request for NVIDIA's profilers. `AddressedPushRouter.create` makes it."""

    def _send(
        self, request: AddressedRequest, receiver: ResponseReceiver, timing: RequestTiming
    ) -> asyncio.Future[Ack]:
        ranges = RequestRanges(request.kind)
        try:
            ack = AddressedPushRouter._send(self, request, receiver, timing)
        except BaseException:
            ranges.end()
            raise
        ack.add_done_callback(ranges.acknowledged)
        receiver.established.add_done_callback(ranges.end)
        return ack


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
        control = encode_single_in(context.id(), server.address, receiver.subject, codec, context.metadata)
        body = data.body if isinstance(data, EncodedBody) else codec.encode(data)
    if len(control) > MAX_CONTROL_MESSAGE_SIZE:
        raise RequestTooLarge(
            f"Generic error: request control message too large: {len(control)} bytes exceeds limit "
            f"{MAX_CONTROL_MESSAGE_SIZE}",
            size=len(control),
            limit=MAX_CONTROL_MESSAGE_SIZE,
        )
    return encode_two_part(control, body)
