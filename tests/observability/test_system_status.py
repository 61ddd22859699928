"""What a process says of itself over HTTP: native workers, hostile requests, and Prometheus's multi-process mode."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from dynamo_fast import AddressedPushRouter, AddressedRequest, Context, Worker, serve
from dynamo_fast.config import StatusConfig
from dynamo_fast.discovery.memory import MemoryDiscovery
from dynamo_fast.net.interfaces import is_bindable
from dynamo_fast.observability.status_server import Health, StatusServer
from dynamo_fast.runtime import DistributedRuntime
from tests.namespaces import environment
from tests.programs import started

LIMIT = 20
JSON = "application/json"
FORM = "application/x-www-form-urlencoded"


@pytest.fixture(autouse=True)
def loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DYN_TCP_RPC_HOST", "DYN_TCP_RESPONSE_STREAM_HOST", "DYN_SYSTEM_HOST"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setenv("DYN_SYSTEM_PORT", "0")
    monkeypatch.setenv("DYNAMO_FAST_LEAVE_DELAY", "0")


async def generate(request: Any) -> AsyncIterator[Any]:
    yield request


@asynccontextmanager
async def closing(worker: Worker) -> AsyncIterator[Worker]:
    try:
        yield worker
    finally:
        await worker.close()


@asynccontextmanager
async def runtime_here() -> AsyncIterator[DistributedRuntime]:
    runtime = DistributedRuntime(asyncio.get_running_loop(), "mem", "tcp")
    try:
        yield runtime
    finally:
        runtime.shutdown()
        await asyncio.wait_for(runtime.ended(), LIMIT)


async def ask(
    url: str | None,
    method: str = "GET",
    body: bytes | None = None,
    content_type: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> tuple[int, str]:
    assert url is not None
    headers = {**({} if content_type is None else {"content-type": content_type}), **(headers or {})}
    data = None if body is None else io.BytesIO(body)  # aiohttp warns of large bytes
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(LIMIT)) as session,
        session.request(
            method, url, data=data, headers=headers, skip_auto_headers=["content-type"], allow_redirects=False
        ) as answer,
    ):
        return answer.status, await answer.text()


async def healthy(url: str | None, path: str = "/health") -> tuple[int, str, dict[str, str]]:
    status, text = await ask(f"{url}{path}")
    body = json.loads(text)
    return status, body["status"], body["endpoints"]


# Native workers ------------------------------------------------------------------------------------------------------


async def test_a_native_worker_is_well_once_it_serves() -> None:
    async with closing(await Worker.start(MemoryDiscovery())) as worker:
        url = worker.status.url
        assert await healthy(url) == (503, "notready", {})
        await worker.serve(generate, "a.b.c")
        assert await healthy(url) == (200, "ready", {"c": "ready"})
        assert await healthy(url, "/live") == (200, "ready", {"c": "ready"})
        worker.status.healthy = False
        await worker.serve(generate, "a.b.d")
        assert await healthy(url) == (503, "notready", {"c": "ready", "d": "ready"})
    with pytest.raises(aiohttp.ClientConnectionError):
        await ask(f"{url}/live")


async def test_a_native_worker_follows_its_endpoints_with_payloads() -> None:
    async with closing(await Worker.start(MemoryDiscovery())) as worker:
        served = await worker.serve(generate, "a.b.c", health_check_payload={})
        worker.status.healthy = False
        assert await healthy(worker.status.url) == (200, "ready", {"c": "ready"})
        await served.unregister()
        assert await healthy(worker.status.url) == (503, "notready", {"c": "notready"})


async def test_metrics_of_a_worker_and_of_a_router_in_its_process() -> None:
    async with closing(await serve(generate, "a.b.c", MemoryDiscovery())) as worker:
        (served,) = worker.endpoints.values()
        router = await AddressedPushRouter.create()
        stream = await router.generate(AddressedRequest("x", served.address), Context())
        assert [item.data() async for item in stream] == ["x"]
        status, text = await ask(f"{worker.status.url}/metrics")
        assert status == 200
        assert 'dynamo_component="b",dynamo_endpoint="c",dynamo_namespace="a",worker_id=' in text
        assert "dynamo_component_uptime_seconds{" in text
        assert "dynamo_request_plane_queue_seconds_count " in text
        await router.close()


async def test_a_worker_that_cannot_start_leaves_no_status_server(
    unused_tcp_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DYN_SYSTEM_PORT", str(unused_tcp_port))
    monkeypatch.setenv("DYN_TCP_RPC_HOST", "nowhere0")
    with pytest.raises(ValueError, match="DYN_TCP_RPC_HOST='nowhere0' is not valid"):
        await Worker.start(MemoryDiscovery())
    with pytest.raises(aiohttp.ClientConnectionError):
        await ask(f"http://127.0.0.1:{unused_tcp_port}/live")


async def test_a_worker_without_a_status_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DYN_SYSTEM_PORT")
    async with closing(await serve(generate, "a.b.c", MemoryDiscovery())) as worker:
        assert worker.status.url is None
        assert worker.status.healthy


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM")
def test_the_command_serve_has_a_status_server(tmp_path: Path) -> None:
    (tmp_path / "engine.py").write_text("async def generate(request):\n    yield request\n")
    settings = environment(
        {
            "DYN_FILE_KV": str(tmp_path / "kv"),
            "DYN_TCP_RPC_HOST": "127.0.0.1",
            "DYN_SYSTEM_HOST": "127.0.0.1",
            "DYN_SYSTEM_PORT": "0",
        }
    )
    command = [sys.executable, "-m", "dynamo_fast", "serve", "engine:generate", "--endpoint", "a.b.c"]
    with started(command, settings, tmp_path) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline().startswith("serving a.b.c at ")
        url = worker.stdout.readline().removeprefix("status at ").strip()
        assert asyncio.run(healthy(url, "/live")) == (200, "ready", {"c": "ready"})
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(LIMIT) == 0


# Hosts ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "dialled", "advertised"),
    [
        ("::", "[::1]", "http://"),
        ("::", "127.0.0.1", "http://"),
        ("::1", "[::1]", "http://[::1]:"),
        ("[::1]", "[::1]", "http://[::1]:"),
        ("0.0.0.0", "127.0.0.1", "http://"),
        ("127.0.0.1", "127.0.0.1", "http://127.0.0.1:"),
        ("localhost", "localhost", "http://"),
        ("lo", "127.0.0.1", "http://127.0.0.1:"),
    ],
)
async def test_hosts(host: str, dialled: str, advertised: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if dialled == "[::1]" and not is_bindable("::1"):
        pytest.skip("IPv6 is switched off on this machine")
    monkeypatch.setenv("DYN_SYSTEM_HOST", host)
    async with runtime_here() as runtime:
        url = runtime.system_status_server_url()
        assert url is not None
        assert url.startswith(advertised)
        port = url.rpartition(":")[2]
        assert (await ask(f"http://{dialled}:{port}/live"))[0] == 503
        assert (await ask(f"{url}/live"))[0] == 503


async def test_an_unknown_host_is_only_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DYN_SYSTEM_HOST", "nowhere.invalid")
    async with closing(await serve(generate, "a.b.c", MemoryDiscovery())) as worker:
        assert worker.status.url is None
        assert "no status server at DYN_SYSTEM_HOST='nowhere.invalid'" in caplog.text


# Engine routes -------------------------------------------------------------------------------------------------------


DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.mark.parametrize(
    ("method", "content_type", "body", "status", "answer"),
    [
        ("POST", JSON, b'{"x": 1}', 200, '{"got":{"x":1}}'),
        ("POST", "Application/JSON; charset=utf-8", b"null", 200, '{"got":null}'),
        ("POST", JSON, b"", 200, '{"got":{}}'),
        ("GET", None, None, 405, '{"error":"Method not allowed","message":"engine routes take POST, not GET"}'),
        ("PUT", JSON, b"{}", 405, '{"error":"Method not allowed","message":"engine routes take POST, not PUT"}'),
        ("DELETE", JSON, b"{}", 405, "Method not allowed"),
        ("OPTIONS", None, None, 405, "Method not allowed"),
        ("POST", None, b"{}", 200, '{"got":{}}'),
        ("POST", None, b"", 200, '{"got":{}}'),
        ("POST", "text/plain", b"{}", 200, '{"got":{}}'),
        ("POST", FORM, b'{"x": 1}', 200, '{"got":{"x":1}}'),
        ("POST", FORM, b"x=1", 400, "Invalid JSON"),
        ("POST", JSON, b"{bad", 400, "Invalid JSON"),
        ("POST", JSON, b" ", 400, "Invalid JSON"),
        ("POST", JSON, b"\xff\xfe", 400, "Invalid JSON"),
        ("POST", JSON, b'"\\ud800"', 400, "Invalid JSON"),
        ("POST", JSON, b"NaN", 400, "Invalid JSON"),
        ("POST", JSON, b"1" * 5000, 400, "Invalid JSON"),
        ("POST", JSON, DEEP, 400, "Invalid JSON"),
        ("POST", JSON, b'{"a":' * 100_000 + b"1" + b"}" * 100_000, 400, "Invalid JSON"),
        ("POST", JSON, b'"' + b"x" * (2 << 20) + b'"', 413, ""),
        ("POST", JSON, b'"' + b"x" * (1 << 20) + b'"', 200, "xxx"),
    ],
    ids=lambda value: str(value)[:24],
)
async def test_what_an_engine_route_takes(
    method: str,
    content_type: str | None,
    body: bytes | None,
    status: int,
    answer: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    called = []

    async def route(value: Any) -> Any:
        called.append(value)
        return {"got": value}

    caplog.set_level(logging.WARNING)
    async with runtime_here() as runtime:
        runtime.register_engine_route("x", route)
        got, text = await ask(f"{runtime.system_status_server_url()}/engine/x", method, body, content_type)
    assert got == status, text
    assert answer in text
    assert len(called) == (status == 200)
    assert caplog.text == ""


@pytest.mark.parametrize("page", [{"origin": "http://evil"}, {"Origin": "null"}, {"sec-fetch-site": "cross-site"}])
@pytest.mark.parametrize("content_type", [None, "text/plain", FORM, "multipart/form-data", "application/jsonp", JSON])
async def test_a_web_page_cannot_call_an_engine_route_without_being_allowed(
    page: dict[str, str], content_type: str | None
) -> None:
    called = []

    async def route(value: Any) -> Any:
        called.append(value)

    async with runtime_here() as runtime:
        runtime.register_engine_route("x", route)
        url = f"{runtime.system_status_server_url()}/engine/x"
        status, text = await ask(url, "POST", b"{}", content_type, page)
        preflight, _ = await ask(url, "OPTIONS", headers={**page, "Access-Control-Request-Method": "POST"})
    assert (status, len(called)) == ((200, 1) if content_type == JSON else (415, 0)), text
    assert preflight == 405


async def test_an_answer_that_is_not_json_is_the_routes_fault() -> None:
    async def route(value: Any) -> Any:
        return {"text": "\ud800"} if value else object()

    async with runtime_here() as runtime:
        runtime.register_engine_route("x", route)
        for body in (b"1", b"0"):
            status, text = await ask(f"{runtime.system_status_server_url()}/engine/x", "POST", body, JSON)
            assert (status, json.loads(text)["error"]) == (500, "Handler error")


# Prometheus's multi-process mode -------------------------------------------------------------------------------------


METRICS = """
import asyncio, os, urllib.request
import prometheus_client
from dynamo_fast import serve
from dynamo_fast.discovery.memory import MemoryDiscovery
from dynamo_fast.observability.metrics import register
from dynamo_fast.runtime import DistributedRuntime

async def generate(request):
    yield request

def read(url):
    with urllib.request.urlopen(url, timeout=20) as answer:
        return answer.status

async def main():
    loop = asyncio.get_running_loop()
    register()
    runtime = DistributedRuntime(loop, "mem", "tcp")
    print(await loop.run_in_executor(None, read, runtime.system_status_server_url() + "/metrics"))
    runtime.endpoint("a.b.c").serve_endpoint(generate)
    client = await runtime.endpoint("a.b.c").client()
    await client.wait_for_instances()
    assert [item.data() async for item in await client.round_robin("x")] == ["x"]
    print(await loop.run_in_executor(None, read, runtime.system_status_server_url() + "/metrics"))
    runtime.shutdown()
    await runtime.ended()
    worker = await serve(generate, "a.b.c", MemoryDiscovery())
    prometheus_client.REGISTRY.register(worker.metrics)
    print(await loop.run_in_executor(None, read, worker.status.url + "/metrics"))
    await worker.close()

asyncio.run(asyncio.wait_for(main(), 20))
"""


@pytest.mark.parametrize("exists", [True, False])
def test_the_folder_of_multi_process_mode_is_left_alone(exists: bool, tmp_path: Path) -> None:
    folder = tmp_path / "prometheus"
    if exists:
        folder.mkdir()
    settings = environment(
        {
            "PROMETHEUS_MULTIPROC_DIR": str(folder),
            "DYN_SYSTEM_PORT": "0",
            "DYN_SYSTEM_HOST": "127.0.0.1",
            "DYN_TCP_RPC_HOST": "127.0.0.1",
            "DYN_TCP_RESPONSE_STREAM_HOST": "127.0.0.1",
            "DYNAMO_FAST_LEAVE_DELAY": "0",
        }
    )
    done = subprocess.run(
        [sys.executable, "-c", METRICS], env=settings, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "200\n" * 3, "")
    assert sorted(tmp_path.rglob("*")) == ([folder] if exists else [])


@pytest.mark.parametrize("started", [False, True], ids=["while it starts", "while it ends"])
async def test_a_close_that_is_cancelled_leaves_no_socket_open(started: bool) -> None:
    """As when the event loop ends meanwhile."""
    config = StatusConfig(host="127.0.0.1", port=0)
    server = StatusServer(config, lambda: Health(True, {}), lambda: b"", lambda: None)
    server.start()
    if started:
        assert server._starting is not None
        await server._starting
    closing = asyncio.ensure_future(server.close())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait([closing])
    assert list(server.open_sockets()) == [-1]
    if server._runner is not None:
        await server._runner.cleanup()
