"""A real etcd for a test: its own data, free ports of the loopback, gone with the context."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def program() -> Path:
    """Where etcd is; skips the test, saying why, if there is none and none can be had."""
    found = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "etcd.py")], capture_output=True, text=True, timeout=120, check=False
    )
    if found.returncode:
        pytest.skip(found.stderr.strip())
    return Path(found.stdout.strip())


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Etcd:
    """One server, which can be stopped, started again, and started empty."""

    def __init__(self, folder: Path, *options: str, scheme: str = "http") -> None:
        self._program = program()
        self._folder = folder
        self._options = options
        self._log = folder / "etcd.log"
        self.port, self._peer_port = free_port(), free_port()
        self.url = f"{scheme}://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        peer = f"http://127.0.0.1:{self._peer_port}"
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(str(self._program), "--data-dir", str(self._folder / "data")),
                    *("--listen-client-urls", self.url, "--advertise-client-urls", self.url),
                    *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
                    *("--initial-cluster", f"default={peer}", "--log-level", "warn", *self._options),
                ],
                stdout=log,
                stderr=log,
                env={**os.environ, "ETCD_UNSUPPORTED_ARCH": "arm64"},
            )
        if self.url.startswith("http://"):
            self._wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + 20
        while True:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=1) as answer:
                    if b"true" in answer.read():
                        return
            except OSError:
                assert self.process is not None
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError(f"etcd does not start: {self._log.read_text()[-2000:]}") from None
            time.sleep(0.05)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def empty(self) -> None:
        """Forget everything (while it is stopped)."""
        shutil.rmtree(self._folder / "data")


@contextmanager
def etcd(folder: Path, *options: str, scheme: str = "http") -> Iterator[Etcd]:
    server = Etcd(folder, *options, scheme=scheme)
    server.start()
    try:
        yield server
    finally:
        server.stop()
