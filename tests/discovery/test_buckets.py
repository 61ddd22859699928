"""What every bucket of a store promises, on files, in memory and in a real etcd; and what a real Dynamo writes there."""

from __future__ import annotations

import abc
import asyncio
import base64
import json
import logging
import os
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pytest

from dynamo_fast.discovery import file as file_module
from dynamo_fast.discovery import file_bucket
from dynamo_fast.discovery.base import Discovery
from dynamo_fast.discovery.buckets import (
    EVENT_CHANNELS,
    EVENT_SOURCES,
    INSTANCES,
    LEAVING_ORDER,
    MAX_CARD_SIZE,
    MODEL_CARDS,
    BucketKind,
)
from dynamo_fast.discovery.etcd import EtcdStore
from dynamo_fast.discovery.etcd_client import EtcdClient, encode, prefix_range
from dynamo_fast.discovery.etcd_messages import WatchAnswer
from dynamo_fast.discovery.file import FileStore
from dynamo_fast.discovery.folder import Folder
from dynamo_fast.discovery.memory import MemoryStore
from dynamo_fast.discovery.store import Bucket, Record, RecordEvent, RecordPut, RecordRemoved, Store
from dynamo_fast.errors import InvalidRequest
from dynamo_fast.wire.instance import MAX_RECORD_SIZE
from tests.discovery.etcd_server import Etcd, etcd
from tests.discovery.records import instance
from tests.discovery.test_etcd import config
from tests.discovery.waiting import Clock, until
from tests.interop.peers import ROOT, environment, interpreter

LIMIT = 30
KINDS: dict[str, BucketKind[Any]] = {
    kind.name: kind for kind in (INSTANCES, MODEL_CARDS, EVENT_CHANNELS, EVENT_SOURCES)
}
KEY = "ns/co-mp/é_p/1f"
LORA = "ns/co-mp/é_p/1f/my-lora"
OTHER = "ns/co-mp/é_px/1f"
CHANNEL = "namespace/ns/component/c/endpoint/ep/topic/kv-events/d3f4ca20b2c17"


def card(name: str, size: int = 0) -> bytes:
    """A model's record, as long as `size` says."""
    text = json.dumps({"type": "Model", "card_json": {"display_name": name, "user_data": ""}}, separators=(",", ":"))
    return text.replace('""', '"' + "x" * max(0, size - len(text)) + '"').encode()


class World(abc.ABC):
    """A backend: stores of several processes, and what lies there without any of ours."""

    @abc.abstractmethod
    async def open(self) -> Store:
        """The store of one more process."""

    @abc.abstractmethod
    async def raw(self, bucket: str) -> dict[str, bytes]:
        """What is in a bucket, by key."""

    @abc.abstractmethod
    async def put(self, bucket: str, key: str, content: bytes) -> None:
        """Another process puts a record."""

    @abc.abstractmethod
    async def remove(self, bucket: str, key: str) -> None:
        """Another process removes one."""

    async def beat(self) -> None:  # noqa: B027
        """Let the next heartbeat come, where its clock can be turned."""

    async def look(self) -> None:  # noqa: B027
        """Let those look who must poll, where the clock can be turned."""

    async def close(self) -> None:  # noqa: B027
        """Leave nothing behind."""


class Memory(World):
    """One store, since it is private to its object."""

    def __init__(self) -> None:
        self._store = MemoryStore()

    async def open(self) -> Store:
        return self._store

    async def raw(self, bucket: str) -> dict[str, bytes]:
        return {record.key: record.value for record in await self._store.bucket(KINDS[bucket]).list()}

    async def put(self, bucket: str, key: str, content: bytes) -> None:
        pytest.skip("no other process can write to the memory of this one")

    async def remove(self, bucket: str, key: str) -> None:
        pytest.skip("no other process can write to the memory of this one")


class Files(World):
    def __init__(self, root: Path, clock: Clock) -> None:
        self.root = root
        self._clock = clock

    def path(self, bucket: str, key: str) -> Path:
        """By another encoder than ours: Python's leaves `_.-~` alone, Dynamo does not."""
        name = quote(key, safe="")
        for left in "_.-~":
            name = name.replace(left, f"%{ord(left):02X}")
        return self.root / bucket / name

    async def open(self) -> Store:
        return FileStore(self.root)

    async def raw(self, bucket: str) -> dict[str, bytes]:
        folder = self.root / bucket
        files = list(folder.iterdir()) if folder.exists() else []
        return {unquote(file.name): file.read_bytes() for file in files}

    async def put(self, bucket: str, key: str, content: bytes) -> None:
        path = self.path(bucket, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / ".tmp_1").write_bytes(content)
        (path.parent / ".tmp_1").rename(path)

    async def remove(self, bucket: str, key: str) -> None:
        self.path(bucket, key).unlink()

    async def beat(self) -> None:
        await self._clock.turn(file_module.BEAT)

    async def look(self) -> None:
        await self._clock.turn(file_bucket.POLL)


class InEtcd(World):
    def __init__(self, server: Etcd) -> None:
        self.server = server
        self.client = EtcdClient(config(server))

    async def open(self) -> Store:
        return await EtcdStore.open(config(self.server))

    async def raw(self, bucket: str) -> dict[str, bytes]:
        answer: dict[str, Any] = await self.client.call("kv/range", prefix_range(f"{bucket}/"), dict)
        pairs = ((base64.b64decode(each["key"]), base64.b64decode(each["value"])) for each in answer.get("kvs", ()))
        return {key.decode().removeprefix(f"{bucket}/"): value for key, value in pairs}

    async def put(self, bucket: str, key: str, content: bytes) -> None:
        request = {"key": encode(f"{bucket}/{key}"), "value": encode(content)}
        await self.client.call("kv/put", request, dict)

    async def remove(self, bucket: str, key: str) -> None:
        await self.client.call("kv/deleterange", {"key": encode(f"{bucket}/{key}")}, dict)

    async def close(self) -> None:
        await self.client.call("kv/deleterange", prefix_range("v1/"), dict)
        await self.client.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    with etcd(tmp_path_factory.mktemp("etcd")) as running:
        yield running


@pytest.fixture(params=["file", "mem", "etcd"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    made: World
    if request.param == "mem":
        made = Memory()
    elif request.param == "file":
        made = Files(tmp_path, request.getfixturevalue("clock"))
    else:
        made = InEtcd(request.getfixturevalue("server"))
    yield made
    await made.close()


class Ear:
    """Hears of one bucket."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[RecordEvent[bytes]] = asyncio.Queue()

    @classmethod
    async def open(cls, bucket: Bucket[bytes], prefix: str = "") -> Ear:
        ear = cls()
        await bucket.watch(prefix, ear.events.put_nowait)
        return ear

    async def hear(self) -> RecordEvent[bytes]:
        return await asyncio.wait_for(self.events.get(), LIMIT)


async def close(*stores: Store) -> None:
    for each in stores:
        await each.close()


# What one process does


async def test_a_record_is_listed_until_it_is_removed(world: World) -> None:
    ours, theirs = await world.open(), await world.open()
    mine, seen = ours.bucket(MODEL_CARDS), theirs.bucket(MODEL_CARDS)
    values = {KEY: card("base"), LORA: card("adapter"), OTHER: card("big", 300_000)}
    for key, value in reversed(values.items()):
        await mine.put(key, value)
    assert await world.raw("v1/mdc") == values
    assert await seen.list() == [Record(key, values[key]) for key in sorted(values)]
    assert await seen.list("ns/co-mp/é_p/") == [Record(KEY, values[KEY]), Record(LORA, values[LORA])]
    assert await mine.remove(KEY)
    assert not await mine.remove(KEY)
    assert [record.key for record in await seen.list()] == [LORA, OTHER]
    await close(ours, theirs)
    assert await world.raw("v1/mdc") == {}


async def test_a_watch_hears_of_what_is_there_and_of_every_change(world: World) -> None:
    ours, theirs = await world.open(), await world.open()
    mine = ours.bucket(MODEL_CARDS)
    await mine.put(KEY, card("one"))
    ear = await Ear.open(theirs.bucket(MODEL_CARDS), "ns/co-mp/é_p/")
    assert ear.events.get_nowait() == RecordPut(KEY, card("one"))  # told before `watch` returned
    await mine.put(OTHER, card("a name of which the watched one is a prefix"))
    await mine.put(KEY, card("two"))
    await world.look()
    assert await ear.hear() == RecordPut(KEY, card("two"))
    await mine.put(LORA, card("adapter"))
    await world.look()
    assert await ear.hear() == RecordPut(LORA, card("adapter"))
    await mine.remove(KEY)
    await world.look()
    assert await ear.hear() == RecordRemoved(KEY, card("two"))
    await close(ours, theirs)


@pytest.mark.parametrize("kind", [MODEL_CARDS, EVENT_CHANNELS], ids=lambda kind: kind.name)
async def test_a_value_that_is_too_long_is_refused_and_the_older_one_stays(
    world: World, kind: BucketKind[bytes]
) -> None:
    assert (MODEL_CARDS.max_size, EVENT_CHANNELS.max_size) == (MAX_CARD_SIZE, MAX_RECORD_SIZE)
    store = await world.open()
    bucket = store.bucket(kind)
    content = b'{"type":"%s"}' % kind_of(kind)
    content += b" " * (kind.max_size - len(content))
    await bucket.put(KEY, content)
    with pytest.raises(
        InvalidRequest,
        match=rf"the record {kind.name}/{KEY} has {kind.max_size + 1} bytes \(the limit is {kind.max_size}\)",
    ):
        await bucket.put(KEY, content + b" ")
    assert await bucket.list() == [Record(KEY, content)]
    await close(store)


async def test_buckets_are_kept_apart(world: World) -> None:
    store = await world.open()
    discovery = Discovery(store)
    known = instance(store.connection_id)
    key = f"{known.endpoint_id}/{known.instance_id:x}"
    assert store.bucket(MODEL_CARDS) is store.bucket(MODEL_CARDS)
    await discovery.register(known)
    await store.bucket(MODEL_CARDS).put(key, card("x"))
    assert await discovery.list() == [known]
    assert await store.bucket(MODEL_CARDS).list() == [Record(key, card("x"))]
    await discovery.unregister(known)
    assert await store.bucket(MODEL_CARDS).list() == [Record(key, card("x"))]
    await close(store)


async def test_a_process_that_left_puts_nothing_more_and_still_lists(world: World) -> None:
    ours, theirs = await world.open(), await world.open()
    bucket = ours.bucket(MODEL_CARDS)
    await bucket.put(KEY, card("x"))
    await asyncio.get_running_loop().run_in_executor(None, ours.withdraw)
    assert await world.raw("v1/mdc") == {}
    with pytest.raises(InvalidRequest, match="this process has left discovery"):
        await bucket.put(KEY, card("x"))
    assert not await bucket.remove(KEY)
    assert await bucket.list() == []
    await close(ours, theirs)


async def test_a_card_leaves_before_its_instance(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    store = await world.open()
    heard: list[str] = []
    watching = None
    if isinstance(world, InEtcd):
        watching = asyncio.ensure_future(removals(world.client, heard))
        await until(lambda: "created" in heard)
        heard.clear()
    elif isinstance(world, Files):
        remove = Folder.remove

        def noticed(folder: Folder[Any], key: str) -> None:
            heard.append(str(folder.path.relative_to(world.root)))
            remove(folder, key)

        monkeypatch.setattr(Folder, "remove", noticed)
    await Discovery(store).register(instance(1))
    for kind in (EVENT_SOURCES, EVENT_CHANNELS, MODEL_CARDS):
        bucket = store.bucket(kind)
        for number in range(150 if kind is MODEL_CARDS else 1):  # more than one transaction of etcd takes
            await bucket.put(f"{KEY}/{number}", b'{"type":"%s"}' % kind_of(kind))
        if isinstance(world, Memory):
            await bucket.watch("", lambda event, name=kind.name: heard.append(name))  # type: ignore[misc]
    if isinstance(world, Memory):
        await store.bucket(INSTANCES).watch("", lambda event: heard.append(INSTANCES.name))
        heard.clear()
    await asyncio.get_running_loop().run_in_executor(None, store.withdraw)
    await until(lambda: len(heard) == 153)
    assert list(dict.fromkeys(heard)) == list(LEAVING_ORDER)
    assert heard[-1] == "v1/instances"
    if watching is not None:
        watching.cancel()
        await asyncio.wait([watching])
    await close(store)


def kind_of(kind: BucketKind[Any]) -> bytes:
    """The `type` of a bucket's records."""
    return {MODEL_CARDS.name: b"Model", EVENT_CHANNELS.name: b"EventChannel", EVENT_SOURCES.name: b"EventSource"}[
        kind.name
    ]


async def removals(client: EtcdClient, heard: list[str]) -> None:
    """The bucket of every key that etcd deletes, in etcd's order."""
    request = {"create_request": prefix_range("v1/")}
    async for answer in client.stream("watch", request, WatchAnswer, LIMIT):
        if answer.created:
            heard.append("created")
        heard += ["/".join(each.kv.key.decode().split("/")[:2]) for each in answer.events if each.type == "DELETE"]


# What other processes do


async def test_a_record_that_somebody_removed_is_put_back(world: World, caplog: pytest.LogCaptureFixture) -> None:
    ours, theirs = await world.open(), await world.open()
    cards, channels = ours.bucket(MODEL_CARDS), ours.bucket(EVENT_CHANNELS)
    await cards.put(KEY, card("x"))
    await channels.put(CHANNEL, b'{"type":"EventChannel"}')
    ear = await Ear.open(theirs.bucket(MODEL_CARDS))
    assert await ear.hear() == RecordPut(KEY, card("x"))
    await world.remove("v1/mdc", KEY)
    await world.remove("v1/event_channels", CHANNEL)
    await world.beat()
    await world.beat()
    assert [await ear.hear(), await ear.hear()] == [RecordRemoved(KEY, card("x")), RecordPut(KEY, card("x"))]
    await until(lambda: is_there(world, "v1/event_channels", CHANNEL))
    assert caplog.text.count(KEY) == 1
    await close(ours, theirs)


async def is_there(world: World, bucket: str, key: str) -> bool:
    return key in await world.raw(bucket)


UNREADABLE: dict[str, Callable[[BucketKind[Any]], bytes]] = {
    "no JSON": lambda kind: b"garbage",
    "nothing": lambda kind: b"",
    "another type": lambda kind: b'{"type":"Endpoint"}',
    "no type": lambda kind: b"{}",
    "a list": lambda kind: b"[]",
    "nested": lambda kind: b'{"type":"Model","x":' + b"[" * 5000 + b"]" * 5000 + b"}",
    "too long": lambda kind: card("x", kind.max_size + 1),
}


@pytest.mark.parametrize("what", UNREADABLE)
async def test_what_cannot_be_read_is_skipped_with_one_warning(
    world: World, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    await world.put("v1/mdc", KEY, UNREADABLE[what](MODEL_CARDS))
    store = await world.open()
    bucket = store.bucket(MODEL_CARDS)
    ear = await Ear.open(bucket)
    for number in range(1, 4):
        await world.put("v1/mdc", KEY, UNREADABLE[what](MODEL_CARDS))
        await bucket.put(f"{OTHER}/{number}", card("good"))
        await world.beat()
        assert await ear.hear() == RecordPut(f"{OTHER}/{number}", card("good"))
        assert len(await bucket.list()) == number
    warnings = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    (warning,) = (each for each in warnings if KEY in each)
    assert warning.startswith(f"ignoring the discovery record '{KEY}': ")
    if what == "too long":
        assert str(MAX_CARD_SIZE) in warning
        assert str(MAX_CARD_SIZE + 1) in warning
    await world.put("v1/mdc", KEY, card("mended"))
    await world.beat()
    assert await ear.hear() == RecordPut(KEY, card("mended"))
    await close(store)


@pytest.mark.parametrize("version", ["131", "161"])
async def test_what_a_real_dynamo_wrote_is_listed(world: World, version: str, caplog: pytest.LogCaptureFixture) -> None:
    """Captured from real workers: see docs/spec/model_card.md 11."""
    variants = json.loads((ROOT / "docs" / "spec" / "model_card" / f"records-{version}.json").read_text())
    written: dict[str, dict[str, bytes]] = {name: {} for name in KINDS}
    for records in variants.values():
        for path, record in records.items():
            bucket = "/".join(path.split("/")[:2])
            written[bucket][path.removeprefix(f"{bucket}/")] = json.dumps(record, separators=(",", ":")).encode()
    assert len(written["v1/mdc"]) >= 19
    assert len(written["v1/event_channels"]) == 2
    assert len(written["v1/event_sources"]) == (1 if version == "161" else 0)
    for bucket, contents in written.items():
        for key, content in contents.items():
            await world.put(bucket, key, content)
    store = await world.open()
    for bucket, contents in written.items():
        listed = await store.bucket(KINDS[bucket]).list()
        assert [record.key for record in listed] == sorted(contents)
        if bucket != INSTANCES.name:
            assert {record.key: record.value for record in listed} == contents
    assert caplog.text == ""
    await close(store)


# One backend


async def test_a_record_without_a_heartbeat_expires_by_the_stores_clock(tmp_path: Path, clock: Clock) -> None:
    files = Files(tmp_path, clock)
    store = await files.open()
    bucket = store.bucket(MODEL_CARDS)
    await files.put("v1/mdc", KEY, card("dead"))
    await files.put("v1/mdc", OTHER, card("alive"))
    (tmp_path / "v1" / "mdc" / "notes").write_text("mine")
    ear = await Ear.open(bucket)
    assert {(await ear.hear()).key for _ in range(2)} == {KEY, OTHER}
    dead, alive = files.path("v1/mdc", KEY), files.path("v1/mdc", OTHER)
    for file in (dead, tmp_path / "v1" / "mdc" / "notes"):
        os.utime(file, (file.stat().st_mtime - 11,) * 2)
    for _ in range(4):
        os.utime(alive)
        await files.beat()
    assert await ear.hear() == RecordRemoved(KEY, card("dead"))
    assert sorted(os.listdir(tmp_path / "v1" / "mdc")) == sorted([alive.name, "notes"])
    await close(store)


async def test_a_process_that_dies_loses_its_keys_with_its_lease(server: Etcd) -> None:
    world = InEtcd(server)
    dying, watching = await world.open(), await world.open()
    await dying.bucket(MODEL_CARDS).put(KEY, card("x"))
    ear = await Ear.open(watching.bucket(MODEL_CARDS))
    assert await ear.hear() == RecordPut(KEY, card("x"))
    assert isinstance(dying, EtcdStore)
    dying.thread.stop()  # without a word to etcd
    assert await ear.hear() == RecordRemoved(KEY, card("x"))
    await close(watching)
    await world.close()


# A real Dynamo


@pytest.mark.parametrize("backend", ["file", "etcd"])
async def test_a_real_dynamo_is_listed_in_every_bucket(backend: str, tmp_path: Path, server: Etcd) -> None:
    """1.6.1 alone: in 1.3.1 the publisher of events needs NATS, and a model needs its files."""
    world: World = Files(tmp_path, Clock()) if backend == "file" else InEtcd(server)
    script = Path(__file__).with_name("bucket_peer.py")
    with (tmp_path / "peer.log").open("wb") as log:
        peer = await asyncio.create_subprocess_exec(
            *(str(interpreter("1.6.1")), str(script), backend, str(tmp_path)),
            env=environment(tmp_path, ETCD_ENDPOINTS=server.url),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
        )
    store = await world.open()
    try:
        assert peer.stdout is not None
        assert await asyncio.wait_for(peer.stdout.readline(), LIMIT) == b"serving\n", (
            tmp_path / "peer.log"
        ).read_text()
        (served,) = await Discovery(store).list()
        identity = f"{served.instance_id:x}"
        (model,) = await read_one(store, MODEL_CARDS)
        assert model.key == f"ns/co-mp/gen/{identity}"
        assert json.loads(model.value)["card_json"]["display_name"] == "my/model"
        (channel,) = await read_one(store, EVENT_CHANNELS)
        (source,) = await read_one(store, EVENT_SOURCES)
        assert channel.key == source.key
        assert channel.key.startswith("namespace/ns/component/co-mp/endpoint/gen/topic/kv-events/")
        assert json.loads(source.value)["metadata"]["worker"]["worker_id"] == served.instance_id
    finally:
        if peer.returncode is None:
            peer.kill()
        await peer.wait()
        await close(store)
        await world.close()


async def read_one(store: Store, kind: BucketKind[bytes]) -> list[Record[bytes]]:
    """The records of that bucket, once there is one."""
    await until(lambda: something(store, kind))
    return list(await store.bucket(kind).list())


async def something(store: Store, kind: BucketKind[bytes]) -> bool:
    return bool(await store.bucket(kind).list())
