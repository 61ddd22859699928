"""TLS and mutual TLS with real Dynamo 1.6.1, in both directions, and what either end refuses. (1.3.1 has no TLS.)"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from dynamo_fast import AddressedPushRouter, FileDiscovery, PushRouter, Worker
from dynamo_fast.config import ResponseServerConfig, TcpServerConfig, TlsConfig, WorkerConfig
from dynamo_fast.egress.response_server import TcpStreamServer
from dynamo_fast.egress.tcp_client import TcpRequestClient
from dynamo_fast.errors import TlsError
from tests.interop.peers import PeerClient, peer_worker
from tests.net.certificates import Authority, mutual, tls, variables

VERSION = "1.6.1"
LIMIT = 30.0
PLAIN = TlsConfig()
MAKES = [tls, mutual]
Make = Callable[[Authority, tuple[str, str]], TlsConfig]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


async def first_items(folder: Path, config: TlsConfig, request: Any) -> list[Any]:
    """Call the real worker."""
    discovery = FileDiscovery(folder)
    server = await TcpStreamServer.create(ResponseServerConfig(host="127.0.0.1"), tls=config)
    try:
        async with await AddressedPushRouter.create(TcpRequestClient(tls=config), server) as addressed:
            router = await PushRouter.create("peer.worker.generate", discovery, addressed)
            await asyncio.wait_for(router.wait_for_instances(), LIMIT)
            stream = await asyncio.wait_for(router.generate(request), LIMIT)
            found = [item.data() async for item in stream]
            router.close()
            return found
    finally:
        await discovery.close()


async def generate(request: dict[str, Any]) -> AsyncIterator[Any]:
    for number in range(request["n"]):
        yield number


async def our_worker(folder: Path, config: TlsConfig) -> Worker:
    worker = await Worker.start(
        FileDiscovery(folder), WorkerConfig(leave_delay=0), TcpServerConfig(host="127.0.0.1"), tls=config
    )
    await worker.serve(generate, "ours.worker.generate")
    return worker


@pytest.mark.parametrize("make", MAKES)
async def test_our_router_and_a_real_worker(authority: Authority, tmp_path: Path, make: Make) -> None:
    config = make(authority, authority.identity())
    with peer_worker(VERSION, tmp_path, **variables(config)):
        for count in (3, 0, 2_000):
            found = await first_items(tmp_path, config, {"mode": "count", "n": count})
            assert found == [{"number": number} for number in range(count)]
        with pytest.raises(Exception, match="on purpose"):
            await first_items(tmp_path, config, {"mode": "raise", "after": 1, "kind": "ValueError"})


@pytest.mark.parametrize("make", MAKES)
async def test_a_real_client_and_our_worker(authority: Authority, tmp_path: Path, make: Make) -> None:
    config = make(authority, authority.identity())
    worker = await our_worker(tmp_path, config)
    client = await PeerClient.start(VERSION, tmp_path, **variables(config))
    await client.wait_for("ours.worker.generate", 1)
    assert await client.call("ours.worker.generate", {"n": 3}) == ([0, 1, 2], None)
    assert await client.call("ours.worker.generate", {"n": 2_000}) == (list(range(2_000)), None)
    many = await asyncio.gather(*(client.call("ours.worker.generate", {"n": 2}) for _ in range(50)))
    assert many == [([0, 1], None)] * 50
    await client.close()
    await worker.close()


@pytest.mark.parametrize(
    ("router", "text"),
    [
        ("plain", "speaks TLS, and this process dials in plain text"),
        ("no certificate", "broke off TLS: .*certificate required"),
        ("another authority", "the certificate of .* is refused: "),
    ],
)
async def test_a_real_worker_refuses_our_router(authority: Authority, tmp_path: Path, router: str, text: str) -> None:
    identity = authority.identity()
    configs = {
        "plain": PLAIN,
        "no certificate": tls(authority, identity),
        "another authority": tls(Authority(tmp_path, "other-ca"), identity),
    }
    with peer_worker(VERSION, tmp_path, **variables(mutual(authority, identity))), pytest.raises(TlsError, match=text):
        await first_items(tmp_path, configs[router], {"mode": "count", "n": 1})


@pytest.mark.parametrize("client", ["plain", "no certificate", "another authority"])
async def test_our_worker_refuses_a_real_client(
    authority: Authority, tmp_path: Path, client: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The text is the real one's, and does not say why; our log does."""
    identity = authority.identity()
    settings = {
        "plain": {},
        "no certificate": variables(tls(authority, identity)),
        "another authority": variables(tls(Authority(tmp_path, "other-ca"), identity)),
    }
    worker = await our_worker(tmp_path, mutual(authority, identity))
    peer = await PeerClient.start(VERSION, tmp_path, **settings[client])
    await peer.wait_for("ours.worker.generate", 1)
    items, error = await peer.call("ours.worker.generate", {"n": 1})
    assert items == []
    assert error is not None
    assert "TCP connection to" in error[1]
    await peer.close()
    await worker.close()
    assert "TLS: refusing a connection of 127.0.0.1" in caplog.text


async def test_a_real_worker_that_cannot_call_home(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It speaks plain text, and our response server TLS: the request is acknowledged. The real router waits for ever."""
    monkeypatch.setattr("dynamo_fast.egress.stream_registry._REFUSED_SECONDS", 0.1)
    certificate, key = authority.identity()
    config = TlsConfig(cert_path=certificate, key_path=key)
    expected = pytest.raises(TlsError, match="cannot open its response stream: it speaks plain text")
    with peer_worker(VERSION, tmp_path), expected:
        await first_items(tmp_path, config, {"mode": "count", "n": 1})
