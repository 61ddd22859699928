"""What a worker spends on each item and request: the same handlers served by ours, by the drop-in, by Dynamo and by
grpc.aio; and the floor.

Each worker is a process of its own. Its caller is a replay: request frames that were built before the clock starts, and
sockets that are read and thrown away until the sentinel, so that it costs almost nothing and does not slow the worker. (For
grpc.aio it is grpc's own client, in other threads of this process.) The floor is `replay.c`, whose answers are made
beforehand.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import selectors
import socket
import struct
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.caller import peak_kib
from benchmarks.replay_worker import compiled
from benchmarks.worker import HANDLERS

__all__ = [
    "FLOOR_WORKS",
    "MOST_OF_GRPC",
    "PROGRAM_KINDS",
    "WORKS",
    "Worker",
    "idle_kib",
    "measure",
    "program",
    "started",
]

HERE = Path(__file__).parent
PROGRAM_KINDS = ("ours", "dropin", "peer")
"""Kinds of `worker.py`, which register themselves in the file store."""
SENTINEL = b'"sentinel"'
SUBJECT = re.compile(rb'"subject":"([^"]+)"')
IDLE = 1_000
"""Answers that have their first item, and wait for the next."""


@dataclass(frozen=True)
class Work:
    """`requests` answers of `items` items with `text` bytes in each, `streams` at once, from a handler of `worker.py`."""

    handler: str
    items: int
    streams: int
    requests: int
    text: int = 5
    pace: int = 0
    """Microseconds between items, for the handler `paced`."""

    def body(self) -> bytes:
        burst = 1 if self.handler == "step" else 64
        size = self.text + 46  # of an item on the wire, for the floor
        return msgspec.msgpack.encode(
            {
                "items": self.items,
                "text": self.text,
                "size": size,
                "burst": burst,
                "pace": self.pace,
                "handler": self.handler,
            }
        )


WORKS = {
    "run": Work("run", 1024, 32, 128),
    "step": Work("step", 1024, 32, 64),
    "batch": Work("batch", 1024, 32, 128),
    **{f"{streams:,} at 20 ms": Work("paced", 100, streams, streams, pace=20_000) for streams in (64, 256, 1_024)},
    "one stream": Work("run", 20_000, 1, 1),
    "sequential": Work("run", 1, 1, 300),
    "concurrent": Work("run", 1, 32, 1_500),
    "4 KiB": Work("run", 5_000, 1, 1, 4_000),
    "1 MiB": Work("run", 64, 1, 1, 1 << 20),
}
PACED = tuple(name for name, work in WORKS.items() if work.pace)
FLOOR_WORKS = ("run", "step", *PACED, "sequential", "concurrent", "4 KiB", "1 MiB")
"""Works for which `replay.c` does the same."""
MOST_OF_GRPC = 256
"""Streams at once: its client has a thread for each."""


class Worker:
    """A worker process and where its endpoints are."""

    def __init__(self, kind: str, command: list[str], settings: dict[str, str]) -> None:
        self.kind = kind
        self.process = subprocess.Popen(
            command,
            env=settings,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # a peer complains of each connection that the replay has closed
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if not line:
            raise SystemExit(f"{' '.join(command)} did not start")
        if kind in PROGRAM_KINDS:
            self._addresses = _registered(settings["DYN_FILE_KV"])
        else:
            self._addresses = dict.fromkeys(HANDLERS, f"127.0.0.1:{line}/any")

    def address(self, handler: str) -> str:
        """Host, port and path of an endpoint, as discovery has them."""
        return self._addresses[handler]

    def cpu_seconds(self) -> float:
        """User and system time of all its threads, so far: the process's clock, as clock_getcpuclockid(3) names it."""
        return time.clock_gettime((~self.process.pid << 3) | 2)

    def resident_kib(self) -> float:
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE") / 1024

    def stop(self) -> None:
        with self.process:  # which closes its pipes, and waits for it
            self.process.kill()


def _registered(folder: str) -> dict[str, str]:
    """The addresses of the endpoints, by handler, once all are in the file store."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        records = [json.loads(file.read_bytes()) for file in Path(folder, "v1", "instances").glob("bench*")]
        if len(records) == len(HANDLERS):
            return {record["endpoint"]: record["transport"]["tcp"] for record in records}
        time.sleep(0.02)
    raise SystemExit("a worker did not register")


def program(kind: str, python: str) -> list[str]:
    """The command of a worker in Python."""
    return [python, "-m", "benchmarks.grpc_worker"] if kind == "grpc" else [python, str(HERE / "worker.py"), kind]


@contextlib.contextmanager
def started(kind: str, python: str, settings: dict[str, str]) -> Iterator[Worker]:
    """A worker of that kind (`ours`, `dropin`, `peer`, `grpc` or `floor`), with a store of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [compiled("replay", folder)] if kind == "floor" else program(kind, python)
        worker = Worker(kind, command, {**settings, "DYN_FILE_KV": folder})
        try:
            yield worker
        finally:
            worker.stop()


class Replay:
    """Sends one request after the other to `address`, `work.streams` at once, and reads every answer to its end."""

    def __init__(self, address: str, work: Work) -> None:
        self._work = work
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self._listener.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        host_port, _, path = address.partition("/")
        host, _, port = host_port.rpartition(":")
        self._requests = socket.create_connection((host, int(port)))
        self._requests.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._frames = [self._frame(path, str(uuid.uuid4())) for _ in range(work.requests)]
        self._sent: dict[bytes, float] = {}
        self._began: dict[socket.socket, float] = {}
        self._last: dict[socket.socket, bytes] = {}
        self._buffer = bytearray(1 << 18)
        self._text = memoryview(self._buffer)

    def run(self) -> list[float]:
        """Seconds from sending each request to the end of its answer."""
        seconds: list[float] = []
        for _ in range(self._work.streams):
            self._send()
        while len(seconds) < self._work.requests:
            for connection in self._ready():
                if self._read(connection).endswith(SENTINEL):
                    seconds.append(time.perf_counter() - self._began.pop(connection))
                    self._close(connection)
                    self._send()
        return seconds

    def first_items(self) -> None:
        """Return when every answer has its first item; the answers stay open.

        A hundred at a time: what the requests take while they come, all at once, would be counted, too.
        """
        for _ in range(0, self._work.requests, 100):
            for _ in range(100):
                self._send()
            waiting = 100
            while waiting:
                waiting -= sum(b"token" in self._read(connection, keep=1024) for connection in self._ready())

    def close(self) -> None:
        for connection in list(self._last):
            self._close(connection)
        for each in (self._requests, self._listener, self._selector):
            each.close()

    def _send(self) -> None:
        if self._frames:
            subject, frame = self._frames.pop()
            self._sent[subject] = time.perf_counter()
            self._requests.sendall(frame)

    def _ready(self) -> list[socket.socket]:
        ready = self._selector.select(30)
        if not ready:
            raise SystemExit(f"an answer did not come: {self._work}")
        connections = [key.fileobj for key, _ in ready]
        if self._listener in connections:
            connections.remove(self._listener)
            self._accept()
        return connections  # type: ignore[return-value]  # they are sockets

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                connection, _ = self._listener.accept()
                self._selector.register(connection, selectors.EVENT_READ)
                self._last[connection] = b""

    def _read(self, connection: socket.socket, keep: int = len(SENTINEL)) -> bytes:
        """The last bytes so far."""
        size = connection.recv_into(self._buffer)
        if size == 0:
            raise SystemExit(f"an answer ended without a sentinel: {self._work}")
        if connection not in self._began and (subject := SUBJECT.search(self._text[:size])):
            self._began[connection] = self._sent.pop(subject[1])
        self._last[connection] = (self._last[connection] + self._text[max(0, size - keep) : size])[-keep:]
        return self._last[connection]

    def _close(self, connection: socket.socket) -> None:
        del self._last[connection]
        self._selector.unregister(connection)
        connection.close()

    def _frame(self, path: str, request_id: str) -> tuple[bytes, bytes]:
        """Its subject, and the request."""
        address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        info = {"address": address, "subject": request_id, "context": request_id, "stream_type": "response"}
        control = {
            "id": request_id,
            "request_type": "single_in",
            "response_type": "many_out",
            "payload_codec": "msgpack",
            "connection_info": {"transport": "tcp_server", "info": json.dumps(info, separators=(",", ":"))},
        }
        header, body = json.dumps(control).encode(), self._work.body()
        payload = struct.pack(">QQQ", len(header), len(body), 0) + header + body
        frame = struct.pack(">H", len(path)) + path.encode() + b"\0\0" + struct.pack(">I", len(payload)) + payload
        return request_id.encode(), frame


@contextlib.contextmanager
def _replay(worker: Worker, work: Work) -> Iterator[Callable[[], list[float]]]:
    replay = Replay(worker.address(work.handler), work)
    try:
        yield replay.run
    finally:
        replay.close()


@contextlib.contextmanager
def _grpc_client(worker: Worker, work: Work) -> Iterator[Callable[[], list[float]]]:
    import grpc

    target = worker.address(work.handler).partition("/")[0]
    options = [("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(target, options) as channel, ThreadPoolExecutor(work.streams) as pool:
        method = channel.unary_stream("/bench/generate")

        def call(body: bytes) -> float:
            began = time.perf_counter()
            for _ in method(body):
                pass
            return time.perf_counter() - began

        yield lambda: list(pool.map(call, [work.body()] * work.requests))


def measure(worker: Worker, work: Work) -> dict[str, Any]:
    """The work, once; a round as `caller.py` prints it, with the seconds of each answer."""
    caller = _grpc_client if worker.kind == "grpc" else _replay
    with caller(worker, work) as call:
        Path(f"/proc/{worker.process.pid}/clear_refs").write_text("5")  # the peak begins anew
        cpu, began = worker.cpu_seconds(), time.perf_counter()
        answers = call()
        seconds, cpu = time.perf_counter() - began, worker.cpu_seconds() - cpu
    return {
        "items": work.items * work.requests,
        "requests": work.requests,
        "seconds": seconds,
        "cpu": cpu,
        "answer": sorted(answers),
        "peak_kib": peak_kib(worker.process.pid),
    }


def idle_kib(worker: Worker) -> float:
    """What an answer that waits for its next item takes of the worker's memory."""
    _hold(worker, 100)  # warm up
    before = worker.resident_kib()
    return (_hold(worker, IDLE) - before) / IDLE


def _hold(worker: Worker, answers: int) -> float:
    """The worker's memory with that many answers open."""
    replay = Replay(worker.address("idle"), Work("idle", 1, answers, answers))
    try:
        replay.first_items()
        return worker.resident_kib()
    finally:
        replay.close()
