"""Both halves of a transport of our own, chosen by the kind in the record, under the routers and the drop-in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from dynamo_fast import AddressedPushRouter, PushRouter, Worker
from dynamo_fast.config import ResponseServerConfig, TcpServerConfig, WorkerConfig
from dynamo_fast.discovery.memory import MemoryDiscovery
from dynamo_fast.egress.response_server import TcpStreamServer
from dynamo_fast.egress.transports import TRANSPORTS
from dynamo_fast.errors import InvalidConfig
from dynamo_fast.ingress.worker import REQUEST_SERVERS
from dynamo_fast.runtime import DistributedRuntime
from tests.in_process import KIND, InProcessPlane

LIMIT = 20.0
LOCAL = TcpServerConfig(host="127.0.0.1")


@pytest.fixture(autouse=True)
def plane(monkeypatch: pytest.MonkeyPatch) -> InProcessPlane:
    plane = InProcessPlane()
    monkeypatch.setitem(REQUEST_SERVERS, KIND, plane.server)
    monkeypatch.setitem(TRANSPORTS, KIND, lambda metrics: plane.client())
    monkeypatch.setenv("DYN_TCP_RESPONSE_STREAM_HOST", "127.0.0.1")
    monkeypatch.setenv("DYN_TCP_RPC_HOST", "127.0.0.1")
    return plane


async def three(request: Any) -> AsyncIterator[Any]:
    for number in range(3):
        yield [request, number]


async def test_a_push_router_calls_a_fleet_of_two_transports() -> None:
    discovery = MemoryDiscovery(connection_id=1)
    other = MemoryDiscovery(connection_id=2)
    ours = await Worker.start(discovery, WorkerConfig(leave_delay=0), LOCAL, transport=KIND)
    tcp = await Worker.start(other, WorkerConfig(leave_delay=0), LOCAL)
    await ours.serve(three, "a.b.c")
    served = await tcp.serve(three, "a.b.c")
    await discovery.register(served.instance)
    server = await TcpStreamServer.create(ResponseServerConfig(host="127.0.0.1"))
    async with (
        await AddressedPushRouter.create(response_server=server) as router,
        await PushRouter.create("a.b.c", discovery, router) as workers,
    ):
        assert sorted(each.transport.kind for each in workers.instances()) == [KIND, "tcp"]
        for name in ("first", "second", "third", "fourth"):  # in turn
            stream = await asyncio.wait_for(workers.generate(name), LIMIT)
            assert [item.data() async for item in stream] == [[name, number] for number in range(3)]
    await discovery.unregister(served.instance)
    await asyncio.gather(ours.close(), tcp.close())


async def test_the_drop_in_serves_and_calls_over_the_plane_that_it_was_given(plane: InProcessPlane) -> None:
    runtime = DistributedRuntime(asyncio.get_running_loop(), "mem", KIND)
    endpoint = runtime.endpoint("a.b.c")
    serving = endpoint.serve_endpoint(three)
    client = await endpoint.client()
    await asyncio.wait_for(client.wait_for_instances(), LIMIT)
    (name,) = plane.servers
    assert [each.transport.address.partition("/")[0] for each in client.instances()] == [name]
    answer = await asyncio.wait_for(client.round_robin("hi", annotated=False), LIMIT)
    assert [item async for item in answer] == [["hi", number] for number in range(3)]
    runtime.shutdown()
    await asyncio.wait_for(serving, LIMIT)
    assert not plane.servers


async def test_a_request_plane_that_is_not_offered_is_named() -> None:
    with pytest.raises(InvalidConfig, match="Invalid request plane mode: 'smoke'. Valid options are: 'nats', 'tcp'"):
        DistributedRuntime(asyncio.get_running_loop(), "mem", "smoke")
