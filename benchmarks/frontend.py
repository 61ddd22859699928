"""What a model's worker costs behind Dynamo's own frontend: ours and our drop-in beside Dynamo's, in one run.

    python -m benchmarks.frontend [--rounds 5] [1.6.1] [1.3.1]

One frontend of each release stands before three workers with the same trivial engine (`model_worker.py`), each a process
of its own, all on uvloop. In every round the workers take turns. The client reads bytes and counts tokens; it decodes
nothing. The work:

    one stream   a chat of 10,000 tokens
    32x200       chats of 200 tokens, 32 at once
    32 at 20 ms  chats of 100 tokens, 32 at once, from an engine that makes a token each 20 ms, as real ones do
    one token    completions of one token, not streamed, 32 at once, on connections that stay open

CPU is the worker's, user and system time of all its threads. What the frontend itself does with a token is the same before
each worker, and it is a part of the items a second. Prints a table; writes docs/figures/frontend.json, from which
`benchmarks.report` makes the tables of docs/performance.md. Frontends are found in `.peers` (`make frontends`).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import selectors
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import model_folder, report, router
from benchmarks.caller import peak_kib
from benchmarks.timing import machine

HERE = Path(__file__).parent
PEERS = {version: Path(".peers") / f"frontend-{version}" / "bin" / "python" for version in ("1.6.1", "1.3.1")}
PATIENCE = 60.0
"""Seconds that one answer may take, or the start of a process."""
TOKEN = b't":"a"'
"""In the bytes of an answer: the end of `"content":"a"` and of `"text":"a"`."""
LAST_CHUNK = b"\r\n0\r\n\r\n"
"""Every answer of a frontend is chunked."""
KEPT = 256
"""Bytes of the last reads of a connection."""


@dataclass(frozen=True)
class Work:
    """`requests` answers of `tokens` tokens, `concurrent` at once, streamed or not, a token each `pace` milliseconds."""

    tokens: int
    requests: int
    concurrent: int
    stream: bool = True
    pace: int = 0

    def request(self, model: str) -> bytes:
        """The request over HTTP."""
        asked: dict[str, Any] = {"model": model, "max_tokens": self.tokens, "stream": self.stream, "seed": self.pace}
        if self.stream:
            path, asked["messages"] = "/v1/chat/completions", [{"role": "user", "content": "hi"}]
        else:
            path, asked["prompt"] = "/v1/completions", "hi"
        body = json.dumps(asked).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


WORKS = {
    "one stream": Work(10_000, 1, 1),
    "32x200": Work(200, 96, 32),
    "32 at 20 ms": Work(100, 32, 32, pace=20),
    "one token": Work(1, 1_000, 32, stream=False),
}


class Client:
    """Sends the requests of a work on connections that stay open, and reads every answer to its end."""

    def __init__(self, port: int, work: Work, model: str) -> None:
        self._work = work
        self._request = work.request(model)
        self._left = work.requests
        self._buffer = bytearray(1 << 18)
        self._view = memoryview(self._buffer)
        self._tails: dict[socket.socket, bytes] = {}
        self._selector = selectors.DefaultSelector()
        self.tokens = 0
        for _ in range(work.concurrent):
            connection = socket.create_connection(("127.0.0.1", port), PATIENCE)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._selector.register(connection, selectors.EVENT_READ)
            self._tails[connection] = b""

    def run(self) -> None:
        """Do the work once."""
        open_answers = sum(self._send(connection) for connection in self._tails)
        while open_answers:
            ready = self._selector.select(PATIENCE)
            if not ready:
                raise SystemExit(f"an answer did not come: {self._work}")
            for key, _ in ready:
                assert isinstance(key.fileobj, socket.socket)
                if self._read(key.fileobj):
                    open_answers += self._send(key.fileobj) - 1

    def close(self) -> None:
        self._selector.close()
        for connection in self._tails:
            connection.close()

    def _send(self, connection: socket.socket) -> bool:
        """The next request, if there is one."""
        if not self._left:
            return False
        self._left -= 1
        connection.sendall(self._request)
        return True

    def _read(self, connection: socket.socket) -> bool:
        """Whether the answer has come to its end."""
        size = connection.recv_into(self._buffer)
        tail, begin = self._tails[connection], bytes(self._view[: min(size, KEPT)])
        if not tail and not begin.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"the frontend answered {begin.decode(errors='replace')!r}: {self._work}")
        # A token that is cut by the end of a read is counted with the next one.
        joint = tail[1 - len(TOKEN) :] + begin[: len(TOKEN) - 1]
        self.tokens += self._buffer.count(TOKEN, 0, size) + joint.count(TOKEN)
        tail = (tail + bytes(self._view[max(0, size - KEPT) : size]))[-KEPT:]
        is_done = tail.endswith(LAST_CHUNK)
        self._tails[connection] = b"" if is_done else tail
        return is_done


@dataclass
class Served:
    """A worker whose model a frontend lists."""

    name: str
    process: subprocess.Popen[bytes]
    port: int

    def measure(self, work: Work) -> dict[str, Any]:
        """The work, once; a round as `router.figures` takes it."""
        client = Client(self.port, work, self.name)
        try:
            Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")  # the peak begins anew
            cpu, began = self._cpu_seconds(), time.perf_counter()
            client.run()
            seconds, cpu = time.perf_counter() - began, self._cpu_seconds() - cpu
        finally:
            client.close()
        expected = work.tokens * work.requests
        if client.tokens != expected:
            raise SystemExit(f"{self.name}: {client.tokens} tokens came, expected {expected}")
        return {
            "items": expected,
            "requests": work.requests,
            "seconds": seconds,
            "cpu": cpu,
            "peak_kib": peak_kib(self.process.pid),
        }

    def _cpu_seconds(self) -> float:
        """The process's clock, as clock_getcpuclockid(3) names it."""
        return time.clock_gettime((~self.process.pid << 3) | 2)


def implementations(version: str) -> dict[str, tuple[str, str]]:
    """Name in the tables, and its interpreter and kind."""
    return {
        report.OURS: (sys.executable, "ours"),
        report.DROP_IN: (sys.executable, "dropin"),
        # report.DROP_IN: (sys.executable, "dropin"),
        f"Dynamo {version}": (str(PEERS[version]), "peer"),
    }


@contextlib.contextmanager
def program(command: list[str], settings: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is killed with the block. What it writes to standard error is shown if it fails at its start."""
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(command, env=settings, stdout=subprocess.PIPE, stderr=errors) as started,
    ):
        try:
            yield started
        finally:
            if started.poll():
                errors.seek(0)
                sys.stderr.buffer.write(errors.read()[-4_000:])
            started.kill()


def free_port() -> int:
    """A port below those that the kernel gives away: no socket of another process gets it before the frontend does."""
    for port in random.sample(range(20_000, 30_000), 100):
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port
    raise SystemExit("no free port between 20,000 and 30,000")


def wait_for(port: int, models: set[str]) -> None:
    """Until the frontend is up, and lists the models."""
    deadline = time.monotonic() + PATIENCE
    listed: set[str] | None = None
    while listed is None or not listed >= models:
        if time.monotonic() > deadline:
            raise SystemExit(f"the frontend does not list {', '.join(models - (listed or set())) or 'anything'}")
        time.sleep(0.05)
        with contextlib.suppress(OSError):
            answer = urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5).read()
            listed = {each["id"] for each in json.loads(answer)["data"]}


@contextlib.contextmanager
def all_workers(version: str) -> Iterator[dict[str, Served]]:
    """A frontend and its workers, by their names in the tables."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        settings = {**router.environment(folder), "HOME": folder, "HF_HUB_OFFLINE": "1"}
        path, port = str(model_folder.write(Path(folder, "tiny"))), free_port()
        command = [str(PEERS[version]), "-m", "dynamo.frontend", "--http-host", "127.0.0.1", "--http-port", str(port)]
        command += ["--discovery-backend", "file", "--request-plane", "tcp", "--event-plane", "zmq"]
        stack.enter_context(program(command, settings))
        wait_for(port, set())
        workers = {}
        for name, (python, kind) in implementations(version).items():
            started = stack.enter_context(program([python, str(HERE / "model_worker.py"), kind, kind, path], settings))
            assert started.stdout is not None
            if not started.stdout.readline():
                raise SystemExit(f"the worker of {name} did not start")
            workers[name] = Served(kind, started, port)
        wait_for(port, {each.name for each in workers.values()})
        yield workers


def measure(version: str, rounds: int) -> dict[str, dict[str, router.Rounds]]:
    """By work and implementation. The first round warms up and is left out."""
    results: dict[str, dict[str, router.Rounds]] = {}
    with all_workers(version) as workers:
        for title, work in WORKS.items():
            rows = results.setdefault(f"{version}: {title}", {name: [] for name in workers})
            for number in range(rounds + 1):
                for name, worker in workers.items():
                    measured = worker.measure(work)
                    if number:
                        rows[name].append(measured)
            print(f"{version}: {title} done", file=sys.stderr)
    return results


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="benchmarks.frontend", description="A worker behind Dynamo's own frontend.")
    parser.add_argument("versions", nargs="*", metavar="VERSION", help=f"by default {' and '.join(PEERS)}")
    parser.add_argument("--rounds", type=int, default=5, help="the workers take turns in each (default: 5)")
    parser.add_argument("--figures", type=Path, default=report.FIGURES, help="where the JSON goes")
    options = parser.parse_args()
    for version in options.versions or PEERS:
        if version not in PEERS or not PEERS[version].exists():
            parser.error(f"no frontend {version} in .peers: `make frontends` makes {' and '.join(PEERS)}")
    facts = {**machine("dynamo-fast", "uvloop", "orjson", "msgspec"), "processors": str(os.cpu_count())}
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    table: router.Table = {}
    for version in options.versions or PEERS:
        table |= router.tabulate(measure(version, options.rounds))
    router.show(table)
    router.write("frontend", facts, table, options.figures)
    print(f"\n{report.behind_frontends(options.figures)}")


if __name__ == "__main__":
    main()
