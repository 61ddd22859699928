"""`Plane`: a router and a worker in one process, over real sockets on loopback, for the tests of a handler or of a caller.

    async with Plane() as plane:
        await plane.serve(handler, "demo.backend.generate")
        assert await plane.ask("demo.backend.generate", {"prompt": "hi"}) == [{"text": "hi"}]

Everything goes through two fault proxies, which pass bytes on until a test asks for harm: `plane.requests` is the network
on the way to the worker, `plane.answers` the one on the way back.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace
from types import TracebackType
from typing import Any

from dynamo_fast.config import PushRouterConfig, ResponseServerConfig, TcpClientConfig, TcpServerConfig, WorkerConfig
from dynamo_fast.context import Context
from dynamo_fast.discovery.memory import MemoryDiscovery
from dynamo_fast.egress.call import RoutedStream
from dynamo_fast.egress.push_router import PushRouter
from dynamo_fast.egress.response_server import TcpStreamServer
from dynamo_fast.egress.router import AddressedPushRouter
from dynamo_fast.egress.tcp_client import TcpRequestClient
from dynamo_fast.ingress.handlers import AnyHandler
from dynamo_fast.ingress.worker import Worker
from dynamo_fast.observability.metrics import RequestPlaneMetrics
from dynamo_fast.testing.faults import FaultProxy
from dynamo_fast.wire.instance import Instance, TransportType

__all__ = ["Plane"]

LOOPBACK = "127.0.0.1"


class Plane:
    """A worker, a router, and the network between them. `async with` opens and closes it; one event loop.

    At its end the worker waits for the answers under way, and for `shutdown_timeout` at most.
    """

    worker: Worker
    router: AddressedPushRouter
    requests: FaultProxy
    """The network on which the router dials the worker."""
    answers: FaultProxy
    """The network on which the worker dials the router, with its answers."""
    discovery: MemoryDiscovery
    """What the router sees: the records of the worker, with the address of the proxy."""

    def __init__(self, *, retries: int = 0, shutdown_timeout: float = 5.0, cancel_grace: float = 1.0) -> None:
        """`retries`: of `ask` and `call`, as for `PushRouter`. Times are in seconds, and those of the `WorkerConfig`."""
        self.metrics = RequestPlaneMetrics()
        """What the router counts, apart from the rest of the process."""
        self._retries = retries
        self._worker_config = WorkerConfig(
            leave_delay=0.0, shutdown_timeout=shutdown_timeout, cancel_grace=cancel_grace
        )
        self._push_routers: dict[str, PushRouter] = {}
        self._stack = AsyncExitStack()

    async def serve(self, handler: AnyHandler, endpoint: str, **options: Any) -> Instance:
        """Serve `endpoint`; see `Worker.serve` for the options. Returns the record that routers see."""
        served = await self.worker.serve(handler, endpoint, **options)
        address, _, path = served.address.partition("/")
        assert address == self._request_address
        transport = TransportType(served.instance.transport.kind, f"{self.requests.address}/{path}")
        record = replace(served.instance, transport=transport)
        await self.discovery.register(record)
        return record

    async def push_router(self, endpoint: str) -> PushRouter:
        """The router of that endpoint. No worker is left out after a failure: a test has one."""
        if endpoint not in self._push_routers:
            config = PushRouterConfig(inhibited_duration=0.0)
            made = await PushRouter.create(endpoint, self.discovery, self.router, retries=self._retries, config=config)
            self._push_routers[endpoint] = made
        return self._push_routers[endpoint]

    async def call(self, endpoint: str, request: Any, context: Context | None = None) -> RoutedStream[Any]:
        """Send a request. Raises what `PushRouter.generate` raises."""
        return await (await self.push_router(endpoint)).generate(request, context)

    async def ask(self, endpoint: str, request: Any, context: Context | None = None) -> list[Any]:
        """Send a request, and return the data of all items. Raises what ends the answer early."""
        async with await self.call(endpoint, request, context) as stream:
            return [item.data() async for item in stream]

    @property
    def idle(self) -> bool:
        """Whether no request is under way, at either end."""
        return not (self.metrics.inflight or self.worker.admission.running)

    async def until_idle(self, timeout: float = 5.0) -> None:
        """Wait until no request is under way. Raises TimeoutError after `timeout` seconds."""

        async def idle() -> None:
            while not self.idle:  # noqa: ASYNC110  # two counters, which have no event
                await asyncio.sleep(0.005)

        try:
            await asyncio.wait_for(idle(), timeout)
        except asyncio.TimeoutError:
            raise TimeoutError(
                f"after {timeout:g} s {self.metrics.inflight} requests are under way at the router, and "
                f"{self.worker.admission.running} at the worker"
            ) from None

    async def __aenter__(self) -> Plane:
        async with AsyncExitStack() as stack:
            worker = await Worker.start(MemoryDiscovery(), self._worker_config, TcpServerConfig(host=LOOPBACK))
            self.worker = await stack.enter_async_context(worker)
            self._request_address = worker.server.transport("").address.partition("/")[0]
            self.requests = await stack.enter_async_context(FaultProxy(self._request_address))
            self.discovery = MemoryDiscovery()
            stack.push_async_callback(self.discovery.close)
            server = await TcpStreamServer.create(ResponseServerConfig(host=LOOPBACK))
            client = TcpRequestClient(TcpClientConfig(), metrics=self.metrics)
            router = AddressedPushRouter(client, server, metrics=self.metrics)
            self.router = await stack.enter_async_context(router)
            self.answers = await stack.enter_async_context(FaultProxy(server.address))
            server.address = self.answers.address
            stack.callback(self._close_push_routers)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for proxy in (self.requests, self.answers):
            proxy.heal()
        await self._stack.aclose()

    def _close_push_routers(self) -> None:
        for each in self._push_routers.values():
            each.close()
        self._push_routers.clear()
