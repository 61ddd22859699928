"""`DistributedRuntime`, as `dynamo.runtime` has it (runtime.md 1.1, 4.1 and 7.3)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any, TypeVar

from dynamo_fast.config import refuse_tls
from dynamo_fast.discovery.connect import check_kind, connect
from dynamo_fast.egress.instance_table import InstanceTable
from dynamo_fast.egress.push_router import PushRouter, RouterMode
from dynamo_fast.egress.router import AddressedPushRouter
from dynamo_fast.errors import Disconnected, InvalidConfig
from dynamo_fast.ingress.worker import Worker
from dynamo_fast.logs import get_logger
from dynamo_fast.observability.system_status import SystemStatus
from dynamo_fast.runtime.client import Client
from dynamo_fast.runtime.endpoint import Endpoint
from dynamo_fast.runtime.exceptions import NotOffered, argument_error
from dynamo_fast.wire.address import EndpointId

__all__ = ["DistributedRuntime"]

logger = get_logger(__name__)

_T = TypeVar("_T")


class DistributedRuntime:
    """A process's place in Dynamo: what it serves, and whom it calls.

    `discovery_backend` is `file`, `etcd` or `mem`; `request_plane` is `tcp`. Making one opens no port; with etcd it
    waits for a lease. Used on the event loop that runs when it is first asked for something.
    """

    def __init__(
        self,
        event_loop: Any,
        discovery_backend: str,
        request_plane: str,
        enable_nats: bool | None = None,
        *,
        event_plane: str | None = None,
        response_plane: str | None = None,
    ) -> None:
        for name, value in (("discovery_backend", discovery_backend), ("request_plane", request_plane)):
            if not isinstance(value, str):
                raise argument_error(name, value, "PyString")
        check_kind(discovery_backend)
        refuse_tls()
        _check_planes(request_plane, event_plane, response_plane)
        self._event_loop = event_loop
        self._discovery = connect(discovery_backend)
        self._worker: asyncio.Task[Worker] | None = None
        self._router: asyncio.Task[AddressedPushRouter] | None = None
        self._tables: dict[EndpointId, asyncio.Task[InstanceTable]] = {}
        self._status = SystemStatus(self._discovery.connection_id)
        self._open_status()
        self._closing: asyncio.Task[None] | None = None
        self._end: asyncio.Future[None] | None = None
        self._shut_down = False
        self._drained = False

    @staticmethod
    def detached() -> DistributedRuntime:
        """A runtime as the environment says: `DYN_DISCOVERY_BACKEND` (etcd), `DYN_REQUEST_PLANE` (tcp)."""
        return from_environment(None)

    def endpoint(self, path: str) -> Endpoint:
        """The endpoint `namespace.component.endpoint`. Raises ValueError for anything else."""
        if not isinstance(path, str):
            raise argument_error("path", path, "PyString")
        return Endpoint(self, EndpointId.parse(path))

    def event_loop(self) -> Any:
        """What was given."""
        return self._event_loop

    def set_health_status(self, healthy: bool) -> None:
        """Say whether this process is well."""
        self._status.healthy = healthy

    def system_status_server_url(self) -> str | None:
        """Where the status server answers; None if there is none (`DYN_SYSTEM_PORT` is not set)."""
        return self._status.url

    def register_engine_route(self, name: str, callback: Callable[..., Any]) -> None:
        """Answer `POST /engine/{name}` of the status server with `await callback(body)`; nothing without that server."""
        self._status.register_engine_route(name, callback)

    def to_capsule(self) -> Any:
        """Not offered: it is for other bindings of Rust. Raises NotOffered."""
        raise NotOffered("to_capsule is not offered: there is no Rust runtime behind dynamo_fast")

    def shutdown(self) -> None:
        """Leave discovery, let the requests in flight have their answers, and close. May be repeated.

        The records are gone when this returns, also if no event loop runs any more; the rest goes on by itself. Any
        thread and any signal handler may call it. Until the last request that was accepted has its answer, the clients
        of this process go on: a handler may still call others.
        """
        self._shut_down = True
        self._discovery.withdraw()
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            if isinstance(self._event_loop, asyncio.AbstractEventLoop) and not self._event_loop.is_closed():
                self._event_loop.call_soon_threadsafe(self._begin_to_close)
        else:
            self._begin_to_close()
            # A handler of `signal.signal` interrupts the loop while it sleeps: without this it would sleep on.
            loop.call_soon_threadsafe(_nothing)

    # What endpoints and their clients need

    @property
    def connection_id(self) -> int:
        """See `Endpoint.connection_id`."""
        return self._discovery.connection_id

    def ended(self) -> asyncio.Future[None]:
        """Done when the runtime has shut down."""
        if self._end is None:
            self._end = asyncio.get_running_loop().create_future()
        return self._end

    async def worker(self) -> Worker:
        """What serves the endpoints; one for all of them."""
        self._check_open()
        if self._worker is None:
            self._worker = asyncio.ensure_future(Worker.start(self._discovery, status=self._status))
        return await asyncio.shield(self._worker)

    async def register(self, endpoint: EndpointId) -> tuple[()]:
        """Put the record of an endpoint into discovery, be it served or not."""
        worker = await self.worker()
        served = worker.endpoints.get(endpoint)
        if served is not None:
            await served.register()
        else:
            await self._discovery.register(worker.record(endpoint))
        return ()

    async def unregister(self, endpoint: EndpointId) -> tuple[()]:
        """Take it out. Raises InvalidRequest if it is not there."""
        worker = await self.worker()
        served = worker.endpoints.get(endpoint)
        if served is not None:
            await served.unregister()
        else:
            await self._discovery.unregister(worker.record(endpoint))
        return ()

    async def open_client(self, endpoint: EndpointId, mode: RouterMode | None) -> Client:
        """A client; those of one endpoint share what discovery says, and keep to themselves what they learn."""
        if self._drained or self._worker is None:
            self._check_open()
        router = await self._addressed_router()
        if endpoint not in self._tables:
            watch = InstanceTable.watch(endpoint, self._discovery, router.response_server)
            self._tables[endpoint] = asyncio.ensure_future(watch)
        table = await asyncio.shield(self._tables[endpoint])
        return Client(PushRouter(table, router), mode)

    async def _addressed_router(self) -> AddressedPushRouter:
        if self._router is None:
            self._router = asyncio.ensure_future(AddressedPushRouter.create())
        return await asyncio.shield(self._router)

    def _check_open(self) -> None:
        if self._shut_down:
            raise Disconnected("Watch on bucket 'v1/instances' was cancelled before it was established")

    def _open_status(self) -> None:
        self._status.open()
        try:
            self._status.start()
        except RuntimeError:  # no loop runs yet
            if isinstance(self._event_loop, asyncio.AbstractEventLoop):
                self._event_loop.call_soon_threadsafe(self._status.start)

    def _begin_to_close(self) -> None:
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())

    async def _close(self) -> None:
        """First what is served, until all that was accepted is answered; then what its handlers may have called with."""
        try:
            worker = await _result(self._worker)
            if worker is not None:
                await worker.close()
            self._drained = True
            for watching in self._tables.values():
                if not watching.done():
                    watching.cancel()
                table = await _result(watching)
                if table is not None:
                    table.close()
                    table.clear()
            router = await _result(self._router)
            if router is not None:
                await router.close()
            await self._discovery.close()
            await self._status.close()
        except Exception:
            logger.exception("the runtime could not close in order")
        finally:
            if not self.ended().done():
                self.ended().set_result(None)


async def _result(task: asyncio.Task[_T] | None) -> _T | None:
    """What the task makes; None if there is no task, or if it failed, of which its own caller was told."""
    if task is None:
        return None
    if not task.done():
        await asyncio.wait([task])
    return None if task.cancelled() or task.exception() is not None else task.result()


def _nothing() -> None:
    pass


def from_environment(event_loop: Any) -> DistributedRuntime:
    """A runtime on the backend and the plane that the environment names."""
    backend = os.environ.get("DYN_DISCOVERY_BACKEND", "etcd")
    return DistributedRuntime(event_loop, backend, os.environ.get("DYN_REQUEST_PLANE", "tcp"))


def _check_planes(request_plane: str, event_plane: str | None, response_plane: str | None) -> None:
    if request_plane == "nats":
        raise NotOffered("the request plane 'nats' is not offered: use 'tcp', which all releases of Dynamo speak")
    if request_plane != "tcp":
        raise InvalidConfig(f"Invalid request plane mode: '{request_plane}'. Valid options are: 'nats', 'tcp'")
    if event_plane not in (None, "nats", "zmq"):
        raise InvalidConfig(f"Invalid event_plane value '{event_plane}'. Valid values: 'nats', 'zmq'")
    response_plane = response_plane or os.environ.get("DYN_RESPONSE_PLANE") or "tcp"
    if response_plane == "quic":
        raise NotOffered("the response plane 'quic' is not offered: use 'tcp'")
    if response_plane != "tcp":
        raise InvalidConfig(f"invalid DYN_RESPONSE_PLANE value '{response_plane}'; expected 'tcp' or 'quic'")
