"""`dynamo-fast demo`: what it says at its end is what works."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.namespaces import environment
from tests.programs import started

LIMIT = 30.0
DEMO = [sys.executable, "-m", "dynamo_fast", "demo"]
ITEMS = [f'data: {{"token":{number},' for number in range(8)]


def settings(folder: Path, **more: str) -> dict[str, str]:
    return environment({"TMPDIR": str(folder), "COLUMNS": "120", **more})


def test_it_ends_with_what_to_do_next(tmp_path: Path) -> None:
    done = subprocess.run(DEMO, env=settings(tmp_path), capture_output=True, text=True, timeout=LIMIT, check=True)
    _, _, steps = done.stdout.partition("Codec backend: ")
    command, curl, url = re.findall(r"^    (.*)$", steps, re.MULTILINE)
    assert command.endswith("dynamo-fast demo --stay")
    assert curl.startswith(f"curl -N {url}/demo/backend/generate ")


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT to one process")
def test_it_stays_behind_the_gateway(tmp_path: Path) -> None:
    with started([*DEMO, "--stay"], settings(tmp_path, DYNAMO_FAST_GATEWAY_PORT="0"), stderr=subprocess.PIPE) as demo:
        assert demo.stdout is not None
        assert demo.stderr is not None
        lines = [demo.stdout.readline() for _ in range(5)]
        curl = shlex.split(lines[2])
        answer = subprocess.run(curl, capture_output=True, text=True, timeout=LIMIT, check=True).stdout.split("\n\n")
        assert [item.startswith(told) for item, told in zip(answer, ITEMS, strict=False)] == [True] * 8
        demo.send_signal(signal.SIGINT)
        assert demo.wait(LIMIT) == 0
        assert demo.stderr.read() == ""
    assert not list(tmp_path.iterdir())


def test_a_gateway_that_cannot_start_ends_it(tmp_path: Path) -> None:
    variables = settings(tmp_path, DYNAMO_FAST_GATEWAY_PORT="no port")
    done = subprocess.run([*DEMO, "--stay"], env=variables, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == 1
    assert "the gateway ended with status" in done.stderr
    assert not list(tmp_path.iterdir())
