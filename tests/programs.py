"""Programs that the tests start."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As in `make test &`: the programs would inherit it, and some tests interrupt them.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def started(
    command: Sequence[str],
    environment: Mapping[str, str],
    folder: Path | None = None,
    stderr: IO[str] | int | None = None,
) -> Iterator[subprocess.Popen[str]]:
    """A program with a pipe for its output. It does not outlive the block, and the block does not wait for it."""
    with subprocess.Popen(
        command, env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=stderr, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()
