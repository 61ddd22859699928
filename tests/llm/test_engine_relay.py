"""`EngineRelay`: events in vLLM's form. What is expected is what real publishers of 1.6.1 and 1.3.1 made of each."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import zmq

from dynamo_fast.errors import InvalidConfig
from dynamo_fast.ingress.worker import ServedEndpoint
from dynamo_fast.llm.engine_relay import EngineRelay, changes_of
from dynamo_fast.llm.kv_events import KvEventSource
from dynamo_fast.llm.kv_state import KvChange
from tests.llm.subscriber import Subscriber, channels
from tests.waiting import until

ONE_TO_FOUR = 14643705804678351452


def message(*events: Any, rank: int | None = 0) -> list[bytes]:
    return [b"", bytes(8), msgspec.msgpack.encode([1.5, events, rank])]


def changes(*events: Any, rank: int | None = 0) -> list[KvChange]:
    found, problems = changes_of(message(*events, rank=rank), 4)
    assert problems == []
    return found


def stored(*values: Any) -> KvChange:
    (change,) = changes(["BlockStored", *values])
    return change


def data(number: int, parent: int | None = None, tokens_hash: int = ONE_TO_FOUR) -> Any:
    block = {"block_hash": number, "tokens_hash": tokens_hash, "mm_extra_info": None}
    return {"stored": {"parent_hash": parent, "start_position": None, "blocks": [block]}}


def test_a_stored_block_in_its_older_and_newer_forms() -> None:
    assert stored([1], None, [1, 2, 3, 4], 4, None) == KvChange(data(1), 0, "device")
    assert stored([1], 7, [1, 2, 3, 4], 4, 3, "GPU", None, [None]) == KvChange(data(1, 7), 0, "device")
    lora = stored([4], None, [1, 2, 3, 4], 4, 7, "GPU", "ad")
    assert lora.data == data(4, tokens_hash=16365837591317883983)
    assert stored([-5], -6, [1, 2, 3, 4], 4, None).data == data(2**64 - 5, 2**64 - 6)
    as_map = {
        "type": "BlockStored",
        "block_hashes": [7],
        "parent_block_hash": None,
        "token_ids": [1, 2, 3, 4],
        "block_size": 4,
        "lora_id": None,
    }
    assert changes(as_map) == [KvChange(data(7), 0, "device")]


@pytest.mark.parametrize(
    ("tier", "media"),
    [
        ("device", ["GPU", None, ""]),
        ("host_pinned", ["CPU", "CPU_PINNED", "CPU_TIER1"]),
        ("disk", ["CPU_TIER2", "DISK", "STORAGE", "NVME"]),
        ("external", ["EXTERNAL"]),
    ],
)
def test_media_are_tiers(tier: str, media: list[Any]) -> None:
    for medium in media:
        assert stored([1], None, [1, 2, 3, 4], 4, None, medium).tier == tier
        assert changes(["BlockRemoved", [1], medium]) == [KvChange({"removed": {"block_hashes": [1]}}, 0, tier)]


def test_blocks_elsewhere_are_not_told() -> None:
    for medium in ("FS", "HOST", "gpu"):
        assert changes(["BlockStored", [1], None, [1, 2, 3, 4], 4, None, medium]) == []


def test_removed_cleared_and_ranks() -> None:
    assert changes(["BlockRemoved", [2]], rank=3) == [KvChange({"removed": {"block_hashes": [2]}}, 3)]
    assert changes(["AllBlocksCleared"], rank=None) == [KvChange("cleared", 0)]


def test_what_cannot_be_read_leaves_the_rest() -> None:
    found, problems = changes_of(
        message(
            ["Foo", [1]],
            ["BlockStored", [b"x" * 32], None, [1, 2, 3, 4], 4, None],
            ["BlockStored", [1], None, [1, 2], 2, None],
            [],
            7,
            None,
            {"type": "BlockRemoved"},
            ["AllBlocksCleared"],
        ),
        4,
    )
    assert [change.data for change in found] == ["cleared"]
    assert len(problems) == 7
    assert "Foo" in problems[0]
    assert "bytes" in problems[1]
    assert "expected 4 (kv_block_size)" in problems[2]


@pytest.mark.parametrize(
    "frames", [[b"", bytes(8), b"garbage"], [b"one"], [b"", bytes(8), msgspec.msgpack.encode([1.5, []])], message()[:2]]
)
def test_what_is_no_message_is_a_problem(frames: list[bytes]) -> None:
    found, problems = changes_of(frames, 4)
    assert found == []
    assert len(problems) == 1


class Engine:
    """A PUB socket, as an engine has one."""

    def __init__(self) -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.XPUB)
        self.port = self.socket.bind_to_random_port("tcp://127.0.0.1")

    def send(self, topic: bytes, *events: Any) -> None:
        self.socket.send_multipart([topic, *message(*events)[1:]])

    def close(self) -> None:
        self.socket.close(linger=0)
        self.context.term()


@pytest.fixture
def engine() -> Iterator[Engine]:
    started = Engine()
    yield started
    started.close()


async def test_an_engine_is_followed(
    engine: Engine, served: ServedEndpoint, subscriber: Subscriber, caplog: pytest.LogCaptureFixture
) -> None:
    source = await KvEventSource.open(served, 4)
    relay = EngineRelay(source, f"tcp://127.0.0.1:{engine.port}", "kv")
    source.feeds.append(relay.close)
    await asyncio.to_thread(engine.socket.recv)  # its subscription
    subscriber.connect((await channels(served.worker.discovery.store))["ns/comp/kv-events"])
    engine.send(b"other", ["AllBlocksCleared"])
    engine.send(b"kv-1", ["Foo"])
    engine.send(b"kv-1", ["BlockStored", [1], None, [1, 2, 3, 4], 4, None])
    event = (await subscriber.receive()).payload["event"]
    assert event == {"event_id": 1, "data": data(1), "dp_rank": 0}
    assert "Foo" in caplog.text
    await source.close()
    assert not relay._thread.is_alive()
    relay.close()


async def test_the_worker_ends_the_relay(engine: Engine, served: ServedEndpoint) -> None:
    source = await KvEventSource.open(served, 4)
    relay = EngineRelay(source, f"tcp://127.0.0.1:{engine.port}", "")
    source.feeds.append(relay.close)
    await served.worker.close()
    await until(lambda: not relay._thread.is_alive())


async def test_an_endpoint_that_is_no_address_is_named(served: ServedEndpoint) -> None:
    source = await KvEventSource.open(served, 4)
    with pytest.raises(InvalidConfig, match="zmq_endpoint='nonsense'"):
        EngineRelay(source, "nonsense", "")
