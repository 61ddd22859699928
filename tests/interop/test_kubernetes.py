"""Real workers and clients in one namespace of Kubernetes with ours, on the stand-in for its API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from dynamo_fast.config import KubernetesConfig, TcpServerConfig, WorkerConfig
from dynamo_fast.discovery.base import Added, Discovery, DiscoveryEvent, Removed
from dynamo_fast.discovery.kubernetes import KubernetesStore
from dynamo_fast.egress.push_router import PushRouter
from dynamo_fast.egress.router import AddressedPushRouter
from dynamo_fast.ingress.worker import Worker
from dynamo_fast.wire.address import EndpointId
from tests.discovery.kube_api import NAMESPACE, KubeApi, uid
from tests.interop.peers import VERSIONS, PeerClient, peer_worker

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


def discovery(environment: dict[str, str]) -> Discovery:
    return Discovery(KubernetesStore(KubernetesConfig.from_env(environment)))


@pytest.mark.parametrize("mode", ["pod", "container"])
@pytest.mark.parametrize("version", VERSIONS)
async def test_a_real_worker_is_found_called_and_lost(api: KubeApi, tmp_path: Path, version: str, mode: str) -> None:
    ours = discovery(settings(api, tmp_path, "pod-of-ours", mode))
    events: asyncio.Queue[DiscoveryEvent] = asyncio.Queue()
    await ours.watch(THEIRS, events.put_nowait)
    with peer_worker(version, tmp_path, **settings(api, tmp_path, "pod-of-theirs", mode)):
        await api.called("PATCH dynamoworkermetadatas", 4)  # it serves four endpoints
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
