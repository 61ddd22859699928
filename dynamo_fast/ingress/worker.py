"""`Worker` and `serve`: a process that serves endpoints, from its first record in discovery to its last answer.

    async with await serve(handler, "demo.backend.generate") as worker:       # one endpoint
        ...

    async with await Worker.start(discovery) as worker:                       # several on one port
        generate = await worker.serve(handler, "demo.backend.generate")
        embed = await worker.serve(other, "demo.backend.embed")
        ...

The end of the block is `await worker.close()`.

It leaves in Dynamo's order (runtime.md 7.3). It leaves discovery. For the leave delay it still takes requests, because
routers hear of it a moment later. Then it refuses requests, and waits until every accepted request has its whole answer.
Then it closes.

A worker that also calls others closes in this order, so that the requests that it has accepted can still call:

    await worker.close()                    # drained; then it closes its discovery, whose watches end
    push_router.close()
    await addressed_router.close()
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Protocol, cast

from dynamo_fast.config import HealthCheckConfig, InstanceConfig, TcpServerConfig, TlsConfig, WorkerConfig
from dynamo_fast.discovery.base import Discovery
from dynamo_fast.discovery.file import FileDiscovery
from dynamo_fast.errors import Disconnected, DynamoError, InvalidConfig, InvalidRequest
from dynamo_fast.ingress.admission import Admission
from dynamo_fast.ingress.buffered_bytes import BufferedBytes
from dynamo_fast.ingress.canary import Canary
from dynamo_fast.ingress.dialler import Dialler
from dynamo_fast.ingress.handlers import AnyHandler, adapted
from dynamo_fast.ingress.model_cards import Model, ModelCards
from dynamo_fast.ingress.push_handler import Handler, PushHandler
from dynamo_fast.ingress.request_server import RequestServer, RequestServerFactory
from dynamo_fast.ingress.tcp_server import SharedTcpServer
from dynamo_fast.ingress.watchdog import Watchdog
from dynamo_fast.logs import get_logger
from dynamo_fast.observability.system_status import SystemStatus
from dynamo_fast.observability.worker_metrics import EndpointMetrics, WorkerMetrics
from dynamo_fast.wire.address import EndpointId, endpoint_path, legacy_endpoint_path
from dynamo_fast.wire.instance import Instance
from dynamo_fast.wire.model_card import slug
from dynamo_fast.wire.mux import VERSION
from dynamo_fast.wire.payload import PayloadCodec
from dynamo_fast.wire.text import printable

__all__ = ["REQUEST_SERVERS", "Companion", "ServedEndpoint", "Worker", "serve"]

logger = get_logger(__name__)


def _nats(limits: TcpServerConfig, buffered: BufferedBytes, tls: TlsConfig) -> RequestServer:
    try:
        from dynamo_fast.ingress.nats_server import NatsRequestServer
    except ModuleNotFoundError as error:
        raise InvalidConfig(
            f"the request transport 'nats' needs nats-py: pip install 'dynamo-fast[nats]' ({error})"
        ) from error
    return NatsRequestServer(limits)


REQUEST_SERVERS: dict[str, RequestServerFactory] = {"tcp": SharedTcpServer, "nats": _nats}
"""The transports of the request plane: Dynamo's name of each, and the server that takes its requests."""


class Companion(Protocol):
    """What a worker closes when it leaves: a publisher of events, for one. It adds and removes itself."""

    async def close(self) -> None:
        """Leave discovery, and close. May be called twice; raises nothing."""


class Worker:
    """The endpoints that this process serves on one port. Made with `start`, used on one event loop.

    It owns everything that its endpoints share: the request server, the admission, the buffered bytes, the dialler, the
    metrics and the watchdog. It ends with `close`, which closes the discovery, too.
    """

    def __init__(
        self,
        discovery: Discovery,
        config: WorkerConfig | None = None,
        server_config: TcpServerConfig | None = None,
        status: SystemStatus | None = None,
        transport: str = "tcp",
        *,
        tls: TlsConfig | None = None,
    ) -> None:
        self.discovery = discovery
        self.config = config or WorkerConfig.from_env()
        self.health_check = HealthCheckConfig.from_env()
        limits = server_config or TcpServerConfig.from_env()
        self.admission = Admission(limits)
        """Which requests run and which wait, for all endpoints."""
        self.buffered = BufferedBytes(limits.buffered_bytes)
        """What connections hold of unfinished requests, the inputs of bidirectional requests included."""
        tls = tls or TlsConfig.from_env()
        self.server = _request_server(transport)(limits, self.buffered, tls)
        self.metrics = WorkerMetrics(discovery.connection_id, self.admission)
        self.dialler = Dialler(self.config, tls)
        self.endpoints: dict[EndpointId, ServedEndpoint] = {}
        self.replaced: set[ServedEndpoint] = set()
        """Endpoints that were served again with another handler, until their last requests have their answers."""
        self.companions: list[Companion] = []
        """Closed with the endpoints when the worker leaves."""
        self._owns_status = status is None
        self._has_served = False
        self.status = status or SystemStatus(discovery.connection_id, metadata=discovery.store.metadata)
        """Health and metrics over HTTP (`DYN_SYSTEM_PORT`). Unless it was given, the process is well once it serves."""
        self.status.serving = self
        self.models = ModelCards(discovery, self.status)
        """The model cards of its endpoints."""
        self._closed = False
        self.watchdog = Watchdog()  # last, as it has a thread

    @classmethod
    async def start(
        cls,
        discovery: Discovery,
        config: WorkerConfig | None = None,
        server_config: TcpServerConfig | None = None,
        status: SystemStatus | None = None,
        transport: str = "tcp",
        *,
        tls: TlsConfig | None = None,
    ) -> Worker:
        """A worker that listens and serves nothing yet. Settings that are not given are read from the environment.

        A `status` that is given was opened, and is closed, by its owner. `transport` is how requests come in: a key of
        `REQUEST_SERVERS`; `tls` is for its port, and for the routers that it dials. Raises OSError if the port is taken,
        CannotConnect if a broker is not reached, InvalidConfig for a setting or an unknown transport.
        """
        worker = cls(discovery, config, server_config, status, transport, tls=tls)
        try:
            await worker.server.start()
            if status is None:
                worker.status.open()
        except BaseException:
            worker.watchdog.close()
            await worker.server.close()
            raise
        worker.status.start()
        return worker

    async def serve(
        self,
        handler: AnyHandler,
        endpoint: EndpointId | str,
        *,
        metrics_labels: Iterable[tuple[str, str]] = (),
        bidirectional: bool = False,
        health_check_payload: dict[str, Any] | None = None,
        model: Model | None = None,
        adapt: bool = True,
    ) -> ServedEndpoint:
        """Serve `endpoint` ("namespace.component.endpoint") with `handler`, in place of an earlier handler of it.

        A handler is an async generator function, a coroutine function (an answer of one item), a generator function (which
        runs in a thread), or returns one of these (see `ingress.handlers`). With `adapt=False` it is called as it is, and
        must return an async iterator: the errors of other handlers are Dynamo's own then, for each request.

        The handler of a bidirectional endpoint gets an async iterator of requests, which come while it answers. With
        `health_check_payload`, and if the environment enables health checks (DYN_HEALTH_CHECK_ENABLED), a silent endpoint
        is checked (see `Canary`). With `model`, Dynamo's frontends list the endpoint as that model (see
        `dynamo_fast.llm.ModelCard`).

        Raises TypeError for a handler of another kind, InvalidAddress for the name, InvalidRequest for a label or a model
        card, Disconnected if the worker is closed meanwhile, and what the discovery backend raises. After an error an
        earlier handler goes on serving.
        """
        endpoint = EndpointId.parse(endpoint) if isinstance(endpoint, str) else endpoint
        is_new = endpoint not in self.endpoints
        called = cast(Handler, handler)
        if adapt:
            called = adapted(handler, self.config.handler_threads, bidirectional=bidirectional)
        served = ServedEndpoint(self, called, endpoint, metrics_labels, bidirectional)
        await self._begin(served, model, is_new=is_new)
        if self._closed:  # meanwhile
            await self.models.remove_all(endpoint)
            await served.withdraw()
            raise Disconnected(f"{endpoint} is not served: the worker was closed")
        if not is_new:
            earlier = self.endpoints.get(endpoint)
            served.install()
            if earlier is not None:
                earlier.retire()
        if health_check_payload is not None and self.health_check.enabled:
            served.canary = Canary(served.handler, health_check_payload, self.health_check)
        if health_check_payload is not None:
            self.status.checked_endpoints.add(endpoint)
        if self._owns_status and not self._has_served:
            self._has_served = self.status.healthy = True
        return served

    async def _begin(self, served: ServedEndpoint, model: Model | None, *, is_new: bool) -> None:
        """Register the endpoint, then publish its model: all of it, or nothing."""
        self.models.served(served.endpoint)
        if model is not None:
            await self.models.check(served.endpoint, model)
        if is_new:
            served.install()  # a router may come as soon as there is a record
        try:
            await self.server.listening()
            await served.register()
            if model is not None:
                await served.add_model(model)  # last: a frontend answers 503 for a card without an instance
        except BaseException:
            if is_new:
                await served.withdraw()
                served.uninstall()
            raise

    def record(self, endpoint: EndpointId) -> Instance:
        """The record of an endpoint of this worker for discovery."""
        path = endpoint_path(endpoint, self.discovery.connection_id)
        config = InstanceConfig.from_env()
        return Instance(
            endpoint_id=endpoint,
            instance_id=self.discovery.connection_id,
            transport=self.server.transport(path),
            device_type=config.device_type,
            request_plane_codec=PayloadCodec.JSON if config.request_plane_codec == "json" else PayloadCodec.MSGPACK,
            mux=VERSION if self.config.mux == "auto" else None,
        )

    async def __aenter__(self) -> Worker:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Leave, wait until every accepted request has its answer, and close. May be called twice.

        The discovery is closed last: until the last answer has ended, handlers may use routers that watch it.
        """
        self._closed = True
        leaving = [*self.endpoints.values(), *self.replaced, *self.companions]
        await asyncio.gather(*(each.close() for each in leaving))
        await self.dialler.all_closed()
        self.dialler.close()
        self.watchdog.close()
        await self.server.close()
        await self.discovery.close()
        if self._owns_status:
            await self.status.close()


class ServedEndpoint:
    """One endpoint of a worker. `Worker.serve` makes it; it ends with `close`, or when another handler replaces it."""

    def __init__(
        self,
        worker: Worker,
        handler: Handler,
        endpoint: EndpointId,
        metrics_labels: Iterable[tuple[str, str]],
        bidirectional: bool,
    ) -> None:
        self.worker = worker
        self.endpoint = endpoint
        self.metrics = EndpointMetrics(endpoint, worker.discovery.connection_id, metrics_labels)
        self.handler = PushHandler(
            handler,
            endpoint,
            worker,
            self.metrics,
            bidirectional=bidirectional,
        )
        self.canary: Canary | None = None
        self._registered = False
        self._closing: asyncio.Future[None] | None = None
        self._path = endpoint_path(endpoint, worker.discovery.connection_id)
        self.instance = worker.record(endpoint)
        """The record that discovery has of it."""

    @property
    def address(self) -> str:
        """Where callers send their requests, as its record says: `ip:port/path` over TCP."""
        return self.instance.transport.address

    @property
    def ready(self) -> bool:
        """Whether it is registered and, if its health is checked, healthy."""
        return self._registered and (self.canary is None or self.canary.ready)

    def install(self) -> None:
        """Take the requests of this endpoint from now on."""
        worker = self.worker
        worker.endpoints[self.endpoint] = self
        worker.metrics.endpoints.append(self.metrics)
        legacy = legacy_endpoint_path(self.endpoint, worker.discovery.connection_id)
        worker.server.register(self._path, self.handler.accept, alias=legacy)

    def uninstall(self) -> None:
        """Take no more requests, unless another handler takes them already. Answer accepted requests."""
        if self._is_current():
            self.worker.server.unregister(self._path)
            del self.worker.endpoints[self.endpoint]
        self.retire()

    async def register(self) -> None:
        """Put the record of this endpoint into discovery (again)."""
        await self.worker.discovery.register(self.instance)
        self._registered = True

    async def unregister(self) -> None:
        """Leave discovery, and go on serving. Raises InvalidRequest if it is not in discovery."""
        await self.worker.discovery.unregister(self.instance)
        self._registered = False

    async def withdraw(self) -> None:
        """Leave discovery after an error, if the record is there. Raises nothing that a store raises."""
        with contextlib.suppress(DynamoError, OSError):  # the discovery may be closed already, and the record gone
            if self._registered:
                await self.unregister()

    async def add_model(self, model: Model) -> None:
        """Publish the cards of a model, for one that is not known when the endpoint is served: a LoRA adapter, above all.

        Raises Disconnected if the endpoint was closed or replaced, and what `ModelCards.publish` raises.
        """
        if self._closing is not None:
            raise Disconnected(f"{self.endpoint} is not served by this handler any more: no model card is published")
        await self.worker.models.publish(self.endpoint, model)

    async def remove_model(self, lora: str | None = None) -> None:
        """Remove the card of the model, or of the LoRA adapter of that name, and go on serving.

        Raises InvalidRequest if there is no such card.
        """
        if not await self.worker.models.remove(self.endpoint, lora and slug(lora)):
            what = f"the LoRA adapter {printable(lora)!r}" if lora else "a model"
            raise InvalidRequest(f"{self.endpoint} has no card of {what}: nothing to remove")

    async def close(self) -> None:
        """Leave discovery, refuse requests, and wait until every accepted request has its answer or was cancelled.

        May be called twice, also at the same time.
        """
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._leave())
        await asyncio.shield(self._closing)

    def retire(self) -> None:
        """Another handler has its record and path now: answer accepted requests."""
        if self._closing is None:
            self.worker.replaced.add(self)
            self._closing = asyncio.ensure_future(self._end())

    async def _leave(self) -> None:
        if self._is_current():
            await self.worker.models.remove_all(self.endpoint)  # before the instance, or a frontend answers 503
        if self._registered and self._is_current():
            try:
                await self.unregister()
            except (DynamoError, OSError) as error:  # its lease ends anyway; accepted requests come first
                logger.warning("%s could not leave discovery: %s", self.endpoint, error)
            await asyncio.sleep(self.worker.config.leave_delay)
        if self._is_current():
            self.worker.server.unregister(self._path)
        await self._end()
        if self._is_current():
            del self.worker.endpoints[self.endpoint]

    def _is_current(self) -> bool:
        """Whether no other handler is served under its name."""
        return self.worker.endpoints.get(self.endpoint) is self

    async def _end(self) -> None:
        if self.canary is not None:
            self.canary.close()
        await self._drain()
        self.worker.metrics.endpoints.remove(self.metrics)
        self.worker.replaced.discard(self)

    async def _drain(self) -> None:
        config = self.worker.config
        try:
            await asyncio.wait_for(self.handler.drained(), config.shutdown_timeout)
            return
        except asyncio.TimeoutError:
            logger.warning("%d requests for %s did not end in time", self.metrics.inflight, self.endpoint)
        self.handler.cancel()
        try:
            await asyncio.wait_for(self.handler.drained(), config.cancel_grace + config.connect_timeout)
        except asyncio.TimeoutError:
            logger.error("%d requests for %s go on though cancelled", self.metrics.inflight, self.endpoint)


async def serve(
    handler: AnyHandler,
    endpoint: EndpointId | str,
    discovery: Discovery | None = None,
    config: WorkerConfig | None = None,
    *,
    transport: str = "tcp",
    model: Model | None = None,
    tls: TlsConfig | None = None,
) -> Worker:
    """A worker that serves one endpoint, found through `discovery`: by default files, as the environment says.

    `handler` is as for `Worker.serve`. `transport` is how requests come in: a key of `REQUEST_SERVERS`. With `model`,
    Dynamo's frontends list the endpoint as that model: `dynamo_fast.llm.ModelCard.from_folder(path)`. Raises what
    `Worker.start` and `Worker.serve` raise.
    """
    worker = await Worker.start(
        FileDiscovery() if discovery is None else discovery, config, transport=transport, tls=tls
    )
    try:
        await worker.serve(handler, endpoint, model=model)
    except BaseException:
        await worker.close()
        raise
    return worker


def _request_server(transport: str) -> RequestServerFactory:
    try:
        return REQUEST_SERVERS[transport]
    except KeyError:
        known = ", ".join(map(repr, sorted(REQUEST_SERVERS)))
        raise InvalidConfig(f"the request transport {transport!r} is not offered: expected {known}") from None
