"""The commands and an etcd that is not there."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.frontend import free_port

LIMIT = 30


@contextmanager
def instances(url: str, *options: str, command: str = "instances") -> Iterator[subprocess.Popen[str]]:
    arguments = {"instances": [], "serve": ["json:dumps", "--endpoint", "a.b.c"], "call": ["a.b.c", "{}"]}[command]
    with subprocess.Popen(
        [sys.executable, "-m", "dynamo_fast", command, *arguments, "--discovery", "etcd", *options],
        env={**os.environ, "ETCD_ENDPOINTS": url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("command", ["instances", "serve", "call"])
def test_no_etcd_is_said_at_once_and_given_up(command: str) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with instances(url, "--wait", "1.5", command=command) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == f"waiting for etcd at {url} (for 1.5 s)\n"
        _, rest = process.communicate(timeout=LIMIT)
        assert process.returncode == 1
        (line,) = rest.splitlines()
        assert f"no etcd at {url}: etcd startup connection timed out after 1.5 seconds" in line


def test_a_host_that_never_answers_is_given_up_too() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        with instances(url, "--wait", "1") as process:
            output, errors = process.communicate(timeout=LIMIT)
            assert process.returncode == 1
            assert output == ""
            assert len(errors.splitlines()) == 2


def test_the_wait_has_a_default_of_ten_seconds() -> None:
    with instances(f"http://127.0.0.1:{free_port()}") as process:
        assert process.stderr is not None
        assert process.stderr.readline().endswith("(for 10 s)\n")


@pytest.mark.parametrize("wait", ["0", "-1", "soon", "inf"])
def test_a_wait_that_is_no_time_is_refused(wait: str) -> None:
    with instances("http://127.0.0.1:1", f"--wait={wait}") as process:
        _, errors = process.communicate(timeout=LIMIT)
        assert process.returncode == 2
        assert "expected a number of seconds above 0" in errors


def test_the_wait_can_be_interrupted(tmp_path: Path) -> None:
    with instances(f"http://127.0.0.1:{free_port()}", "--wait", "600") as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("waiting for etcd")
        process.send_signal(signal.SIGINT)
        assert process.wait(LIMIT) == 130
        assert process.stderr.read() == ""
