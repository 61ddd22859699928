"""The drop-in's publishers: signatures, threads, ends. tests/interop/test_kv_publisher.py compares what they publish."""

from __future__ import annotations

import asyncio
import inspect
import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
import zmq

from dynamo_fast.discovery.buckets import EVENT_CHANNELS, EVENT_SOURCES
from dynamo_fast.errors import InvalidConfig
from dynamo_fast.llm import KvEventPublisher, WorkerMetricsPublisher, compute_block_hash_for_seq
from dynamo_fast.runtime import DistributedRuntime, Endpoint
from tests.llm.subscriber import Subscriber, channels, records
from tests.waiting import until

SPEC = Path(__file__).parents[2] / "docs" / "spec"
EVENTS, LOAD = "ns/comp/kv-events", "ns//kv_metrics"


@pytest_asyncio.fixture
async def runtime() -> AsyncIterator[DistributedRuntime]:
    made = DistributedRuntime(asyncio.get_running_loop(), "mem", "tcp")
    yield made
    made.shutdown()
    await made.ended()


@pytest.fixture
def endpoint(runtime: DistributedRuntime) -> Endpoint:
    return runtime.endpoint("ns.comp.generate")


@pytest.mark.parametrize("version", ["1.3.1", "1.6.1"])
@pytest.mark.parametrize("ours", [KvEventPublisher, WorkerMetricsPublisher])
def test_signatures_are_dynamos(version: str, ours: type) -> None:
    theirs = json.loads((SPEC / f"api-{version}.json").read_text())["dynamo.llm"][ours.__name__]
    assert_begins_with(theirs["sig"], inspect.signature(ours))
    for name, signature in theirs["members"].items():
        assert_begins_with(signature.replace("self, /, ", "").replace("self, /", ""), bound(ours, name))


@pytest.mark.parametrize("version", ["1.3.1", "1.6.1"])
def test_the_signature_of_the_hash_is_dynamos(version: str) -> None:
    theirs = json.loads((SPEC / f"api-{version}.json").read_text())["dynamo.llm"]["compute_block_hash_for_seq"]
    assert_begins_with(theirs.removeprefix("fn "), inspect.signature(compute_block_hash_for_seq))


def bound(ours: type, name: str) -> inspect.Signature:
    signature = inspect.signature(getattr(ours, name))
    return signature.replace(parameters=list(signature.parameters.values())[1:])


def assert_begins_with(theirs: str, ours: inspect.Signature) -> None:
    """Ours has the parameters of theirs, and no further one without a default."""
    wanted = [each.strip() for each in theirs.strip("()").split(",") if each.strip()]
    found = [
        each.name if each.default is each.empty else f"{each.name}={each.default!r}"
        for each in ours.parameters.values()
    ]
    assert found[: len(wanted)] == wanted
    assert all("=" in each for each in found[len(wanted) :])


async def test_events_of_a_publisher_that_was_made_before_serving(
    runtime: DistributedRuntime, endpoint: Endpoint, subscriber: Subscriber
) -> None:
    publisher = KvEventPublisher(endpoint, kv_block_size=4)
    publisher.publish_stored([1, 2, 3, 4], [4], [-1])
    store = runtime._hub.discovery.store
    await until_announced(store, EVENTS)
    subscriber.connect((await channels(store))[EVENTS])
    event = (await subscriber.receive()).payload
    assert event["worker_id"] == endpoint.connection_id()
    assert event["event"]["data"]["stored"]["blocks"][0]["block_hash"] == 2**64 - 1
    publisher.shutdown()
    publisher.shutdown()
    publisher.publish_removed([1])
    await until_gone(store)


async def test_a_thread_makes_a_publisher_and_ends_it(runtime: DistributedRuntime, endpoint: Endpoint) -> None:
    store = runtime._hub.discovery.store
    made: list[KvEventPublisher] = []
    thread = threading.Thread(target=lambda: made.append(KvEventPublisher(endpoint, 77, 4, dp_rank=1)))
    thread.start()
    await until_announced(store, EVENTS)
    thread.join()
    ((_, record),) = (await records(store, EVENT_SOURCES)).items()
    assert record["metadata"]["worker"] == {"worker_id": 77, "dp_rank": 1}
    thread = threading.Thread(target=made[0].shutdown)
    thread.start()
    await until_gone(store)
    thread.join()


async def test_the_runtime_ends_what_was_not_shut_down(endpoint: Endpoint) -> None:
    publisher = KvEventPublisher(endpoint, kv_block_size=4, zmq_endpoint="tcp://127.0.0.1:1")
    metrics = WorkerMetricsPublisher()
    assert await metrics.create_endpoint(endpoint) == ()
    endpoint._hub.shutdown()
    await endpoint._hub.ended()
    publisher.publish_removed([1])
    metrics.publish(0, 1)
    publisher.shutdown()
    assert publisher._source.feeds == []


async def test_a_publisher_after_shutdown_publishes_nothing(
    endpoint: Endpoint, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint._hub.shutdown()
    publisher = KvEventPublisher(endpoint, kv_block_size=4)
    await until(lambda: "are not published" in caplog.text)
    publisher.publish_removed([1])
    await endpoint._hub.ended()


async def test_the_load_that_came_before_the_endpoint_is_published_then(
    runtime: DistributedRuntime, endpoint: Endpoint, subscriber: Subscriber
) -> None:
    metrics = WorkerMetricsPublisher()
    metrics.publish(0, 4)
    metrics.publish(kv_used_blocks=5)
    await metrics.create_endpoint(endpoint)
    subscriber.connect((await channels(runtime._hub.discovery.store))[LOAD])
    payload = (await subscriber.receive()).payload
    assert (payload["active_decode_blocks"], payload["kv_used_blocks"]) == (None, 5)
    with pytest.raises(Exception, match="requires at least one load metric"):
        metrics.publish(0)


async def test_an_engine_is_relayed(runtime: DistributedRuntime, endpoint: Endpoint, subscriber: Subscriber) -> None:
    context = zmq.Context()
    engine = context.socket(zmq.XPUB)
    try:
        port = engine.bind_to_random_port("tcp://127.0.0.1")
        KvEventPublisher(endpoint, kv_block_size=4, zmq_endpoint=f"tcp://127.0.0.1:{port}", zmq_topic="")
        await asyncio.to_thread(engine.recv)
        engine.send_multipart([b"", bytes(8), msgspec.msgpack.encode([0.0, [["AllBlocksCleared"]], 0])])
        store = runtime._hub.discovery.store
        await until_announced(store, EVENTS)
        subscriber.connect((await channels(store))[EVENTS])
        assert (await subscriber.receive()).payload["event"]["data"] == "cleared"
    finally:
        engine.close(linger=0)
        context.term()


async def test_wrong_arguments(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TypeError, match="'object' object cannot be converted to 'Endpoint'"):
        KvEventPublisher(object(), kv_block_size=4)  # type: ignore[arg-type]
    with pytest.raises(Exception, match="kv_block_size cannot be 0"):
        KvEventPublisher(endpoint)
    with pytest.raises(InvalidConfig, match="zmq_endpoint"):
        KvEventPublisher(endpoint, kv_block_size=4, zmq_endpoint="nonsense")
    monkeypatch.setenv("DYN_EVENT_PLANE", "nats")
    with pytest.raises(InvalidConfig, match="not offered"):
        KvEventPublisher(endpoint, kv_block_size=4)
    with pytest.raises(InvalidConfig, match="not offered"):
        await WorkerMetricsPublisher().create_endpoint(endpoint)


async def test_a_batch_is_all_or_nothing(endpoint: Endpoint) -> None:
    publisher = KvEventPublisher(endpoint, kv_block_size=4)
    good: dict[str, Any] = {"type": "removed", "block_hashes": [1]}
    for bad, text in (
        ({}, "missing field `type`"),
        ({"type": "x"}, "unknown variant `x`"),
        ({"type": "stored"}, "missing"),
        ({"type": "removed"}, "block_hashes"),
    ):
        with pytest.raises(ValueError, match=f"invalid KV event batch: .*{text}"):
            publisher.publish_batch([good, bad])
    assert publisher._source._state._last == 0
    publisher.publish_batch([good, good])
    assert publisher._source._state._last == 2


async def test_placeholders_of_media_are_not_replaced(endpoint: Endpoint, caplog: pytest.LogCaptureFixture) -> None:
    KvEventPublisher(endpoint, kv_block_size=4, image_token_id=9)
    assert "image_token_id" in caplog.text


async def until_announced(store: Any, channel: str) -> None:
    seen: list[str] = []
    await store.bucket(EVENT_CHANNELS).watch(channel, lambda event: seen.append(event.key))
    await until(lambda: seen)


async def until_gone(store: Any) -> None:
    left: set[str] = set()

    def follow(event: Any) -> None:
        (left.discard if type(event).__name__ == "RecordRemoved" else left.add)(event.key)

    for kind in (EVENT_CHANNELS, EVENT_SOURCES):
        await store.bucket(kind).watch("", follow)
    await until(lambda: not left)
