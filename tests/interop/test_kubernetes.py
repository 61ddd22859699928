"""Real workers and clients in one namespace of Kubernetes with ours, on the stand-in for its API."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from benchmarks.frontend import free_port
from dynamo_fast.config import KubernetesConfig, TcpServerConfig, WorkerConfig
from dynamo_fast.discovery.base import Added, Discovery, DiscoveryEvent, Removed
from dynamo_fast.discovery.kubernetes import KubernetesStore
from dynamo_fast.discovery.kubernetes_identity import instance_id
from dynamo_fast.egress.push_router import PushRouter
from dynamo_fast.egress.router import AddressedPushRouter
from dynamo_fast.ingress.worker import Worker
from dynamo_fast.wire.address import EndpointId
from tests.discovery.kube_api import NAMESPACE, KubeApi, uid
from tests.interop.peers import VERSIONS, PeerClient, peer_worker
from tests.waiting import until

LIMIT = 30.0
THEIRS = EndpointId("peer", "worker", "generate")
OURS = EndpointId("ours", "worker", "generate")


@pytest.fixture
async def api() -> AsyncIterator[KubeApi]:
    async with KubeApi() as running:
        yield running


def settings(api: KubeApi, folder: Path, pod: str, mode: str) -> dict[str, str]:
    """The environment of a process of the container `main` of that pod."""
    return {
        "PEER_DISCOVERY": "kubernetes",
        "POD_NAME": pod,
        "POD_UID": uid(pod),
        "POD_NAMESPACE": NAMESPACE,
        "DYN_KUBE_DISCOVERY_MODE": mode,
        "CONTAINER_NAME": "main",
        "KUBECONFIG": str(api.kubeconfig(folder / "config")),
    }


def make_ready(api: KubeApi, pod: str, mode: str, ready: bool = True) -> None:
    if mode == "pod":
        api.slice(f"slice-of-{pod}", {pod: ready})
    else:
        api.pod(pod, {"main": ready})


async def serves_four_endpoints(api: KubeApi) -> None:
    """Wait until the real worker's resource has all that it serves. It may write two of them at once."""
    await until(lambda: len((api.data("pod-of-theirs") or {"endpoints": ()})["endpoints"]) == 4)


def discovery(environment: dict[str, str]) -> Discovery:
    return Discovery(KubernetesStore(KubernetesConfig.from_env(environment)))


@pytest.mark.parametrize("mode", ["pod", "container"])
@pytest.mark.parametrize("version", VERSIONS)
async def test_a_real_worker_is_found_called_and_lost(api: KubeApi, tmp_path: Path, version: str, mode: str) -> None:
    ours = discovery(settings(api, tmp_path, "pod-of-ours", mode))
    events: asyncio.Queue[DiscoveryEvent] = asyncio.Queue()
    await ours.watch(THEIRS, events.put_nowait)
    with peer_worker(version, tmp_path, **settings(api, tmp_path, "pod-of-theirs", mode)):
        await serves_four_endpoints(api)
        make_ready(api, "pod-of-theirs", mode)
        added = await asyncio.wait_for(events.get(), LIMIT)
        assert isinstance(added, Added)
        async with await AddressedPushRouter.create() as addressed:
            router = await PushRouter.create(THEIRS, ours, addressed)
            stream = await router.generate({"mode": "count", "n": 3})
            assert [item.data() async for item in stream] == [{"number": number} for number in range(3)]
            router.close()
        make_ready(api, "pod-of-theirs", mode, ready=False)
        assert await asyncio.wait_for(events.get(), LIMIT) == Removed(added.instance)
    await ours.close()


@pytest.mark.parametrize("mode", ["pod", "container"])
@pytest.mark.parametrize("version", VERSIONS)
async def test_a_real_client_finds_calls_and_loses_our_worker(
    api: KubeApi, tmp_path: Path, version: str, mode: str
) -> None:
    async def handler(request: Any) -> AsyncIterator[Any]:
        for number in range(request["n"]):
            yield number

    worker = await Worker.start(
        discovery(settings(api, tmp_path, "pod-of-ours", mode)),
        WorkerConfig(leave_delay=0),
        TcpServerConfig(host="127.0.0.1"),
    )
    await worker.serve(handler, OURS)
    client = await PeerClient.start(version, tmp_path, **settings(api, tmp_path, "pod-of-theirs", mode))
    make_ready(api, "pod-of-ours", mode)
    assert await client.wait_for("ours.worker.generate", 1) == [worker.discovery.connection_id]
    assert await client.call("ours.worker.generate", {"n": 3}) == ([0, 1, 2], None)
    make_ready(api, "pod-of-ours", mode, ready=False)
    assert await client.wait_for("ours.worker.generate", 0) == []
    make_ready(api, "pod-of-ours", mode)
    assert await client.wait_for("ours.worker.generate", 1) == [worker.discovery.connection_id]
    await worker.close()
    assert await client.wait_for("ours.worker.generate", 0) == []
    await client.close()


async def metadata(url: str | None) -> tuple[int, str, Any]:
    """What a status server answers: the status, the type, and the names in the document."""
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(LIMIT)) as session,
        session.get(f"{url}/metadata") as answer,
    ):
        found = json.loads(await answer.text())
        return answer.status, answer.headers["content-type"], {field: set(each) for field, each in found.items()}


@pytest.mark.parametrize("version", VERSIONS)
async def test_the_status_server_shows_what_discovery_has(
    api: KubeApi, tmp_path: Path, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DYN_SYSTEM_HOST", "127.0.0.1")
    port = free_port()
    theirs = settings(api, tmp_path, "pod-of-theirs", "pod") | {"DYN_SYSTEM_PORT": str(port)}
    with peer_worker(version, tmp_path, **theirs):
        await serves_four_endpoints(api)
        status, kind, expected = await metadata(f"http://127.0.0.1:{port}")

    async def handler(request: Any) -> AsyncIterator[Any]:
        yield request

    monkeypatch.setenv("DYN_SYSTEM_PORT", "0")
    worker = await Worker.start(
        discovery(settings(api, tmp_path, "pod-of-ours", "pod")),
        WorkerConfig(leave_delay=0),
        TcpServerConfig(host="127.0.0.1"),
    )
    nothing = await metadata(worker.status.url)
    for name in ("blocked", "flags", "generate", "broken"):
        await worker.serve(handler, f"peer.worker.{name}")
    ours = await metadata(worker.status.url)
    await worker.close()
    # Another id, as the pod is another; and 1.3.1 has no sources of events.
    mine, their_id = f"{worker.discovery.connection_id:x}", instance_id("pod-of-theirs")
    expected = {field: {key.replace(f"{their_id:x}", mine) for key in keys} for field, keys in expected.items()}
    assert ours == (status, kind, {"event_sources": set(), **expected})
    assert nothing == (status, kind, {field: set() for field in ours[2]})
