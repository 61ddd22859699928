"""Dynamo's own sample engine, unchanged, on this project and behind Dynamo's own frontend.

It is `dynamo.common.backend.sample_main` of each release, with the pure Python of its wheel and without its binding.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.interop.frontends import LIMIT, Frontend, environment, frontend, until
from tests.interop.peers import VERSIONS
from tests.interop.wheels import ours, pure_wheel
from tests.llm.folders import make_folder
from tests.programs import end

pytestmark = pytest.mark.frontend

MODEL = "sample"


@pytest.fixture(scope="module", params=VERSIONS)
def front(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frontend]:
    with frontend(request.param, tmp_path_factory.mktemp("front")) as started:
        yield started


@contextmanager
def sample(
    front: Frontend, *options: str, kind: str = "sample_main", name: str = MODEL
) -> Iterator[subprocess.Popen[str]]:
    """The sample engine of the same release. At the end of the block it has left."""
    folder, wheel, log = front.folder / MODEL, front.folder / f"ai-dynamo-{front.version}", front.folder / "sample.log"
    if not folder.exists():
        make_folder(folder)
        pure_wheel(front.version, front.folder)
    command = ours("-m", f"dynamo.common.backend.{kind}", "--model-name", name, "--discovery-backend", "file")
    settings = environment(front.folder, PYTHONPATH=str(wheel), DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS="0")
    with (
        log.open("w") as output,
        subprocess.Popen(
            [*command, *options], cwd=front.folder, env=settings, stdout=output, stderr=subprocess.STDOUT, text=True
        ) as process,
    ):
        try:
            yield process
        finally:
            end(process)
            sys.stderr.write(log.read_text()[-20_000:])  # pytest shows it with a test that fails


@contextmanager
def listed(front: Frontend, *options: str) -> Iterator[subprocess.Popen[str]]:
    with sample(front, "--delay", "0", *options) as process:
        until(lambda: front.models() == {MODEL} or fail_if_ended(process))
        until(lambda: front.chat(MODEL, max_tokens=1).status == 200)  # it lists a model a moment before it serves it
        yield process


def fail_if_ended(process: subprocess.Popen[str]) -> bool:
    assert process.poll() is None, "the sample engine has ended"
    return False


def test_the_frontend_lists_it_and_it_answers(front: Frontend) -> None:
    with listed(front) as process:
        answer = front.chat(MODEL, max_tokens=3)
        assert answer.status == 200, answer.text
        assert answer.json["choices"][0]["finish_reason"] == "length"
        assert answer.content
        assert answer.json["usage"]["completion_tokens"] == 3

        answer = front.complete(MODEL, "hello", max_tokens=2)
        assert answer.status == 200, answer.text
        assert answer.json["choices"][0]["finish_reason"] == "length"
        assert answer.json["usage"]["completion_tokens"] == 2

        answer = front.chat(MODEL, max_tokens=3, stream=True)
        assert answer.status == 200, answer.text
        assert answer.events[-1] == "data: [DONE]"
        assert sum("content" in chunk["choices"][0]["delta"] for chunk in answer.chunks) >= 3

        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT) == 0
        front.wait_until_gone(MODEL)


def test_its_tokens_have_log_probabilities(front: Frontend) -> None:
    with listed(front):
        answer = front.chat(MODEL, max_tokens=2, logprobs=True, top_logprobs=2)
        assert answer.status == 200, answer.text
        tokens = answer.json["choices"][0]["logprobs"]["content"]
        assert [len(token["top_logprobs"]) for token in tokens] == [3, 3]  # the chosen one, and two more


def test_an_answer_in_flight_is_finished_before_it_leaves(front: Frontend) -> None:
    with listed(front, "--delay", "0.02") as process, front.stream(MODEL, max_tokens=50) as stream:
        assert stream.event().startswith("data: ")
        process.send_signal(signal.SIGTERM)
        rest = stream.rest()
        assert '"finish_reason":"length"' in rest.text
        assert rest.events[-1] == "data: [DONE]"
        assert process.wait(LIMIT) == 0


def test_an_engine_that_takes_the_clients_request(front: Frontend) -> None:
    """The sample for images: it has no model folder."""
    request = {"model": "painter", "prompt": "a cat", "size": "256x256"}

    with sample(front, name="painter", kind="sample_diffusion_main") as process:
        until(lambda: front.post("/v1/images/generations", request).status == 200 or fail_if_ended(process))
        (image,) = front.post("/v1/images/generations", request).json["data"]
        assert image["url"].startswith("data:image/png;base64,")
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT) == 0
    front.wait_until_gone("painter")


def test_a_model_that_is_no_folder_ends_it_with_an_error(front: Frontend) -> None:
    with sample(front, name="no-such-model") as process:
        assert process.wait(LIMIT) == 1
    log = (front.folder / "sample.log").read_text()
    assert "InvalidRequest: the model no-such-model does not exist: expected a local folder" in log
    assert "no-such-model" not in front.models()
