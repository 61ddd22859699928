"""Dynamo's own frontend, in the environments that `make peers` makes, and processes that serve models to it."""

from __future__ import annotations

import dataclasses
import http.client
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from benchmarks.frontend import free_port
from tests.interop.peers import ROOT, interpreter
from tests.programs import end
from tests.waiting import until_in_thread

__all__ = [
    "LIMIT",
    "Answer",
    "Frontend",
    "Model",
    "ModelWorker",
    "Stream",
    "environment",
    "frontend",
    "model_worker",
    "program",
    "until",
]

ROUTES = {"Chat": "/v1/chat/completions", "Completions": "/v1/completions", "Embedding": "/v1/embeddings"}
LIMIT = 60.0
"""Seconds that an answer, a line of a worker or the start of a process may take on a busy machine."""
_PAUSE = 0.02
"""Seconds between two looks at a condition: most looks are a request that the frontend answers."""


def program(version: str) -> Path:
    """The Python that has the frontend of a release; skips the test, saying why, if there is none."""
    folder = ROOT / ".peers" / f"frontend-{version}"
    if not (folder / ".done").exists():
        pytest.skip(f"no real frontend {version}: `make frontends` makes {folder.relative_to(ROOT)}")
    return folder / "bin" / "python"


def environment(folder: Path, **settings: str) -> dict[str, str]:
    """The environment of a frontend and of its workers. They stay on this machine, and write into `folder` only.

    The store of file discovery is in it, and the frontend's cache of tokenizers. `settings` come on top.
    """
    return {
        **os.environ,
        "DYN_FILE_KV": str(folder / "store"),
        "DYN_TCP_RPC_HOST": "127.0.0.1",
        "DYN_TCP_RESPONSE_STREAM_HOST": "lo",  # 1.3.1 takes the name of an interface only
        "DYN_EVENT_PLANE": "zmq",
        "DYN_LOG": "warn",
        "HOME": str(folder),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",  # a tiny model is quicker without threads, above all on a busy machine
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        **settings,
    }


@dataclass
class Answer:
    """An answer over HTTP, read to its end."""

    status: int
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def events(self) -> list[str]:
        """The events of a stream, as they came."""
        return [event for event in self.text.split("\n\n") if event]

    @property
    def chunks(self) -> list[Any]:
        """The data of these events, but for the last, which says that all is done."""
        data = [event[len("data: ") :] for event in self.events if event.startswith("data: ")]
        return [json.loads(each) for each in data if each != "[DONE]"]

    @property
    def content(self) -> str:
        """The text of the first choice, put together."""
        if self.text.startswith("data:"):
            choices = [choice for chunk in self.chunks for choice in chunk.get("choices", ())]
        else:
            choices = self.json["choices"]
        parts = (each.get("delta") or each.get("message") or {"content": each.get("text")} for each in choices)
        return "".join(part.get("content") or "" for part in parts)


class Stream:
    """An answer that is read event by event. Closing it early closes the connection."""

    def __init__(self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse) -> None:
        self._connection = connection
        self._response = response
        self.status = response.status

    def event(self) -> str:
        """The next event; empty at the end."""
        lines = []
        while line := self._response.readline().decode().rstrip("\n"):
            lines.append(line)
        return "\n".join(lines)

    def rest(self) -> Answer:
        """What follows, to the end. The stream is closed then."""
        with self:
            return Answer(self.status, self._response.read().decode())

    def close(self) -> None:
        self._response.close()
        self._connection.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass
class Frontend:
    """A frontend that runs, and how to ask it."""

    version: str
    folder: Path
    port: int
    process: subprocess.Popen[str]
    log: Path
    settings: dict[str, str] = field(default_factory=dict)
    """The environment that its workers need, too."""

    def get(self, path: str) -> Answer:
        return self._ask("GET", path, None)

    def post(self, path: str, body: Any) -> Answer:
        return self._ask("POST", path, body)

    def chat(self, model: str, text: str = "hi", **options: Any) -> Answer:
        return self.post(ROUTES["Chat"], chat_request(model, text, **options))

    def complete(self, model: str, prompt: str = "hi", **options: Any) -> Answer:
        return self.post(ROUTES["Completions"], {"model": model, "prompt": prompt, **options})

    def stream(self, model: str, text: str = "hi", **options: Any) -> Stream:
        """A chat whose answer streams. Returns when the head of the answer is there."""
        connection = self._connect()
        request = chat_request(model, text, stream=True, **options)
        _send(connection, "POST", ROUTES["Chat"], request)
        return Stream(connection, connection.getresponse())

    def asked(self, model: str) -> http.client.HTTPConnection:
        """A connection on which a chat was asked for that does not stream. Its owner closes it."""
        connection = self._connect()
        _send(connection, "POST", ROUTES["Chat"], chat_request(model, "hi"))
        return connection

    def models(self) -> set[str]:
        """The names that it lists."""
        return {each["id"] for each in self.get("/v1/models").json["data"]}

    def wait_for(self, *names: str, kinds: Iterable[str] = ("Chat",)) -> None:
        """Wait until it lists them all, and takes requests of these kinds.

        The route of a kind opens with the first model that has it, a moment after the model is listed; it is 404 before.
        """

        def is_ready() -> bool:
            self._fail_if_ended()
            listed = self.models() >= set(names)
            return listed and all(self.post(ROUTES[kind], {}).text for kind in kinds)

        until(is_ready)

    def wait_until_gone(self, name: str) -> None:
        until(lambda: name not in self.models())

    def wait_until_up(self) -> None:
        until(self._is_up)

    def _is_up(self) -> bool:
        self._fail_if_ended()
        try:
            return self.get("/v1/models").status == 200
        except ConnectionError:
            return False

    def _fail_if_ended(self) -> None:
        assert self.process.poll() is None, self.log.read_text()[-4_000:]

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT)

    def _ask(self, method: str, path: str, body: Any) -> Answer:
        connection = self._connect()
        try:
            _send(connection, method, path, body)
            response = connection.getresponse()
            return Answer(response.status, response.read().decode())
        finally:
            connection.close()


def until(condition: Callable[[], object]) -> None:
    """Wait for what a frontend or its worker does. Raises TimeoutError after `LIMIT` seconds."""
    until_in_thread(condition, LIMIT, _PAUSE)


def chat_request(model: str, text: str, **options: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], **options}


def _send(connection: http.client.HTTPConnection, method: str, path: str, body: Any) -> None:
    encoded = None if body is None else json.dumps(body).encode()
    connection.request(method, path, encoded, {"Content-Type": "application/json"})


@contextmanager
def frontend(version: str, folder: Path, *options: str, discovery: str = "file", **settings: str) -> Iterator[Frontend]:
    """A frontend, up and without models, that lives as long as the context."""
    python, port = program(version), free_port()
    log = folder / f"frontend-{port}.log"
    command = [str(python), "-m", "dynamo.frontend", "--http-host", "127.0.0.1", "--http-port", str(port)]
    command += ["--discovery-backend", discovery, "--request-plane", "tcp", "--event-plane", "zmq", *options]
    with (
        log.open("w") as output,
        subprocess.Popen(
            command,
            env=environment(folder, **settings),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process,
    ):
        started = Frontend(version, folder, port, process, log, {"PEER_DISCOVERY": discovery, **settings})
        try:
            started.wait_until_up()
            yield started
        finally:
            process.kill()
            process.wait()
            sys.stderr.write(log.read_text()[-4_000:])  # pytest shows it with a test that fails


@dataclass(frozen=True)
class Model:
    """A model that a worker of the tests serves. `handler` is one of `model_engine.HANDLERS`."""

    name: str
    handler: str = "generate"
    endpoint: str = ""
    """By default `test.worker.NAME`. The last part differs: 1.3.1 finds the handlers of a process by it alone."""
    input: str = "Tokens"
    kinds: Sequence[str] = ("Chat", "Completions")
    path: str = ""
    """The folder of its files; none for a model of text."""
    tool_call_parser: str | None = None
    aliases: Sequence[str] = ()
    loras: Sequence[str] = ()


class ModelWorker:
    """A process of `model_worker.py`, and what it tells."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._told: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def expect(self, event: str) -> dict[str, Any]:
        """The next line that tells of such an event; lines before it are dropped."""
        while (told := self._told.get(timeout=LIMIT)) is not None:
            if told["event"] == event:
                return told
        raise AssertionError(f"the worker ended before it told of {event!r}")

    def has_told(self, event: str) -> bool:
        """Whether a line has come that tells of such an event; lines before it are dropped."""
        while not self._told.empty():
            told = self._told.get()
            if told is not None and told["event"] == event:
                return True
        return False

    def ended(self) -> int:
        """The exit status, once it has ended by itself."""
        return self.process.wait(LIMIT)

    def go(self) -> None:
        """Let what is held go on."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def close(self) -> None:
        end(self.process)
        self._reader.join(LIMIT)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith('{"event"'):  # 1.6.1 logs to standard output, too
                self._told.put(json.loads(line))
        self._told.put(None)


@contextmanager
def model_worker(
    kind: str, to: Frontend, *models: Model, settings: Mapping[str, str] | None = None
) -> Iterator[ModelWorker]:
    """A worker of a kind (`peer`, `dropin`, `native`) that serves models, which the frontend lists.

    `settings` come on top of its environment.
    """
    described = [
        dataclasses.asdict(each) | {"endpoint": each.endpoint or f"test.worker.{each.name}"} for each in models
    ]
    python = interpreter(to.version) if kind == "peer" else sys.executable
    log = to.folder / f"worker-{kind}-{models[0].name}.log"
    with (
        log.open("w") as errors,
        subprocess.Popen(
            [str(python), "-m", "tests.interop.model_worker", kind, json.dumps(described)],
            env=environment(to.folder, **{**to.settings, **(settings or {})}),
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        worker = ModelWorker(process)
        try:
            worker.expect("ready")
            names = [name for each in models for name in (each.name, *each.loras)]
            to.wait_for(*names, kinds={kind for each in models for kind in each.kinds})
            yield worker
        finally:
            worker.close()
            sys.stderr.write(log.read_text()[-4_000:])
