"""The model cards of a worker: put, kept, removed in order, on files, in memory and in a real etcd; and what is refused."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dynamo_fast.config import TcpServerConfig, WorkerConfig
from dynamo_fast.discovery.base import Discovery
from dynamo_fast.discovery.buckets import INSTANCES, MODEL_CARDS
from dynamo_fast.discovery.etcd import EtcdDiscovery
from dynamo_fast.discovery.file import FileDiscovery
from dynamo_fast.discovery.memory import MemoryDiscovery
from dynamo_fast.discovery.store import RecordEvent, RecordPut
from dynamo_fast.errors import Disconnected, InvalidRequest
from dynamo_fast.ingress.worker import Worker, serve
from dynamo_fast.llm import ModelCard, ModelRuntimeConfig
from dynamo_fast.wire.address import EndpointId
from dynamo_fast.wire.model_card import Card, ModelRecord
from tests.discovery.etcd_server import Etcd, etcd
from tests.discovery.test_etcd import config as etcd_config
from tests.ingress.conftest import echo
from tests.llm.folders import make_folder
from tests.waiting import until

Open = Callable[[], Awaitable[Discovery]]
ENDPOINT = "a.b.c"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    with etcd(tmp_path_factory.mktemp("etcd")) as running:
        yield running


@pytest.fixture(params=["file", "mem", "etcd"])
async def discover(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Open]:
    """Opens the discovery of one more process; in memory it is always the same one."""
    opened: list[Discovery] = []

    async def open_one() -> Discovery:
        if request.param == "etcd":
            found: Discovery = await EtcdDiscovery.open(etcd_config(request.getfixturevalue("server")))
        elif request.param == "mem":
            found = opened[0] if opened else MemoryDiscovery()
        else:
            found = FileDiscovery(tmp_path / "kv")
        opened.append(found)
        return found

    yield open_one
    for each in opened:
        await each.close()


@pytest.fixture
def discovery_folder(tmp_path: Path) -> Path:
    return tmp_path / "kv"


@pytest.fixture
def model(tmp_path: Path) -> ModelCard:
    return ModelCard.from_folder(make_folder(tmp_path / "tiny"), name="tiny")


STARTED: list[Worker] = []


@pytest.fixture(autouse=True)
async def ended() -> AsyncIterator[None]:
    """Closes the workers of a test that failed: they have threads."""
    yield
    while STARTED:
        await STARTED.pop().close()


async def start(discovery: Discovery) -> Worker:
    config = WorkerConfig(leave_delay=0.0, cancel_grace=0.05)
    STARTED.append(await Worker.start(discovery, config, TcpServerConfig(host="127.0.0.1")))
    return STARTED[-1]


async def cards_in(discovery: Discovery) -> dict[str, Any]:
    return {each.key: json.loads(each.value) for each in await discovery.store.bucket(MODEL_CARDS).list()}


async def test_a_model_is_published_beside_its_instance_and_goes_with_it(discover: Open, model: ModelCard) -> None:
    worker, other = await start(await discover()), await discover()
    await worker.serve(echo, ENDPOINT, model=model)
    key = f"a/b/c/{worker.discovery.connection_id:x}"
    (record,) = (await cards_in(other)).values()
    assert list(await cards_in(other)) == [key]
    assert record["instance_id"] == worker.discovery.connection_id
    assert record["card_json"]["display_name"] == "tiny"
    assert "extra_files" not in record["card_json"]
    assert [each.instance_id for each in await other.list()] == [worker.discovery.connection_id]
    if other is not worker.discovery:
        await worker.close()
        assert await cards_in(other) == {}
        assert await other.list() == []
    else:
        await worker.endpoints[next(iter(worker.endpoints))].close()
        assert await cards_in(other) == {}
        await worker.close()


async def test_the_instance_comes_first_and_the_card_leaves_first(discover: Open, model: ModelCard) -> None:
    heard: list[str] = []
    discovery = await discover()

    def listener(name: str) -> Callable[[RecordEvent[Any]], None]:
        return lambda event: heard.append(f"{'put' if isinstance(event, RecordPut) else 'removed'} {name}")

    worker = await start(await discover())
    await discovery.store.bucket(INSTANCES).watch("", listener("instance"))
    await worker.serve(echo, ENDPOINT)
    await until(lambda: heard == ["put instance"])
    await discovery.store.bucket(MODEL_CARDS).watch("", listener("card"))
    (served,) = worker.endpoints.values()
    await served.add_model(model)
    await until(lambda: heard == ["put instance", "put card"])
    await served.close()
    await until(lambda: len(heard) == 4)
    assert sorted(heard[2:]) == ["removed card", "removed instance"]  # two watches of files tell in no fixed order
    await worker.close()


async def test_the_order_of_what_a_worker_does(
    tmp_path: Path, model: ModelCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `test_the_instance_comes_first...`, where the order is certain: at the store."""
    done: list[str] = []
    discovery = MemoryDiscovery()
    for kind in (INSTANCES, MODEL_CARDS):
        bucket: Any = discovery.store.bucket(kind)
        for name in ("put", "remove"):
            original = getattr(bucket, name)

            async def noted(*arguments: Any, call: Any = original, text: str = f"{name} {kind.name}") -> Any:
                done.append(text)
                return await call(*arguments)

            monkeypatch.setattr(bucket, name, noted)
    worker = await start(discovery)
    await worker.serve(echo, ENDPOINT, model=model)
    assert done == ["put v1/instances", "put v1/mdc"]
    done.clear()
    await worker.close()
    assert done == ["remove v1/mdc", "remove v1/instances"]


async def test_several_models_each_have_their_endpoint(discover: Open, model: ModelCard) -> None:
    worker = await start(await discover())
    await worker.serve(echo, ENDPOINT, model=model)
    second = await worker.serve(echo, "a.b.d", model=ModelCard.text("t"))
    found = await cards_in(worker.discovery)
    assert sorted(each["card_json"]["display_name"] for each in found.values()) == ["t", "tiny"]
    await second.close()
    (left,) = (await cards_in(worker.discovery)).values()
    assert left["card_json"]["display_name"] == "tiny"
    await worker.close()


async def test_adapters_come_and_go(discover: Open, model: ModelCard) -> None:
    worker = await start(await discover())
    served = await worker.serve(echo, ENDPOINT, model=model)
    key = f"a/b/c/{worker.discovery.connection_id:x}"
    await served.add_model(model.adapter("My Lora"))
    assert set(await cards_in(worker.discovery)) == {key, f"{key}/my_lora"}
    assert (await cards_in(worker.discovery))[f"{key}/my_lora"]["model_suffix"] == "my_lora"
    await served.remove_model("My Lora")
    with pytest.raises(InvalidRequest, match="a/b/c has no card of the LoRA adapter 'My Lora': nothing to remove"):
        await served.remove_model("My Lora")
    assert set(await cards_in(worker.discovery)) == {key}
    await served.add_model(model.adapter("two"))
    await served.remove_model()
    with pytest.raises(InvalidRequest, match="a/b/c has no card of a model: nothing to remove"):
        await served.remove_model()
    assert set(await cards_in(worker.discovery)) == {f"{key}/two"}
    assert len(await worker.discovery.list()) == 1  # it serves on
    await served.close()
    assert await cards_in(worker.discovery) == {}
    await worker.close()


async def test_a_card_is_put_back_if_another_process_removes_it(discovery_folder: Path, model: ModelCard) -> None:
    worker = await start(FileDiscovery(discovery_folder))
    await worker.serve(echo, ENDPOINT, model=model)
    (file,) = (discovery_folder / "v1" / "mdc").iterdir()
    content = file.read_bytes()
    file.unlink()
    await until(file.exists)
    assert file.read_bytes() == content
    await worker.close()


async def test_the_same_model_again_is_no_error(model: ModelCard) -> None:
    worker = await start(MemoryDiscovery())
    served = await worker.serve(echo, ENDPOINT, model=model)
    await served.add_model(model)
    again = await worker.serve(echo, ENDPOINT, model=model)
    assert len(await cards_in(worker.discovery)) == 1
    await again.close()
    assert await cards_in(worker.discovery) == {}
    await worker.close()


async def test_a_card_over_another_one_is_refused(discover: Open, model: ModelCard) -> None:
    worker = await start(await discover())
    served = await worker.serve(echo, ENDPOINT, model=model)
    before = await cards_in(worker.discovery)
    changed = ModelCard(msgspec.structs.replace(model.card, kv_cache_block_size=32))
    with pytest.raises(
        InvalidRequest,
        match="a/b/c has a card of the model 'tiny' already, with another kv_cache_block_size: a frontend takes no "
        "changed card, so remove the old one, and put the new one then",
    ):
        await worker.serve(echo, ENDPOINT, model=changed)
    assert await cards_in(worker.discovery) == before
    assert worker.endpoints[served.endpoint] is served
    await served.remove_model()
    await served.add_model(changed)
    (after,) = (await cards_in(worker.discovery)).values()
    assert after["card_json"]["kv_cache_block_size"] == 32
    await worker.close()


@pytest.mark.parametrize("discover", ["file", "etcd"], indirect=True)
async def test_another_instance_with_another_card_is_refused(discover: Open, model: ModelCard) -> None:
    first, second = await start(await discover()), await start(await discover())
    await first.serve(echo, ENDPOINT, model=model)
    changed = ModelCard(msgspec.structs.replace(model.card, kv_cache_block_size=32))
    with pytest.raises(
        InvalidRequest,
        match=f"the instance {first.discovery.connection_id:x} of a/b/c has the model 'tiny' with another "
        "kv_cache_block_size: a frontend refuses the second card, so give it another name",
    ):
        await second.serve(echo, ENDPOINT, model=changed)
    assert len(await first.discovery.list()) == 1  # nothing is half published
    assert not second.endpoints
    await second.serve(echo, ENDPOINT, model=model)
    assert len(await cards_in(first.discovery)) == 2
    await asyncio.gather(first.close(), second.close())


async def test_one_worker_has_one_card_of_a_name_in_a_namespace(model: ModelCard) -> None:
    worker = await start(MemoryDiscovery())
    await worker.serve(echo, ENDPOINT, model=model)
    changed = ModelCard(msgspec.structs.replace(model.card, kv_cache_block_size=32))
    with pytest.raises(InvalidRequest, match=r"of a/b/c has the model 'tiny' with another kv_cache_block_size"):
        await worker.serve(echo, "a.x.y", model=changed)
    await worker.serve(echo, "other.x.y", model=changed)
    await worker.serve(echo, "a.x.y", model=model)
    prefill = ModelCard(msgspec.structs.replace(changed.card, worker_type="prefill", model_type=""))
    await worker.serve(echo, "a.x.prefill", model=prefill)
    assert len(await cards_in(worker.discovery)) == 4
    await worker.close()


async def test_another_card_at_another_endpoint_is_a_warning(
    discovery_folder: Path, model: ModelCard, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = await start(FileDiscovery(discovery_folder)), await start(FileDiscovery(discovery_folder))
    await first.serve(echo, ENDPOINT, model=model)
    await second.serve(echo, "a.x.y", model=model)
    assert "refuses" not in caplog.text
    changed = ModelCard(msgspec.structs.replace(model.card, kv_cache_block_size=32))
    await second.endpoints[EndpointId("a", "x", "y")].remove_model()
    await second.serve(echo, "a.x.y", model=changed)
    assert (
        f"the instance {first.discovery.connection_id:x} of a/b/c has the model 'tiny' with another kv_cache_block_size: a "
        "frontend of Dynamo 1.3 refuses the second card"
    ) in caplog.text
    await asyncio.gather(first.close(), second.close())


async def test_what_is_no_record_of_another_instance_is_passed_over(discover: Open, model: ModelCard) -> None:
    worker, other = await start(await discover()), await discover()
    await other.store.bucket(MODEL_CARDS).put("a/b/c/77", b'{"type":"Model"}')
    await worker.serve(echo, ENDPOINT, model=model)
    assert len(await cards_in(other)) == 2
    await worker.close()


async def test_a_faulty_card_publishes_nothing(model: ModelCard, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = await start(MemoryDiscovery())

    async def register(instance: Any) -> None:
        raise AssertionError("the instance must not even come and go")

    monkeypatch.setattr(worker.discovery, "register", register)
    wrong: Any = [1]
    faulty = ModelCard(msgspec.structs.replace(model.card, aliases=wrong))
    with pytest.raises(InvalidRequest, match=r"the card of the model 'tiny': .*\$.aliases"):
        await worker.serve(echo, ENDPOINT, model=faulty)
    assert await cards_in(worker.discovery) == {}
    assert await worker.discovery.list() == []
    assert not worker.endpoints
    await worker.close()


async def test_a_card_that_is_too_long_takes_its_instance_with_it(discover: Open) -> None:
    worker = await start(await discover())
    with pytest.raises(InvalidRequest, match=r"the record v1/mdc/a/b/c/.* has \d+ bytes \(the limit is 524288\)"):
        await worker.serve(echo, ENDPOINT, model=ModelCard.text("t", user_data="x" * 600_000))
    assert await cards_in(worker.discovery) == {}
    assert await worker.discovery.list() == []
    assert not worker.endpoints
    await worker.serve(echo, ENDPOINT, model=ModelCard.text("t"))
    await worker.close()


class Two:
    """A model with an adapter, given at once."""

    self_host = None

    def __init__(self, *cards: Card) -> None:
        self.cards = cards


async def test_of_several_cards_all_are_put_or_none(model: ModelCard) -> None:
    worker = await start(MemoryDiscovery())
    long = msgspec.structs.replace(model.adapter("long").card, user_data="x" * 600_000)
    with pytest.raises(InvalidRequest, match="the limit is 524288"):
        await worker.serve(echo, ENDPOINT, model=Two(model.card, long))
    assert await cards_in(worker.discovery) == {}
    assert await worker.discovery.list() == []
    served = await worker.serve(echo, ENDPOINT, model=Two(model.card, model.adapter("l").card))
    assert len(await cards_in(worker.discovery)) == 2
    await served.close()
    assert await cards_in(worker.discovery) == {}
    await worker.close()


async def test_an_instance_that_cannot_be_registered_leaves_no_card(
    model: ModelCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = await start(MemoryDiscovery())

    async def fail(instance: Any) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(worker.discovery, "register", fail)
    with pytest.raises(OSError, match="the disk is full"):
        await worker.serve(echo, ENDPOINT, model=model)
    assert await cards_in(worker.discovery) == {}
    assert not worker.endpoints
    await worker.close()


async def test_a_card_that_cannot_be_removed_can_be_removed_later(
    model: ModelCard, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    worker = await start(MemoryDiscovery())
    served = await worker.serve(echo, ENDPOINT, model=model)
    bucket: Any = worker.discovery.store.bucket(MODEL_CARDS)

    async def fail(key: str) -> bool:
        raise OSError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(bucket, "remove", fail)
        with pytest.raises(OSError, match="the disk is gone"):
            await served.remove_model()
    await served.remove_model()
    assert await cards_in(worker.discovery) == {}
    await served.add_model(model)
    monkeypatch.setattr(bucket, "remove", fail)
    await served.close()  # accepted requests come first
    assert "could not be removed: the disk is gone" in caplog.text
    await worker.close()


async def test_a_card_that_could_not_be_put_can_be_put_later(model: ModelCard, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = await start(MemoryDiscovery())
    served = await worker.serve(echo, ENDPOINT)
    bucket: Any = worker.discovery.store.bucket(MODEL_CARDS)

    async def fail(*_: Any) -> bool:
        raise OSError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(bucket, "put", fail)
        patch.setattr(bucket, "remove", fail)
        with pytest.raises(OSError, match="the disk is gone"):
            await served.add_model(model)
    await served.add_model(model)
    assert len(await cards_in(worker.discovery)) == 1
    await worker.close()


async def test_equal_cards_of_text_need_no_checksum(discovery_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "blake3", None)
    first, second = await start(FileDiscovery(discovery_folder)), await start(FileDiscovery(discovery_folder))
    await first.serve(echo, ENDPOINT, model=ModelCard.text("t"))
    await second.serve(echo, ENDPOINT, model=ModelCard.text("t"))
    await asyncio.gather(first.close(), second.close())


async def test_the_taints_of_a_card_can_be_updated(model: ModelCard) -> None:
    worker = await start(MemoryDiscovery())
    served = await worker.serve(echo, ENDPOINT, model=model)

    def taint(card: Card) -> Card:
        return msgspec.structs.replace(card, runtime_config={**(card.runtime_config or {}), "taints": ["x=y"]})

    await worker.models.update(served.endpoint, taint)
    (record,) = (await cards_in(worker.discovery)).values()
    assert record["card_json"]["runtime_config"]["taints"] == ["x=y"]
    await served.remove_model()
    with pytest.raises(InvalidRequest, match="a/b/c has no card of a model: nothing to update"):
        await worker.models.update(served.endpoint, taint)
    await worker.close()


@pytest.mark.parametrize("ends", ["the card is removed", "the endpoint leaves"])
async def test_a_card_that_is_being_updated_is_not_put_back(
    ends: str, model: ModelCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = await start(MemoryDiscovery())
    served = await worker.serve(echo, ENDPOINT, model=model)
    bucket: Any = worker.discovery.store.bucket(MODEL_CARDS)
    put, putting, go_on = bucket.put, asyncio.Event(), asyncio.Event()

    async def slow(*arguments: Any) -> None:
        putting.set()
        await go_on.wait()
        await put(*arguments)

    monkeypatch.setattr(bucket, "put", slow)
    updating = asyncio.ensure_future(worker.models.update(served.endpoint, lambda card: card))
    await putting.wait()
    ending = asyncio.ensure_future(served.remove_model() if ends == "the card is removed" else served.close())
    for _ in range(10):  # turns in which the removal could overtake the update
        await asyncio.sleep(0)
    go_on.set()
    await asyncio.gather(updating, ending)
    assert await cards_in(worker.discovery) == {}
    await worker.close()


async def test_an_endpoint_that_has_left_takes_no_card(model: ModelCard) -> None:
    worker = await start(MemoryDiscovery())
    served = await worker.serve(echo, ENDPOINT, model=model)
    await served.close()
    with pytest.raises(Disconnected, match="a/b/c is not served by this handler any more: no model card is published"):
        await served.add_model(model)
    with pytest.raises(Disconnected, match="a/b/c has left discovery: no model card is published"):
        await worker.models.publish(served.endpoint, model)
    assert await cards_in(worker.discovery) == {}
    await worker.serve(echo, ENDPOINT, model=model)
    assert len(await cards_in(worker.discovery)) == 1
    await worker.close()


async def test_serve_takes_a_model(discovery_folder: Path) -> None:
    runtime = ModelRuntimeConfig(context_length=7)
    worker = await serve(
        echo,
        ENDPOINT,
        FileDiscovery(discovery_folder),
        WorkerConfig(leave_delay=0.0),
        model=ModelCard.text("t", runtime_config=runtime),
    )
    (file,) = (discovery_folder / "v1" / "mdc").iterdir()
    assert ModelRecord.decode(file.read_bytes()).card.context_length == 7
    await worker.close()
    assert not list((discovery_folder / "v1" / "mdc").iterdir())
