"""Dynamo's own sample engine, unchanged, on this project and behind Dynamo's own frontend.

It is `dynamo.common.backend.sample_main` of each release, with the pure Python of its wheel and without its binding.
"""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.interop.peers import VERSIONS
from tests.interop.wheels import dynamo_python, environment, ours, pure_wheel
from tests.llm.folders import make_folder
from tests.programs import end
from tests.waiting import until_in_thread

pytestmark = [pytest.mark.frontend, pytest.mark.timeout(150)]

LIMIT = 30
MODEL = "sample"


@dataclass
class Front:
    """A frontend that runs, and where its workers find it."""

    version: str
    folder: Path
    port: int
    process: subprocess.Popen[str]

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, str]:
        """The status and the body of an answer, streamed or not."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT)
        try:
            connection.request(method, path, body and json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def chat(self, **options: Any) -> tuple[int, str]:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "hello world"}], **options}
        return self.ask("POST", "/v1/chat/completions", body)

    def is_up(self) -> bool:
        assert self.process.poll() is None, "the frontend has ended"
        try:
            return self.ask("GET", "/v1/models")[0] == 200
        except ConnectionError:
            return False

    def models(self) -> list[str]:
        """The models that it lists."""
        return [each["id"] for each in json.loads(self.ask("GET", "/v1/models")[1])["data"]]


@contextmanager
def program(name: str, command: Sequence[str], folder: Path, **settings: str) -> Iterator[subprocess.Popen[str]]:
    """A program whose output pytest shows if the test fails."""
    log = folder / f"{name}.log"
    with (
        log.open("w") as output,
        subprocess.Popen(
            command, cwd=folder, env=environment(folder, **settings), stdout=output, stderr=subprocess.STDOUT, text=True
        ) as process,
    ):
        try:
            yield process
        finally:
            end(process)
            sys.stderr.write(f"--- {name}\n{log.read_text()[-20_000:]}\n")


@pytest.fixture(scope="module", params=VERSIONS)
def front(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    version, folder = request.param, tmp_path_factory.mktemp("front")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        str(dynamo_python(version)),
        "-m",
        "dynamo.frontend",
        "--http-host",
        "127.0.0.1",
        "--http-port",
        str(port),
    ]
    command += ["--discovery-backend", "file", "--request-plane", "tcp", "--event-plane", "zmq"]
    with program("frontend", command, folder) as process:
        started = Front(version, folder, port, process)
        until_in_thread(started.is_up)
        yield started


@contextmanager
def sample(front: Front, *options: str, kind: str = "sample_main", **settings: str) -> Iterator[subprocess.Popen[str]]:
    """The sample engine of the same release. At the end of the block it has left."""
    model, wheel = front.folder / MODEL, front.folder / f"ai-dynamo-{front.version}"
    if not model.exists():
        make_folder(model)
        pure_wheel(front.version, front.folder)
    command = ours("-m", f"dynamo.common.backend.{kind}", "--model-name", MODEL, "--discovery-backend", "file")
    settings = {"PYTHONPATH": str(wheel), "DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS": "0", **settings}
    with program("sample", [*command, *options], front.folder, **settings) as process:
        yield process


@contextmanager
def listed(front: Front, *options: str, **settings: str) -> Iterator[subprocess.Popen[str]]:
    with sample(front, "--delay", "0", *options, **settings) as process:
        until_in_thread(lambda: front.models() == [MODEL] or fail_if_ended(process))
        until_in_thread(lambda: front.chat(max_tokens=1)[0] == 200)  # it lists a model a moment before it serves it
        yield process


def fail_if_ended(process: subprocess.Popen[str]) -> bool:
    assert process.poll() is None, "the sample engine has ended"
    return False


def test_the_frontend_lists_it_and_it_answers(front: Front) -> None:
    with listed(front) as process:
        status, text = front.chat(max_tokens=3)
        answer = json.loads(text)
        assert status == 200, text
        assert answer["choices"][0]["finish_reason"] == "length"
        assert answer["choices"][0]["message"]["content"]
        assert answer["usage"]["completion_tokens"] == 3

        status, text = front.ask("POST", "/v1/completions", {"model": MODEL, "prompt": "hello", "max_tokens": 2})
        answer = json.loads(text)
        assert status == 200, text
        assert (answer["choices"][0]["finish_reason"], answer["usage"]["completion_tokens"]) == ("length", 2)

        status, text = front.chat(max_tokens=3, stream=True)
        events = [line for line in text.splitlines() if line.startswith("data: ")]
        assert status == 200, text
        assert events[-1] == "data: [DONE]"
        assert sum("content" in json.loads(event[6:])["choices"][0]["delta"] for event in events[:-1]) >= 3

        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT) == 0
        until_in_thread(lambda: front.models() == [])


def test_its_tokens_have_log_probabilities(front: Front) -> None:
    with listed(front):
        status, text = front.chat(max_tokens=2, logprobs=True, top_logprobs=2)
        assert status == 200, text
        tokens = json.loads(text)["choices"][0]["logprobs"]["content"]
        assert [len(token["top_logprobs"]) for token in tokens] == [3, 3]  # the chosen one, and two more


def test_an_answer_in_flight_is_finished_before_it_leaves(front: Front) -> None:
    with listed(front, "--delay", "0.02") as process:
        connection = http.client.HTTPConnection("127.0.0.1", front.port, timeout=LIMIT)
        body = {"model": MODEL, "prompt": "hello", "max_tokens": 50, "stream": True}
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        assert response.readline().startswith(b"data: ")
        process.send_signal(signal.SIGTERM)
        rest = response.read().decode()
        connection.close()
        assert '"finish_reason":"length"' in rest
        assert "[DONE]" in rest
        assert process.wait(LIMIT) == 0


def test_an_engine_that_takes_the_clients_request(front: Front) -> None:
    """The sample for images: it has no model folder."""

    def answer() -> tuple[int, str]:
        return front.ask("POST", "/v1/images/generations", {"model": "painter", "prompt": "a cat", "size": "256x256"})

    with sample(front, "--model-name", "painter", kind="sample_diffusion_main") as process:
        until_in_thread(lambda: answer()[0] == 200 or fail_if_ended(process))
        (image,) = json.loads(answer()[1])["data"]
        assert image["url"].startswith("data:image/png;base64,")
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT) == 0
    until_in_thread(lambda: front.models() == [])


def test_a_model_that_is_no_folder_ends_it_with_an_error(front: Front) -> None:
    with sample(front, "--model-name", "no-such-model") as process:
        assert process.wait(LIMIT) == 1
    log = (front.folder / "sample.log").read_text()
    assert "InvalidRequest: the model no-such-model does not exist: expected a local folder" in log
    assert front.models() == []
