"""A real etcd for a test: its own data, free ports of the loopback, gone with the context."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.frontend import free_port

ROOT = Path(__file__).parents[2]


def program() -> Path:
    """Where etcd is; skips the test, saying why, if there is none and none can be had."""
    found = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "etcd.py")], capture_output=True, text=True, timeout=120, check=False
    )
    if found.returncode:
        pytest.skip(found.stderr.strip())
    return Path(found.stdout.strip())


class Etcd:
    """One server, which can be stopped, started again, and started empty."""

    def __init__(self, folder: Path, *options: str, scheme: str = "http", name: str = "default") -> None:
        self.name = name
        self._program = program()
        self._folder = folder
        self._options = options
        self._log = folder / "etcd.log"
        self.port = free_port()
        self.url = f"{scheme}://127.0.0.1:{self.port}"
        self.peer_url = f"http://127.0.0.1:{free_port()}"
        self.members = f"{name}={self.peer_url}"
        """Of its cluster; by default it is alone."""
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *, wait: bool = True) -> None:
        """Start it, and wait until it is healthy; the members of a cluster wait for each other."""
        peer = self.peer_url
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(str(self._program), "--name", self.name, "--data-dir", str(self._folder / "data")),
                    *("--listen-client-urls", self.url, "--advertise-client-urls", self.url),
                    *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
                    *("--initial-cluster", self.members, "--log-level", "warn", *self._options),
                ],
                stdout=log,
                stderr=log,
                env={**os.environ, "ETCD_UNSUPPORTED_ARCH": "arm64"},
            )
        if wait and self.url.startswith("http://"):
            self.wait()

    def wait(self) -> None:
        """Until it is healthy, and so has a leader."""
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

    def freeze(self) -> None:
        """It keeps its connections and says nothing, to clients and to other members."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Go on."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

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


@contextmanager
def cluster(folder: Path, size: int = 3) -> Iterator[list[Etcd]]:
    """Members of one cluster, healthy."""
    members = []
    for number in range(size):
        own = folder / f"member{number}"
        own.mkdir()
        members.append(Etcd(own, "--heartbeat-interval", "50", "--election-timeout", "500", name=f"member{number}"))
    for each in members:
        each.members = ",".join(f"{other.name}={other.peer_url}" for other in members)
    try:
        for each in members:
            each.start(wait=False)
        for each in members:
            each.wait()
        yield members
    finally:
        for each in members:
            each.stop()
