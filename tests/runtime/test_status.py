"""The system status server of a runtime, over HTTP."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from dynamo_fast.errors import InvalidConfig
from dynamo_fast.runtime import DistributedRuntime

LIMIT = 30


@pytest.fixture(autouse=True)
def loopback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("DYN_TCP_RPC_HOST", "DYN_TCP_RESPONSE_STREAM_HOST", "DYN_SYSTEM_HOST"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setenv("DYN_SYSTEM_PORT", "0")
    monkeypatch.setenv("DYNAMO_FAST_LEAVE_DELAY", "0")


def make() -> DistributedRuntime:
    return DistributedRuntime(asyncio.get_running_loop(), "mem", "tcp")


async def generate(request: Any) -> AsyncIterator[Any]:
    if request == "fail":
        raise RuntimeError("no")
    yield request


async def ask(
    runtime: DistributedRuntime, path: str, method: str = "GET", body: bytes | None = None
) -> tuple[int, str]:
    url = f"{runtime.system_status_server_url()}{path}"
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(LIMIT)) as session,
        session.request(method, url, data=body, headers={"content-type": "application/json"}) as answer,
    ):
        assert answer.content_type == "text/plain"
        return answer.status, await answer.text()


async def health(runtime: DistributedRuntime) -> tuple[int, str, dict[str, str]]:
    status, text = await ask(runtime, "/health")
    body = json.loads(text)
    assert list(body) == ["status", "uptime", "endpoints"]
    return status, body["status"], body["endpoints"]


async def end(runtime: DistributedRuntime) -> None:
    runtime.shutdown()
    await asyncio.wait_for(runtime.ended(), LIMIT)


async def test_health_without_payloads_is_what_the_process_says() -> None:
    runtime = make()
    assert await health(runtime) == (503, "notready", {})
    runtime.endpoint("a.b.generate").serve_endpoint(generate)
    await asyncio.wait_for((await runtime.endpoint("a.b.generate").client()).wait_for_instances(), LIMIT)
    assert await health(runtime) == (503, "notready", {"generate": "ready"})
    runtime.set_health_status(True)
    assert await health(runtime) == (200, "ready", {"generate": "ready"})
    assert await ask(runtime, "/live") != (404, "Route not found")
    await end(runtime)


async def test_health_follows_the_endpoints_with_payloads_and_their_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYN_HEALTH_CHECK_ENABLED", "true")
    monkeypatch.setenv("DYN_CANARY_WAIT_TIME", "0.05")
    runtime = make()
    runtime.endpoint("a.b.good").serve_endpoint(generate, health_check_payload={"x": 1})
    client = await runtime.endpoint("a.b.bad").client()
    runtime.endpoint("a.b.bad").serve_endpoint(lambda request: generate("fail"), health_check_payload={})
    await asyncio.wait_for(client.wait_for_instances(), LIMIT)

    async def good() -> None:
        while (await health(runtime))[2]["good"] != "ready":
            pass  # asking takes turns of the loop

    await asyncio.wait_for(good(), LIMIT)
    assert await health(runtime) == (503, "notready", {"good": "ready", "bad": "notready"})
    await end(runtime)


async def test_health_may_hang_on_named_endpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYN_SYSTEM_USE_ENDPOINT_HEALTH_STATUS", '["generate"]')
    monkeypatch.setenv("DYN_SYSTEM_STARTING_HEALTH_STATUS", "ready")
    monkeypatch.setenv("DYN_SYSTEM_HEALTH_PATH", "/well")
    runtime = make()
    assert await ask(runtime, "/health") == (404, "Route not found")
    assert (await ask(runtime, "/well"))[0] == 503
    await end(runtime)


async def test_metrics_before_and_after_requests() -> None:
    runtime = make()
    worker_id = f"{runtime.endpoint('a.b.generate').connection_id():x}"
    assert f'dynamo_component_uptime_seconds{{worker_id="{worker_id}"}}' in (await ask(runtime, "/metrics"))[1]
    endpoint = runtime.endpoint("a.b.generate")
    endpoint.serve_endpoint(generate, metrics_labels=[("model", "m")])
    client = await endpoint.client()
    await asyncio.wait_for(client.wait_for_instances(), LIMIT)
    assert [item.data() async for item in await client.round_robin("x")] == ["x"]
    text = (await ask(runtime, "/metrics"))[1]
    series = 'dynamo_component="b",dynamo_endpoint="generate",dynamo_namespace="a",model="m"'
    assert f'dynamo_component_requests_total{{{series},worker_id="{worker_id}"}} 1.0' in text
    await end(runtime)


async def test_engine_routes() -> None:
    runtime = make()

    async def route(body: Any) -> Any:
        if body == "fail":
            raise ValueError("nope")
        return {"got": body}

    runtime.register_engine_route("a/b", route)
    assert await ask(runtime, "/engine/a/b", "POST", b'{"x": 1}') == (200, '{"got":{"x":1}}')
    assert await ask(runtime, "/engine/a/b", "POST", b"") == (200, '{"got":{}}')
    status, text = await ask(runtime, "/engine/a/b", "POST", b"not json")
    assert (status, json.loads(text)["error"]) == (400, "Invalid JSON")
    message = '{"error":"Handler error","message":"Python callback failed: ValueError: nope"}'
    assert await ask(runtime, "/engine/a/b", "POST", b'"fail"') == (500, message)
    message = '{"error":"Route not found","message":"Route /engine/c not found"}'
    assert await ask(runtime, "/engine/c") == (404, message)
    assert (await ask(runtime, "/health", "POST"))[0] == 405
    assert await ask(runtime, "/metadata") == (404, "Discovery metadata not available")
    await end(runtime)


async def test_there_is_no_server_unless_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DYN_SYSTEM_PORT", "-1")
    runtime = make()
    assert runtime.system_status_server_url() is None
    await end(runtime)
    with socket.create_server(("127.0.0.1", 0)) as other:
        monkeypatch.setenv("DYN_SYSTEM_PORT", str(other.getsockname()[1]))
        runtime = make()
        assert runtime.system_status_server_url() is None
        assert "no status server" in caplog.text
        await end(runtime)
    monkeypatch.setenv("DYN_SYSTEM_STARTING_HEALTH_STATUS", "well")
    with pytest.raises(InvalidConfig, match="DYN_SYSTEM_STARTING_HEALTH_STATUS='well'"):
        make()
