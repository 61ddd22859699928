"""A gateway before workers of the test's own, in one process: `Stage`."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from dynamo_fast import AddressedPushRouter, Context, FileDiscovery, Worker
from dynamo_fast.config import GatewayConfig, ResponseServerConfig, TcpServerConfig, WorkerConfig
from dynamo_fast.egress.response_server import TcpStreamServer
from dynamo_fast.gateway import Routers, app
from dynamo_fast.gateway.server import Server
from tests.waiting import until

ENDPOINT = "a.b.c"


async def engine(request: Any, context: Context) -> AsyncIterator[Any]:
    """Yields `items`, then raises `error`, or waits until it is stopped if `hangs` is true."""
    for item in request.get("items", ()):
        yield item
    if request.get("error"):
        raise {"ValueError": ValueError, "RuntimeError": RuntimeError}[request["error"]]("on purpose")
    if request.get("hangs"):
        await context.async_killed_or_stopped()


class Stage:
    """A gateway, its routers, and how to ask it. `worker` serves `a.b.c`. It ends with its context."""

    def __init__(self, server: Server, routers: Routers, worker: Worker) -> None:
        self.server = server
        self.routers = routers
        self.worker = worker
        self.client = aiohttp.ClientSession(server.url)

    @property
    def inflight(self) -> int:
        """Requests that the worker has not finished."""
        return self.worker.admission.running

    def post(self, body: Any, path: str = "/a/b/c", **options: Any) -> Any:
        """The answer, as a context; `body` is sent as it is if it is bytes."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.client.post(path, data=data, **options)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection for bytes."""
        return await asyncio.open_connection("127.0.0.1", self.server.port)


@asynccontextmanager
async def staged(
    folder: Path, handler: Any = engine, *, observers: Any = (), routes: Any = (), **settings: Any
) -> AsyncIterator[Stage]:
    """A gateway with `settings` before a worker with `handler`."""
    config = GatewayConfig(**{"port": 0, **settings})
    async with contextlib.AsyncExitStack() as stack:
        worker = await Worker.start(
            FileDiscovery(folder), WorkerConfig(leave_delay=0.0), TcpServerConfig(host="127.0.0.1")
        )
        stack.push_async_callback(worker.close)
        await worker.serve(handler, ENDPOINT)
        discovery = FileDiscovery(folder)
        stack.push_async_callback(discovery.close)
        response_server = await TcpStreamServer.create(ResponseServerConfig(host="127.0.0.1"))
        router = await stack.enter_async_context(await AddressedPushRouter.create(response_server=response_server))
        routers = await stack.enter_async_context(await Routers.open(discovery, router, retries=config.retries))
        server = await Server.start(app(routers, config, observers=observers, routes=routes), config)
        stack.push_async_callback(server.close)
        stage = Stage(server, routers, worker)
        stack.push_async_callback(stage.client.close)
        await until(routers.endpoints)
        yield stage


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    """The usual one."""
    async with staged(tmp_path) as stage:
        yield stage


Begin = Callable[..., Any]


@pytest.fixture
async def begin(tmp_path: Path) -> AsyncIterator[Begin]:
    """Starts stages with settings of the test's own."""
    async with contextlib.AsyncExitStack() as stack:

        async def begun(handler: Any = engine, **settings: Any) -> Stage:
            return await stack.enter_async_context(staged(tmp_path, handler, **settings))

        yield begun
