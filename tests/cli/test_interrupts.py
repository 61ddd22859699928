"""A signal while a command waits: it ends soon, says nothing more, and its status names the signal."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.frontend import free_port
from tests.cli.test_main import LIMIT, settings
from tests.programs import end

ENGINE = """
async def echo(request):
    yield request
"""
FOR_EVER = "3600"
ETCD = ["--discovery", "etcd", "--wait", FOR_EVER]
SERVE = ["serve", "engine:echo", "--endpoint", "a.b.c"]


@contextmanager
def command(folder: Path, *arguments: str, stdin: int = subprocess.DEVNULL) -> Iterator[subprocess.Popen[str]]:
    (folder / "engine.py").write_text(ENGINE)
    nowhere = f"127.0.0.1:{free_port()}"
    servers = {
        "ETCD_ENDPOINTS": f"http://{nowhere}",
        "NATS_SERVER": f"nats://{nowhere}",
        "NATS_STARTUP_CONNECT_TIMEOUT_SECONDS": FOR_EVER,
    }
    with subprocess.Popen(
        [sys.executable, "-m", "dynamo_fast", *arguments],
        env={**settings(folder), **servers},
        cwd=folder,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            end(process)


def said(process: subprocess.Popen[str]) -> str:
    """The next line on standard error."""
    assert process.stderr is not None
    return process.stderr.readline()


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("arguments", "waits"),
    [
        ([*SERVE, *ETCD], "waiting for etcd at "),
        ([*SERVE, "--transport", "nats"], "no connection with the NATS server at "),
        (["gateway", "--port", "0", *ETCD], "waiting for etcd at "),
        (["gateway", "--port", "0", "--workers", "2", *ETCD], "waiting for etcd at "),
    ],
)
def test_what_serves_ends_while_it_is_starting(
    tmp_path: Path, arguments: list[str], waits: str, sent: signal.Signals
) -> None:
    with command(tmp_path, *arguments) as process:
        for _ in range(2 if "--workers" in arguments else 1):
            assert waits in said(process)
        process.send_signal(sent)
        assert process.wait(LIMIT) == 128 + sent
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read() == ""
        assert "Traceback" not in process.stderr.read()


@pytest.mark.parametrize(
    "arguments",
    [
        ["call", "a.b.c", "{}", "--wait", FOR_EVER],
        ["bench", "a.b.c", "{}", "--wait", FOR_EVER],
        ["call", "a.b.c", "{}", *ETCD],
        ["instances", *ETCD],
        ["describe", "a.b.c", *ETCD],
        ["models", *ETCD],
        ["top", *ETCD],
    ],
)
def test_what_asks_ends_with_ctrl_c(tmp_path: Path, arguments: list[str]) -> None:
    with command(tmp_path, *arguments) as process:
        assert said(process).startswith("waiting for ")
        process.send_signal(signal.SIGINT)
        assert process.wait(LIMIT) == 130
        assert process.stdout is not None
        assert process.stderr is not None
        assert (process.stdout.read(), process.stderr.read()) == ("", "")


@pytest.mark.parametrize("name", ["call", "bench"])
def test_ctrl_c_ends_the_wait_for_a_request_that_is_typed(tmp_path: Path, name: str) -> None:
    ours, theirs = pty.openpty()
    try:
        with command(tmp_path, name, "a.b.c", stdin=theirs) as process:
            assert said(process) == "the request is read from standard input: type JSON, then Ctrl-D\n"
            process.send_signal(signal.SIGINT)
            assert process.wait(LIMIT) == 130
    finally:
        os.close(ours)
        os.close(theirs)
