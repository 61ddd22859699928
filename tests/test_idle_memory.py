"""What an idle stream of a session holds of memory, as `benchmarks.idle` counts it.

A process of its own counts the bytes that it asks of Python's allocator, so that nothing but the code changes a count.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
KIB = 1024
MOST = pytest.mark.parametrize(("backend", "most"), [("", 2 * KIB), ("python", 3 * KIB)], ids=["imported", "python"])
"""Without a compiler the frames of coroutines take more, in some versions of Python."""


def bytes_at(end: str, backend: str) -> float:
    """A stream there holds so much."""
    variables = {**os.environ, **({"DYNAMO_FAST_BACKEND": backend} if backend else {})}
    command = [sys.executable, "-m", "benchmarks.idle", end, "--json"]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    found: dict[str, float] = json.loads(done.stdout)
    return found[end]


@MOST
def test_an_idle_stream_at_the_router(backend: str, most: int) -> None:
    assert bytes_at("caller", backend) < most


@MOST
def test_an_idle_stream_at_the_worker(backend: str, most: int) -> None:
    """Beyond what a handler and its task hold without this package."""
    assert bytes_at("worker", backend) - bytes_at("bare", backend) < most
