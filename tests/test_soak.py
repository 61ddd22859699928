"""A short soak: the program itself, and that a few thousand mixed calls leave nothing behind. See `make soak`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="a soak reads /proc, which Linux has"),
]
REQUESTS = os.environ.get("SOAK_REQUESTS", "3000")


@pytest.mark.parametrize("mux", ["off", "auto"])
def test_mixed_calls_leave_nothing_behind(mux: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.soak", REQUESTS, "--mux", mux],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-10_000:]
    assert "WRONG" not in done.stdout
    assert f"{int(REQUESTS):>9,} calls" in done.stdout
