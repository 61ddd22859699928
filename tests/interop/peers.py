"""Real Dynamo, in the environments that `make peers` makes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

VERSIONS = ("1.3.1", "1.6.1")
ROOT = Path(__file__).parents[2]
_HERE = Path(__file__).parent


def interpreter(version: str) -> Path:
    """The Python of a peer; skips the test, saying why, if there is none."""
    python = ROOT / ".peers" / version / "bin" / "python"
    if not python.exists():
        pytest.skip(f"no real Dynamo {version}: `make peers` makes .peers/{version}, which needs the package index")
    return python


def environment(folder: Path) -> dict[str, str]:
    """The environment of a peer that stays on this machine, and finds others through files in `folder`."""
    return {
        **os.environ,
        "DYN_FILE_KV": str(folder),
        "DYN_TCP_RPC_HOST": "127.0.0.1",
        "DYN_TCP_RESPONSE_STREAM_HOST": "lo",  # 1.3.1 takes the name of an interface only
        "DYN_EVENT_PLANE": "zmq",
        "DYN_LOG": "off",
        "PYTHONPATH": "",
    }


@dataclass
class Peer:
    """A process of a peer that serves, and where it can be found."""

    version: str
    process: subprocess.Popen[str]
    folder: Path


@contextmanager
def peer_worker(version: str, folder: Path) -> Iterator[Peer]:
    """`peer_worker.py`, as a process that lives as long as the context."""
    log = folder / "worker.log"
    with (
        log.open("w") as output,
        subprocess.Popen(
            [str(interpreter(version)), str(_HERE / "peer_worker.py")],
            env=environment(folder),
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process,
    ):
        try:
            yield Peer(version, process, folder)
        finally:
            process.kill()
            process.wait()
            sys.stderr.write(log.read_text())  # pytest shows it with a test that fails
