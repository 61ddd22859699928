"""Our `/metrics` has the series of the real ones: names, types, help texts, labels, buckets."""

from __future__ import annotations

import asyncio
import contextlib
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from benchmarks import model_folder
from benchmarks.frontend import free_port
from dynamo_fast import AddressedPushRouter, AddressedRequest, FileDiscovery, PushRouter, Worker
from dynamo_fast.egress.router import EncodedBody
from dynamo_fast.errors import DynamoError
from dynamo_fast.observability.metrics import RequestPlaneMetrics, register
from tests.interop.frontends import Model, frontend, model_worker
from tests.interop.peers import LIMIT, VERSIONS, peer_worker
from tests.observability.exposition import Series, offered, value_of

ENDPOINT = "peer.worker.generate"
ERRORS = "dynamo_component_errors_total"
OF_CALLERS = ("dynamo_request_plane_", "dynamo_transport_tcp_", "dynamo_frontend_stage_duration_")
OF_NATS = "dynamo_transport_nats_"
"""A caller of real Dynamo has it only when it speaks NATS."""
NEW = {"dynamo_transport_tcp_accept_backoff_total"}
"""Series that 1.3.1 has not."""


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {
        "DYN_FILE_KV": str(tmp_path),
        "DYN_TCP_RPC_HOST": "127.0.0.1",
        "DYN_TCP_RESPONSE_STREAM_HOST": "127.0.0.1",
        "DYN_SYSTEM_HOST": "127.0.0.1",
        "DYN_SYSTEM_PORT": "0",
        "DYNAMO_FAST_LEAVE_DELAY": "0",
        "DYNAMO_FAST_CALL_HOME_TIMEOUT": "0.5",  # a real worker does not tell that it could not read a request
    }.items():
        monkeypatch.setenv(name, value)


async def scrape(url: str) -> str:
    def read() -> str:
        with urllib.request.urlopen(f"{url}/metrics", timeout=LIMIT) as answer:
            text: str = answer.read().decode()
        return text

    return await asyncio.to_thread(read)


@contextlib.asynccontextmanager
async def router_to(folder: Path) -> AsyncIterator[PushRouter]:
    discovery = FileDiscovery(root=folder)
    async with (
        await AddressedPushRouter.create() as router,
        await PushRouter.create(ENDPOINT, discovery, router) as to,
    ):
        await asyncio.wait_for(to.wait_for_instances(), LIMIT)
        yield to
    await discovery.close()


async def use(folder: Path) -> None:
    """Send the worker in `folder` a request that it answers, and one whose body it cannot read."""
    async with router_to(folder) as router:
        stream = await router.generate({"mode": "echo", "value": 1})
        assert [item.data() async for item in stream] == [1]
        (instance,) = router.instances()
        bad = AddressedRequest.for_instance(EncodedBody(b"\xc1{"), instance)
        with pytest.raises(DynamoError):
            async for _ in await router.router.generate(bad):
                pass


async def generate(request: Any) -> AsyncIterator[Any]:
    yield request["value"]


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_worker_has_the_series_of_a_real_one(version: str, tmp_path: Path) -> None:
    port = free_port()
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    theirs.mkdir()
    with peer_worker(version, theirs, DYN_SYSTEM_PORT=str(port), DYN_SYSTEM_HOST="127.0.0.1"):
        await use(theirs)
        expected = offered(await scrape(f"http://127.0.0.1:{port}"))
    worker = await Worker.start(FileDiscovery(root=ours))
    await worker.serve(generate, ENDPOINT)
    await use(ours)
    assert worker.status.url is not None
    text = await scrape(worker.status.url)
    await worker.close()
    assert ERRORS in expected
    assert {name: offered(text).get(name) for name in expected} == expected
    assert value_of(text, "dynamo_component_requests_total", dynamo_endpoint="generate") == 2
    more = {name for name in offered(text) if not name.startswith((*OF_CALLERS, OF_NATS))}
    assert more == expected.keys()


def of_stages(series: Series) -> Series:
    """Without the name of the stage: a frontend has more of them than a router."""
    return series._replace(labels=frozenset({frozenset({"stage"})}))


@pytest.mark.frontend
@pytest.mark.parametrize("version", VERSIONS)
def test_a_caller_has_the_series_of_a_real_frontend(version: str, tmp_path: Path) -> None:
    with frontend(version, tmp_path) as front:
        path = str(model_folder.write(tmp_path / "tiny"))
        with model_worker("peer", front, Model("m", path=path)):
            assert front.chat("m").status == 200
            text = front.get("/metrics").text
    expected = {name: each for name, each in offered(text).items() if name.startswith(OF_CALLERS)}
    registry = CollectorRegistry()
    register(RequestPlaneMetrics(), registry)
    ours = offered(generate_latest(registry).decode())
    ours = {name: each for name, each in ours.items() if not name.startswith(OF_NATS)}
    assert {name: each for name, each in ours.items() if version != "1.3.1" or name not in NEW} == expected
    name = "dynamo_frontend_stage_duration_seconds_count"
    assert {stage: value_of(text, name, stage=stage) for stage in ("route", "transport_roundtrip")} == {
        "route": 1,
        "transport_roundtrip": 1,
    }
