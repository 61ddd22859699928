"""Programs that the tests start."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As in `make test &`: the programs would inherit it, and some tests interrupt them.
    signal.signal(signal.SIGINT, signal.default_int_handler)


PATIENCE = 10.0
"""Seconds to leave in order, for a program whose test is over."""


def end(process: subprocess.Popen[str]) -> None:
    """Terminate a program, twice if need be, so that what it has measured is written; then kill it."""
    for _ in range(2):
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            continue
        return
    process.kill()


async def ended(process: asyncio.subprocess.Process) -> None:
    """The same for a program of asyncio."""
    for _ in range(2):
        if process.returncode is None:
            process.terminate()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(process.wait(), PATIENCE)
    if process.returncode is None:
        process.kill()
        await process.wait()


@contextmanager
def started(
    command: Sequence[str],
    environment: Mapping[str, str],
    folder: Path | None = None,
    stderr: IO[str] | int | None = None,
) -> Iterator[subprocess.Popen[str]]:
    """A program with a pipe for its output. It is ended with the block."""
    with subprocess.Popen(
        command, env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=stderr, text=True
    ) as process:
        try:
            yield process
        finally:
            end(process)
