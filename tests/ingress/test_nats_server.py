"""`NatsRequestServer` under `Worker`, on a real NATS server. The caller is a connection of the test, or a router."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import nats
import nats.errors
import pytest
from nats.aio.client import Client

from dynamo_fast import AddressedPushRouter, AddressedRequest, Worker
from dynamo_fast.codec import encode_two_part
from dynamo_fast.config import NatsConfig, ResponseServerConfig, TcpServerConfig, WorkerConfig
from dynamo_fast.discovery.memory import MemoryDiscovery
from dynamo_fast.egress.request_sender import ManyIn
from dynamo_fast.egress.response_server import TcpStreamServer
from dynamo_fast.egress.tcp_client import TcpRequestClient
from dynamo_fast.errors import CannotConnect, ConnectionTimeout, ResourceExhausted, Unavailable
from dynamo_fast.ingress.nats_server import NatsRequestServer, subject_of
from dynamo_fast.wire.address import EndpointId, endpoint_path
from tests.captured import Vector, captured, name_of
from tests.ingress.conftest import echo
from tests.ingress.requester import PATIENCE
from tests.nats_server import NatsServer
from tests.waiting import until

CONFIG = WorkerConfig(leave_delay=0.0)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[NatsServer]:
    with NatsServer(tmp_path) as server:
        monkeypatch.setenv("NATS_SERVER", server.url)
        yield server


@pytest.fixture
async def router(server: NatsServer) -> AsyncIterator[AddressedPushRouter]:
    response_server = await TcpStreamServer.create(ResponseServerConfig(host="127.0.0.1"))
    async with AddressedPushRouter(TcpRequestClient(), response_server) as router:
        yield router


@pytest.fixture
async def caller(server: NatsServer) -> AsyncIterator[Client]:
    caller = await nats.connect(server.url)
    yield caller
    await caller.close()


async def begin(handler: Any = echo, endpoint: str = "a.b.c", **options: Any) -> Worker:
    limits = options.pop("limits", None)
    worker = await Worker.start(MemoryDiscovery(connection_id=0xAB), CONFIG, limits, transport="nats")
    await worker.serve(handler, endpoint, **options)
    return worker


def address_of(worker: Worker) -> str:
    (served,) = worker.endpoints.values()
    return served.address


async def sent(router: AddressedPushRouter, address: str, data: Any) -> Any:
    return await asyncio.wait_for(router.generate(AddressedRequest(data, address, kind="nats_tcp")), PATIENCE)


async def answer(router: AddressedPushRouter, address: str, data: Any) -> list[Any]:
    return [item.data() async for item in await sent(router, address, data)]


@pytest.mark.parametrize(
    ("endpoint", "subject"),
    [
        (EndpointId("np", "comp_x", "gen"), "np_comp_x.gen-4486018d6b5a4fb1"),  # as in a recording of 1.3.1 and 1.6.1
        (EndpointId("np", "comp-x", "end_y"), "np_comp-x.end_y-4486018d6b5a4fb1"),
        (EndpointId("Up", "Case", "Gen"), "up_case.Gen-4486018d6b5a4fb1"),
        (EndpointId("_a", "b", "c"), "a_b.c-4486018d6b5a4fb1"),
        (EndpointId("é", "", "c d*>.e"), "_.c_d___e-4486018d6b5a4fb1"),
        (EndpointId("größe", "x", "gen"), "gr__e_x.gen-4486018d6b5a4fb1"),
    ],
)
def test_the_subject(endpoint: EndpointId, subject: str) -> None:
    assert subject_of(endpoint_path(endpoint, 0x4486018D6B5A4FB1)) == subject


@pytest.mark.parametrize("vector", captured("nats_hpub"), ids=name_of)
def test_the_subject_is_the_recorded_one(vector: Vector) -> None:
    recorded = vector.data.split(b" ")[1].decode()
    instance = int(recorded.rpartition("-")[2], 16)
    assert subject_of(endpoint_path(EndpointId("demo", "backend", "generate"), instance)) == recorded


async def test_its_record_and_its_answers(router: AddressedPushRouter) -> None:
    worker = await begin()
    (instance,) = await worker.discovery.list()
    assert (instance.transport.kind, instance.transport.address) == ("nats_tcp", "a_b.c-ab")
    assert await answer(router, address_of(worker), [1, {"a": "ö"}]) == [1, {"a": "ö"}]
    many = await asyncio.gather(*(answer(router, address_of(worker), [number] * 3) for number in range(200)))
    assert many == [[number] * 3 for number in range(200)]
    (served,) = worker.endpoints.values()
    assert (served.metrics.requests, served.metrics.inflight) == (201, 0)
    await worker.close()


async def test_it_opens_no_port_for_requests(server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(self: Any) -> None:
        raise AssertionError("a listener was made")

    monkeypatch.setattr("dynamo_fast.ingress.tcp_server.SharedTcpServer.start", refuse)
    await (await begin()).close()


async def test_names_with_one_slug_are_kept_apart(router: AddressedPushRouter) -> None:
    async def one(request: Any) -> AsyncIterator[Any]:
        yield "one"

    async def two(request: Any) -> AsyncIterator[Any]:
        yield "two"

    worker = await begin(one, "Up.case.gen")
    served = await worker.serve(two, "up.case.gen")
    addresses = [each.address for each in worker.endpoints.values()]
    assert addresses == ["up_case.gen-ab", "up_case.gen-ab-2"]
    assert [await answer(router, each, None) for each in addresses] == [["one"], ["two"]]
    await served.close()
    await worker.serve(two, "up.case.gen")  # again: it has its old subject
    assert await answer(router, addresses[1], None) == ["two"]
    await worker.close()


async def test_nothing_is_kept_of_an_endpoint_that_has_left(server: NatsServer) -> None:
    worker = await begin()
    kept = dict(worker.server._subjects)  # type: ignore[attr-defined]
    assert list(kept.values()) == ["a_b.c-ab"]
    for number in range(3):
        await (await worker.serve(echo, f"a.b.n{number}")).close()
    assert worker.server._subjects == kept  # type: ignore[attr-defined]
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

    worker = await begin(add, bidirectional=True)
    assert await answer(router, address_of(worker), ManyIn(numbers())) == [1, 3, 6]
    await worker.close()


@pytest.mark.parametrize("payload", [b"", b"garbage", encode_two_part(b"{}", b"1"), b"\xff" * 24])
async def test_what_cannot_be_read_is_refused(server: NatsServer, caller: Client, payload: bytes) -> None:
    """Dynamo's own worker acknowledges it, and drops it."""
    worker = await begin()
    reply = await caller.request(address_of(worker), payload, timeout=PATIENCE)
    assert reply.data.startswith(b"Server unavailable: unreadable request: ")
    assert not reply.headers
    await worker.close()


async def test_a_message_that_wants_no_reply(server: NatsServer, caller: Client, router: AddressedPushRouter) -> None:
    worker = await begin()
    await caller.publish(address_of(worker), b"garbage")
    await caller.flush()
    assert await answer(router, address_of(worker), 1) == [1]
    await worker.close()


async def test_more_requests_than_the_worker_takes(router: AddressedPushRouter) -> None:
    gate = asyncio.Event()

    async def slow(request: Any) -> AsyncIterator[Any]:
        yield request
        await gate.wait()

    worker = await begin(slow, limits=TcpServerConfig(worker_pool_size=1, work_queue_size=1))
    first = await sent(router, address_of(worker), 1)
    second = asyncio.ensure_future(sent(router, address_of(worker), 2))
    await until(lambda: worker.endpoints and worker.metrics.endpoints[0].requests == 2)
    with pytest.raises(ResourceExhausted, match="Server overloaded: worker at capacity"):
        await sent(router, address_of(worker), 3)
    gate.set()
    assert [item.data() async for item in first] == [1]
    assert [item.data() async for item in await second] == [2]
    await worker.close()


async def test_more_bytes_than_the_worker_reads(server: NatsServer, router: AddressedPushRouter) -> None:
    worker = await begin(limits=TcpServerConfig(max_message_size=2_000, max_buffered_bytes=2_000))
    with pytest.raises(ResourceExhausted, match="Server overloaded: more requests came at once"):
        await sent(router, address_of(worker), "x" * 3_000)
    assert await answer(router, address_of(worker), 1) == [1]
    await worker.close()


async def test_leaving(server: NatsServer, router: AddressedPushRouter) -> None:
    """The record, then the subject; what was accepted is answered to its end."""
    gate = asyncio.Event()

    async def slow(request: Any) -> AsyncIterator[Any]:
        yield 1
        await gate.wait()
        yield 2

    worker = await begin(slow)
    address = address_of(worker)
    stream = await sent(router, address, None)
    closing = asyncio.ensure_future(worker.close())

    async def left() -> None:
        while True:
            try:
                (await sent(router, address, None)).close()
            except Unavailable as error:
                if "no worker has it" in str(error):  # the NATS server says so: the subscription has gone
                    return

    await asyncio.wait_for(left(), PATIENCE)
    assert await worker.discovery.list() == []
    assert not closing.done()
    gate.set()
    assert [item.data() async for item in stream] == [1, 2]
    await asyncio.wait_for(closing, PATIENCE)


async def test_what_was_on_its_way_when_it_left_is_refused(server: NatsServer, caller: Client) -> None:
    """Each request gets an acknowledgement or "no responders": none is lost."""
    worker = await begin()
    address = address_of(worker)
    asking = [asyncio.ensure_future(caller.request(address, b"x", timeout=PATIENCE)) for _ in range(300)]
    closing = asyncio.ensure_future(worker.close())
    replies = await asyncio.gather(*asking, return_exceptions=True)
    for reply in replies:
        if isinstance(reply, BaseException):
            assert isinstance(reply, nats.errors.NoRespondersError)
        else:
            assert reply.data.startswith(b"Server unavailable: ")
    await closing


async def test_the_worker_is_there_again_after_an_outage(server: NatsServer, router: AddressedPushRouter) -> None:
    gate = asyncio.Event()

    async def slow(request: Any) -> AsyncIterator[Any]:
        yield request
        if request == "slow":
            await gate.wait()
            yield "end"

    worker = await begin(slow)
    stream = await sent(router, address_of(worker), "slow")
    server.stop()
    gate.set()
    assert [item.data() async for item in stream] == ["slow", "end"]  # answers do not go over NATS
    server.start()

    async def reached() -> None:
        while True:
            try:
                assert await answer(router, address_of(worker), 1) == [1]
            except (Unavailable, CannotConnect, ConnectionTimeout):  # not connected yet, or asked on the old connection
                await asyncio.sleep(0)
            else:
                return

    await asyncio.wait_for(reached(), 2 * PATIENCE)
    await worker.close()


async def test_it_leaves_during_an_outage(server: NatsServer, router: AddressedPushRouter) -> None:
    worker = await begin()
    server.stop()
    await asyncio.wait_for(worker.close(), PATIENCE)
    await asyncio.wait_for(worker.close(), PATIENCE)


async def test_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = NatsServer(tmp_path)  # it is not started
    monkeypatch.setenv("NATS_SERVER", server.url)
    monkeypatch.setenv("NATS_STARTUP_CONNECT_TIMEOUT_SECONDS", "0.3")
    with pytest.raises(
        CannotConnect, match=rf"no connection with the NATS server at {server.url} within 0\.3 s: .*111"
    ):
        await Worker.start(MemoryDiscovery(), CONFIG, transport="nats")


async def test_a_server_that_refuses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with NatsServer(tmp_path, "authorization { token: secret }") as server:
        monkeypatch.setenv("NATS_SERVER", server.url)
        # The server closes the connection behind its reason, which can get lost then.
        with pytest.raises(CannotConnect, match="(?i)authorization violation|reset by peer"):
            await asyncio.wait_for(Worker.start(MemoryDiscovery(), CONFIG, transport="nats"), PATIENCE)


async def test_a_subject_that_is_not_permitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The endpoint is not in discovery then."""
    permissions = 'authorization { users: [{user: user, password: user, permissions: {subscribe: "other"}}] }'
    with NatsServer(tmp_path, permissions) as server:
        monkeypatch.setenv("NATS_SERVER", server.url)
        discovery = MemoryDiscovery()
        worker = await Worker.start(discovery, CONFIG, transport="nats")
        with pytest.raises(CannotConnect, match="takes no subscription: permissions violation for subscription to"):
            await worker.serve(echo, "a.b.c")
        assert await discovery.list() == []
        await worker.close()


async def test_the_subject_is_known_before_the_record_is(server: NatsServer, caller: Client) -> None:
    """A caller that learns of the worker at once reaches it."""
    worker = await Worker.start(MemoryDiscovery(), CONFIG, transport="nats")
    register, replies = worker.discovery.register, []

    async def watched(instance: Any) -> None:
        replies.append(await caller.request(instance.transport.address, b"x", timeout=PATIENCE))
        await register(instance)

    worker.discovery.register = watched  # type: ignore[method-assign]
    await worker.serve(echo, "a.b.c")
    assert len(replies) == 1
    await worker.close()


async def test_a_server_alone(server: NatsServer) -> None:
    """Closed before it was started, and made of settings."""
    alone = NatsRequestServer(config=NatsConfig(server=server.url))
    await alone.close()
    alone = NatsRequestServer(config=NatsConfig(server=server.url))
    await alone.start()
    alone.register("1/a/b/c", lambda payload, headers: None)
    await alone.listening()
    caller = await nats.connect(server.url)
    assert (await caller.request("a_b.c-1", json.dumps({}).encode(), timeout=PATIENCE)).data == b""
    await caller.close()
    await alone.close()
