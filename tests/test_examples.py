"""The programs of `examples/`, each behind Dynamo's own frontend."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.interop.frontends import Answer, Frontend, environment, frontend, until
from tests.interop.peers import ROOT, VERSIONS
from tests.programs import started

pytestmark = pytest.mark.frontend

PROGRAM = ROOT / "examples" / "transformers_engine.py"
BATCH = 4


@pytest.fixture(scope="module", params=VERSIONS)
def front(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frontend]:
    with frontend(request.param, tmp_path_factory.mktemp("frontend")) as opened:
        yield opened


def need_torch() -> None:
    """Skip the test, saying why, without the packages of the examples."""
    for package in ("torch", "transformers", "tokenizers"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"no {package}: `make test-frontend` installs it")


@contextmanager
def example(front: Frontend, name: str, *options: str) -> Iterator[str]:
    """The example with a model of that name, which the frontend lists; skips the test, saying why, without torch."""
    need_torch()
    command = [sys.executable, str(PROGRAM), "--name", name, "--endpoint", f"examples.engine.{name}", *options]
    with started(command, environment(front.folder), front.folder) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"{name} is served\n"
        front.wait_for(name)
        yield name


@pytest.fixture(scope="module")
def tokens(front: Frontend) -> Iterator[str]:
    with example(front, "tokens", "--max-batch", str(BATCH)) as name:
        yield name


@pytest.fixture(scope="module")
def text(front: Frontend) -> Iterator[str]:
    with example(front, "text", "--text") as name:
        yield name


def greedy(front: Frontend, model: str, said: str = "hi", **options: Any) -> Answer:
    """A chat of 24 tokens, always the same ones."""
    return front.chat(model, said, max_tokens=24, temperature=0, **options)


def test_a_model_of_tokens(front: Frontend, tokens: str) -> None:
    whole = greedy(front, tokens)
    assert (whole.status, whole.json["usage"]["completion_tokens"]) == (200, 24)
    assert greedy(front, tokens, stream=True).content == whole.content
    stop = whole.content[3:5]
    assert greedy(front, tokens, stop=stop).content == whole.content.partition(stop)[0]


def test_a_batch_says_what_each_request_gets_alone(front: Frontend, tokens: str) -> None:
    prompts = ["word " * number for number in range(2 * BATCH)]
    alone = [greedy(front, tokens, prompt).content for prompt in prompts]
    with ThreadPoolExecutor(len(prompts)) as clients:
        assert list(clients.map(lambda prompt: greedy(front, tokens, prompt).content, prompts)) == alone


def test_clients_that_go_away_leave_the_batch(front: Frontend, tokens: str) -> None:
    """Their answers would fill the batch for long."""
    for stream in [front.stream(tokens, max_tokens=2000, ignore_eos=True) for _ in range(BATCH)]:
        assert stream.event()
        stream.close()
    assert greedy(front, tokens).status == 200


def test_what_the_engine_does_not_offer(front: Frontend, tokens: str) -> None:
    assert front.chat(tokens, n=2).status == 400


def test_a_model_of_text(front: Frontend, text: str) -> None:
    whole = greedy(front, text)
    assert whole.status == 200
    assert whole.content
    assert greedy(front, text, stream=True).content == whole.content


def cached(answer: Answer) -> int:
    """Tokens of the prompt that were in the engine's cache."""
    return (answer.json["usage"].get("prompt_tokens_details") or {}).get("cached_tokens") or 0


def test_a_prompt_that_begins_alike_is_found_in_the_cache(front: Frontend, tokens: str) -> None:
    assert cached(greedy(front, tokens, "once upon a time there was a token" * 3)) == 0
    assert cached(greedy(front, tokens, "once upon a time there was a token" * 3 + " again")) >= 32


@pytest.mark.parametrize("version", VERSIONS)
def test_prompts_go_to_the_instance_that_has_their_beginning(version: str, tmp_path: Path) -> None:
    """Two instances tell of their caches. By chance half of the prompts would find theirs."""
    numbers = itertools.count(100)

    def ask(prompt: str) -> Answer:
        return kv_front.chat("twice", prompt, max_tokens=1)

    def all_find_their_beginnings() -> bool:
        """The news of a prompt has the time of seven requests to arrive; on a busy machine that may be too short."""
        prompts = [f"{number} " * 60 for number in itertools.islice(numbers, 8)]
        assert {ask(prompt).status for prompt in prompts} == {200}
        return all(cached(ask(prompt + "more")) >= 32 for prompt in prompts)

    with (
        frontend(version, tmp_path, "--router-mode", "kv") as kv_front,
        example(kv_front, "twice", "--kv-events"),
        example(kv_front, "twice", "--kv-events"),
    ):
        until(all_find_their_beginnings)


def test_a_prompt_that_is_too_long(front: Frontend, text: str) -> None:
    assert front.chat(text, "word " * 3000).status == 400
