"""The other backend of the codec: it is chosen when the package is imported, so its cells run in a process of their own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dynamo_fast import codec

OTHER = "python" if codec.BACKEND == "cython" else "cython"
EACH = 3
"""One cell of so many; `make faults` runs all of them on both."""


@pytest.mark.timeout(300)
@pytest.mark.skipif("FAULTS" in os.environ, reason="FAULTS is set: this is one of the runs that FAULTS chooses")
@pytest.mark.skipif(
    OTHER == "cython" and importlib.util.find_spec("dynamo_fast._codec") is None, reason="the extension was not built"
)
def test_the_other_backend() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/faults"],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "DYNAMO_FAST_BACKEND": OTHER, "FAULTS": str(EACH)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr
