"""docs/models.md and docs/huggingface.md: their commands run behind Dynamo's own frontend.

The Python of both runs as it stands there.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from benchmarks import model_folder
from dynamo_fast import FileDiscovery, Worker
from dynamo_fast.llm import ModelCard
from dynamo_fast.wire.address import EndpointId
from tests.console import Command, assert_shown, commands, files
from tests.interop.frontends import Frontend, environment, frontend
from tests.interop.peers import ROOT, VERSIONS
from tests.programs import started
from tests.test_examples import need_torch
from tests.test_guides import example, run

PAGE = "models.md"
TEXT = (ROOT / "docs" / PAGE).read_text(encoding="utf-8")
ENGINE = (ROOT / "docs" / "huggingface.md").read_text(encoding="utf-8")
LIMIT = 60.0


class Reader:
    """Does what the page says, in one folder. Servers run until the end of the block."""

    def __init__(self, version: str, folder: Path, servers: ExitStack) -> None:
        self._version = version
        self._folder = folder
        self._servers = servers
        self._frontend: Frontend | None = None
        for name, source in files(TEXT).items():
            (folder / name).write_text(source, encoding="utf-8")

    def follow(self, text: str) -> int:
        """Carry out all commands of a text but those that install; returns how many."""
        found = [command for command in commands(text) if command.words[0] != "pip"]
        for command in found:
            self._do(command)
        return len(found)

    def _do(self, command: Command) -> None:
        words = command.words
        if words[0] == "export":
            assert words[1] == "DYN_FILE_KV=/tmp/dynamo"  # `environment` has another one
        elif words[:3] == ["python", "-m", "dynamo.frontend"]:
            self._frontend = self._servers.enter_context(frontend(self._version, self._folder, *words[5:]))
        elif words[0] == "curl":
            self._curl(command)
        elif words[:2] == ["dynamo-fast", "models"]:
            output = subprocess.run(self._program(words), **self._surroundings(), check=True).stdout
            assert_shown(command, output)
        else:
            self._serve(command)

    def _serve(self, command: Command) -> None:
        settings = self._surroundings()
        process = self._servers.enter_context(started(self._program(command.words), settings["env"], settings["cwd"]))
        assert process.stdout is not None
        assert_shown(command, process.stdout.readline())
        assert self._frontend is not None
        self._frontend.wait_for(command.words[command.words.index("--name") + 1])

    def _curl(self, command: Command) -> None:
        assert self._frontend is not None
        here = f"http://127.0.0.1:{self._frontend.port}"
        words = [word.replace("http://localhost:8000", here) for word in command.words]
        output = subprocess.run(words, **self._surroundings(), check=True).stdout
        assert_shown(command, output + "\n")

    def _program(self, words: list[str]) -> list[str]:
        if words[0] == "dynamo-fast":
            return [sys.executable, "-m", "dynamo_fast", *words[1:]]
        assert words[0] == "python"
        return [sys.executable, str(ROOT / words[1]), *words[2:]]

    def _surroundings(self) -> dict[str, Any]:
        settings = environment(self._folder)
        return {"env": settings, "cwd": self._folder, "text": True, "stdout": subprocess.PIPE, "timeout": LIMIT}


@pytest.mark.frontend
@pytest.mark.parametrize("version", VERSIONS)
def test_from_a_file_to_a_curl(version: str, tmp_path: Path) -> None:
    model_folder.write(tmp_path / "tiny-model")
    with ExitStack() as servers:
        assert Reader(version, tmp_path, servers).follow(TEXT) == 9


@pytest.mark.frontend
@pytest.mark.parametrize("version", VERSIONS)
def test_the_real_engine(version: str, tmp_path: Path) -> None:
    need_torch()
    with ExitStack() as servers:
        assert Reader(version, tmp_path, servers).follow(ENGINE) == 5


async def handler(request: Any) -> AsyncIterator[Any]:
    yield request


@pytest.fixture
async def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Worker]:
    monkeypatch.setenv("DYN_FILE_KV", str(tmp_path / "store"))
    monkeypatch.setenv("DYN_TCP_RPC_HOST", "127.0.0.1")
    monkeypatch.setenv("DYNAMO_FAST_LEAVE_DELAY", "0")
    monkeypatch.chdir(tmp_path)
    model_folder.write(tmp_path / "tiny-model")
    started_worker = await Worker.start(FileDiscovery())
    yield started_worker
    await started_worker.close()


async def test_several_models_in_a_program(worker: Worker) -> None:
    handlers = {"generate": handler, "embed_handler": handler, "text_handler": handler}
    names = await run(example(PAGE, "Worker.start"), **handlers)
    served = names["worker"]
    models = [record.card.display_name for endpoint in served.endpoints for record in served.models.of(endpoint)]
    assert models == ["tiny", "tiny-embed", "tiny-text"]
    await served.close()


async def test_an_adapter(worker: Worker) -> None:
    await run(example(PAGE, "adapter("), worker=worker, generate=handler, ModelCard=ModelCard)
    (record,) = worker.models.of(EndpointId.parse("demo.base.generate"))
    assert record.card.display_name == "base"


async def test_events_of_a_cache(worker: Worker) -> None:
    served = await worker.serve(handler, "demo.cached.generate")
    given = {"served": served, "token_ids": list(range(32)), "block_hashes": [1, 2], "parent_hash": None}
    await run(example(PAGE, "KvEventSource"), **given)


def test_the_page_names_what_exists() -> None:
    named = set(re.findall(r"`((?:tests|examples)/[\w/.]+)`", TEXT))
    assert named
    assert not [path for path in named if not (ROOT / path).is_file()]
