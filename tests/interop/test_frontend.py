"""Models behind Dynamo's own frontend: whatever a client asks, our worker's answer is the real worker's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from benchmarks import model_folder
from tests.interop.frontends import Answer, Frontend, Model, ModelWorker, frontend, model_worker
from tests.interop.model_engine import CASES, Case
from tests.interop.peers import VERSIONS

pytestmark = pytest.mark.frontend

KINDS = ("peer", "dropin", "native")
"""Dynamo's own worker, the same program on our drop-in, and our own API."""
OURS = ("dropin", "native")
LETTERS = "abcd"
TOOL = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


@pytest.fixture(scope="module", params=VERSIONS)
def front(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frontend]:
    with frontend(request.param, tmp_path_factory.mktemp("frontend")) as started:
        yield started


@pytest.fixture(scope="module")
def workers(front: Frontend) -> Iterator[dict[str, ModelWorker]]:
    """A worker of each kind with each kind of model, by kind. A model costs the frontend four inotify instances."""
    path = str(model_folder.write(front.folder / "tiny"))
    with ExitStack() as stack:
        yield {
            kind: stack.enter_context(
                model_worker(
                    kind,
                    front,
                    Model(f"{kind}-chat", path=path),
                    Model(f"{kind}-tool", "call_a_tool", path=path, tool_call_parser="hermes"),
                    Model(f"{kind}-embed", "embed", kinds=("Embedding",), path=path),
                    Model(f"{kind}-text", "chat_text", input="Text", kinds=("Chat",), path=path),
                )
            )
            for kind in KINDS
        }


def plain(answer: Answer) -> tuple[int, str]:
    """An answer without what differs from request to request: ids, the time and the names of the models."""
    text = re.sub(r'"(id|request_id)":"[^"]*"', r'"\1":_', answer.text)
    text = re.sub(r'"created":\d+', '"created":_', text)
    return answer.status, re.sub(rf"\b({'|'.join(KINDS)})-", "", text)


@pytest.mark.usefixtures("workers")
class TestAnswers:
    @pytest.mark.parametrize("kind", OURS)
    def test_a_model_is_listed_as_the_real_workers(self, front: Frontend, kind: str) -> None:
        listed = {each.pop("id"): each for each in front.get("/v1/models").json["data"]}
        for model in ("chat", "tool", "embed"):
            ours, real = listed[f"{kind}-{model}"], listed[f"peer-{model}"]
            assert {**ours, "created": 0} == {**real, "created": 0}

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_chat(self, front: Frontend, kind: str) -> None:
        answer = front.chat(f"{kind}-chat")
        assert (answer.status, answer.content) == (200, LETTERS)
        assert answer.json["choices"][0]["finish_reason"] == "length"
        assert answer.json["usage"]["completion_tokens"] == len(LETTERS)
        assert plain(answer) == plain(front.chat("peer-chat"))

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_streamed_chat(self, front: Frontend, kind: str) -> None:
        answer = front.chat(f"{kind}-chat", stream=True, max_tokens=7)
        assert [chunk["choices"][0]["delta"]["content"] for chunk in answer.chunks] == list("abcdefg")
        assert plain(answer) == plain(front.chat("peer-chat", stream=True, max_tokens=7))

    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize("kind", KINDS)
    def test_a_completion(self, front: Frontend, kind: str, stream: bool) -> None:
        answer = front.complete(f"{kind}-chat", stream=stream)
        assert (answer.status, answer.content) == (200, LETTERS)
        assert plain(answer) == plain(front.complete("peer-chat", stream=stream))

    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize("kind", KINDS)
    def test_a_tool_call(self, front: Frontend, kind: str, stream: bool) -> None:
        answer = front.chat(f"{kind}-tool", tools=[TOOL], stream=stream)
        choices = [each for chunk in answer.chunks for each in chunk["choices"]] if stream else answer.json["choices"]
        calls = [each.get("delta", each.get("message")).get("tool_calls") for each in choices]
        (call,) = next(each for each in calls if each)
        assert call["function"] == {"name": "weather", "arguments": '{"city": "Bern"}'}
        assert choices[-1]["finish_reason"] == "tool_calls"

    @pytest.mark.parametrize("kind", KINDS)
    def test_log_probabilities(self, front: Frontend, kind: str) -> None:
        answer = front.chat(f"{kind}-chat", logprobs=True, top_logprobs=1)
        told = answer.json["choices"][0]["logprobs"]["content"]
        assert [(each["token"], each["logprob"]) for each in told] == [(letter, -0.25) for letter in LETTERS]
        assert plain(answer) == plain(front.chat("peer-chat", logprobs=True, top_logprobs=1))

    @pytest.mark.parametrize("kind", KINDS)
    def test_several_choices(self, front: Frontend, kind: str) -> None:
        choices = front.chat(f"{kind}-chat", n=2).json["choices"]
        assert {each["index"]: each["message"]["content"] for each in choices} == {0: "abcd", 1: "bcde"}

    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize("kind", KINDS)
    def test_a_stop_string_ends_the_answer(self, front: Frontend, kind: str, stream: bool) -> None:
        answer = front.chat(f"{kind}-chat", stop="f", max_tokens=1000, stream=stream)
        assert (answer.status, answer.content) == (200, "abcde")
        assert '"finish_reason":"stop"' in answer.text

    @pytest.mark.parametrize("kind", KINDS)
    def test_embeddings(self, front: Frontend, kind: str) -> None:
        answer = front.post("/v1/embeddings", {"model": f"{kind}-embed", "input": ["ab", "abcde"]})
        assert [each["embedding"] for each in answer.json["data"]] == [[0.5, 2.0], [0.5, 5.0]]
        assert answer.json["usage"] == {"prompt_tokens": 7, "total_tokens": 7}

    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize("kind", KINDS)
    def test_a_model_of_text(self, front: Frontend, kind: str, stream: bool) -> None:
        """The engine gets the client's request and yields OpenAI's chunks."""
        answer = front.chat(f"{kind}-text", "good morning", stream=stream)
        assert (answer.status, answer.content) == (200, "you said good morning ")
        assert '"id":"mine-1"' in answer.text

    @pytest.mark.parametrize("kind", KINDS)
    def test_what_a_model_is_not_for_is_not_found(self, front: Frontend, kind: str) -> None:
        assert front.complete(f"{kind}-text").status == 404
        assert front.post("/v1/embeddings", {"model": f"{kind}-chat", "input": "a"}).status == 404

    def test_an_unknown_model_is_not_found(self, front: Frontend) -> None:
        assert front.chat("unheard-of").status == 404

    @pytest.mark.parametrize("kind", OURS)
    @pytest.mark.parametrize("number", range(len(CASES)), ids=[case.name for case in CASES])
    def test_items_and_errors(self, front: Frontend, kind: str, number: int) -> None:
        """Each shape of an answer and each exception: the status and the text are the real worker's, to the letter."""
        asked: dict[str, Any] = {"seed": number, "logprobs": True}
        for stream in (False, True):
            ours, real = (plain(front.chat(f"{who}-chat", stream=stream, **asked)) for who in (kind, "peer"))
            assert ours == real, f"{stream=}"
            assert real[0] == (200 if stream else _expected(front, CASES[number])), real[1]


def _expected(front: Frontend, case: Case) -> int:
    return case.statuses[VERSIONS[::-1].index(front.version)]
