"""The files of model cards over HTTP, from the status server of the worker: those that are published, and no other."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from blake3 import blake3

from dynamo_fast.config import TcpServerConfig, WorkerConfig
from dynamo_fast.discovery.buckets import MODEL_CARDS
from dynamo_fast.discovery.memory import MemoryDiscovery
from dynamo_fast.ingress.worker import ServedEndpoint, Worker
from dynamo_fast.llm import ModelCard
from dynamo_fast.wire.address import EndpointId
from dynamo_fast.wire.model_card import Card, ModelRecord
from tests.ingress.conftest import echo
from tests.llm.folders import make_folder


@pytest.fixture(autouse=True)
def loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYN_SYSTEM_HOST", "127.0.0.1")
    monkeypatch.setenv("DYN_SYSTEM_PORT", "0")


@pytest.fixture
async def worker() -> AsyncIterator[Worker]:
    made = await Worker.start(MemoryDiscovery(), WorkerConfig(leave_delay=0.0), TcpServerConfig(host="127.0.0.1"))
    yield made
    await made.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    more = {
        "chat_template.jinja": "{{ messages }}",
        "preprocessor_config.json": {"a": 1},
        "model.safetensors": "weights",
        ".hidden": "x",
        "README.md": "x",
    }
    made = make_folder(tmp_path / "tiny", more)
    (made / "subfolder").mkdir()
    return made


async def card_of(served: ServedEndpoint, suffix: str = "") -> Card:
    records = await served.worker.discovery.store.bucket(MODEL_CARDS).list()
    found = [ModelRecord.decode(record.value) for record in records]
    (record,) = (each for each in found if (each.model_suffix or "") == suffix)
    return record.card


async def get(url: str) -> tuple[int, bytes]:
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return answer.status, await answer.read()


async def get_raw(url: str | None, path: str) -> int:
    """The status of a GET whose path is sent as it stands."""
    parts = urlsplit(url or "")
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    line = await reader.readline()
    await reader.read()
    writer.close()
    await writer.wait_closed()
    return int(line.split()[1])


async def test_the_card_names_urls_at_which_the_files_are(worker: Worker, folder: Path) -> None:
    served = await worker.serve(echo, "a.b.c", model=ModelCard.from_folder(folder, name="My Tiny"))
    card = await card_of(served)
    prefix = f"{worker.status.url}/v1/metadata/a/b/c/my_tiny/_base/"
    names = []
    for _, file in card.files():
        assert file.path.startswith(prefix)
        status, content = await get(file.path)
        assert (status, len(content)) == (200, file.size)
        assert f"blake3:{blake3(content).hexdigest()}" == file.checksum
        names.append(file.path.removeprefix(prefix))
    assert names == [
        *("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"),
        "preprocessor_config.json",
    ]
    assert [file.name for file in card.extra_files or ()] == ["preprocessor_config.json"]


@pytest.mark.parametrize(
    "path",
    [
        "model.safetensors",
        "README.md",
        ".hidden",
        "../config.json",
        "..%2f..%2ftiny%2fconfig.json",
        "%2e%2e/_base/../../../../../../../../etc/passwd",
        "config.json/",
        "config.json%00",
        "/etc/passwd",
        "subfolder",
        "",
    ],
)
async def test_no_other_file_is_served(worker: Worker, folder: Path, path: str) -> None:
    await worker.serve(echo, "a.b.c", model=ModelCard.from_folder(folder))
    assert await get_raw(worker.status.url, "/v1/metadata/a/b/c/tiny/_base/config.json") == 200
    assert await get_raw(worker.status.url, f"/v1/metadata/a/b/c/tiny/_base/{path}") in {400, 404}


async def test_an_adapter_has_a_folder_of_its_own(worker: Worker, folder: Path) -> None:
    model = ModelCard.from_folder(folder)
    served = await worker.serve(echo, "a.b.c", model=model)
    await served.add_model(model.adapter("My Lora"))
    path = dict((await card_of(served, "my_lora")).files())["tokenizer"].path
    assert path == f"{worker.status.url}/v1/metadata/a/b/c/my_lora/my_lora/tokenizer.json"
    assert (await get(path))[0] == 200
    await served.remove_model("My Lora")
    assert (await get(path))[0] == 404
    assert (await get(dict((await card_of(served)).files())["tokenizer"].path))[0] == 200


async def test_files_go_with_their_card(worker: Worker, folder: Path) -> None:
    served = await worker.serve(echo, "a.b.c", model=ModelCard.from_folder(folder))
    paths = [file.path for _, file in (await card_of(served)).files()]
    await served.close()
    assert {(await get(path))[0] for path in paths} == {404}
    assert worker.status.files == {}


async def test_a_file_that_was_deleted_is_not_found(worker: Worker, folder: Path) -> None:
    served = await worker.serve(echo, "a.b.c", model=ModelCard.from_folder(folder))
    (folder / "tokenizer.json").unlink()
    assert (await get(dict((await card_of(served)).files())["tokenizer"].path))[0] == 404


async def test_two_files_of_one_name_are_both_served(worker: Worker, folder: Path, tmp_path: Path) -> None:
    template = tmp_path / "config.json"
    template.write_text("{{ other }}")
    served = await worker.serve(echo, "a.b.c", model=ModelCard.from_folder(folder, chat_template=template))
    card = await card_of(served)
    for field, file in card.files():
        assert f"blake3:{blake3((await get(file.path))[1]).hexdigest()}" == file.checksum, field


async def test_names_with_any_character(worker: Worker, folder: Path) -> None:
    served = await worker.serve(echo, EndpointId("ä b?#%", "c&d", "e+f"), model=ModelCard.from_folder(folder))
    for _, file in (await card_of(served)).files():
        assert (await get(file.path))[0] == 200


@pytest.mark.parametrize(
    ("variable", "self_host", "hosted"),
    [("", None, True), ("0", None, False), ("", False, False), ("0", True, True)],
)
async def test_it_can_be_turned_off(
    folder: Path, monkeypatch: pytest.MonkeyPatch, variable: str, self_host: bool | None, hosted: bool
) -> None:
    monkeypatch.setenv("DYN_SELF_HOST_METADATA", variable)
    config = WorkerConfig(leave_delay=0.0)
    worker = await Worker.start(MemoryDiscovery(), config, TcpServerConfig(host="127.0.0.1"))
    served = await worker.serve(echo, "a.b.c", model=ModelCard.from_folder(folder, self_host=self_host))
    card = await card_of(served)
    path = dict(card.files())["tokenizer"].path
    assert path.startswith("http://") if hosted else path == str(folder / "tokenizer.json")
    assert bool(card.extra_files) is hosted
    await worker.close()


async def test_without_a_status_server_the_files_are_local(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DYN_SYSTEM_PORT")
    config = WorkerConfig(leave_delay=0.0)
    worker = await Worker.start(MemoryDiscovery(), config, TcpServerConfig(host="127.0.0.1"))
    served = await worker.serve(echo, "a.b.c", model=ModelCard.from_folder(folder, self_host=True))
    assert dict((await card_of(served)).files())["tokenizer"].path == str(folder / "tokenizer.json")
    await worker.close()


async def test_a_server_that_could_not_listen_leaves_the_files_local(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setenv("DYN_SYSTEM_PORT", str(taken.getsockname()[1]))
        config: Any = WorkerConfig(leave_delay=0.0)
        worker = await Worker.start(MemoryDiscovery(), config, TcpServerConfig(host="127.0.0.1"))
        served = await worker.serve(echo, "a.b.c", model=ModelCard.from_folder(folder))
        assert dict((await card_of(served)).files())["tokenizer"].path == str(folder / "tokenizer.json")
        await worker.close()
