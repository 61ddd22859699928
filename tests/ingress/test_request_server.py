"""A worker whose requests do not come over TCP: `tests.in_process` under `serve`, `Worker` and `AddressedPushRouter`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from dynamo_fast import AddressedPushRouter, AddressedRequest, Context, Worker, serve
from dynamo_fast.config import ResponseServerConfig, TcpServerConfig, WorkerConfig
from dynamo_fast.discovery.memory import MemoryDiscovery
from dynamo_fast.egress.request_sender import ManyIn
from dynamo_fast.egress.response_server import TcpStreamServer
from dynamo_fast.errors import CannotConnect, InvalidConfig, ResourceExhausted, Unavailable
from dynamo_fast.ingress.worker import REQUEST_SERVERS
from tests.in_process import KIND, InProcessPlane
from tests.ingress.conftest import echo
from tests.ingress.requester import PATIENCE

CONFIG = WorkerConfig(leave_delay=0.0)


@pytest.fixture
def plane(monkeypatch: pytest.MonkeyPatch) -> InProcessPlane:
    plane = InProcessPlane()
    monkeypatch.setitem(REQUEST_SERVERS, KIND, plane.server)
    return plane


@pytest.fixture
async def router(plane: InProcessPlane) -> AsyncIterator[AddressedPushRouter]:
    server = await TcpStreamServer.create(ResponseServerConfig(host="127.0.0.1"))
    async with AddressedPushRouter(plane.client(), server) as router:
        yield router


async def answer(router: AddressedPushRouter, worker: Worker, data: Any, **fields: Any) -> list[Any]:
    """The data of all items."""
    return [item.data() async for item in await sent(router, worker, data, **fields)]


async def sent(router: AddressedPushRouter, worker: Worker, data: Any, **fields: Any) -> Any:
    (served,) = worker.endpoints.values()
    return await asyncio.wait_for(router.generate(AddressedRequest(data, served.address, **fields)), PATIENCE)


async def test_its_record_says_how_it_is_reached(plane: InProcessPlane) -> None:
    discovery = MemoryDiscovery(connection_id=0xAB)
    worker = await serve(echo, "a.b.c", discovery, CONFIG, transport=KIND)
    (instance,) = await discovery.list()
    assert (instance.transport.kind, instance.transport.address) == (KIND, "worker-1/ab/a/b/c")
    assert next(iter(worker.endpoints.values())).address == "worker-1/ab/a/b/c"
    await worker.close()
    assert not plane.servers


async def test_answers_stream_over_the_response_plane(router: AddressedPushRouter) -> None:
    worker = await serve(echo, "a.b.c", MemoryDiscovery(), CONFIG, transport=KIND)
    assert await answer(router, worker, [1, {"a": "ö"}]) == [1, {"a": "ö"}]
    (served,) = worker.endpoints.values()
    assert (served.metrics.requests, served.metrics.inflight) == (1, 0)
    await worker.close()


async def test_headers_reach_the_worker(router: AddressedPushRouter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYN_LOGGING_JSONL", "1")
    trace = "0af7651916cd43dd8448eb211c80319c"
    seen: list[str] = []

    async def handler(request: Any, context: Context) -> AsyncIterator[Any]:
        seen.append((context.trace_headers() or {})["traceparent"].split("-")[1])
        yield 1

    worker = await serve(handler, "a.b.c", MemoryDiscovery(), CONFIG, transport=KIND)
    headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    assert await answer(router, worker, None, headers=headers) == [1]
    assert seen == [trace]
    await worker.close()


async def test_a_bidirectional_endpoint(router: AddressedPushRouter) -> None:
    async def add(numbers: Any) -> AsyncIterator[Any]:
        total = 0
        async for number in numbers:
            total += number
            yield total

    async def numbers() -> AsyncIterator[Any]:
        for number in (1, 2, 3):
            yield number

    worker = await Worker.start(MemoryDiscovery(), CONFIG, transport=KIND)
    await worker.serve(add, "a.b.c", bidirectional=True)
    assert await answer(router, worker, ManyIn(numbers())) == [1, 3, 6]
    await worker.close()


async def test_many_at_once(router: AddressedPushRouter) -> None:
    worker = await serve(echo, "a.b.c", MemoryDiscovery(), CONFIG, transport=KIND)
    answers = await asyncio.gather(*(answer(router, worker, [number] * 3) for number in range(100)))
    assert answers == [[number] * 3 for number in range(100)]
    assert worker.admission.running == 0
    await worker.close()


async def test_a_path_that_is_not_served_is_refused(router: AddressedPushRouter) -> None:
    worker = await serve(echo, "a.b.c", MemoryDiscovery(), CONFIG, transport=KIND)
    with pytest.raises(Unavailable, match="Server unavailable: unknown endpoint no/such"):
        await router.generate(AddressedRequest.new(1, "worker-1/no/such"))
    await worker.close()


async def test_more_requests_than_the_worker_takes_are_refused(router: AddressedPushRouter) -> None:
    gate = asyncio.Event()

    async def slow(request: Any) -> AsyncIterator[Any]:
        await gate.wait()
        yield request

    limits = TcpServerConfig(worker_pool_size=1, work_queue_size=1)
    worker = await Worker.start(MemoryDiscovery(), CONFIG, limits, transport=KIND)
    await worker.serve(slow, "a.b.c")
    first = await sent(router, worker, 1)
    second = asyncio.ensure_future(sent(router, worker, 2))
    for _ in range(3):
        await asyncio.sleep(0)
    with pytest.raises(ResourceExhausted, match="Server overloaded: worker at capacity"):
        await sent(router, worker, 3)
    gate.set()
    assert [item.data() async for item in first] == [1]
    assert [item.data() async for item in await second] == [2]
    await worker.close()


async def test_leaving_lets_answers_end_and_refuses_what_comes(
    plane: InProcessPlane, router: AddressedPushRouter
) -> None:
    gate = asyncio.Event()

    async def slow(request: Any) -> AsyncIterator[Any]:
        yield 1
        await gate.wait()
        yield 2

    discovery = MemoryDiscovery()
    worker = await serve(slow, "a.b.c", discovery, CONFIG, transport=KIND)
    (served,) = worker.endpoints.values()
    stream = await sent(router, worker, None)
    closing = asyncio.ensure_future(worker.close())
    while await discovery.list():
        await asyncio.sleep(0)
    for _ in range(3):  # until its leave delay, of 0 s, has ended
        await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="unknown endpoint"):
        await router.generate(AddressedRequest.new(None, served.address))
    assert not closing.done()
    gate.set()
    assert [item.data() async for item in stream] == [1, 2]
    await asyncio.wait_for(closing, PATIENCE)
    assert not plane.servers
    with pytest.raises(CannotConnect, match="no worker worker-1 in this process"):
        await router.generate(AddressedRequest.new(None, served.address))


async def test_a_transport_that_is_not_offered_is_named() -> None:
    with pytest.raises(InvalidConfig, match="the request transport 'quic' is not offered: expected 'nats', 'tcp'"):
        await Worker.start(MemoryDiscovery(), transport="quic")
