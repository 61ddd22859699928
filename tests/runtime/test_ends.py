"""How processes end: with streams open, and by a signal handler of Python's own."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.test_main import LIMIT, settings
from tests.programs import started

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("end", ["run", "closed", "left"])
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("program", ["native", "drop-in"])
def test_a_process_that_ends_with_streams_open_says_nothing(program: str, loop: str, end: str, tmp_path: Path) -> None:
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    command = [sys.executable, "-m", "tests.ends", program, loop, end]  # as a script it would find tests/inspect first
    done = subprocess.run(
        command, cwd=ROOT, env=settings(tmp_path), capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


IDLE = """
import asyncio, signal
from dynamo_fast.runtime import DistributedRuntime

async def echo(request):
    yield request

async def main():
    runtime = DistributedRuntime(asyncio.get_running_loop(), "mem", "tcp")
    signal.signal(signal.SIGTERM, lambda *_: runtime.shutdown())
    serving = runtime.endpoint("a.b.c").serve_endpoint(echo)
    client = await runtime.endpoint("a.b.c").client()
    await client.wait_for_instances()
    print("ready", flush=True)
    await serving

asyncio.run(main())
"""


def test_shutdown_in_a_signal_handler_wakes_a_loop_that_sleeps(tmp_path: Path) -> None:
    with started([sys.executable, "-c", IDLE], settings(tmp_path), stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""
