"""The examples of the guides are run as they stand in docs."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dynamo_fast import AddressedPushRouter, AddressedRequest, FileDiscovery, ManyIn, Worker
from dynamo_fast.runtime import DistributedRuntime
from tests.discovery.kube_api import NAMESPACE, KubeApi, uid
from tests.llm.folders import make_folder
from tests.nats_server import NatsServer
from tests.net.certificates import Authority
from tests.observability.otlp import named
from tests.observability.recorded import Recorded, recorded
from tests.waiting import until

__all__ = ["recorded"]

DOCS = Path(__file__).parents[1] / "docs"
LIMIT = 20.0


@pytest.fixture(autouse=True)
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "DYN_FILE_KV": str(tmp_path),
        "DYN_TCP_RPC_HOST": "127.0.0.1",
        "DYN_TCP_RESPONSE_STREAM_HOST": "127.0.0.1",
        "DYNAMO_FAST_LEAVE_DELAY": "0",
    }.items():
        monkeypatch.setenv(name, value)


def examples(document: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / document).read_text(encoding="utf-8"), re.DOTALL)


def example(document: str, word: str) -> str:
    return next(each for each in examples(document) if word in each)


def names_of(source: str, **given: Any) -> dict[str, Any]:
    names = dict(given)
    exec(source, names)
    return names


async def run(source: str, **given: Any) -> dict[str, Any]:
    """Run statements that await something, at the top level; returns the names that they leave."""
    body = "".join(f"    {line}\n" for line in source.splitlines())
    names = dict(given)
    exec(f"async def main():\n{body}    return locals()\n", names)
    result: dict[str, Any] = await asyncio.wait_for(names["main"](), LIMIT)
    return result


async def answer(worker: Worker, request: Any) -> list[Any]:
    (served,) = worker.endpoints.values()
    async with await AddressedPushRouter.create() as router:
        stream = await router.generate(AddressedRequest.for_instance(request, served.instance))
        return [item.data() async for item in stream]


async def serving(handler: Callable[..., AsyncIterator[Any]], request: Any, **options: Any) -> list[Any]:
    worker = await Worker.start(FileDiscovery())
    await worker.serve(handler, "demo.backend.generate", **options)
    try:
        return await answer(worker, request)
    finally:
        await worker.close()


async def test_the_handler() -> None:
    handler = names_of(example("workers.md", "engine(request"), engine=str.split)["generate"]
    assert await serving(handler, {"prompt": "a b"}) == [{"token": "a"}, {"token": "b"}]


async def test_the_batches() -> None:
    class Engine:
        async def steps(self, request: Any) -> AsyncIterator[list[int]]:
            yield [1, 2]
            yield [3]

    handler = names_of(example("workers.md", "engine.steps"), engine=Engine())["generate"]
    assert await serving(handler, {}) == [{"token": 1}, {"token": 2}, {"token": 3}]


async def test_several_endpoints_and_their_life() -> None:
    async def echo(request: Any) -> AsyncIterator[Any]:
        yield request

    names = await run(example("workers.md", "embed_handler"), generate_handler=echo, embed_handler=echo)
    assert not names["worker"].endpoints


async def test_the_model(tmp_path: Path) -> None:
    async def generate(request: Any) -> AsyncIterator[Any]:
        yield request

    source = example("workers.md", "ModelCard").replace("/models/tiny", str(make_folder(tmp_path / "tiny")))
    names = await run(source, generate=generate)
    assert len(list((tmp_path / "v1" / "mdc").iterdir())) == 1
    await names["worker"].close()


async def test_the_bidirectional_endpoint() -> None:
    source = example("workers.md", "converse(requests")
    definition, _, statement = source.partition("\n\n\n")
    converse = names_of(definition)["converse"]
    worker = await Worker.start(FileDiscovery())
    await run(statement, worker=worker, converse=converse)

    async def requests() -> AsyncIterator[int]:
        yield 1
        yield 2

    assert await answer(worker, ManyIn(requests())) == [{"answer_to": 1}, {"answer_to": 2}]
    await worker.close()


async def test_the_kv_events_and_the_load(monkeypatch: pytest.MonkeyPatch) -> None:
    async def echo(request: Any) -> AsyncIterator[Any]:
        yield request

    monkeypatch.setenv("DYN_EVENT_PLANE_HOST", "127.0.0.1")
    worker = await Worker.start(FileDiscovery())
    served = await worker.serve(echo, "demo.backend.generate")
    (source,) = examples("kv-routing.md")
    names = await run(source, served=served)
    assert worker.companions == [names["events"], names["load"]]
    await worker.close()


def test_coming_from_dynamo_runtime() -> None:
    main = """
async def main():
    serving = asyncio.ensure_future(worker())
    await caller()
    serving.cancel()

asyncio.run(main())
"""
    program = "".join(examples("migrating.md")) + main
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=LIMIT, check=True)
    assert done.stdout == "{'text': 'hello'}\n{'text': 'there'}\n"


def test_the_examples_of_testing(tmp_path: Path) -> None:
    """A project of its own: the first example, then two files that name themselves."""
    first, conftest, limits = examples("testing.md")
    for name, source in {"test_hour.py": first, "conftest.py": conftest, "test_limits.py": limits}.items():
        (tmp_path / name).write_text(source, encoding="utf-8")
    options = ["-q", "-p", "no:cacheprovider", "-o", "asyncio_mode=auto", "-c", os.devnull]
    command = [sys.executable, "-m", "pytest", *options, "."]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=3 * LIMIT, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout


async def test_security_a_worker_and_a_router(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def handler(request: Any) -> AsyncIterator[Any]:
        yield request

    monkeypatch.chdir(tmp_path)
    authority = Authority(tmp_path)
    shutil.move(authority.path, tmp_path / "ca.crt")
    authority.identity("tls", "dynamo.internal")
    left = await run(example("security.md", "TlsConfig("), handler=handler)
    (served,) = left["worker"].endpoints.values()
    async with left["router"] as router:
        stream = await router.generate(AddressedRequest.for_instance({"n": 1}, served.instance))
        assert [item.data() async for item in stream] == [{"n": 1}]
    await left["worker"].close()


async def test_kubernetes_a_worker_and_the_drop_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def handler(request: Any) -> AsyncIterator[Any]:
        yield request

    async with KubeApi() as api:
        api.slice("slice", {"pod-a": True})
        for name, value in {"POD_NAME": "pod-a", "POD_UID": uid("pod-a"), "POD_NAMESPACE": NAMESPACE}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig(tmp_path / "config")))
        left = await run(example("kubernetes.md", "serve(handler"), handler=handler)
        monkeypatch.setenv("POD_NAME", "pod-b")
        runtime = DistributedRuntime(asyncio.get_running_loop(), "kubernetes", "tcp")
        client = await runtime.endpoint("demo.backend.generate").client()
        assert await client.wait_for_instances() == [left["worker"].discovery.connection_id]
        assert [item.data() async for item in await client.round_robin({"n": 1})] == [{"n": 1}]
        runtime.shutdown()
        await left["worker"].close()


# streaming.md


async def test_the_examples_of_streaming(capsys: pytest.CaptureFixture[str]) -> None:
    page = "streaming.md"
    handler, typed, raw, sink, dropin = examples(page)
    tokens = names_of(handler)["tokens"]
    expected = [{"text": f"token {index}", "index": index} for index in range(3)]
    discovery = FileDiscovery()
    worker = await Worker.start(discovery)
    served = await worker.serve(tokens, "demo.backend.generate")
    async with await AddressedPushRouter.create() as router:
        request = AddressedRequest.for_instance(None, served.instance)
        found = await run(typed, msgspec=msgspec, router=router, request=request)
        assert capsys.readouterr().out == "0 token 0\n1 token 1\n2 token 2\n"
        await run(raw, router=router, request=request)
        names = await run(sink, router=router, request=request)
        assert names["written"] == [request.payload_codec.encode(each) for each in expected]
        assert names["relay"].error is None
    runtime = DistributedRuntime(asyncio.get_running_loop(), "file", "tcp")
    client = await runtime.endpoint("demo.backend.generate").client()
    await client.wait_for_instances()
    names = await run(dropin, client=client, payload=None, Token=found["Token"])
    assert names["indexes"] == [0, 1, 2]
    runtime.shutdown()
    await worker.close()


async def test_nats_a_worker_a_caller_and_the_drop_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def handler(request: Any) -> AsyncIterator[Any]:
        yield request

    serving, drop_in, calling = examples("nats.md")
    with NatsServer(tmp_path) as server:
        monkeypatch.setenv("NATS_SERVER", server.url)
        worker = (await run(serving, handler=handler))["worker"]
        (served,) = worker.endpoints.values()
        assert served.instance.transport.kind == "nats_tcp"
        called = await run(calling)
        assert [item.data() async for item in called["stream"]] == [{"prompt": "hi"}]
        called["workers"].close()
        await called["router"].close()
        runtime = (await run(drop_in))["runtime"]
        client = await runtime.endpoint("demo.backend.generate").client()
        assert await client.wait_for_instances() == [served.instance.instance_id]
        assert [item.data() async for item in await client.round_robin({"n": 1})] == [{"n": 1}]
        runtime.shutdown()
        await runtime.ended()
        await worker.close()


async def test_observability_the_spans_of_a_program(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    async def handler(request: Any) -> AsyncIterator[Any]:
        yield request

    monkeypatch.setattr("opentelemetry.trace.set_tracer_provider", lambda provider: None)  # it is set for the test
    ask = names_of(example("observability.md", "TracerProvider"))["ask"]
    worker = await Worker.start(FileDiscovery())
    await worker.serve(handler, "demo.backend.generate")
    discovery = FileDiscovery()
    assert await ask({"n": 1}, discovery) == [{"n": 1}]
    await until(lambda: len(recorded.spans) == 3)
    (mine,), (call,) = named(recorded.spans, "ask"), named(recorded.spans, "router.route_request")
    assert call.parent_id == mine.span_id
    assert named(recorded.spans, "handle_payload")[0].parent_id == call.span_id
    await discovery.close()
    await worker.close()


async def test_observability_the_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each recipe, inside of one handler."""
    import loguru
    import structlog

    root, app, level = logging.getLogger(), logging.getLogger("app"), logging.getLogger().level
    handlers, out, printed = root.handlers[:], io.StringIO(), io.StringIO()
    monkeypatch.setenv("DYN_LOG", "info")
    monkeypatch.setenv("DYN_LOGGING_JSONL", "1")
    monkeypatch.setattr(sys, "stderr", out)
    names_of(example("observability.md", "configure_logging()"))
    names_of(example("observability.md", "RequestFilter"))
    names_of(example("observability.md", "structlog"))
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(printed))
    logger = names_of(example("observability.md", "loguru"))["logger"]
    sink = logger.add(
        printed, format="{extra[request_id]} {message}", filter=lambda record: "loguru" in record["message"]
    )

    async def handler(request: Any) -> AsyncIterator[Any]:
        app.info("logging", extra={"tokens": 3})
        structlog.get_logger().info("structlog", tokens=3)
        logger.info("loguru")
        yield request

    try:
        await serving(handler, {})
    finally:
        root.handlers[:], app.handlers[:] = handlers, []
        root.setLevel(level)
        logger.remove(sink)
        logger.configure(patcher=lambda record: None)
        structlog.reset_defaults()
    lines = out.getvalue().splitlines()
    (line,) = (json.loads(each) for each in lines if each.startswith("{") and '"message":"logging"' in each)
    ids = f"[{line['request_id']} {line['trace_id']}]"
    assert line["tokens"] == 3
    assert f"INFO {ids} logging" in lines
    first, second = printed.getvalue().splitlines()
    assert json.loads(first)["trace_id"] == line["trace_id"]
    assert second == f"{line['request_id']} loguru"
    assert loguru.logger is logger
