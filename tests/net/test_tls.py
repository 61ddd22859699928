"""TLS is asked for: nothing starts in plain text, at either end of either plane."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from dynamo_fast import AddressedPushRouter, Worker, serve
from dynamo_fast.config import ResponseServerConfig, TcpClientConfig, TcpServerConfig, WorkerConfig
from dynamo_fast.discovery.memory import MemoryDiscovery
from dynamo_fast.egress.response_server import TcpStreamServer
from dynamo_fast.egress.tcp_client import TcpRequestClient
from dynamo_fast.errors import InvalidConfig
from dynamo_fast.ingress.dialler import Dialler
from dynamo_fast.ingress.tcp_server import SharedTcpServer
from dynamo_fast.runtime import DistributedRuntime
from tests.namespaces import environment

VARIABLES = {
    "DYN_TCP_TLS_CERT_PATH": "/etc/tls/tls.crt",
    "DYN_TCP_TLS_KEY_PATH": "/etc/tls/tls.key",
    "DYN_TCP_TLS_CLIENT_CA_CERT_PATH": "ca.pem",
    "DYN_TCP_TLS_CA_CERT_PATH": "ca.pem",
    "DYN_TCP_TLS_INSECURE": "1",
    "DYN_TCP_TLS_CLIENT_CERT_PATH": "x.crt",
    "DYN_TCP_TLS_CLIENT_KEY_PATH": "x.key",
    "DYN_TCP_TLS_SERVER_NAME": "worker",
    "DYN_TCP_TLS_HANDSHAKE_TIMEOUT_SECS": "3",
}


async def generate(request: Any) -> AsyncIterator[Any]:
    yield request


async def begin(start: Callable[[], Any]) -> None:
    started = start()
    await started


def runtime() -> DistributedRuntime:
    return DistributedRuntime(asyncio.get_running_loop(), "mem", "tcp")


@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize(
    "start",
    [
        lambda: SharedTcpServer(TcpServerConfig(host="127.0.0.1")),
        lambda: Dialler(WorkerConfig()),
        lambda: TcpRequestClient(TcpClientConfig()),
        lambda: TcpStreamServer.create(ResponseServerConfig(host="127.0.0.1")),
        lambda: serve(generate, "a.b.c", MemoryDiscovery()),
        lambda: Worker.start(MemoryDiscovery()),
        AddressedPushRouter.create,
        runtime,
    ],
    ids=["request server", "dialler", "request client", "response server", "serve", "Worker", "router", "drop-in"],
)
async def test_it_is_refused(variable: str, start: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, VARIABLES[variable])
    with pytest.raises(InvalidConfig, match=f"^{variable}='.*' asks for TLS, which .* not offer.*: unset it"):
        await begin(start)


async def test_what_does_not_ask_for_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYN_TCP_TLS_CERT_PATH", "")
    monkeypatch.setenv("DYN_TCP_TLS_INSECURE", "0")
    server = await TcpStreamServer.create(ResponseServerConfig(host="127.0.0.1"))
    await server.close()


@pytest.mark.parametrize("command", [["serve", "engine:generate", "--endpoint", "a.b.c"], ["call", "a.b.c", "1"]])
def test_commands_say_so(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "engine.py").write_text("async def generate(request):\n    yield request\n")
    done = subprocess.run(
        [sys.executable, "-m", "dynamo_fast", *command],
        env=environment({"DYN_FILE_KV": str(tmp_path), "DYN_TCP_TLS_CERT_PATH": "tls.crt"}),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("InvalidConfig: DYN_TCP_TLS_CERT_PATH='tls.crt' asks for TLS")
