from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from dynamo_fast.config import ResponseServerConfig, TcpClientConfig
from dynamo_fast.egress.response_server import TcpStreamServer
from dynamo_fast.egress.router import AddressedPushRouter
from dynamo_fast.egress.tcp_client import TcpRequestClient
from dynamo_fast.observability.metrics import RequestPlaneMetrics
from tests.egress.raw_worker import RawWorker

#: Deadlines long enough never to expire in a test that is not about them.
SERVER = ResponseServerConfig(host="127.0.0.1")


async def make_router(
    server: ResponseServerConfig = SERVER, client: TcpClientConfig | None = None
) -> AddressedPushRouter:
    metrics = RequestPlaneMetrics()
    return AddressedPushRouter(
        TcpRequestClient(client or TcpClientConfig(), metrics=metrics),
        await TcpStreamServer.create(server),
        metrics=metrics,
    )


@pytest.fixture
async def router() -> AsyncIterator[AddressedPushRouter]:
    """A router of its own, which must be left as it was found: no request in flight, nothing registered."""
    async with await make_router() as router:
        yield router
        assert router.metrics.inflight == 0
        assert router.response_server.pending == 0


@pytest.fixture
async def worker() -> AsyncIterator[RawWorker]:
    async with RawWorker() as worker:
        yield worker
