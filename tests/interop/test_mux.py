"""The key of the multiplexed plane, and real Dynamos: they ignore it, and both directions are as before (mux.md 2)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from dynamo_fast.config import ResponseServerConfig, TcpServerConfig, WorkerConfig
from dynamo_fast.discovery.file import FileDiscovery
from dynamo_fast.egress.router import AddressedRequest
from dynamo_fast.ingress.worker import Worker
from tests.egress.conftest import make_router
from tests.interop.peers import VERSIONS, Peer, PeerClient
from tests.interop.test_router import find

ENDPOINT = "ours.worker.generate"


async def count(request: Any) -> AsyncIterator[Any]:
    for number in range(request["n"]):
        yield number


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_real_client_calls_a_worker_that_offers_sessions(version: str, tmp_path: Path) -> None:
    config = WorkerConfig(leave_delay=0.05, mux="auto")
    worker = await Worker.start(FileDiscovery(tmp_path), config, TcpServerConfig(host="127.0.0.1"))
    await worker.serve(count, ENDPOINT)
    (record,) = (tmp_path / "v1" / "instances").iterdir()
    assert json.loads(record.read_bytes())["dynamo_fast_mux"] == 1
    client = await PeerClient.start(version, tmp_path)
    await client.wait_for(ENDPOINT, 1)
    answers = await asyncio.gather(*(client.call(ENDPOINT, {"n": n}) for n in range(20)))
    assert answers == [(list(range(n)), None) for n in range(20)]
    assert worker.dialler.sessions is not None
    assert not worker.dialler.sessions._sessions
    await worker.close()
    await client.close()


async def test_a_router_that_takes_sessions_calls_a_real_worker(worker: Peer) -> None:
    """Nothing is asked for; and what is asked for without an offer, is ignored."""
    async with await make_router(ResponseServerConfig(host="127.0.0.1", mux="auto")) as router:
        instance = await find(worker)
        assert instance.mux is None
        for asked in (None, 1):
            request = AddressedRequest(
                {"mode": "count", "n": 3}, instance.tcp_address, None, instance.payload_codec, mux=asked
            )
            stream = await asyncio.wait_for(router.generate(request), 30)
            assert len([item async for item in stream]) == 3
        assert not router.response_server.sessions
