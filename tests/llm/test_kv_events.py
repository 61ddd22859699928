"""`KvEventSource`: what both releases of Dynamo get, its records, its recovery endpoints, its end."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import msgspec
import pytest

from dynamo_fast.context import Context
from dynamo_fast.discovery.buckets import EVENT_CHANNELS, EVENT_SOURCES
from dynamo_fast.discovery.memory import MemoryDiscovery
from dynamo_fast.egress.router import AddressedPushRouter, AddressedRequest
from dynamo_fast.errors import CannotConnect, Disconnected, InvalidConfig, InvalidRequest
from dynamo_fast.ingress.worker import ServedEndpoint, Worker
from dynamo_fast.llm.kv_events import KvEventSource
from dynamo_fast.wire.address import EndpointId
from dynamo_fast.wire.payload import Bare, PayloadCodec
from tests.llm import captured
from tests.llm.conftest import WORKER_ID
from tests.llm.subscriber import Subscriber, channels, records

NEW, OLD = "namespace/ns/component/comp/endpoint/generate/topic/kv-events", "ns/comp/kv-events"
HASHES = [1111, 2222]
TOKENS = [1, 87, 85, 266, 201, 74, 75, 2]


@pytest.mark.parametrize("version", ["161", "131"])
async def test_events_are_dynamos_to_the_byte(version: str, served: ServedEndpoint) -> None:
    """The calls by which the captured events came about."""
    messages = captured.frames(version, captured.EVENTS)
    payloads = [msgspec.msgpack.decode(frames[3][5:])["payload"] for frames in messages]
    first = msgspec.msgpack.decode(payloads[0])
    worker_id = (first[0] if isinstance(first, list) else first)["worker_id"]
    source = KvEventSource(served.endpoint, worker_id, 4)
    sent: list[bytes] = []
    (source._new if version == "161" else source._old).send = sent.append  # type: ignore[assignment, method-assign]
    source.stored(TOKENS, HASHES)
    source.stored([5, 6, 7, 8], [-3], 2222)
    source.removed([1111])
    source.stop()
    assert sent == payloads


async def test_both_releases_get_the_events_in_their_form(served: ServedEndpoint, subscriber: Subscriber) -> None:
    source = await KvEventSource.open(served, 4)
    source.stored(TOKENS, HASHES)
    addresses = await channels(served.worker.discovery.store)
    assert addresses.keys() == {NEW, OLD}
    payloads = []
    for key in (NEW, OLD):
        subscriber.connect(addresses[key])
        message = await subscriber.receive()
        assert (message.topic, message.publisher_id) == ("kv-events", source.publisher_id)
        payloads.append(message.payload)
    (new,), old = payloads
    assert new.pop("residency_domain") == "worker"
    assert new == old
    assert old["worker_id"] == WORKER_ID
    blocks = old["event"]["data"]["stored"]["blocks"]
    assert [each["block_hash"] for each in blocks] == HASHES
    assert blocks[0]["tokens_hash"] == 0x3A3CE26009738442


async def test_the_records_are_dynamos(served: ServedEndpoint) -> None:
    source = await KvEventSource.open(served, 4, dp_rank=3)
    store = served.worker.discovery.store
    ((key, record),) = (await records(store, EVENT_SOURCES)).items()
    real = next(each for each in captured.records("161").values() if each["type"] == "EventSource")
    assert key == f"{NEW}/{source.publisher_id:x}"
    assert _shape(record) == _shape(real)
    target = record["metadata"]["recovery_target"]
    assert target["endpoint"] == f"worker_kv_query_source_{source.publisher_id:x}"
    assert target["instance_id"] == WORKER_ID
    assert record["metadata"]["worker"] == {"worker_id": WORKER_ID, "dp_rank": 3}
    names = {each.endpoint_id.name for each in await served.worker.discovery.list()}
    assert names == {"generate", target["endpoint"], "worker_kv_indexer_query_dp3"}


async def test_the_state_may_be_that_of_another_endpoint(worker: Worker) -> None:
    state = EndpointId("ns", "other", "state")
    source = KvEventSource(EndpointId("ns", "comp", "generate"), 5, 4, state_endpoint=state)
    await source.announce(worker)
    ((key, record),) = (await records(worker.discovery.store, EVENT_SOURCES)).items()
    assert key.startswith("namespace/ns/component/other/endpoint/state/")
    assert record["metadata"]["kv_state_endpoint"] == {"namespace": "ns", "component": "other", "name": "state"}
    assert record["metadata"]["recovery_target"]["component"] == "comp"


@pytest.mark.parametrize("codec", list(PayloadCodec))
@pytest.mark.parametrize("release", ["161", "131"])
async def test_what_was_missed_comes_without_the_inner_envelope(
    release: str, codec: PayloadCodec, served: ServedEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = await KvEventSource.open(served, 4)
    source.stored(TOKENS, HASHES)
    instances = await served.worker.discovery.list()
    name = "worker_kv_query_source_" if release == "161" else "worker_kv_indexer_query_dp0"
    (instance,) = (each for each in instances if each.endpoint_id.name.startswith(name))
    items: list[bytes] = []
    read_item = codec.read_item

    def keep(data: bytes) -> Any:
        items.append(bytes(data))
        return read_item(data)

    monkeypatch.setattr(codec, "read_item", keep)
    router = await AddressedPushRouter.create()
    query = {"worker_id": WORKER_ID, "dp_rank": 0, "start_event_id": None, "end_event_id": None}
    try:
        request = AddressedRequest(query, instance.tcp_address, payload_codec=codec)
        async for _ in await router.generate(request, Context()):
            pass  # without the final marker the end is an error
    finally:
        await router.close()
    read = msgspec.json.decode if codec is PayloadCodec.JSON else msgspec.msgpack.decode
    (item,) = (read(each) for each in items)
    assert item["complete_final"] is False
    dump = item["data"]["TreeDump"]
    assert dump["last_event_id"] == 1
    assert ("reset_scope" in dump) == (release == "161")
    (event,) = dump["events"]
    assert ("residency_domain" in event) == (release == "161")


@pytest.mark.parametrize("codec", list(PayloadCodec))
def test_a_bare_item_has_the_outer_envelope_alone(codec: PayloadCodec) -> None:
    read = msgspec.json.decode if codec is PayloadCodec.JSON else msgspec.msgpack.decode
    value = {"TooNew": {"newest_available": 2**64 - 1}}
    assert read(codec.encode_item(Bare(value))) == {"data": value, "complete_final": False}


async def test_threads_publish_in_one_order(served: ServedEndpoint, subscriber: Subscriber) -> None:
    source = await KvEventSource.open(served, 4)
    source.cleared()
    subscriber.connect((await channels(served.worker.discovery.store))[NEW])
    await subscriber.receive()

    def publish(first: int) -> None:
        for number in range(first, first + 50):
            source.stored([1, 2, 3, number], [number])

    threads = [threading.Thread(target=publish, args=(1000 * each,)) for each in range(4)]
    for each in threads:
        each.start()
    messages = [await subscriber.receive() for _ in range(200)]
    for each in threads:
        each.join()
    assert [each.sequence for each in messages] == list(range(messages[0].sequence, messages[0].sequence + 200))
    assert [each.payload[0]["event"]["event_id"] for each in messages] == list(range(2, 202))


async def test_closing_removes_records_endpoints_and_sockets(served: ServedEndpoint) -> None:
    store = served.worker.discovery.store
    source = await KvEventSource.open(served, 4)
    address = (await channels(store))[NEW]
    order: list[str] = []
    for kind in (EVENT_SOURCES, EVENT_CHANNELS):
        await store.bucket(kind).watch("", lambda event: order.append(f"{type(event).__name__} {event.key}"))
    order.clear()
    await asyncio.gather(source.close(), source.close())
    id_ = f"{source.publisher_id:x}"
    assert order == [f"RecordRemoved {NEW}/{id_}", f"RecordRemoved {NEW}/{id_}", f"RecordRemoved {OLD}/{id_}"]
    assert [each.endpoint_id.name for each in await served.worker.discovery.list()] == ["generate"]
    assert served.worker.companions == []
    source.stored(TOKENS, HASHES)
    source.removed([1])
    source.cleared()
    host, port = address.removeprefix("tcp://").split(":")
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(host, int(port))


async def test_the_worker_closes_what_is_published_for_it() -> None:
    discovery = MemoryDiscovery()
    worker = await Worker.start(discovery)

    async def handler(request: Any) -> Any:
        yield request

    source = await KvEventSource.open(await worker.serve(handler, "ns.comp.generate"), 4)
    await worker.close()
    assert source._closed
    with pytest.raises(Disconnected, match="KV events of ns/comp/generate"):
        await source.announce(worker)


@pytest.mark.parametrize("kind", [EVENT_SOURCES, EVENT_CHANNELS])
async def test_nothing_stays_of_a_source_that_could_not_be_announced(
    kind: Any, served: ServedEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = served.worker.discovery.store

    async def fail(key: str, value: bytes) -> None:
        raise CannotConnect("no discovery")

    monkeypatch.setattr(store.bucket(kind), "put", fail)
    with pytest.raises(CannotConnect):
        await KvEventSource.open(served, 4)
    assert await records(store, EVENT_CHANNELS) == await records(store, EVENT_SOURCES) == {}
    assert [each.endpoint_id.name for each in await served.worker.discovery.list()] == ["generate"]
    assert served.worker.companions == []


async def test_wrong_arguments_name_the_field(served: ServedEndpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    for size, rank, text in ((0, 0, "block_size=0"), (4, -1, "dp_rank=-1")):
        with pytest.raises(InvalidRequest, match=text):
            await KvEventSource.open(served, size, rank)
    source = await KvEventSource.open(served, 4)
    with pytest.raises(InvalidRequest, match="7 tokens fill 1 blocks of 4, not 2"):
        source.stored(TOKENS[:7], HASHES)
    with pytest.raises(InvalidRequest, match="tier='ram'"):
        source.stored(TOKENS, HASHES, tier="ram")
    with pytest.raises(OverflowError, match="64 bits"):
        source.removed([2**64])
    with pytest.raises(OverflowError):
        source.stored([1, 2, 3, -4], [1])
    source.stored([], [])
    source.removed([])
    assert source._state._last == 0
    monkeypatch.setenv("DYN_EVENT_PLANE", "nats")
    with pytest.raises(InvalidConfig, match="not offered"):
        await KvEventSource.open(served, 4)


def _shape(value: Any) -> Any:
    """The keys, in their order, and the types."""
    if isinstance(value, dict):
        return [(key, _shape(each)) for key, each in value.items()]
    return type(json.loads(json.dumps(value))).__name__
