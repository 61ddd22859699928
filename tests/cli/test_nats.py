"""`serve --transport nats`, `instances` and `call`, on a real NATS server."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from tests.cli.test_main import LIMIT, run, settings
from tests.nats_server import NatsServer
from tests.programs import started

ENGINE = """
async def echo(request):
    yield request
"""


def test_serve_instances_and_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "engine.py").write_text(ENGINE)
    with NatsServer(tmp_path) as server:
        monkeypatch.setenv("NATS_SERVER", server.url)
        serve = [sys.executable, "-m", "dynamo_fast", "serve", "engine:echo", "--endpoint", "a.b.c"]
        with started([*serve, "--transport", "nats"], settings(tmp_path), tmp_path) as process:
            assert process.stdout is not None
            said = process.stdout.readline()
            assert said.startswith("serving a.b.c at a_b.c-")
            address = said.split()[-1]
            listed = run(tmp_path, "instances")
            assert address in listed.stdout
            called = run(tmp_path, "call", "a.b.c", '{"n": 1}')
            assert called.stdout == '{"n":1}\n'
            process.send_signal(signal.SIGTERM)
            assert process.wait(LIMIT) == 0


def test_the_plane_of_the_environment_and_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "engine.py").write_text(ENGINE)
    server = NatsServer(tmp_path)  # it is not started
    variables = {"NATS_SERVER": server.url, "NATS_STARTUP_CONNECT_TIMEOUT_SECONDS": "0.5", "DYN_REQUEST_PLANE": "nats"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    failed = run(tmp_path, "serve", "engine:echo", "--endpoint", "a.b.c")
    assert failed.returncode == 1
    assert f"no connection with the NATS server at {server.url} within 0.5 s" in failed.stderr
