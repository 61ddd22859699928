"""The life of an engine under `backend.Worker`: order, errors, signals. tests/interop asks real Dynamo the same."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from dynamo_fast.backend import DisaggregationMode, EngineConfig, LlmRegistration, RuntimeConfig, Worker, WorkerConfig
from dynamo_fast.errors import DynamoError
from dynamo_fast.llm import ModelInput
from dynamo_fast.runtime import Client, Context, DistributedRuntime, InvalidArgument
from tests.backend.engines import Engine
from tests.llm.folders import make_folder
from tests.waiting import until

LIMIT = 20
START = ["start", "register_prometheus", "component_metrics_dp_ranks"]
PUBLISHING = ["kv_event_sources", "on_ready", "attach_snapshot_publisher"]
SERVING = ["on_endpoint_ready", "supported_controls", "supported_updates", "health_check_payload"]
ALL = [*START, *PUBLISHING, *SERVING]


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DYN_FILE_KV", str(tmp_path / "store"))
    monkeypatch.setenv("DYN_TCP_RPC_HOST", "127.0.0.1")
    monkeypatch.setenv("DYN_TCP_RESPONSE_STREAM_HOST", "127.0.0.1")
    monkeypatch.setenv("DYN_EVENT_PLANE", "zmq")
    monkeypatch.setenv("DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS", "0")


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(make_folder(tmp_path / "model"))


def make(engine: Any, *, raw: bool = False, **config: Any) -> Worker:
    config = {"namespace": "ns", "runtime": RuntimeConfig("file", "tcp"), **config}
    return Worker(engine, WorkerConfig(**config), asyncio.get_running_loop(), raw)


@asynccontextmanager
async def running(engine: Engine, *, raw: bool = False, **config: Any) -> AsyncIterator[asyncio.Future[None]]:
    """A worker that serves. If it still runs at the end of the block, it is told to stop."""
    run = make(engine, raw=raw, **config).run()
    await until(lambda: run.done() or "health_check_payload" in engine.calls)
    if run.done():
        await run
    try:
        yield run
    finally:
        if not run.done():
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.wait_for(run, LIMIT)


@asynccontextmanager
async def client(path: str = "ns.backend.generate") -> AsyncIterator[Client]:
    runtime = DistributedRuntime(asyncio.get_running_loop(), "file", "tcp")
    try:
        made = await runtime.endpoint(path).client()
        await asyncio.wait_for(made.wait_for_instances(), LIMIT)
        yield made
    finally:
        runtime.shutdown()
        await runtime.ended()


def request(**fields: Any) -> dict[str, Any]:
    return {"token_ids": [1, 2], **fields}


async def answer(client: Client, request: Any, context: Context | None = None) -> list[Any]:
    return [item.data() async for item in await client.generate(request, context=context)]


async def test_an_engine_is_called_in_dynamos_order(model: str) -> None:
    engine = Engine(model)
    async with running(engine, model_name=model), client() as caller:
        assert await answer(caller, request()) == [{"token_ids": [7], "index": 0, "finish_reason": "stop"}]
        assert engine.worker_id == engine.endpoint.connection_id() == caller.instance_ids()[0]
    assert engine.calls == [*ALL, "generate", "generated", "cleanup"]


async def test_without_kv_routing_nothing_is_published(model: str) -> None:
    engine = Engine(model)
    async with running(engine, model_name=model, enable_kv_routing=False):
        pass
    assert engine.calls == [*START, *SERVING, "cleanup"]


async def test_a_raw_engine_has_fewer_methods_that_are_called() -> None:
    engine = Engine()
    config = {"model_input": ModelInput.Text, "endpoint_types": "images", "enable_kv_routing": False}
    async with running(engine, raw=True, **config), client() as caller:
        chunks = [{"data": [1]}, {"finish_reason": "no word of ours"}]
        answered = await answer(caller, {"prompt": "a cat", "chunks": chunks})
    assert answered[:2] == chunks
    assert engine.calls == [*START, "health_check_payload", "generate", "generated", "cleanup"]


async def test_an_engine_needs_three_methods_only(model: str) -> None:
    class Small:
        async def start(self, worker_id: int) -> EngineConfig:
            return EngineConfig(model)

        async def generate(self, request: Any, context: Context) -> AsyncIterator[Any]:
            try:
                if request.get("wait"):
                    yield {"token_ids": [0], "index": 0}
                    await context.async_killed_or_stopped()
                yield {"token_ids": [1], "index": 0, "finish_reason": "stop"}
            finally:
                closed.append(True)

        async def cleanup(self) -> None:
            cleaned.append(True)

    cleaned: list[bool] = []
    closed: list[bool] = []
    run = make(Small(), model_name=model).run()
    async with client() as caller:
        assert len(await answer(caller, request())) == 1
        closed.clear()
        context = Context()
        await caller.generate(request(wait=True), context=context)
        context.stop_generating()  # it has no `abort`
        await until(lambda: closed)
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(run, LIMIT)
    assert cleaned == [True]


STEPS = [
    *((step, "Internal: RuntimeError: boom") for step in [*START, "kv_event_sources"]),
    ("on_ready", "Unavailable: kv publisher on_ready (dp_rank=0): Internal: RuntimeError: boom"),
    ("attach_snapshot_publisher", "Unavailable: snapshot publisher on_ready: Internal: RuntimeError: boom"),
    *((step, "Internal: RuntimeError: boom") for step in SERVING[:3]),
]


@pytest.mark.parametrize(("step", "text"), STEPS, ids=[step for step, _ in STEPS])
async def test_an_error_before_it_serves_ends_the_run_after_the_cleanup(
    step: str, text: str, model: str, tmp_path: Path
) -> None:
    engine = Engine(model, failing=step)
    with pytest.raises(DynamoError) as raised:
        await asyncio.wait_for(make(engine, model_name=model).run(), LIMIT)
    assert str(raised.value) == text
    assert engine.calls == [*ALL[: ALL.index(step) + 1], "cleanup"]
    assert [each for each in (tmp_path / "store").rglob("*") if each.is_file()] == []


@pytest.mark.parametrize(
    ("error", "text"),
    [(InvalidArgument("no"), "InvalidRequest: no"), (ValueError("no"), "InvalidRequest: ValueError: no")],
)
async def test_the_class_of_an_error_is_dynamos(error: Exception, text: str) -> None:
    with pytest.raises(DynamoError) as raised:
        await make(Engine(failing="start", error=error)).run()
    assert (str(raised.value), raised.value.__cause__) == (text, error)


async def test_a_start_that_returns_nothing_is_an_error() -> None:
    engine = Engine()
    engine.config = {"model": "m"}
    with pytest.raises(DynamoError, match="Internal: AttributeError: 'dict' object has no attribute 'model'"):
        await make(engine).run()
    assert engine.calls == ["start", "cleanup"]


async def test_an_engine_that_fails_to_say_how_it_is_checked_is_not_checked(
    model: str, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Engine(model, failing="health_check_payload")
    async with running(engine, model_name=model), client() as caller:
        assert len(await answer(caller, request())) == 1
    assert "health_check_payload() failed: the endpoint is not checked" in caplog.text


async def test_a_cleanup_that_fails_is_logged(model: str, caplog: pytest.LogCaptureFixture) -> None:
    async with running(Engine(model, failing="cleanup"), model_name=model):
        pass
    assert "the engine's cleanup failed" in caplog.text


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_after_the_requests_in_flight(
    number: signal.Signals, model: str, tmp_path: Path
) -> None:
    before = signal.getsignal(number)
    engine = Engine(model)
    async with running(engine, model_name=model) as run, client() as caller:
        answering = asyncio.ensure_future(answer(caller, request(wait=True)))
        await engine.began.wait()
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # another one changes nothing
        await until(lambda: not list((tmp_path / "store" / "v1" / "instances").glob("ns%2Fbackend%2Fgenerate%2F*")))
        assert not list((tmp_path / "store" / "v1" / "mdc").iterdir())
        assert "cleanup" not in engine.calls
        engine.may_end.set()
        assert len(await answering) == 1
        await asyncio.wait_for(run, LIMIT)
    assert engine.calls[-2:] == ["generated", "cleanup"]
    assert signal.getsignal(number) == before


async def test_the_grace_period_is_waited_for_once(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS", "0.1")
    delays = []

    class Watched(Engine):
        async def cleanup(self) -> None:
            delays.append((await self.endpoint.worker()).config.leave_delay)

    engine = Watched(model)
    async with running(engine, model_name=model):
        delays.append((await engine.endpoint.worker()).config.leave_delay)
    assert delays == [0.1, 0.0]  # the endpoints of KV events are closed after the cleanup


async def test_requests_that_do_not_end_are_cancelled_when_time_is_up(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DYNAMO_FAST_GRACE", "0")
    engine = Engine(model)
    async with running(engine, model_name=model) as run, client() as caller:
        answering = asyncio.ensure_future(answer(caller, request(wait=True)))
        await engine.began.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(DynamoError):
            await answering
        await asyncio.wait_for(run, LIMIT)
    assert engine.calls[-2:] == ["generated", "cleanup"]


async def test_a_signal_while_the_engine_starts(model: str) -> None:
    class Starting(Engine):
        async def start(self, worker_id: int) -> Any:
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(0)
            return await super().start(worker_id)

    engine = Starting(model)
    await asyncio.wait_for(make(engine, model_name=model).run(), LIMIT)
    assert engine.calls == [*START, *PUBLISHING, "cleanup"]


@pytest.mark.parametrize("answers", [[True], [False, None, True]])
async def test_a_prefill_worker_waits_until_its_engine_is_quiescent(answers: list[bool | None], model: str) -> None:
    engine = Engine(model)
    engine.quiescent = list(answers)
    async with running(engine, model_name=model, disaggregation_mode=DisaggregationMode.Prefill):
        pass
    assert engine.calls[len(ALL) :] == ["is_quiescent"] * len(answers) + ["cleanup"]


@pytest.mark.parametrize("failing", ["", "is_quiescent"])
async def test_a_prefill_worker_waits_for_a_limited_time(
    failing: str, model: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DYN_PREFILL_DRAIN_TIMEOUT_S", "0.1")
    engine = Engine(model, failing=failing)
    engine.quiescent = [None]
    async with running(engine, model_name=model, disaggregation_mode=DisaggregationMode.Prefill):
        pass
    assert engine.calls[len(ALL) :] == ["is_quiescent", "is_quiescent", "cleanup"]
    assert "the engine was not quiescent after 0.1 s" in caplog.text


async def test_a_run_that_is_cancelled_cleans_up(model: str, tmp_path: Path) -> None:
    engine = Engine(model)
    async with running(engine, model_name=model) as run:
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
    assert engine.calls == [*ALL, "cleanup"]
    assert [each for each in (tmp_path / "store").rglob("*") if each.is_file()] == []


@pytest.mark.parametrize("kill", [False, True])
async def test_abort_is_called_once_when_the_caller_stops(kill: bool, model: str) -> None:
    engine = Engine(model)
    async with running(engine, model_name=model), client() as caller:
        context = Context("the-id")
        answering = asyncio.ensure_future(answer(caller, request(wait=True), context))
        await engine.began.wait()
        if kill:
            answering.cancel()
        else:
            context.stop_generating()
        await until(lambda: engine.aborted)
        engine.may_end.set()
        await asyncio.wait([answering])
        await until(lambda: "generated" in engine.calls)
    assert engine.aborted == ["the-id"]


async def test_an_abort_that_fails_is_logged(model: str, caplog: pytest.LogCaptureFixture) -> None:
    engine = Engine(model, failing="abort")
    async with running(engine, model_name=model), client() as caller:
        context = Context("the-id")
        answering = asyncio.ensure_future(answer(caller, request(wait=True), context))
        await engine.began.wait()
        context.stop_generating()
        await until(lambda: "failed to abort the request the-id" in caplog.text)
        engine.may_end.set()
        await asyncio.wait([answering])


async def test_a_second_run_is_refused() -> None:
    worker = make(Engine(failing="start"))
    run = worker.run()
    with pytest.raises(RuntimeError, match=r"Worker\.run\(\) can only be called once per Worker instance"):
        worker.run()
    with pytest.raises(DynamoError):
        await run


def test_a_run_needs_a_running_loop() -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        Worker(Engine, WorkerConfig("ns"), None).run()


@pytest.mark.parametrize(
    ("config", "raw", "text"),
    [
        (
            {"model_input": ModelInput.Text},
            False,
            "InvalidRequest: LLMEngine (token pipeline) requires ModelInput::Tokens; got 'text'. Use a RawEngine for "
            "ModelInput::Text / Tensor.",
        ),
        (
            {},
            True,
            "InvalidRequest: RawEngine (raw media pipeline) requires ModelInput::Text or ::Tensor; got 'tokens'.",
        ),
        (
            {"disaggregation_mode": DisaggregationMode.Decode, "route_to_encoder": True},
            False,
            "InvalidRequest: --route-to-encoder is meaningful only for --disaggregation-mode agg|prefill; got 'decode'.",
        ),
        (
            {"runtime": RuntimeConfig("bogus")},
            False,
            "InvalidRequest: distributed runtime config: Unknown key-value store type 'bogus'",
        ),
        (
            {"runtime": RuntimeConfig("mem", "bogus")},
            False,
            "InvalidRequest: distributed runtime config: Invalid request plane mode: 'bogus'.",
        ),
    ],
)
async def test_a_configuration_that_does_not_fit_is_refused_before_the_start(
    config: dict[str, Any], raw: bool, text: str
) -> None:
    engine = Engine()
    with pytest.raises(DynamoError) as raised:
        await make(engine, raw=raw, **config).run()
    assert str(raised.value).startswith(text)
    assert engine.calls == []


async def test_snapshots_are_published_as_gauges(model: str) -> None:
    engine = Engine(model)
    engine.config = EngineConfig("the-model", served_model_name="served", llm=LlmRegistration(kv_cache_block_size=16))
    async with running(engine, model_name=model):
        kv, snapshots = engine.publishers
        assert type(kv).__name__ == "KvEventPublisher"
        snapshot = {"kv_used_blocks": 3, "kv_total_blocks": 10, "gpu_cache_usage": 0.5, "kv_cache_hit_rate": None}
        snapshots.publish(0, type("Snapshot", (), snapshot))
        with pytest.raises(AttributeError, match="kv_used_blocks"):
            snapshots.publish(0, object())
        assert engine.metrics.auto_labels == {
            "dynamo_namespace": "ns",
            "dynamo_component": "backend",
            "dynamo_endpoint": "generate",
            "worker_id": f"{engine.worker_id:x}",
            "model": "the-model",
            "model_name": "served",
        }


def fetch(url: str, body: Any = None) -> tuple[int, str]:
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(asked, timeout=LIMIT) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.fixture
def status_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYN_SYSTEM_PORT", "0")
    monkeypatch.setenv("DYN_SYSTEM_HOST", "127.0.0.1")


@pytest.mark.usefixtures("status_server")
async def test_the_status_server_has_its_metrics_and_the_engines(model: str) -> None:
    class Snapshot:
        kv_used_blocks, kv_total_blocks, gpu_cache_usage, kv_cache_hit_rate = 3, 10, 0.5, None

    engine = Engine(model)
    async with running(engine, model_name=model):
        url = engine.endpoint._hub.status.url
        engine.metrics.register_prometheus_expfmt_callback(lambda: "mine_total 5\n")
        engine.metrics.register_prometheus_typed_callback(list)
        await until(lambda: len(engine.publishers) == 2)
        engine.publishers[1].publish(0, Snapshot())
        status, text = await asyncio.to_thread(fetch, f"{url}/metrics")
        health, _ = await asyncio.to_thread(fetch, f"{url}/health")
    assert (status, health) == (200, 200)
    labels = engine.metrics.auto_labels
    found = [line for line in text.splitlines() if line.startswith(("dynamo_component_", "mine_"))]
    for name, value, extra in (
        ("gpu_cache_usage_percent", "0.5", {"dp_rank": "0"}),
        ("total_blocks", "10.0", {"dp_rank": "0"}),
        ("drain_time_seconds", "0.0", {}),
    ):
        shown = ",".join(f'{key}="{each}"' for key, each in sorted({**labels, **extra}.items()))
        assert f"dynamo_component_{name}{{{shown}}} {value}" in found
    assert "mine_total 5" in found
    assert not [line for line in found if "kv_cache_hit_rate" in line]


@pytest.mark.usefixtures("status_server")
async def test_the_status_server_has_a_route_for_each_control_and_update(model: str, tmp_path: Path) -> None:
    engine = Engine(model)
    async with running(engine, model_name=model):
        url = f"{engine.endpoint._hub.status.url}/engine"
        status, text = await asyncio.to_thread(fetch, f"{url}/control/pause", {"a": 1})
        assert (status, json.loads(text)) == (200, {"control": "pause", "body": {"a": 1}})
        status, text = await asyncio.to_thread(fetch, f"{url}/update/weights", {})
        assert (status, json.loads(text)) == (200, {"update": "weights", "body": {}})
        status, text = await asyncio.to_thread(fetch, f"{url}/control/pause", [1])
        assert json.loads(text)["message"] == "engine control request body must be a JSON object"
        status, _ = await asyncio.to_thread(fetch, f"{url}/control/nope", {})
        assert status == 404

        for body, wrong in ({"taints": 5}, "'taints' must be a JSON array of strings"), ([], "must be a JSON object"):
            status, text = await asyncio.to_thread(fetch, f"{url}/update/model_taints", body)
            assert (status, wrong in text) == (500, True)
        status, text = await asyncio.to_thread(fetch, f"{url}/update/model_taints", {"taints": ["b", "a"]})
        assert (status, json.loads(text)) == (200, {"status": "ok", "taints": ["a", "b"]})
        (card,) = (tmp_path / "store" / "v1" / "mdc").iterdir()
        assert json.loads(card.read_text())["card_json"]["runtime_config"]["taints"] == ["a", "b"]


def test_in_another_thread_it_runs_without_signals(model: str, caplog: pytest.LogCaptureFixture) -> None:
    engine_calls: list[str] = []

    async def main() -> None:
        engine = Engine(model)
        run = make(engine, model_name=model).run()
        await until(lambda: "health_check_payload" in engine.calls)
        run.cancel()
        await asyncio.wait([run])
        engine_calls.extend(engine.calls)

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    thread.join(LIMIT)
    assert engine_calls == [*ALL, "cleanup"]
    assert "do not end this worker: it does not run in the main thread" in caplog.text


@pytest.fixture(autouse=True)
def no_other_handlers() -> Iterator[None]:
    """A test that fails while a worker runs must not leave its signal handlers behind."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
