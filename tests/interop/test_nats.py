"""The request plane of NATS with real Dynamo 1.3.1 and 1.6.1 and a real NATS server, in both directions."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from dynamo_fast import AddressedPushRouter, FileDiscovery, PushRouter, Worker
from dynamo_fast.config import ResponseServerConfig, TcpServerConfig, WorkerConfig
from dynamo_fast.egress.response_server import TcpStreamServer
from dynamo_fast.egress.tcp_client import TcpRequestClient
from dynamo_fast.errors import DynamoError, RemoteError, RequestTooLarge
from dynamo_fast.runtime import DistributedRuntime
from tests.interop.peers import LIMIT, VERSIONS, Peer, PeerClient, peer_worker
from tests.nats_server import NatsServer
from tests.waiting import until

REAL = "peer.worker.generate"
OURS = "ours.worker.generate"
PLANE = {"PEER_PLANE": "nats"}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[NatsServer]:
    with NatsServer(tmp_path) as server:
        for name, value in {
            "NATS_SERVER": server.url,
            "DYN_FILE_KV": str(tmp_path),
            "DYN_TCP_RPC_HOST": "127.0.0.1",
            "DYN_TCP_RESPONSE_STREAM_HOST": "127.0.0.1",
        }.items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture(params=VERSIONS)
def peer(request: pytest.FixtureRequest, server: NatsServer, tmp_path: Path) -> Iterator[Peer]:
    with peer_worker(request.param, tmp_path, NATS_SERVER=server.url, **PLANE) as peer:
        yield peer


@pytest.fixture(params=VERSIONS)
async def client(request: pytest.FixtureRequest, server: NatsServer, tmp_path: Path) -> AsyncIterator[PeerClient]:
    client = await PeerClient.start(request.param, tmp_path, NATS_SERVER=server.url, **PLANE)
    yield client
    await client.close()


@asynccontextmanager
async def calling(folder: Path, endpoint: str, count: int = 1) -> AsyncIterator[PushRouter]:
    """A router of ours, which sees that many workers."""
    discovery = FileDiscovery(folder)
    response_server = await TcpStreamServer.create(ResponseServerConfig(host="127.0.0.1"))
    try:
        async with (
            AddressedPushRouter(TcpRequestClient(), response_server) as addressed,
            await PushRouter.create(endpoint, discovery, addressed) as router,
        ):
            await until(lambda: len(router.instance_ids()) == count)
            yield router
    finally:
        await discovery.close()


async def answer(router: PushRouter, request: Any) -> list[Any]:
    stream = await asyncio.wait_for(router.generate(request), LIMIT)
    return [item.data() async for item in stream]


async def generate(request: dict[str, Any]) -> AsyncIterator[Any]:
    if request.get("raise"):
        raise ValueError("on purpose")
    for number in range(request["n"]):
        yield request.get("value", number)


async def our_worker(folder: Path, endpoint: str = OURS, transport: str = "nats", **settings: Any) -> Worker:
    config = WorkerConfig(leave_delay=0, **settings)
    worker = await Worker.start(FileDiscovery(folder), config, TcpServerConfig(host="127.0.0.1"), transport=transport)
    await worker.serve(generate, endpoint)
    return worker


def record(folder: Path, endpoint: str) -> dict[str, Any]:
    (file,) = (folder / "v1" / "instances").glob(endpoint.replace(".", "%2F") + "*")
    found: dict[str, Any] = json.loads(file.read_text())
    return found


async def test_our_caller_and_a_real_worker(peer: Peer, tmp_path: Path) -> None:
    async with calling(tmp_path, REAL) as router:
        assert await answer(router, {"mode": "count", "n": 3}) == [{"number": number} for number in range(3)]
        assert await answer(router, {"mode": "count", "n": 0}) == []
        assert len(await answer(router, {"mode": "count", "n": 2_000})) == 2_000
        assert await answer(router, {"mode": "echo", "value": "é" * 100_000}) == ["é" * 100_000]
        many = await asyncio.gather(*(answer(router, {"mode": "count", "n": 2}) for _ in range(200)))
        assert many == [[{"number": 0}, {"number": 1}]] * 200
        with pytest.raises(RemoteError, match="on purpose"):
            await answer(router, {"mode": "raise", "after": 0, "kind": "ValueError"})
        with pytest.raises(RequestTooLarge, match=r"max_payload of the NATS server is 1048576") as raised:
            await answer(router, {"mode": "echo", "value": "x" * 1_100_000})
        assert raised.value.size > raised.value.limit == 1_048_576
        assert await answer(router, {"mode": "echo", "value": 1}) == [1]  # and the worker is not marked


async def test_a_real_caller_and_our_worker(client: PeerClient, tmp_path: Path) -> None:
    worker = await our_worker(tmp_path)
    await client.wait_for(OURS, 1)
    assert await client.call(OURS, {"n": 3}) == ([0, 1, 2], None)
    assert await client.call(OURS, {"n": 0}) == ([], None)
    assert await client.call(OURS, {"n": 2_000}) == (list(range(2_000)), None)
    assert await client.call(OURS, {"n": 1, "value": "é" * 100_000}) == (["é" * 100_000], None)
    many = await asyncio.gather(*(client.call(OURS, {"n": 2}) for _ in range(200)))
    assert many == [([0, 1], None)] * 200
    items, error = await client.call(OURS, {"raise": True})
    assert items == []
    assert error is not None
    assert "on purpose" in error[1]
    await worker.close()


async def test_a_real_worker_that_is_killed(peer: Peer, tmp_path: Path) -> None:
    async with calling(tmp_path, REAL) as router:
        assert await answer(router, {"mode": "echo", "value": 1}) == [1]
        peer.process.kill()
        peer.process.wait()
        told = ""
        while "timed out: no acknowledgement" in told or not told:  # the NATS server has not seen its end yet
            with pytest.raises(DynamoError) as raised:
                await answer(router, {"mode": "echo", "value": 1})
            told = str(raised.value)
        assert re.fullmatch(r"NATS request to peer_worker\.generate-[0-9a-f]+ failed: no worker has it.*", told)


async def test_a_real_caller_that_our_worker_refuses(client: PeerClient, tmp_path: Path) -> None:
    """Over NATS a refusal is the payload of the reply: the real one reads it as it does over TCP."""
    worker = await our_worker(tmp_path, response_networks="192.0.2.0/24")
    await client.wait_for(OURS, 1)
    items, error = await client.call(OURS, {"n": 3})
    assert items == []
    assert error is not None
    assert "Server unavailable: this worker may not dial" in error[1]
    await worker.close()


@pytest.mark.parametrize("name", ["Up_Case.Work.Gen", "_leading.x.gen", "größe.x.gen", "a.b.with space"])
async def test_a_real_caller_and_names_that_the_real_worker_is_not_reached_by(
    client: PeerClient, tmp_path: Path, name: str
) -> None:
    """Our record names the subject that is subscribed to, and the real caller takes it as it stands."""
    worker = await our_worker(tmp_path, name)
    await client.wait_for(name, 1)
    assert await client.call(name, {"n": 2}) == ([0, 1], None)
    await worker.close()


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_mixed_fleet(server: NatsServer, tmp_path: Path, version: str) -> None:
    """A real worker on TCP, the same on NATS, and one of ours on each: one router calls all of them."""
    tcp, nats = tmp_path / "tcp", tmp_path / "nats"  # for their logs
    tcp.mkdir()
    nats.mkdir()
    ours = [await our_worker(tmp_path, REAL, transport) for transport in ("tcp", "nats")]
    with (
        peer_worker(version, tcp, DYN_FILE_KV=str(tmp_path)),
        peer_worker(version, nats, DYN_FILE_KV=str(tmp_path), NATS_SERVER=server.url, **PLANE),
    ):
        async with calling(tmp_path, REAL, 4) as router:
            answers = [await answer(router, {"mode": "count", "n": 1, "value": "ours"}) for _ in range(8)]
            assert answers.count(["ours"]) == 4
            assert answers.count([{"number": 0}]) == 4
            kinds = {entry.instance.transport.kind for entry in router.table.entries}
            assert kinds == {"tcp", "nats_tcp"}
    for worker in ours:
        await worker.close()


@pytest.mark.parametrize("version", VERSIONS)
async def test_the_drop_in_and_a_real_peer(server: NatsServer, tmp_path: Path, version: str) -> None:
    runtime = DistributedRuntime(asyncio.get_running_loop(), "file", "nats")
    serving = asyncio.ensure_future(runtime.endpoint(OURS).serve_endpoint(generate))
    client = await PeerClient.start(version, tmp_path, NATS_SERVER=server.url, **PLANE)
    await client.wait_for(OURS, 1)
    assert await client.call(OURS, {"n": 2}) == ([0, 1], None)
    await client.close()
    with peer_worker(version, tmp_path, NATS_SERVER=server.url, **PLANE):
        real = await runtime.endpoint(REAL).client()
        await asyncio.wait_for(real.wait_for_instances(), LIMIT)
        stream = await asyncio.wait_for(real.round_robin({"mode": "echo", "value": 7}), LIMIT)
        assert [item.data() async for item in stream] == [7]
        found = record(tmp_path, REAL)
        address = f"peer_worker.generate-{found['instance_id']:x}"
        assert found["transport"] == {"nats_tcp": address}
    runtime.shutdown()
    await asyncio.wait_for(runtime.ended(), LIMIT)
    await serving
