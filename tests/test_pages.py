"""The pages for newcomers: their commands are carried out, and their programs run, as they stand there."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import prometheus_client
import pytest

from benchmarks.frontend import free_port
from dynamo_fast import Context, FileDiscovery, Worker
from dynamo_fast.cli.main import main
from dynamo_fast.observability.metrics import REQUEST_PLANE
from tests.console import Terminals, assert_shown, commands, files
from tests.discovery.etcd_server import Etcd
from tests.namespaces import environment
from tests.programs import started
from tests.test_guides import example, names_of, run
from tests.waiting import until_in_thread

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
LIMIT = 20.0


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def settings(folder: Path, **more: str) -> dict[str, str]:
    return environment(
        {
            "DYN_FILE_KV": str(folder / "kv"),
            "DYN_TCP_RPC_HOST": "127.0.0.1",
            "DYN_TCP_RESPONSE_STREAM_HOST": "127.0.0.1",
            "DYNAMO_FAST_LEAVE_DELAY": "0",
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)]),
            **more,
        }
    )


@pytest.fixture
def servers() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test's own process looks where its programs look."""
    for name, value in settings(tmp_path).items():
        if name.startswith("DYN"):
            monkeypatch.setenv(name, value)
    return tmp_path


def answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def nothing(words: list[str]) -> None:
    """In place of a command that the test has carried out already, or that another test carries out."""


# The commands of the pages --------------------------------------------------------------------------------------------


def test_the_quick_start(tmp_path: Path, servers: ExitStack) -> None:
    assert Terminals(page("quickstart.md"), tmp_path, settings(tmp_path), servers).follow() == 4


def test_the_installation(tmp_path: Path, servers: ExitStack) -> None:
    """`make demo` and `make test` are what runs this test."""
    backend = subprocess.run(
        [sys.executable, "-c", "from dynamo_fast import codec; print(codec.BACKEND)"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout.strip()
    text = page("install.md").replace("(codec backend: cython)", f"(codec backend: {backend})")
    assert Terminals(text, tmp_path, settings(tmp_path), servers, instead={"make": nothing}).follow() == 1


def test_the_extras_exist() -> None:
    named = re.findall(r"^\| `(\w+)` \|", page("install.md"), re.MULTILINE)
    assert len(named) > 10
    extras = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[project.optional-dependencies]")[2]
    assert not [name for name in named if not re.search(rf"^{name} = \[", extras, re.MULTILINE)]


def service(folder: Path, servers: ExitStack) -> int:
    """The service of fastapi.md, on its port, with the worker of the quick start if that is in the folder."""
    port = free_port()

    def serve(words: list[str]) -> None:
        servers.enter_context(started([sys.executable, "-m", *words], settings(folder), folder, subprocess.DEVNULL))
        until_in_thread(lambda: answers(port))

    text = page("fastapi.md")
    before, _, after = text.partition("```console\n$ curl")
    Terminals(
        before, folder, settings(folder), servers, instead={"uvicorn": serve}, changed={"8080": str(port)}
    ).follow()
    (curl,) = commands(f"```console\n$ curl{after}")
    assert curl.words[-1] == '{"prompt": "hello there"}'
    return port


def post(port: int, body: str) -> tuple[int, str]:
    url, kind = f"http://localhost:{port}/generate", "Content-Type: application/json"
    done = subprocess.run(
        ["curl", "-sN", url, "-H", kind, "-d", body, "-w", "\n%{http_code}"],
        stdout=subprocess.PIPE,
        text=True,
        timeout=LIMIT,
        check=True,
    )
    text, _, status = done.stdout.rpartition("\n")
    return int(status), text


def test_the_fastapi_service(tmp_path: Path, servers: ExitStack) -> None:
    (tmp_path / "my_engine.py").write_text(files(page("quickstart.md"))["my_engine.py"], encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "dynamo_fast",
        "serve",
        "my_engine:generate",
        "--endpoint",
        "demo.backend.generate",
    ]
    worker = servers.enter_context(started(command, settings(tmp_path), tmp_path, subprocess.DEVNULL))
    assert worker.stdout is not None
    worker.stdout.readline()
    port = service(tmp_path, servers)
    (curl,) = [command for command in commands(page("fastapi.md")) if command.words[0] == "curl"]
    until_in_thread(lambda: post(port, '{"prompt": "a"}')[0] == 200)  # it may not have found the worker yet
    status, text = post(port, curl.words[-1])
    assert status == 200
    assert_shown(curl, text)
    assert post(port, '{"prompt": 1}')[0] == 500  # the handler raises AttributeError
    assert in_a_browser(port) == text.rstrip()


def in_a_browser(port: int) -> str:
    """What the script of the page writes to its console. Node has the same `fetch` as browsers."""
    (script,) = re.findall(r"```js\n(.*?)```", page("fastapi.md"), re.DOTALL)
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node for the script of the page; the rest of the test has passed")
    source = script.replace('"/generate"', f'"http://localhost:{port}/generate"')
    command = [node, "--input-type=module", "--eval", source]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=LIMIT, check=True)
    return re.sub(r"\n{3}", "\n\n", done.stdout).rstrip()


def test_the_fastapi_service_without_a_worker(tmp_path: Path, servers: ExitStack) -> None:
    status, text = post(service(tmp_path, servers), "{}")
    assert status == 503
    assert "No workers available for endpoint demo/backend/generate" in text


def test_the_commands_of_etcd(tmp_path: Path, servers: ExitStack) -> None:
    (tmp_path / "my_engine.py").write_text(files(page("quickstart.md"))["my_engine.py"], encoding="utf-8")
    etcd = Etcd(tmp_path)
    etcd.start()
    servers.callback(etcd.stop)
    changed = {"http://localhost:2379": etcd.url}
    terminals = Terminals(
        page("etcd.md"), tmp_path, settings(tmp_path), servers, instead={"etcd": nothing}, changed=changed
    )
    assert terminals.follow() == 2


# The programs of the pages --------------------------------------------------------------------------------------------


async def test_the_program_of_etcd(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def handler(request: Any) -> AsyncIterator[Any]:
        yield request

    etcd = Etcd(here)
    etcd.start()
    monkeypatch.setenv("ETCD_ENDPOINTS", etcd.url)
    try:
        names = await run(example("etcd.md", "connect("), handler=handler)
        stream = await names["router"].generate({"n": 1})
        assert [item.data() async for item in stream] == [{"n": 1}]
        names["router"].close()
        await names["addressed"].close()
        await names["discovery"].close()
        await names["worker"].close()
    finally:
        etcd.stop()


async def test_the_calls(here: Path) -> None:
    async def words(request: Any, context: Context) -> AsyncIterator[Any]:
        if request["prompt"] == "fail":
            raise ValueError("no")
        if request["prompt"] == "who":
            yield [context.id(), dict(context.metadata)]
            return
        for word in request["prompt"].split():
            yield {"text": word}

    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", page("calling.md"), re.DOTALL):
        exec(block, names)
    worker = await Worker.start(FileDiscovery())
    served = await worker.serve(words, "demo.backend.generate")
    async with names["connected"]("demo.backend.generate") as router:
        assert await names["ask"](router) == [{"text": "hello"}, {"text": "there"}]
        assert await names["first_two"](router) == ["a", "b"]
        assert await names["named"](router) == [["request-7", {"tenant": "blue"}]]

        class Failing:
            async def generate(self, request: Any) -> Any:
                return await router.generate({"prompt": "fail"})

        assert await names["careful"](Failing()) == "RemoteError, no use to try again"
    assert await names["at"](served.address) == [{"text": "hello"}]
    await worker.close()


async def test_the_handler_of_an_engine() -> None:
    """Of huggingface.md, with the interface of the engine of the examples."""

    class Step:
        def __init__(self, token: int | None, finish: str | None = None) -> None:
            self.token, self.finish = token, finish

    class Engine:
        closed = False

        async def submit(self, tokens: list[int], max_tokens: int) -> AsyncIterator[Step]:
            try:
                for token in tokens[:max_tokens]:
                    yield Step(token)
                yield Step(None, "stop")
            finally:
                self.closed = True

    class Running:
        def is_stopped(self) -> bool:
            return False

    engine = Engine()
    handler = names_of(example("huggingface.md", "TokenHandler"))["TokenHandler"](engine)
    request = {"token_ids": [1, 2, 3], "stop_conditions": {"max_tokens": 2}}
    items = [item async for item in handler.generate(request, Running())]
    assert items == [{"token_ids": [1]}, {"token_ids": [2]}, {"token_ids": [], "finish_reason": "stop"}]
    assert engine.closed


async def test_the_metrics_of_a_program(here: Path) -> None:
    async def handler(request: Any) -> AsyncIterator[Any]:
        yield request

    worker = await Worker.start(FileDiscovery())
    await worker.serve(handler, "demo.backend.generate")
    try:
        await run(example("metrics.md", "register()"), worker=worker)
        text = prometheus_client.generate_latest().decode()
        assert "dynamo_request_plane_queue_seconds" in text
        assert "dynamo_component_requests_total" in text
    finally:
        for collector in (worker.metrics, REQUEST_PLANE):
            prometheus_client.REGISTRY.unregister(collector)
        await worker.close()


# What the pages name --------------------------------------------------------------------------------------------------


def used_options() -> list[tuple[str, str, frozenset[str]]]:
    """Each command of `dynamo-fast` that a page shows, with its options."""
    found = []
    for path in [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]:
        text = path.read_text(encoding="utf-8")
        for line in re.findall(r"(?:^(?:\$ )?|`)dynamo-fast ([a-z]\w*[^`\n]*)", text, re.MULTILINE):
            words = re.split(r" -- | #", line)[0].split()
            if words[0] != "run":  # what follows `run` is another program's
                options = frozenset(word.partition("=")[0] for word in words[1:] if word.startswith("--"))
                found.append((path.name, words[0], options - {"--help"}))
    return found


@pytest.mark.parametrize("command", sorted({command for _, command, _ in used_options()}))
def test_the_options_of_a_command_exist(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0, f"there is no command {command}"
    help_text = capsys.readouterr().out
    for name, used, options in used_options():
        if used == command:
            missing = [option for option in options if not re.search(rf"{option}\b", help_text)]
            assert not missing, f"{name} uses {missing} of {command}"


def test_the_texts_of_troubleshooting_are_those_of_the_code() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "dynamo_fast").rglob("*.py"))
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # texts that are folded
    symptoms = re.findall(r"^\| (.*?) \|", page("troubleshooting.md"), re.MULTILINE)
    texts = [text for symptom in symptoms for text in re.findall(r"`([^`]+)`", symptom)]
    assert len(texts) > 25
    for text in texts:
        parts = [part for part in re.split(r"^\w+: |\.\.\.", text) if part.strip()]
        for part in parts:
            assert part.strip() in source or part.startswith("dynamo-fast "), text
