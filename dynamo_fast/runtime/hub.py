"""`Hub`: what the endpoints and the clients of one runtime share."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from dynamo_fast.discovery.base import Discovery
from dynamo_fast.discovery.buckets import INSTANCES
from dynamo_fast.egress.instance_table import InstanceTable
from dynamo_fast.egress.push_router import PushRouter
from dynamo_fast.egress.router import AddressedPushRouter
from dynamo_fast.errors import Disconnected
from dynamo_fast.ingress.worker import Worker
from dynamo_fast.logs import get_logger
from dynamo_fast.observability.system_status import SystemStatus
from dynamo_fast.wire.address import EndpointId

__all__ = ["Hub"]

logger = get_logger(__name__)

_T = TypeVar("_T")


class Hub:
    """One process's discovery, status server, worker and router.

    It owns all four. The worker, the router and the table of each endpoint are made when they are first needed. A
    `DistributedRuntime` makes the hub and calls `shutdown`; its endpoints call the rest, on one event loop. The hub ends
    when `shutdown` has closed what it owns; `ended` is done then.
    """

    def __init__(self, event_loop: Any, discovery: Discovery, transport: str = "tcp") -> None:
        """`event_loop`: the loop on which to close if `shutdown` is called where no loop runs; None if there is none.
        `transport`: how requests come to the endpoints that are served, a key of `REQUEST_SERVERS`.

        Raises InvalidConfig for a setting of the status server.
        """
        self.discovery = discovery
        self.status = SystemStatus(discovery.connection_id, metadata=discovery.store.metadata)
        self._event_loop = event_loop if isinstance(event_loop, asyncio.AbstractEventLoop) else None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._transport = transport
        self._worker: asyncio.Task[Worker] | None = None
        self._router: asyncio.Task[AddressedPushRouter] | None = None
        self._tables: dict[EndpointId, asyncio.Task[InstanceTable]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing: asyncio.Task[None] | None = None
        self._end: asyncio.Future[None] | None = None
        self.is_shut_down = False
        """Whether `shutdown` was called."""
        self._drained = False
        self._open_status()

    # Serving ----------------------------------------------------------------------------------------------------------

    async def worker(self) -> Worker:
        """The worker that serves all endpoints. Raises Disconnected after `shutdown`, and what `Worker.start` raises."""
        self.check_open()
        self._belong_here()
        if self._worker is None or not _is_usable(self._worker):
            self._worker = asyncio.ensure_future(
                Worker.start(self.discovery, status=self.status, transport=self._transport)
            )
        return await asyncio.shield(self._worker)

    async def register(self, endpoint: EndpointId) -> tuple[()]:
        """Put the record of `endpoint` into discovery, whether the endpoint is served or not."""
        worker = await self.worker()
        served = worker.endpoints.get(endpoint)
        if served is not None:
            await served.register()
        else:
            await self.discovery.register(worker.record(endpoint))
        return ()

    async def unregister(self, endpoint: EndpointId) -> tuple[()]:
        """Take the record of `endpoint` out of discovery. Raises InvalidRequest if it is not there."""
        worker = await self.worker()
        served = worker.endpoints.get(endpoint)
        if served is not None:
            await served.unregister()
        else:
            await self.discovery.unregister(worker.record(endpoint))
        return ()

    # Calling ----------------------------------------------------------------------------------------------------------

    async def push_router(self, endpoint: EndpointId) -> PushRouter:
        """A new router to the instances of `endpoint`.

        The routers of one endpoint share its instance table; each has its own list of inhibited workers. Raises
        Disconnected after `shutdown`; in a process that serves, only once the last accepted request has its answer.
        """
        if self._drained or self._worker is None:
            self.check_open()
        self._belong_here()
        router = await self._addressed_router()
        watching = self._tables.get(endpoint)
        if watching is None or not _is_usable(watching):
            watch = InstanceTable.watch(endpoint, self.discovery, router.response_server)
            watching = self._tables[endpoint] = asyncio.ensure_future(watch)
        try:
            table = await asyncio.shield(watching)
        except asyncio.CancelledError:
            if watching.cancelled():  # by `_close`
                self.check_open()
            raise
        return PushRouter(table, router)

    async def _addressed_router(self) -> AddressedPushRouter:
        if self._router is None or not _is_usable(self._router):
            self._router = asyncio.ensure_future(AddressedPushRouter.create())
        return await asyncio.shield(self._router)

    # For what is made without awaiting ---------------------------------------------------------------------------------

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` on the loop of this runtime, from any thread. It handles its errors itself.

        Raises RuntimeError if there is no such loop: none runs here, and the runtime was made without one.
        """
        here, home = _running_loop(), self._loop or self._event_loop
        if here is not None and home in (None, here):
            self._keep(here.create_task(work))
        elif home is not None and not home.is_closed():
            home.call_soon_threadsafe(lambda: self._keep(home.create_task(work)))
        else:
            work.close()
            raise RuntimeError("no running event loop")

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # The end ----------------------------------------------------------------------------------------------------------

    def ended(self) -> asyncio.Future[None]:
        """A future of the running loop that is done when everything is closed."""
        self._belong_here()
        if self._end is None:
            self._end = asyncio.get_running_loop().create_future()
        return self._end

    def shutdown(self) -> None:
        """See `DistributedRuntime.shutdown`."""
        self.is_shut_down = True
        self.discovery.withdraw()
        here, home = _running_loop(), self._loop or self._event_loop
        if here is not None and home in (None, here):
            self._begin_to_close()
            # A handler of `signal.signal` interrupts the loop while it waits for I/O. This wakes the loop up.
            here.call_soon_threadsafe(_nothing)
        elif home is not None and not home.is_closed():
            home.call_soon_threadsafe(self._begin_to_close)

    def _belong_here(self) -> None:
        """The loop that uses the hub first is the one on which it closes."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()

    def check_open(self, bucket: str = INSTANCES.name) -> None:
        """Raises Disconnected after `shutdown`, with Dynamo's text for a watch of the bucket."""
        if self.is_shut_down:
            raise Disconnected(f"Watch on bucket '{bucket}' was cancelled before it was established")

    def _open_status(self) -> None:
        self.status.open()
        try:
            self.status.start()
        except RuntimeError:  # no loop is running yet
            if self._event_loop is not None:
                self._event_loop.call_soon_threadsafe(self.status.start)

    def _begin_to_close(self) -> None:
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())

    async def _close(self) -> None:
        try:
            try:
                await self._close_ends()
            finally:  # also if the event loop ends meanwhile, and cancels this
                await self.discovery.close()
                await self.status.close()
        except Exception:
            logger.exception("the runtime failed to close")
        finally:
            if not self.ended().done():
                self.ended().set_result(None)

    async def _close_ends(self) -> None:
        """Close the worker first: its handlers may call other workers until every accepted request has its answer."""
        if self._tasks:
            await asyncio.wait(self._tasks)
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


async def _result(task: asyncio.Task[_T] | None) -> _T | None:
    """The result of `task`; None if there is no task, or if it failed: its caller got that error."""
    if task is None:
        return None
    if not task.done():
        await asyncio.wait([task])
    return None if task.cancelled() or task.exception() is not None else task.result()


def _is_usable(task: asyncio.Task[Any] | None) -> bool:
    """Whether `task` runs or has succeeded. One that failed is made again: the next caller may have more luck."""
    return task is not None and not (task.done() and (task.cancelled() or task.exception() is not None))


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _nothing() -> None:
    pass
