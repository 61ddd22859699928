"""A transport is chosen by the kind in the worker's record, call by call, under every kind of router."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from dynamo_fast.discovery.file import FileDiscovery
from dynamo_fast.discovery.memory import MemoryDiscovery
from dynamo_fast.egress import transports
from dynamo_fast.egress.push_router import PushRouter, RouterMode
from dynamo_fast.egress.router import AddressedPushRouter, AddressedRequest
from dynamo_fast.errors import CannotConnect, InvalidAddress
from dynamo_fast.observability.metrics import RequestPlaneMetrics
from dynamo_fast.runtime import DistributedRuntime
from dynamo_fast.wire.address import EndpointId
from dynamo_fast.wire.instance import Instance, TransportType
from tests.egress.conftest import make_router
from tests.egress.in_process import InProcessClient, echo
from tests.egress.raw_worker import LIMIT, RawRequest, RawWorker

ENDPOINT = EndpointId("demo", "backend", "generate")
#: A kind that Dynamo's records have, so that a record of it may stand in any discovery; here it needs no network.
KIND = "nats_tcp"


def instance(instance_id: int, kind: str, address: str) -> Instance:
    return Instance(ENDPOINT, instance_id, TransportType(kind, address), None, None)


async def refuse_to_answer(request: RawRequest) -> None:
    """Dials back, and says that its handler could not be started."""
    await request.dial(b'{"error":"no handler"}')


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[InProcessClient]:
    """The clients of a second kind that routers make."""
    clients: list[InProcessClient] = []

    def make(metrics: RequestPlaneMetrics) -> InProcessClient:
        clients.append(InProcessClient({"a": echo, "b": echo, "bad": refuse_to_answer}))
        return clients[-1]

    monkeypatch.setitem(transports.TRANSPORTS, KIND, make)
    return clients


@pytest.fixture
async def tcp_worker(worker: RawWorker) -> AsyncIterator[RawWorker]:
    """A worker on TCP that answers as the others do."""

    async def serve() -> None:
        while True:
            request = await worker._requests.get()
            request.acknowledge()
            await echo(request)

    task = asyncio.ensure_future(serve())
    yield worker
    task.cancel()


async def first_item(stream: Any) -> Any:
    (item,) = [item.data() async for item in stream]
    return item


async def test_an_addressed_request(router: AddressedPushRouter, made: list[InProcessClient]) -> None:
    assert not made  # a client is made when it is needed
    for number in range(3):
        stream = await router.generate(AddressedRequest(number, "a", kind=KIND))
        assert await first_item(stream) == ["a", number]
    request = AddressedRequest.for_instance("hi", instance(1, KIND, "b"))
    assert await first_item(await router.generate(request)) == ["b", "hi"]
    (client,) = made
    assert client.sent == ["a", "a", "a", "b"]
    assert not client.closed


async def test_a_router_closes_its_clients(made: list[InProcessClient]) -> None:
    async with await make_router() as router:
        assert await first_item(await router.generate(AddressedRequest(1, "a", kind=KIND))) == ["a", 1]
    assert [client.closed for client in made] == [True]


async def test_what_a_client_raises_is_the_callers(router: AddressedPushRouter, made: list[InProcessClient]) -> None:
    with pytest.raises(InvalidAddress, match="no worker at 'nowhere'"):
        await router.generate(AddressedRequest(1, "nowhere", kind=KIND))


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (
            AddressedRequest.for_instance(1, instance(9, "quic", "a.host")),
            "demo/backend/generate/9 is reached by quic (a.host), which is not offered: start the worker with the "
            "request plane 'tcp' or 'nats'",
        ),
        (
            AddressedRequest(1, "there", kind="carrier_pigeon"),
            "the worker is reached by carrier_pigeon (there), which is not offered: start the worker with the request "
            "plane 'tcp' or 'nats'",
        ),
    ],
)
async def test_a_kind_that_is_not_offered(router: AddressedPushRouter, request_: AddressedRequest, text: str) -> None:
    with pytest.raises(InvalidAddress) as raised:
        await router.generate(request_)
    assert str(raised.value) == text


@pytest.mark.parametrize("mode", [RouterMode.RoundRobin, RouterMode.LeastLoaded])
async def test_a_mixed_fleet(
    mode: RouterMode, router: AddressedPushRouter, tcp_worker: RawWorker, made: list[InProcessClient]
) -> None:
    discovery = MemoryDiscovery()
    for record in (instance(1, "tcp", tcp_worker.address), instance(2, KIND, "a"), instance(3, KIND, "b")):
        await discovery.register(record)
    async with await PushRouter.create(ENDPOINT, discovery, router, mode=mode) as fleet:
        answers = [await first_item(await fleet.generate(number)) for number in range(6)]
        assert Counter(answer[0] for answer in answers) == {"1f/demo/backend/generate": 2, "a": 2, "b": 2}
        assert [answer[1] for answer in answers] == list(range(6))
        assert await first_item(await fleet.direct("you", 3)) == ["b", "you"]
        assert fleet.table.other.total == 0


async def test_another_worker_is_tried_over_another_transport(
    router: AddressedPushRouter, tcp_worker: RawWorker, made: list[InProcessClient]
) -> None:
    discovery = MemoryDiscovery()
    await discovery.register(instance(1, KIND, "bad"))
    await discovery.register(instance(2, "tcp", tcp_worker.address))
    async with await PushRouter.create(ENDPOINT, discovery, router, retries=1) as fleet:
        stream = await fleet.generate("hi")
        assert (await first_item(stream))[1] == "hi"
        assert fleet.free_ids() == [2]  # the first one is inhibited, as it would be on TCP
        with pytest.raises(CannotConnect, match="no handler"):
            await fleet.direct("hi", 1)


async def test_the_drop_in_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: list[InProcessClient]) -> None:
    monkeypatch.setenv("DYN_FILE_KV", str(tmp_path))
    monkeypatch.setenv("DYN_TCP_RESPONSE_STREAM_HOST", "127.0.0.1")
    discovery = FileDiscovery(tmp_path)
    await discovery.register(instance(7, KIND, "a"))
    runtime = DistributedRuntime(asyncio.get_running_loop(), "file", "tcp")
    try:
        client = await runtime.endpoint("demo.backend.generate").client()
        assert await asyncio.wait_for(client.wait_for_instances(), LIMIT) == [7]
        for call in (client.round_robin, client.random, client.generate):
            stream = await asyncio.wait_for(call({"n": 1}), LIMIT)
            assert await first_item(stream) == ["a", {"n": 1}]
    finally:
        runtime.shutdown()
        await asyncio.wait_for(runtime.ended(), LIMIT)
    assert [each.closed for each in made] == [True]
    await discovery.close()
