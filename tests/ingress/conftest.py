from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from dynamo_fast.config import TcpServerConfig, WorkerConfig
from dynamo_fast.context import Context
from dynamo_fast.discovery.file import FileDiscovery
from dynamo_fast.ingress.tcp_server import SharedTcpServer
from dynamo_fast.ingress.worker import Worker

Start = Callable[..., Awaitable[Worker]]
ENDPOINT = "a.b.c"


async def echo(request: Any, context: Context) -> AsyncIterator[Any]:
    """Yields the items of its request."""
    for item in request if isinstance(request, list) else [request]:
        yield item


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Starts workers of the test's own; at its end they must close with no request left."""
    workers: list[Worker] = []

    async def begin(
        handler: Any = echo,
        *,
        bidirectional: bool = False,
        adapt: bool = True,
        server: dict[str, Any] | None = None,
        **settings: Any,
    ) -> Worker:
        config = WorkerConfig(**{"leave_delay": 0.0, "cancel_grace": 0.05, **settings})
        worker = await Worker.start(
            FileDiscovery(tmp_path), config, TcpServerConfig(host="127.0.0.1", **(server or {}))
        )
        workers.append(worker)
        await worker.serve(handler, ENDPOINT, bidirectional=bidirectional, adapt=adapt)
        return worker

    yield begin
    for worker in workers:
        await asyncio.wait_for(worker.close(), 20)
        assert worker.admission.running == 0


@pytest.fixture
async def worker(start: Start) -> Worker:
    return await start()


@pytest.fixture(autouse=True)
def logged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO)
    return caplog


def server_of(worker: Worker) -> SharedTcpServer:
    """What takes its requests."""
    assert isinstance(worker.server, SharedTcpServer)
    return worker.server


def address_of(worker: Worker) -> str:
    """`ip:port/path` of what it serves."""
    (served,) = worker.endpoints.values()
    return served.address
