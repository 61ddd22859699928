"""Chosen bytes into every connection of both planes, as the fuzzers do (`tests.fuzz.shells`), but few and repeatable."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo_fast import codec
from tests.fuzz.planes import PLANES, Playing, opened
from tests.loops import LOOPS

LIMIT = 120.0
INPUTS = st.binary(min_size=16, max_size=400)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("name", PLANES)
def test_no_bytes_break_a_connection(name: str, loop: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "dynamo_fast")
    playing = Playing(name, LOOPS[loop]())

    @given(INPUTS)
    @settings(max_examples=50, deadline=None)  # how long one takes is the machine's matter
    def play(data: bytes) -> None:
        playing.play(data)

    for data in playing.edges():
        playing.play(data)
    play()
    playing.close()


async def replay(seed: int, count: int) -> None:
    """The same chosen inputs again into each plane."""
    for name in PLANES:
        choose = random.Random(seed)
        async with opened(name) as plane:
            for _ in range(count):
                await plane.play(choose.randbytes(choose.choice((5, 20, 60, 200))))


def test_no_bytes_break_a_connection_with_the_other_codec() -> None:
    other = "python" if codec.BACKEND == "cython" else "cython"
    try:
        subprocess.run(
            [sys.executable, "-m", "tests.test_shells"],
            env={**os.environ, "DYNAMO_FAST_BACKEND": other, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            check=True,
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )
    except subprocess.CalledProcessError as error:
        if "compiled codec cannot be imported" in error.stderr:
            pytest.skip("there is no compiled codec here")
        raise AssertionError(error.stderr) from None


if __name__ == "__main__":
    logging.getLogger("dynamo_fast").setLevel(logging.CRITICAL)
    asyncio.run(replay(1, 40))
