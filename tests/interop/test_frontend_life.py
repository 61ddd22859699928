"""Workers that come, go and die behind Dynamo's own frontend, and clients that go away."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks import model_folder
from tests.discovery.etcd_server import etcd
from tests.interop.frontends import Frontend, Model, ModelWorker, Stream, frontend, model_worker, until
from tests.interop.peers import VERSIONS
from tests.interop.test_frontend import KINDS, OURS

pytestmark = pytest.mark.frontend

QUICK = 0.1
"""Seconds within which a handler is stopped."""
TRIES = 30
"""Attempts at what must be quick: a busy machine delays some of them. The first that is quick is enough."""
LOST = {"1.6.1": 503, "1.3.1": 500}
"""What a frontend makes of a worker that is lost."""
BOTH = {"1.6.1": 200, "1.3.1": 404}
"""Completions of a model of text that is one for chat, too."""
OVERLOADED = 529


@pytest.fixture(params=VERSIONS)
def front(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Frontend]:
    """One for each test: a frontend keeps four inotify instances for each model that it has seen."""
    with frontend(request.param, tmp_path) as started:
        yield started


@pytest.fixture
def path(front: Frontend) -> str:
    return str(model_folder.write(front.folder / "tiny"))


def begun(front: Frontend, name: str, *workers: ModelWorker) -> tuple[Stream, ModelWorker]:
    """An answer that has its first token, and whose it is. The model's handler is `held`."""
    stream = front.stream(name)
    assert '"content":"a"' in stream.event()
    whose: list[ModelWorker] = []

    def is_told() -> bool:
        whose.extend(each for each in workers if each.has_told("request"))
        return bool(whose)

    until(is_told)
    return stream, whose[0]


@pytest.mark.parametrize("kind", KINDS)
def test_the_handler_of_a_client_that_is_gone_is_stopped(front: Frontend, path: str, kind: str) -> None:
    """Within 100 ms, as the handler itself sees it."""
    name = "gone"

    def took() -> float:
        with begun(front, name, worker)[0]:
            left = time.monotonic()
        return float(worker.expect("stopped")["at"]) - left

    with model_worker(kind, front, Model(name, "held", path=path)) as worker:
        assert any(took() < QUICK for _ in range(TRIES))


@pytest.mark.parametrize("kind", OURS)
def test_the_same_for_an_answer_that_does_not_stream(front: Frontend, path: str, kind: str) -> None:
    """Asked of this project's workers only: what Dynamo's own does here is not looked at."""

    def took() -> float:
        connection = front.asked("gone")
        worker.expect("held")
        left = time.monotonic()
        connection.close()
        return float(worker.expect("stopped")["at"]) - left

    with model_worker(kind, front, Model("gone", "held", path=path)) as worker:
        assert any(took() < QUICK for _ in range(TRIES))


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_handler_gets(front: Frontend, path: str, kind: str) -> None:
    name = "heard"
    options = {"max_tokens": 9, "temperature": 0.5, "stop": ["x"], "logprobs": True, "top_logprobs": 2}
    with model_worker(kind, front, Model(name, "held", path=path)) as worker:
        worker.go()
        assert front.chat(name, "abc", **options).content == "az"
        request = worker.expect("request")["request"]
    assert request["model"] == name
    assert all(isinstance(token, int) for token in request["token_ids"])
    assert (request["stop_conditions"]["max_tokens"], request["stop_conditions"]["stop"]) == (9, ["x"])
    assert request["sampling_options"]["temperature"] == 0.5
    assert request["output_options"]["logprobs"] == 2
    assert request["eos_token_ids"] == [model_folder.EOS]


@pytest.mark.parametrize("kind", KINDS)
def test_completions_and_embeddings_of_models_of_text(front: Frontend, path: str, kind: str) -> None:
    models = (
        Model("words", "complete_text", input="Text", kinds=("Completions",), path=path),
        Model("both", "complete_text", input="Text", path=path),
        Model("vectors", "embed_text", input="Text", kinds=("Embedding",), path=path),
    )
    with model_worker(kind, front, *models):
        answer = front.complete("words", "good")
        assert (answer.status, answer.content) == (200, "after good")
        assert front.complete("both", "good").status == BOTH[front.version]
        answer = front.post("/v1/embeddings", {"model": "vectors", "input": ["ab", "abcde"]})
        assert [each["embedding"] for each in answer.json["data"]] == [[0.5, 2.0], [0.5, 5.0]]


@pytest.mark.parametrize("kind", KINDS)
def test_two_instances_share_the_requests_and_one_takes_over(front: Frontend, path: str, kind: str) -> None:
    name = "shared"
    model = Model(name, "held", path=path)
    with (
        model_worker(kind, front, model) as one,
        model_worker(kind, front, model) as other,
        ExitStack() as opened,
    ):
        streams: dict[ModelWorker, Stream] = {}
        while len(streams) < 2:  # round robin, once the frontend knows both
            stream, worker = begun(front, name, one, other)
            streams.setdefault(worker, opened.enter_context(stream))
        one.process.kill()
        other.go()
        assert f'"code":{LOST[front.version]}' in streams[one].rest().text
        assert streams[other].rest().content == "z"
        until(lambda: [front.chat(name).status for _ in range(8)] == [200] * 8)  # once it knows that one is lost


@pytest.mark.parametrize("kind", KINDS)
def test_the_only_instance_is_killed(front: Frontend, path: str, kind: str) -> None:
    """1.3.1 lists it until its record expires."""
    name = "only"
    with model_worker(kind, front, Model(name, "held", path=path)) as worker:
        stream, _ = begun(front, name, worker)
        worker.process.kill()
        assert f'"code":{LOST[front.version]}' in stream.rest().text
        assert front.chat(name).status in (LOST[front.version], 503)
        front.wait_until_gone(name)


@pytest.mark.parametrize("kind", OURS)
def test_a_terminated_worker_delivers_what_it_has_begun(front: Frontend, path: str, kind: str) -> None:
    """Its model leaves the list at once. The answer in flight comes to its end."""
    name = "terminated"
    at_once = {"DYNAMO_FAST_LEAVE_DELAY": "0"}  # so that it waits for the answer, and not for the news to spread
    with model_worker(kind, front, Model(name, "held", path=path), settings=at_once) as worker:
        stream, _ = begun(front, name, worker)
        worker.process.send_signal(signal.SIGTERM)
        front.wait_until_gone(name)
        assert front.chat(name).status == 404
        worker.go()
        rest = stream.rest()
        assert (rest.content, rest.events[-1]) == ("z", "data: [DONE]")
        assert worker.ended() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_an_overloaded_worker(front: Frontend, path: str, kind: str) -> None:
    """One request runs, one or two wait (one may be on its way from the queue); the others are refused at once."""
    name = "busy"
    limits = {"DYN_ENGINE_REQUEST_LIMIT": "1", "DYN_DYNAMO_REQUEST_QUEUE_LIMIT": "1"}
    with (
        model_worker(kind, front, Model(name, "held", path=path), settings=limits) as worker,
        ThreadPoolExecutor(5) as clients,
    ):
        answers = as_completed([clients.submit(front.chat, name) for _ in range(5)])
        try:
            assert [next(answers).result().status for _ in range(2)] == [OVERLOADED] * 2
        finally:
            worker.go()
        assert {200} <= {answer.result().status for answer in answers} <= {200, OVERLOADED}


@pytest.mark.parametrize("kind", KINDS)
def test_an_engine_that_shuts_down_gets_no_more_requests(front: Frontend, path: str, kind: str) -> None:
    """GeneratorExit: the frontend leaves the worker out for some seconds."""
    name = "leaving"
    with model_worker(kind, front, Model(name, "leave", path=path)):
        assert front.chat(name).status == LOST[front.version]
        assert front.chat(name).status == 503


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_is_a_model_of_its_own(front: Frontend, path: str, kind: str) -> None:
    base, adapter = "base", "lora"
    with model_worker(kind, front, Model(base, "held", path=path, loras=(adapter,))) as worker:
        worker.go()
        for name, lora in ((base, None), (adapter, adapter)):
            assert front.chat(name).json["model"] == name
            request = worker.expect("request")["request"]
            assert (request["model"], (request.get("routing") or {}).get("lora_name")) == (name, lora)


@pytest.mark.parametrize("kind", KINDS)
def test_an_alias_is_a_further_name(front: Frontend, path: str, kind: str) -> None:
    if front.version != "1.6.1":
        pytest.skip("1.3.1 does not know aliases")
    name, alias = "named", "alias"
    with model_worker(kind, front, Model(name, "held", path=path, aliases=(alias,))) as worker:
        worker.go()
        front.wait_for(alias)
        assert front.chat(alias).status == 200
        assert worker.expect("request")["request"]["model"] == name


@pytest.mark.parametrize("kind", KINDS)
def test_a_frontend_that_starts_later_finds_the_models(front: Frontend, path: str, kind: str) -> None:
    name = "early"
    with model_worker(kind, front, Model(name, path=path)), frontend(front.version, front.folder) as late:
        late.wait_for(name)
        assert late.chat(name).content == "abcd"


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_models_by_etcd(tmp_path: Path, version: str, kind: str) -> None:
    path = str(model_folder.write(tmp_path / "tiny"))
    with (
        etcd(tmp_path) as server,
        frontend(version, tmp_path, discovery="etcd", ETCD_ENDPOINTS=server.url) as front,
    ):
        with model_worker(kind, front, Model("etcd", path=path)):
            assert front.chat("etcd").content == "abcd"
        front.wait_until_gone("etcd")


@pytest.mark.parametrize("kind", OURS)
def test_endpoints_whose_last_names_are_the_same(front: Frontend, path: str, kind: str) -> None:
    """Dynamo's own worker of 1.3.1 mixes them up."""
    models = (
        Model("chat", path=path, endpoint="test.chat.generate"),
        Model("tool", "call_a_tool", path=path, endpoint="test.tool.generate", tool_call_parser="hermes"),
    )
    with model_worker(kind, front, *models):
        assert front.chat("chat").content == "abcd"
        assert "weather" in front.chat("tool").text
