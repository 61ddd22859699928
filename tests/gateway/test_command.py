"""`dynamo-fast gateway`: real processes, real signals."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.cli.test_main import LIMIT, run, settings
from tests.programs import started
from tests.waiting import until, until_in_thread

ENGINE = """
import asyncio

async def generate(request, context):
    yield 1
    if request == "hang":
        await asyncio.Event().wait()
"""


@contextmanager
def worker(folder: Path) -> Iterator[None]:
    (folder / "engine.py").write_text(ENGINE)
    command = [sys.executable, "-m", "dynamo_fast", "serve", "engine:generate", "--endpoint", "a.b.c"]
    with started(command, settings(folder / "store"), folder) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("serving a.b.c at ")
        yield


@contextmanager
def gateway(folder: Path, *options: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A gateway, and its URL."""
    command = [sys.executable, "-m", "dynamo_fast", "gateway", "--port", "0", *options]
    with started(command, {**settings(folder / "store"), **environment}, folder, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("gateway at http://127.0.0.1:"), rest(process)
        yield process, line.split()[2]


def rest(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    return process.stderr.read()


def ask(url: str, body: Any = None) -> str:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data), timeout=LIMIT) as answer:
        text: str = answer.read().decode()
        return text


def test_one_process(tmp_path: Path) -> None:
    with worker(tmp_path), gateway(tmp_path) as (process, url):
        until_in_thread(lambda: "a.b.c" in ask(f"{url}/v1/endpoints"))
        assert ask(f"{url}/a/b/c", {}) == "data: 1\n\ndata: [DONE]\n\n"
        process.terminate()
        assert process.wait(LIMIT) == 0
        assert process.stdout is not None
        assert process.stdout.read() == "leaving; 0 requests to finish\n"
        assert rest(process) == ""


async def test_the_grace_period_ends_what_does_not_end(tmp_path: Path) -> None:
    with worker(tmp_path), gateway(tmp_path, "--grace", "0.2") as (process, url):
        async with aiohttp.ClientSession() as client:
            await until(lambda: "a.b.c" in ask(f"{url}/v1/endpoints"))
            async with client.post(f"{url}/a/b/c", json="hang") as response:
                assert await response.content.readline() == b"data: 1\n"
                process.send_signal(signal.SIGINT)
                text = await asyncio.wait_for(response.text(), LIMIT)
        assert "the gateway is leaving" in text
        assert text.endswith("data: [DONE]\n\n")
        assert await asyncio.to_thread(process.wait, LIMIT) == 0
        assert process.stdout is not None
        assert process.stdout.read() == (
            "leaving; 1 request to finish, for at most 0.2 s; another signal ends it now\n"
        )


def test_a_port_that_is_taken_and_a_setting_that_is_none(tmp_path: Path) -> None:
    with gateway(tmp_path) as (_, url):
        refused = run(tmp_path, "gateway", "--port", url.rpartition(":")[2])
        assert refused.returncode == 1
        assert "address already in use" in refused.stderr.lower()
        refused = run(tmp_path, "gateway", "--port", url.rpartition(":")[2], "--workers", "2")
        assert refused.returncode == 1
        assert "address already in use" in refused.stderr.lower()
    refused = run(tmp_path, "gateway", "--tls-cert", "x")
    assert (refused.returncode, refused.stderr) == (
        2,
        "dynamo-fast gateway: error: HTTPS needs a certificate and its key: DYNAMO_FAST_GATEWAY_TLS_KEY is missing\n",
    )


def test_what_no_process_can_use_is_said_once(tmp_path: Path) -> None:
    pair = ["--tls-cert", str(tmp_path / "none"), "--tls-key", str(tmp_path / "none")]
    for workers in ("1", "3"):
        refused = run(tmp_path, "gateway", "--port", "0", *pair, "--workers", workers)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert refused.stderr.startswith("dynamo-fast gateway: error: DYNAMO_FAST_GATEWAY_TLS_CERT=")
        assert refused.stderr.count("\n") == 1


def test_without_aiohttp_the_extra_is_named(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['aiohttp'] = None; from dynamo_fast.cli.main import main; sys.exit(main(['gateway']))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], env=settings(tmp_path), capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert (ended.returncode, ended.stderr) == (
        2,
        "dynamo-fast gateway: error: the gateway needs aiohttp: pip install 'dynamo-fast[gateway]'\n",
    )


# Several processes ----------------------------------------------------------------------------------------------------


def children(process: subprocess.Popen[str]) -> list[int]:
    text = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(pid) for pid in text.split()]


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


needs_proc = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the children are read from /proc")


@needs_proc
def test_several_processes_share_the_port_and_their_metrics(tmp_path: Path) -> None:
    with worker(tmp_path), gateway(tmp_path, "--workers", "2") as (process, url):
        pids = children(process)
        assert len(pids) == 2
        until_in_thread(lambda: all("a.b.c" in ask(f"{url}/v1/endpoints") for _ in range(8)))
        for _ in range(8):
            assert ask(f"{url}/a/b/c", {}) == "data: 1\n\ndata: [DONE]\n\n"
        counted = 'dynamo_fast_gateway_requests_total{endpoint="a.b.c",status="200"} 8.0'
        until_in_thread(lambda: counted in ask(f"{url}/metrics"), pause=0.1)
        process.terminate()
        assert process.wait(LIMIT) == 0
        assert not any(map(is_running, pids))
        assert rest(process) == ""


@needs_proc
def test_a_process_that_is_killed_ends_the_others(tmp_path: Path) -> None:
    with gateway(tmp_path, "--workers", "2") as (process, _):
        first, second = children(process)
        os.kill(first, signal.SIGKILL)
        assert process.wait(LIMIT) != 0
        assert not is_running(second)
        assert f"process {first} of the gateway has ended by itself" in rest(process)


@needs_proc
def test_the_processes_of_a_parent_that_is_killed_leave(tmp_path: Path) -> None:
    with gateway(tmp_path, "--workers", "2") as (process, url):
        pids = children(process)
        process.kill()
        process.wait(LIMIT)
        until_in_thread(lambda: not any(map(is_running, pids)))
        with pytest.raises(urllib.error.URLError):
            ask(f"{url}/health")
