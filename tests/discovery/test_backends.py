"""What every backend promises, on each of them that needs no server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from dynamo_fast.config import KubernetesConfig
from dynamo_fast.discovery.base import Added, Discovery, DiscoveryEvent, Removed
from dynamo_fast.discovery.file import FileDiscovery
from dynamo_fast.discovery.kubernetes import KubernetesStore
from dynamo_fast.discovery.memory import MemoryDiscovery
from dynamo_fast.errors import InvalidRequest
from dynamo_fast.wire.address import EndpointId
from dynamo_fast.wire.instance import Instance
from tests.discovery.kube_api import NAMESPACE, KubeApi, uid
from tests.discovery.records import ENDPOINT, OTHER, instance
from tests.discovery.waiting import LIMIT, until

Make = Callable[[], Discovery]


@pytest.fixture(params=["file", "mem", "kubernetes"])
async def make(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Make]:
    """Makes views of one and the same table: for memory there is only one."""
    if request.param == "file":
        yield lambda: FileDiscovery(tmp_path)
    elif request.param == "mem":
        only = MemoryDiscovery()
        yield lambda: only
    else:
        async with KubeApi() as api:
            yield lambda: Discovery(KubernetesStore(_pod(api, tmp_path), podinfo=tmp_path))


def _pod(api: KubeApi, folder: Path) -> KubernetesConfig:
    """One more pod, which is ready."""
    name = f"pod-{len(list(folder.iterdir()))}"
    api.slice(f"slice-of-{name}", {name: True})
    file = api.kubeconfig(folder / name)
    return KubernetesConfig(pod_name=name, pod_uid=uid(name), namespace=NAMESPACE, kubeconfig=str(file))


async def listed(discovery: Discovery, expected: list[Instance]) -> None:
    """Wait until it is so: Kubernetes tells of a change a moment after it was made."""

    async def is_so() -> bool:
        return await discovery.list() == expected

    await until(is_so)


async def test_a_record_that_was_registered_is_listed_until_it_is_unregistered(make: Make) -> None:
    ours, theirs = make(), make()
    await ours.register(instance(2))
    await ours.register(instance(1))
    await ours.register(instance(3, OTHER))
    await listed(theirs, [instance(1), instance(2), instance(3, OTHER)])
    assert await theirs.list(ENDPOINT) == [instance(1), instance(2)]
    await ours.unregister(instance(1))
    await listed(theirs, [instance(2), instance(3, OTHER)])
    assert await theirs.list(ENDPOINT) == [instance(2)]
    await ours.close()
    await theirs.close()


async def test_what_was_not_registered_cannot_be_unregistered(make: Make) -> None:
    discovery = make()
    with pytest.raises(InvalidRequest, match="nothing to unregister"):
        await discovery.unregister(instance(1))
    await discovery.close()


async def test_a_watch_hears_of_what_is_there_and_of_every_change(make: Make) -> None:
    ours, theirs = make(), make()
    await ours.register(instance(1))
    events: asyncio.Queue[DiscoveryEvent] = asyncio.Queue()
    watch = await theirs.watch(ENDPOINT, events.put_nowait)
    assert events.get_nowait() == Added(instance(1))  # told before `watch` returned

    async def heard() -> DiscoveryEvent:
        return await asyncio.wait_for(events.get(), LIMIT)

    await ours.register(instance(2))
    assert await heard() == Added(instance(2))
    await ours.register(instance(2, address="127.0.0.1:2/x"))
    assert await heard() == Added(instance(2, address="127.0.0.1:2/x"))
    await ours.register(instance(9, OTHER))  # a name of which ours is a prefix
    await ours.unregister(instance(1))
    assert await heard() == Removed(instance(1))
    watch.close()
    watch.close()
    await ours.unregister(instance(2))
    await ours.register(instance(3))

    async def listed() -> None:  # Kubernetes lists what its watch has told so far
        while await theirs.list(ENDPOINT) != [instance(3)]:
            await asyncio.sleep(0)

    await asyncio.wait_for(listed(), LIMIT)
    assert events.empty()
    await ours.close()
    await theirs.close()


async def test_a_slash_in_a_name_mixes_no_endpoints(make: Make) -> None:
    one, other = EndpointId("a/b", "c", "d"), EndpointId("a", "b/c", "d")
    ours, theirs = make(), make()
    events: asyncio.Queue[DiscoveryEvent] = asyncio.Queue()
    await theirs.watch(other, events.put_nowait)
    await ours.register(instance(1, one))
    await ours.register(instance(2, other))
    assert await asyncio.wait_for(events.get(), LIMIT) == Added(instance(2, other))
    assert await theirs.list(one) == [instance(1, one)]
    assert await theirs.list(other) == [instance(2, other)]
    await ours.close()
    await theirs.close()
