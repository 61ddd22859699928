from __future__ import annotations

import asyncio
import contextlib
import gc
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dynamo_fast.config import PushRouterConfig, TcpClientConfig
from dynamo_fast.context import Context
from dynamo_fast.discovery.memory import MemoryDiscovery
from dynamo_fast.egress.call import RoutedStream
from dynamo_fast.egress.instance_table import Entry, LoadQueue
from dynamo_fast.egress.push_router import PushRouter, RouterMode
from dynamo_fast.egress.router import AddressedPushRouter
from dynamo_fast.egress.sink import Delivery
from dynamo_fast.errors import (
    CannotConnect,
    ConnectionTimeout,
    Disconnected,
    DynamoError,
    InvalidConfig,
    InvalidRequest,
    RemoteError,
    RequestRefused,
    ResourceExhausted,
    ResponseTimeout,
    SerializationError,
    Unavailable,
)
from dynamo_fast.wire.address import EndpointId
from dynamo_fast.wire.instance import DeviceType, Instance, TransportType
from dynamo_fast.wire.payload import PayloadCodec
from tests.egress.conftest import make_router
from tests.egress.raw_worker import LIMIT, RawRequest, RawStream, RawWorker
from tests.waiting import until

ENDPOINT = EndpointId("demo", "backend", "generate")
NOBODY = "^No workers available for endpoint demo/backend/generate$"


def record(
    instance_id: int,
    address: str = "127.0.0.1:1/x",
    *,
    device: DeviceType | None = None,
    codec: PayloadCodec | None = None,
    endpoint: EndpointId = ENDPOINT,
) -> Instance:
    return Instance(endpoint, instance_id, TransportType("tcp", address), device, codec)


@pytest.fixture
def discovery() -> MemoryDiscovery:
    return MemoryDiscovery()


class Routers:
    """Makes push routers on one addressed router, and closes them."""

    def __init__(self, discovery: MemoryDiscovery, addressed: AddressedPushRouter) -> None:
        self.discovery = discovery
        self.addressed = addressed
        self.made: list[PushRouter] = []

    async def __call__(self, mode: RouterMode = RouterMode.RoundRobin, retries: int = 0, **settings: Any) -> PushRouter:
        config = PushRouterConfig(**settings)
        made = await PushRouter.create(
            ENDPOINT, self.discovery, self.addressed, mode=mode, retries=retries, config=config
        )
        self.made.append(made)
        return made


@pytest.fixture
async def routers(discovery: MemoryDiscovery, router: AddressedPushRouter) -> AsyncIterator[Routers]:
    made = Routers(discovery, router)
    yield made
    for each in made.made:
        assert each.table.cpu.total == each.table.other.total == 0, "a request is still counted"
        each.close()


async def begin(
    router: PushRouter, worker: RawWorker, request: Any = None, **options: Any
) -> tuple[RoutedStream, RawStream]:
    """A call that has its stream, and the worker's end of it."""
    call = asyncio.ensure_future(router.generate(request, **options))
    sent = await worker.request()
    sent.acknowledge()
    answer = await sent.dial()
    stream = await asyncio.wait_for(call, LIMIT)
    await asyncio.sleep(0)  # until the loop has let go of the finished call, which holds the stream
    return stream, answer


async def items(stream: RoutedStream) -> list[Any]:
    async def collect() -> list[Any]:
        return [item.data() async for item in stream]

    return await asyncio.wait_for(collect(), LIMIT)


def picks(router: PushRouter, mode: RouterMode, count: int) -> list[int]:
    """The ids of the workers that are picked, each of which is released at once."""
    ids = []
    for _ in range(count):
        call = router.prepare(mode, None)
        assert call.entry is not None
        ids.append(call.entry.instance.instance_id)
        call.release()
    return ids


def load(router: PushRouter, **loads: int) -> Callable[[], None]:
    """Give worker `_N` that many requests in flight; returns what takes them away."""
    calls = [router.prepare(int(name[1:]), None) for name, count in loads.items() for _ in range(count)]

    def unload() -> None:
        for call in calls:
            call.release()

    return unload


# Who is picked ------------------------------------------------------------------------------------------------------


async def test_round_robin_goes_through_the_ids_from_the_smallest_up(
    discovery: MemoryDiscovery, routers: Routers
) -> None:
    for instance_id in (7, 1 << 63, 2):
        await discovery.register(record(instance_id))
    router = await routers()
    for each in (router, await routers()):
        assert picks(each, RouterMode.RoundRobin, 3) == [2, 7, 1 << 63]
    await discovery.register(record(5))
    assert picks(router, RouterMode.RoundRobin, 4) == [1 << 63, 2, 5, 7]


async def test_random_takes_everybody_and_equally_often(discovery: MemoryDiscovery, routers: Routers) -> None:
    for instance_id in range(4):
        await discovery.register(record(instance_id))
    counts = Counter(picks(await routers(), RouterMode.Random, 4000))
    assert sorted(counts) == [0, 1, 2, 3]
    assert min(counts.values()) > 800


async def test_the_better_of_two_is_never_the_busiest_and_is_any_other(
    discovery: MemoryDiscovery, routers: Routers
) -> None:
    for instance_id in range(4):
        await discovery.register(record(instance_id))
    router = await routers()
    unload = load(router, _0=3, _1=5)
    assert set(picks(router, RouterMode.PowerOfTwoChoices, 500)) == {0, 2, 3}
    unload()


async def test_the_only_worker_is_the_better_of_two(discovery: MemoryDiscovery, routers: Routers) -> None:
    await discovery.register(record(5))
    assert picks(await routers(), RouterMode.PowerOfTwoChoices, 2) == [5, 5]


async def test_the_least_loaded_is_picked_and_equals_take_turns(discovery: MemoryDiscovery, routers: Routers) -> None:
    for instance_id in range(4):
        await discovery.register(record(instance_id, device="cpu" if instance_id == 3 else None))
    router = await routers()
    unload = load(router, _0=1, _1=1, _3=1)
    assert picks(router, RouterMode.LeastLoaded, 3) == [2, 2, 2]
    unload()
    unload = load(router, _0=2, _1=1, _2=1, _3=2)
    assert set(picks(router, RouterMode.LeastLoaded, 4)) == {1, 2}
    unload()


@pytest.mark.parametrize("cpu", [1, 2])
async def test_the_least_loaded_is_picked_whatever_its_device_and_unless_it_is_avoided(
    cpu: int, discovery: MemoryDiscovery, routers: Routers
) -> None:
    for instance_id in (1, 2, 3):
        await discovery.register(record(instance_id, device="cpu" if instance_id == cpu else None))
    router = await routers()
    unload = load(router, _2=1, _3=2)
    assert picks(router, RouterMode.LeastLoaded, 2) == [1, 1]
    router.selection.failed(router.table.entries[0], CannotConnect("gone"))
    assert picks(router, RouterMode.LeastLoaded, 2) == [2, 2]
    unload()


async def test_the_load_is_that_of_all_routers_that_share_the_table(
    discovery: MemoryDiscovery, routers: Routers
) -> None:
    await discovery.register(record(1))
    await discovery.register(record(2))
    router = await routers()
    other = PushRouter(router.table, router.router)
    unload = load(other, _1=1)
    assert picks(router, RouterMode.LeastLoaded, 2) == [2, 2]
    unload()


async def test_a_cpu_is_picked_while_it_has_less_than_its_share(discovery: MemoryDiscovery, routers: Routers) -> None:
    for instance_id, device in ((1, "cpu"), (2, "cuda"), (3, None)):
        await discovery.register(record(instance_id, device=device))  # type: ignore[arg-type]
    router = await routers(cuda_to_cpu_ratio=2.0)

    def picked() -> int:
        return picks(router, RouterMode.DeviceAwareWeighted, 1)[0]

    assert picked() in (2, 3)  # nobody has anything: 0 < 0 * 1 / (2 * 2) does not hold
    unload = load(router, _2=2, _3=1)
    assert picked() == 1  # 0 < 3 * 1 / (2 * 2)
    unload_more = load(router, _1=1, _2=1)
    assert picked() == 3  # 1 < 4 / 4 does not
    router.selection.failed(router.table.entries[2], CannotConnect("gone"))
    assert picked() == 1  # 1 < 3 * 1 / (2 * 1): only those count that can be picked
    await discovery.unregister(record(3))
    assert picked() == 1  # and those that are still there
    unload()
    unload_more()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
async def test_where_all_are_of_one_class_the_least_loaded_is_picked(
    device: DeviceType, discovery: MemoryDiscovery, routers: Routers
) -> None:
    for instance_id in range(3):
        await discovery.register(record(instance_id, device=device))
    router = await routers()
    unload = load(router, _0=1, _2=1)
    assert picks(router, RouterMode.DeviceAwareWeighted, 2) == [1, 1]
    unload()


STEPS = st.lists(st.tuples(st.sampled_from(["add", "remove", "begin", "end"]), st.integers(0, 2)), max_size=40)


@example([("add", 0), ("begin", 0), ("end", 0)])
@given(STEPS)
def test_the_queue_finds_what_a_look_at_all_finds(steps: list[tuple[str, int]]) -> None:
    queue = LoadQueue()
    entries = [Entry(record(number), queue) for number in range(3)]
    present: set[Entry] = set()
    for step, number in steps:
        entry = entries[number]
        if step == "add" and entry not in present:
            queue.add(entry)
            present.add(entry)
        elif step == "remove" and entry in present:
            queue.remove(entry)
            present.discard(entry)
        elif step == "begin":
            entry.begin()
        elif step == "end" and entry.in_flight:
            entry.end()
        assert (queue.size, queue.total) == (len(present), sum(each.in_flight for each in present))
        for out in ((), {entry}):
            usable = [each.in_flight for each in present if each not in out]
            found = queue.least(out)
            assert (found is None and not usable) or (found is not None and found.in_flight == min(usable))


async def test_modes_that_are_not_offered_say_what_to_do(discovery: MemoryDiscovery, routers: Routers) -> None:
    with pytest.raises(InvalidConfig, match="KV is not offered: .*; use LeastLoaded"):
        await routers(RouterMode.KV)
    with pytest.raises(InvalidConfig, match="retries=-1 is not valid"):
        await routers(retries=-1)
    router = await routers(RouterMode.Direct)
    with pytest.raises(InvalidRequest, match="call direct"):
        await router.generate(None)


# Requests -----------------------------------------------------------------------------------------------------------


async def test_a_request_goes_to_the_worker_that_is_picked_and_its_answer_comes_back(
    discovery: MemoryDiscovery, routers: Routers, worker: RawWorker
) -> None:
    await discovery.register(record(1, worker.address))
    router = await routers()
    context = Context("an id", {"key": "value"})
    call = asyncio.ensure_future(router.generate({"n": 1}, context, {"traceparent": "00-1-2-03"}))
    sent = await worker.request()
    assert sent.body == b'{"n":1}'
    assert sent.control["id"] == "an id"
    assert sent.headers["traceparent"] == "00-1-2-03"
    sent.acknowledge()
    answer = await sent.dial()
    answer.items(1, 2)
    answer.end()
    stream = await asyncio.wait_for(call, LIMIT)
    assert router.table.other.total == 1
    assert await items(stream) == [1, 2]
    assert router.table.other.total == 0


async def test_a_request_is_not_kept_for_as_long_as_its_answer_lasts(
    discovery: MemoryDiscovery, routers: Routers, worker: RawWorker
) -> None:
    """Its body may be large. It is there until its first item, as it may be tried elsewhere; else until it is sent."""
    await discovery.register(record(1, worker.address))
    router = await routers(retries=1)
    call = asyncio.ensure_future(router.generate({"n": 1}))
    sent = await worker.request()
    sent.acknowledge()
    answer = await sent.dial()
    answer.items(1)
    stream = await asyncio.wait_for(call, LIMIT)
    kept = [stream._call._attempt]
    await asyncio.wait_for(anext(stream), LIMIT)
    kept.append(stream._call._attempt)
    stream.close()
    once = router.prepare(router.mode, {"n": 2})
    kept.append(once._attempt)
    exchange = once.begin(asyncio.get_running_loop().create_future())
    kept.append(once._attempt)
    assert [each is not None for each in kept] == [True, False, True, False]
    exchange.give_up()
    once.release()


async def test_each_worker_gets_the_codec_that_it_asks_for(
    discovery: MemoryDiscovery, routers: Routers, worker: RawWorker
) -> None:
    await discovery.register(record(1, worker.address))
    await discovery.register(record(2, worker.address, codec=PayloadCodec.MSGPACK))
    router = await routers()
    for codec, body in (("json", b'{"a":1}'), ("msgpack", msgspec.msgpack.encode({"a": 1}))):
        call = asyncio.ensure_future(router.round_robin({"a": 1}))
        sent = await worker.request()
        assert (sent.control["payload_codec"], sent.body) == (codec, body)
        sent.acknowledge(b"Server overloaded: enough")
        with pytest.raises(ResourceExhausted):
            await call


async def test_a_request_is_encoded_when_it_is_prepared(
    discovery: MemoryDiscovery, routers: Routers, worker: RawWorker
) -> None:
    await discovery.register(record(1, worker.address))
    router = await routers()
    with pytest.raises(SerializationError, match="unsupported type object"):
        router.prepare(RouterMode.Random, object())
    request = {"a": 1}
    call = router.prepare(RouterMode.Random, request)
    request["a"] = 2
    sending = asyncio.ensure_future(call.send())
    assert (await worker.request()).body == b'{"a":1}'
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending


async def test_without_workers_a_call_fails_and_waiting_for_one_works(
    discovery: MemoryDiscovery, routers: Routers
) -> None:
    router = await routers()
    for mode in (RouterMode.RoundRobin, RouterMode.Random, RouterMode.PowerOfTwoChoices, RouterMode.LeastLoaded):
        with pytest.raises(Unavailable, match=NOBODY):
            await router.prepare(mode, None).send()
    with pytest.raises(Unavailable, match="^instance_id=5 not found for endpoint demo/backend/generate$"):
        await router.direct(None, 5)
    waiting = asyncio.ensure_future(router.wait_for_instances())
    await asyncio.sleep(0)
    assert not waiting.done()
    await discovery.register(record(5))
    assert await asyncio.wait_for(waiting, LIMIT) == [5]


async def test_direct_goes_to_the_worker_that_it_names(
    discovery: MemoryDiscovery, routers: Routers, worker: RawWorker
) -> None:
    async with RawWorker() as other:
        await discovery.register(record(1, other.address))
        await discovery.register(record(2, worker.address))
        router = await routers()
        router.selection.failed(router.table.entries[1], CannotConnect("it was gone for a moment"))
        assert router.free_ids() == [1]
        call = asyncio.ensure_future(router.direct("here", 2))
        sent = await worker.request()
        sent.acknowledge()
        (await sent.dial()).end()
        assert await items(await call) == []


async def test_a_worker_that_is_reached_otherwise_is_named_in_the_error(
    discovery: MemoryDiscovery, routers: Routers
) -> None:
    await discovery.register(Instance(ENDPOINT, 9, TransportType("pigeon", "a loft"), None, None))
    with pytest.raises(InvalidRequest, match="demo/backend/generate/9 is reached by pigeon"):
        await (await routers()).generate(None)


# Who is avoided -------------------------------------------------------------------------------------------------------


def error_item(error: dict[str, Any]) -> bytes:
    return msgspec.json.encode({"data": {"event": "error", "error": error}, "complete_final": False})


def fails_with_item(error_type: Any) -> Callable[[RawRequest], Awaitable[None]]:
    async def fail(sent: RawRequest) -> None:
        sent.acknowledge()
        answer = await sent.dial()
        answer.send(data=error_item({"error_type": error_type, "message": "on purpose"}))
        answer.end()

    return fail


def refuses(text: bytes) -> Callable[[RawRequest], Awaitable[None]]:
    async def refuse(sent: RawRequest) -> None:
        sent.acknowledge(text)

    return refuse


async def hangs_up(sent: RawRequest) -> None:
    sent.cut()


async def cannot_start(sent: RawRequest) -> None:
    sent.acknowledge()
    await sent.dial(b'{"error":"Generate Error: no"}')


async def breaks_off(sent: RawRequest) -> None:
    sent.acknowledge()
    answer = await sent.dial()
    answer.items(1)
    answer.half_close()


async def forgets_the_end(sent: RawRequest) -> None:
    sent.acknowledge()
    answer = await sent.dial()
    answer.items(1)
    answer.send(b'"sentinel"')


async def ends_well(sent: RawRequest) -> None:
    sent.acknowledge()
    (await sent.dial()).end()


OUTCOMES: list[tuple[Callable[[RawRequest], Awaitable[None]], type[DynamoError] | None, str]] = [
    (ends_well, None, "free"),
    (hangs_up, CannotConnect, "inhibited"),
    (refuses(b"Server unavailable: unknown endpoint x"), Unavailable, "inhibited"),
    (refuses(b"Unknown endpoint: x"), Unavailable, "inhibited"),
    (refuses(b"Server overloaded: worker at capacity"), ResourceExhausted, "overloaded"),
    (refuses(b"Read error: whatever"), RequestRefused, "free"),
    (cannot_start, CannotConnect, "inhibited"),
    (breaks_off, Disconnected, "inhibited"),
    (forgets_the_end, Disconnected, "inhibited"),
    (fails_with_item({"Backend": "EngineShutdown"}), RemoteError, "inhibited"),
    (fails_with_item({"Backend": "StreamIncomplete"}), RemoteError, "inhibited"),
    (fails_with_item("WorkerUnavailable"), RemoteError, "inhibited"),
    *(
        (fails_with_item({"Backend": kind}), RemoteError, "free")
        for kind in ("CannotConnect", "Disconnected", "ConnectionTimeout", "Cancelled", "Unknown", "InvalidArgument")
    ),
]


@pytest.mark.parametrize(("act", "error", "state"), OUTCOMES)
async def test_what_an_outcome_says_about_the_worker(
    act: Callable[[RawRequest], Awaitable[None]],
    error: type[DynamoError] | None,
    state: str,
    discovery: MemoryDiscovery,
    routers: Routers,
    worker: RawWorker,
) -> None:
    await discovery.register(record(1, worker.address))
    router, other = await routers(), await routers()

    async def call() -> None:
        await items(await router.generate(None))

    calling = asyncio.ensure_future(call())
    await act(await worker.request())
    if error is None:
        await asyncio.wait_for(calling, LIMIT)
    else:
        with pytest.raises(error):
            await asyncio.wait_for(calling, LIMIT)
    assert router.instance_ids() == [1]
    assert router.free_ids() == ([1] if state == "free" else [])
    assert other.free_ids() == [1]  # what a router has learnt is its own
    if state != "free":
        nobody, text = (
            (Unavailable, NOBODY)
            if state == "inhibited"
            else (ResourceExhausted, "^All workers are busy, please retry later$")
        )
        with pytest.raises(nobody, match=text):
            await router.generate(None)


async def test_a_worker_whose_port_is_closed_is_avoided(
    discovery: MemoryDiscovery, routers: Routers, worker: RawWorker
) -> None:
    worker.stop_listening()
    await discovery.register(record(1, worker.address))
    router = await routers()
    with pytest.raises(CannotConnect):
        await router.generate(None)
    with pytest.raises(Unavailable, match=NOBODY):
        await router.generate(None)


async def test_a_busy_worker_that_leaves_is_no_reason_to_try_later(
    discovery: MemoryDiscovery, routers: Routers
) -> None:
    await discovery.register(record(1))
    router = await routers()
    busy = ResourceExhausted("Server overloaded: worker at capacity")
    entry = router.table.entries[0]
    router.selection.failed(entry, busy)
    await discovery.unregister(record(1))
    with pytest.raises(Unavailable, match=NOBODY):
        await router.generate(None)
    router.selection.failed(entry, busy)
    with pytest.raises(Unavailable, match=NOBODY):
        await router.generate(None)


async def test_a_worker_that_does_not_acknowledge_is_avoided(discovery: MemoryDiscovery, worker: RawWorker) -> None:
    await discovery.register(record(1, worker.address))
    async with await make_router(client=TcpClientConfig(request_timeout=0.05)) as addressed:
        router = await PushRouter.create(ENDPOINT, discovery, addressed)
        with pytest.raises(ConnectionTimeout):
            await asyncio.wait_for(router.generate(None), LIMIT)
        assert router.free_ids() == []
        router.close()


async def test_a_worker_that_falls_silent_is_avoided(
    discovery: MemoryDiscovery, routers: Routers, worker: RawWorker
) -> None:
    await discovery.register(record(1, worker.address))
    router = await routers(inactivity_timeout=0.05)
    stream, answer = await begin(router, worker)
    answer.items("first")
    assert (await stream.__anext__()).data() == "first"
    with pytest.raises(ResponseTimeout, match="^backend response inactivity timeout$"):
        await asyncio.wait_for(stream.__anext__(), LIMIT)
    with pytest.raises(StopAsyncIteration):
        await stream.__anext__()
    assert await answer.next_control() == b'"kill"'
    assert router.free_ids() == []


async def test_inhibition_ends_after_its_time(discovery: MemoryDiscovery, routers: Routers) -> None:
    await discovery.register(record(1))
    router = await routers(inhibited_duration=0.05)
    router.selection.failed(router.table.entries[0], CannotConnect("gone"))
    assert router.free_ids() == []
    await until(router.free_ids)


async def test_inhibition_of_0_seconds_is_none(discovery: MemoryDiscovery, routers: Routers) -> None:
    await discovery.register(record(1))
    router = await routers(inhibited_duration=0.0)
    router.selection.failed(router.table.entries[0], CannotConnect("gone"))
    assert router.free_ids() == [1]


async def test_a_worker_that_comes_back_is_not_avoided(discovery: MemoryDiscovery, routers: Routers) -> None:
    await discovery.register(record(1))
    router = await routers(inhibited_duration=1000.0)
    router.selection.failed(router.table.entries[0], CannotConnect("gone"))
    await discovery.register(record(1, "127.0.0.1:2/x"))
    assert router.free_ids() == [1]
    router.selection.failed(router.table.entries[0], CannotConnect("gone"))
    await discovery.unregister(record(1))
    await discovery.register(record(1))
    assert router.free_ids() == [1]


async def test_what_the_worker_before_it_did_says_nothing_about_a_worker(
    discovery: MemoryDiscovery, routers: Routers, worker: RawWorker
) -> None:
    await discovery.register(record(1, worker.address))
    router = await routers()
    stream, answer = await begin(router, worker)
    await discovery.register(record(1, "127.0.0.1:2/x"))
    answer.reset()
    with pytest.raises(Disconnected):
        await items(stream)
    assert router.free_ids() == [1]


async def test_a_busy_worker_is_asked_again_when_one_of_our_answers_there_ends(
    discovery: MemoryDiscovery, routers: Routers, worker: RawWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dynamo_fast.egress.selection._OVERLOADED_SECONDS", 1000.0)
    await discovery.register(record(1, worker.address))
    router = await routers()
    stream, answer = await begin(router, worker)
    refused = asyncio.ensure_future(router.generate(None))
    (await worker.request()).acknowledge(b"Server overloaded: worker at capacity")
    with pytest.raises(ResourceExhausted):
        await refused
    assert router.free_ids() == []
    answer.end()
    assert await items(stream) == []
    assert router.free_ids() == [1]


async def test_a_busy_worker_is_asked_again_after_a_moment(discovery: MemoryDiscovery, routers: Routers) -> None:
    await discovery.register(record(1))
    router = await routers()
    router.selection.failed(router.table.entries[0], ResourceExhausted("Server overloaded: worker at capacity"))
    with pytest.raises(ResourceExhausted, match="All workers are busy") as caught:
        await router.generate(None)
    assert not caught.value.migratable
    await until(router.free_ids)


# Who comes and goes ---------------------------------------------------------------------------------------------------


async def test_a_call_that_waits_for_a_removed_worker_ends_and_a_stream_goes_on(
    discovery: MemoryDiscovery, routers: Routers, worker: RawWorker
) -> None:
    await discovery.register(record(1, worker.address))
    router = await routers()
    stream, answer = await begin(router, worker)
    waiting = asyncio.ensure_future(router.generate(None))
    (await worker.request()).acknowledge()
    await discovery.unregister(record(1))
    with pytest.raises(Disconnected, match="^Worker disconnected before response stream was established$"):
        await asyncio.wait_for(waiting, LIMIT)
    with pytest.raises(Unavailable, match=NOBODY):
        await router.generate(None)
    answer.items("still here")
    answer.end()
    assert await items(stream) == ["still here"]


async def test_a_worker_that_comes_back_at_once_is_called_at_once(
    discovery: MemoryDiscovery, routers: Routers, worker: RawWorker
) -> None:
    await discovery.register(record(1, worker.address))
    router = await routers()
    await discovery.unregister(record(1))
    await discovery.register(record(1, worker.address))
    stream, answer = await begin(router, worker)
    answer.end()
    assert await items(stream) == []


async def test_a_changed_address_is_followed(discovery: MemoryDiscovery, routers: Routers, worker: RawWorker) -> None:
    await discovery.register(record(1))
    router = await routers()
    await discovery.register(record(1, worker.address))
    assert [each.tcp_address for each in router.instances()] == [worker.address]
    stream, answer = await begin(router, worker)
    answer.end()
    assert await items(stream) == []


async def test_endpoints_whose_names_begin_alike_are_kept_apart(discovery: MemoryDiscovery, routers: Routers) -> None:
    router = await routers()
    await discovery.register(record(1, endpoint=EndpointId("demo", "backend", "generate2")))
    await discovery.register(record(2, endpoint=EndpointId("demo", "backend", "gen")))
    assert router.instance_ids() == []


async def test_a_closed_router_hears_of_nobody_new(discovery: MemoryDiscovery, routers: Routers) -> None:
    async with await routers() as router:
        pass
    await discovery.register(record(1))
    assert router.instance_ids() == []


async def test_a_router_that_is_closed_leaves_the_table_to_those_who_share_it(
    discovery: MemoryDiscovery, routers: Routers
) -> None:
    router = await routers()
    PushRouter(router.table, router.router).close()
    await discovery.register(record(1))
    assert router.free_ids() == [1]


# What is in flight ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["close", "drop", "with", "stop"])
async def test_an_answer_that_nobody_wants_any_more_is_not_in_flight(
    how: str, discovery: MemoryDiscovery, routers: Routers, worker: RawWorker
) -> None:
    await discovery.register(record(1, worker.address))
    router = await routers()
    context = Context()
    stream, answer = await begin(router, worker, context=context)
    assert router.table.other.total == 1
    if how == "close":
        stream.close()
        stream.close()
    elif how == "with":
        async with stream:
            pass
    elif how == "stop":
        context.stop_generating()
        answer.end()
        assert await items(stream) == []
    del stream
    gc.collect()
    assert router.table.other.total == 0
    assert await answer.next_control() == (b'"stop"' if how == "stop" else b'"kill"')
    assert router.free_ids() == [1]


async def test_a_call_that_is_never_sent_is_not_in_flight(discovery: MemoryDiscovery, routers: Routers) -> None:
    await discovery.register(record(1))
    router = await routers()
    call = router.prepare(RouterMode.Random, None)
    assert router.table.other.total == 1
    del call
    gc.collect()
    assert router.table.other.total == 0


async def test_a_call_that_is_cancelled_is_not_in_flight(
    discovery: MemoryDiscovery, routers: Routers, worker: RawWorker
) -> None:
    await discovery.register(record(1, worker.address))
    router = await routers()
    call = asyncio.ensure_future(router.generate(None))
    await worker.request()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert router.table.other.total == 0
    assert router.free_ids() == [1]


# Another worker -------------------------------------------------------------------------------------------------------


async def test_a_request_is_not_tried_again_unless_that_is_wanted(
    discovery: MemoryDiscovery, routers: Routers, worker: RawWorker
) -> None:
    await discovery.register(record(1))
    await discovery.register(record(2, worker.address))
    with pytest.raises(CannotConnect):
        await (await routers()).generate(None)


async def test_a_request_goes_to_another_worker_before_its_answer_begins(
    discovery: MemoryDiscovery, routers: Routers, worker: RawWorker
) -> None:
    await discovery.register(record(1))  # nobody listens there
    await discovery.register(record(2, worker.address, codec=PayloadCodec.MSGPACK))
    router = await routers(retries=1)
    stream, answer = await begin(router, worker, {"a": 1})
    answer.send(data=msgspec.msgpack.encode({"data": {"data": "hi"}, "complete_final": False}))
    answer.send(data=msgspec.msgpack.encode({"complete_final": True}))
    answer.send(b'"sentinel"')
    assert await items(stream) == ["hi"]
    assert router.free_ids() == [2]


@pytest.mark.parametrize("act", [breaks_off, fails_with_item({"Backend": "EngineShutdown"})])
async def test_a_request_goes_to_another_worker_before_its_first_item_only(
    act: Callable[[RawRequest], Awaitable[None]], discovery: MemoryDiscovery, routers: Routers, worker: RawWorker
) -> None:
    async with RawWorker() as other:
        await discovery.register(record(1, worker.address))
        await discovery.register(record(2, other.address))
        router = await routers(retries=1)
        calling = asyncio.ensure_future(router.generate("again"))
        first = await worker.request()
        await act(first)
        collecting = asyncio.ensure_future(items(await asyncio.wait_for(calling, LIMIT)))
        if act is breaks_off:  # it had sent an item
            with pytest.raises(Disconnected):
                await collecting
            return
        second = await other.request()
        assert second.body == b'"again"'
        second.acknowledge()
        answer = await second.dial()
        answer.items("answered")
        answer.end()
        assert await collecting == ["answered"]


@pytest.mark.parametrize("how", ["goes on", "closed", "no other"])
@pytest.mark.parametrize("act", [breaks_off, fails_with_item({"Backend": "EngineShutdown"})])
async def test_the_same_for_a_sink(
    how: str,
    act: Callable[[RawRequest], Awaitable[None]],
    discovery: MemoryDiscovery,
    routers: Routers,
    worker: RawWorker,
) -> None:
    got: list[Any] = []

    class Kept:
        def begin(self, delivery: Delivery) -> None:
            got.append("begin")

        def item(self, item: Any) -> None:
            got.append(item.data())

        def end(self, error: BaseException | None) -> None:
            got.append(type(error))

    async with RawWorker() as other:
        await discovery.register(record(1, worker.address))
        await discovery.register(record(2, other.address))
        router = await routers(retries=1)
        calling = asyncio.ensure_future(router.generate("again", sink=Kept()))
        await act(await worker.request())
        delivery = await asyncio.wait_for(calling, LIMIT)
        if act is not breaks_off:
            second = await other.request()
            if how == "closed":
                delivery.close()
            elif how == "no other":
                second.acknowledge(b"Server unavailable: on purpose")
            else:
                second.acknowledge()
                answer = await second.dial()
                answer.items("answered", "more")
                answer.end()
        await asyncio.wait_for(delivery.wait_ended(), LIMIT)
        ends = {"goes on": ["answered", "more", type(None)], "closed": [type(None)], "no other": [Unavailable]}
        assert got[0] == "begin"
        assert got[1:] == ends[how] if act is not breaks_off else got[-1] is Disconnected
        assert router.table.other.total == 0


class Ending:
    """A sink that keeps how it ended."""

    def __init__(self) -> None:
        self.ends: list[BaseException | None] = []

    def begin(self, delivery: Delivery) -> None:
        self.delivery = delivery

    def item(self, item: Any) -> None:
        raise AssertionError(item)

    def end(self, error: BaseException | None) -> None:
        self.ends.append(error)


@pytest.mark.parametrize("how", ["closed before it is sent again", "closed while it is", "cannot be sent again"])
async def test_a_sink_hears_of_the_end_while_its_request_is_sent_again(
    how: str, discovery: MemoryDiscovery, routers: Routers, worker: RawWorker
) -> None:
    sink, broken, sending = Ending(), KeyError("on purpose"), asyncio.Event()

    class Disturbed:
        """The call, which is disturbed when its first attempt has failed."""

        def __init__(self, call: Any) -> None:
            self._call = call

        def __getattr__(self, name: str) -> Any:
            return getattr(self._call, name)

        async def send(self) -> Any:
            if how == "cannot be sent again":
                raise broken
            sending.set()
            with contextlib.suppress(asyncio.CancelledError):  # it has gone too far
                await asyncio.Event().wait()
            return await self._call.send()

        def failed(self, error: DynamoError) -> Any:
            if how == "closed before it is sent again":
                asyncio.get_running_loop().call_soon(sink.delivery.close)  # before the first step of the task
            return self._call.failed(error)

    async with RawWorker() as other:
        await discovery.register(record(1, worker.address))
        await discovery.register(record(2, other.address))
        router = await routers(retries=1)
        calling = asyncio.ensure_future(router.generate("again", sink=sink))
        request = await worker.request()
        request.acknowledge()
        stream = await request.dial()
        delivery = await asyncio.wait_for(calling, LIMIT)
        delivery._call = Disturbed(delivery._call)
        stream.reset()
        if how == "closed while it is":
            await asyncio.wait_for(sending.wait(), LIMIT)
            delivery.close()
            assert sink.ends == [None]
            second = await other.request()
            second.acknowledge()
            assert (await (await second.dial()).received())[0] == b'"kill"'
        await asyncio.wait_for(delivery.wait_ended(), LIMIT)
        assert sink.ends == [broken if how == "cannot be sent again" else None]
        assert router.table.other.total == 0


async def test_a_worker_that_was_tried_is_not_tried_again(
    discovery: MemoryDiscovery, routers: Routers, worker: RawWorker
) -> None:
    await discovery.register(record(1, worker.address))
    router = await routers(retries=5, inhibited_duration=0.0)
    call = asyncio.ensure_future(router.generate(None))
    (await worker.request()).acknowledge(b"Server unavailable: on purpose")
    with pytest.raises(Unavailable, match="^Server unavailable: on purpose$"):
        await asyncio.wait_for(call, LIMIT)


async def test_tries_are_bounded(discovery: MemoryDiscovery, routers: Routers) -> None:
    for instance_id in range(5):
        await discovery.register(record(instance_id))
    router = await routers(retries=2)
    with pytest.raises(CannotConnect):
        await router.generate(None)
    assert len(router.free_ids()) == 2


@pytest.mark.parametrize("kind", ["Unknown", "InvalidArgument", "Cancelled"])
async def test_an_error_of_the_handler_is_not_tried_elsewhere(
    kind: str, discovery: MemoryDiscovery, routers: Routers, worker: RawWorker
) -> None:
    await discovery.register(record(1, worker.address))
    await discovery.register(record(2))
    router = await routers(retries=1)
    calling = asyncio.ensure_future(router.generate(None))
    await fails_with_item({"Backend": kind})(await worker.request())
    with pytest.raises(RemoteError, match="on purpose"):
        await items(await calling)


async def test_a_stopped_request_is_not_tried_elsewhere(
    discovery: MemoryDiscovery, routers: Routers, worker: RawWorker
) -> None:
    await discovery.register(record(1, worker.address))
    await discovery.register(record(2))
    router = await routers(retries=1)
    context = Context()
    call = asyncio.ensure_future(router.generate(None, context))
    sent = await worker.request()
    context.stop_generating()
    sent.cut()
    with pytest.raises(CannotConnect):
        await asyncio.wait_for(call, LIMIT)
    assert router.free_ids() == [2]
