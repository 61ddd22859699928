"""Export that the environment asks for: programs of their own, and a collector that is not ours to configure."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dynamo_fast.config import OtelConfig
from dynamo_fast.errors import InvalidConfig
from dynamo_fast.observability import otel_export
from tests.observability.otlp import LIMIT, Collector, Span, collector, named

PROGRAM = """
import asyncio
from dynamo_fast.runtime import DistributedRuntime

async def generate(request, context):
    with context.start_span("decode", {"model": "tiny"}):
        yield request

async def main():
    runtime = DistributedRuntime(asyncio.get_running_loop(), "file", "tcp")
    endpoint = runtime.endpoint("demo.backend.generate")
    serving = asyncio.ensure_future(endpoint.serve_endpoint(generate))
    client = await endpoint.client()
    await client.wait_for_instances()
    async for item in await client.round_robin("hello"):
        print(item.data())
    runtime.shutdown()
    await serving

asyncio.run(main())
"""


def run(folder: Path, program: str = PROGRAM, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "DYN_FILE_KV": str(folder),
        "DYN_TCP_RPC_HOST": "127.0.0.1",
        "DYN_TCP_RESPONSE_STREAM_HOST": "127.0.0.1",
        "DYNAMO_FAST_LEAVE_DELAY": "0",
        **settings,
    }
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "hello\n"
    return done


def settings_of(found: Collector, protocol: str) -> dict[str, str]:
    port = found.http_port if protocol == "http/protobuf" else found.grpc_port
    return {
        "OTEL_EXPORT_ENABLED": "true",
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
        "OTEL_EXPORTER_OTLP_HEADERS": "x-test=1",
    }


def all_three(spans: list[Span]) -> bool:
    return len(spans) == 3


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_spans_are_sent_when_the_environment_asks(tmp_path: Path, protocol: str) -> None:
    with collector() as found:
        run(tmp_path, OTEL_SERVICE_NAME="svc", **settings_of(found, protocol))
        spans = found.wait_for(all_three)
    (call,), (request,), (own,) = (named(spans, name) for name in ("router.route_request", "handle_payload", "decode"))
    assert {each.trace_id for each in spans} == {call.trace_id}
    assert (call.kind, request.kind, own.kind) == ("CLIENT", "SERVER", "INTERNAL")
    assert (request.parent_id, own.parent_id) == (call.span_id, request.span_id)
    assert {each.service for each in spans} == {"svc"}
    assert call.attributes["request.outcome"] == "success"
    assert own.attributes == {"model": "tiny"}
    assert all(each["x-test"] == "1" for each in found.sent_with)


def test_the_service_is_dynamo_by_default_and_the_ratio_decides(tmp_path: Path) -> None:
    with collector() as found:
        run(tmp_path, OTEL_TRACES_SAMPLE_RATIO="0", **settings_of(found, "grpc"))
        run(tmp_path, OTEL_TRACES_SAMPLE_RATIO="1", **settings_of(found, "grpc"))
        spans = found.wait_for(all_three)
    assert {each.service for each in spans} == {"dynamo"}


def test_a_collector_that_is_not_there_harms_no_request(tmp_path: Path) -> None:
    run(
        tmp_path,
        OTEL_EXPORT_ENABLED="1",
        OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf",
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9",
        OTEL_EXPORTER_OTLP_TIMEOUT="1",
    )


@pytest.mark.parametrize("missing", ["opentelemetry", "opentelemetry.sdk", "opentelemetry.exporter"])
def test_without_the_packages_requests_go_on_and_a_warning_names_the_extra(tmp_path: Path, missing: str) -> None:
    hide = f"import sys, logging; sys.modules[{missing!r}] = None; logging.basicConfig()\n"
    done = run(tmp_path, hide + PROGRAM, OTEL_EXPORT_ENABLED="1")
    assert "pip install dynamo_fast[otel]" in done.stderr


def test_nothing_of_opentelemetry_is_imported_unless_it_is_asked_for(tmp_path: Path) -> None:
    check = "\nimport sys\nassert not [name for name in sys.modules if name.startswith(('opentelemetry', 'nvtx'))]\n"
    run(tmp_path, PROGRAM + check)


def test_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not OtelConfig().over_http
    assert OtelConfig(protocol="http/protobuf").over_http
    assert OtelConfig(traces_protocol="http/protobuf").over_http
    assert not OtelConfig(protocol="http/protobuf", traces_protocol="grpc").over_http
    assert not OtelConfig(protocol="http/json").over_http  # as in Dynamo
    with pytest.raises(InvalidConfig, match="OTEL_TRACES_SAMPLE_RATIO='2' is not valid: expected a number from 0 to 1"):
        OtelConfig.from_env({"OTEL_TRACES_SAMPLE_RATIO": "2"})
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    assert not otel_export.set_provider(OtelConfig())
