"""What a worker spends on each item of an answer: ours beside Dynamo's own, the same handler, in one run.

    python -m benchmarks.worker_side [--peer .peers/1.6.1/bin/python] [--items 1000] [--streams 32] [--rounds 5]

Each worker is a process of its own. The caller is a replay: request frames that were built before the clock starts, and
sockets that are read and thrown away until the sentinel, so that it costs almost nothing and stays in nobody's way.
What is compared is the CPU time of the worker process, all its threads, user and system, from /proc.

Three handlers. `run` yields without pause; `step` pauses after each item, as a handler does that gets its tokens one by
one; `batch` yields its items 32 at a time with our `Batch` (the peer, which has none, yields them one by one).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import selectors
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HANDLERS = ("run", "step", "batch")
ENDPOINT = "bench.worker.{}"
BATCH = 32
SENTINEL = b'"sentinel"'


# The worker process: `worker_side.py --serve ours|peer`


async def run(request: Any) -> AsyncIterator[Any]:
    """Items as fast as they are taken."""
    for number in range(request["items"]):
        yield {"token": number, "text": "hello"}


async def step(request: Any) -> AsyncIterator[Any]:
    """One item in each turn of the event loop."""
    for number in range(request["items"]):
        yield {"token": number, "text": "hello"}
        await asyncio.sleep(0)


async def batch(request: Any) -> AsyncIterator[Any]:
    """`BATCH` items in each turn of the event loop, handed over together."""
    from dynamo_fast.ingress.push_handler import Batch

    for first in range(0, request["items"], BATCH):
        yield Batch([{"token": first + number, "text": "hello"} for number in range(BATCH)])
        await asyncio.sleep(0)


async def peer_batch(request: Any) -> AsyncIterator[Any]:
    """What the peer can do instead: the items one by one, a pause after each batch."""
    for first in range(0, request["items"], BATCH):
        for number in range(BATCH):
            yield {"token": first + number, "text": "hello"}
        await asyncio.sleep(0)


async def serve_ours() -> None:
    from dynamo_fast.discovery.file import FileDiscovery
    from dynamo_fast.ingress.worker import Worker

    worker = await Worker.start(FileDiscovery())
    for name in HANDLERS:
        await worker.serve(globals()[name], ENDPOINT.format(name))
    print("READY", flush=True)
    await asyncio.Event().wait()


async def serve_peer() -> None:
    from dynamo.runtime import DistributedRuntime  # only there in the peer's environment

    runtime = DistributedRuntime(asyncio.get_running_loop(), "file", "tcp")
    handlers = {"run": run, "step": step, "batch": peer_batch}
    served = [runtime.endpoint(ENDPOINT.format(name)).serve_endpoint(handlers[name]) for name in HANDLERS]
    print("READY", flush=True)
    await asyncio.gather(*served)


def serve(who: str) -> None:
    """Serve every handler until the process is killed."""
    import uvloop

    uvloop.install()
    asyncio.run(serve_ours() if who == "ours" else serve_peer())


# The caller


@dataclass(frozen=True)
class Load:
    """One measurement: `requests` answers of `items` items, `streams` at once."""

    handler: str
    items: int
    streams: int
    requests: int
    codec: str


class Worker:
    """A worker process and the addresses of its endpoints."""

    def __init__(self, who: str, python: str, folder: str) -> None:
        self.who = who
        environment = {
            **os.environ,
            "DYN_FILE_KV": folder,
            "DYN_TCP_RPC_HOST": "127.0.0.1",
            "DYN_EVENT_PLANE": "zmq",
            "DYN_LOG": "error",
        }
        self.process = subprocess.Popen(
            [python, __file__, "--serve", who],
            env={**environment, "PYTHONPATH": str(Path(__file__).parents[1])} if who == "ours" else environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # a peer complains of each connection that the replay has closed
        )
        assert self.process.stdout is not None
        if self.process.stdout.readline() != b"READY\n":
            raise SystemExit(f"the worker of {who} did not start: {python}")
        self.addresses = self._wait_for_records(folder)

    def cpu_seconds(self) -> float:
        """User and system time of all threads, so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        """End the process."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def _wait_for_records(self, folder: str) -> dict[str, str]:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            records = [json.loads(file.read_bytes()) for file in Path(folder, "v1", "instances").glob("bench*")]
            if len(records) == len(HANDLERS):
                return {record["endpoint"]: record["transport"]["tcp"] for record in records}
            time.sleep(0.02)
        raise SystemExit(f"the worker of {self.who} did not register")


class Replay:
    """Sends one request after the other, `load.streams` at once, and reads every answer to its end."""

    def __init__(self, address: str, load: Load) -> None:
        self._load = load
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self._listener.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        host_port, _, path = address.partition("/")
        host, _, port = host_port.rpartition(":")
        self._requests = socket.create_connection((host, int(port)))
        self._frames = [self._frame(path) for _ in range(load.requests)]
        self._buffer = bytearray(1 << 18)
        self.bytes = 0

    def run(self) -> float:
        """Seconds until every answer has ended."""
        started = time.perf_counter()
        for _ in range(self._load.streams):
            self._send()
        unanswered = self._load.requests
        while unanswered:
            ready = self._selector.select(30)
            if not ready:
                raise SystemExit(f"{unanswered} answers did not end: {self._load}")
            for key, _ in ready:
                if key.fileobj is self._listener:
                    self._accept()
                elif self._read(key.fileobj):  # type: ignore[arg-type]  # a socket
                    unanswered -= 1
                    self._send()
        seconds = time.perf_counter() - started
        self._requests.close()
        self._listener.close()
        self._selector.close()
        return seconds

    def _send(self) -> None:
        if self._frames:
            self._requests.sendall(self._frames.pop())

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                connection, _ = self._listener.accept()
                connection.setblocking(False)
                self._selector.register(connection, selectors.EVENT_READ)

    def _read(self, connection: socket.socket) -> bool:
        """Whether the answer has ended."""
        size = connection.recv_into(self._buffer)
        self.bytes += size
        if size == 0:
            raise SystemExit(f"an answer ended without a sentinel: {self._load}")
        if not self._buffer.endswith(SENTINEL, 0, size):
            return False
        self._selector.unregister(connection)
        connection.close()
        return True

    def _frame(self, path: str) -> bytes:
        request_id = str(uuid.uuid4())
        address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        info = {"address": address, "subject": request_id, "context": request_id, "stream_type": "response"}
        control = {
            "id": request_id,
            "request_type": "single_in",
            "response_type": "many_out",
            "payload_codec": self._load.codec,
            "connection_info": {"transport": "tcp_server", "info": json.dumps(info)},
        }
        header, body = json.dumps(control).encode(), self._body()
        payload = struct.pack(">QQQ", len(header), len(body), 0) + header + body
        return struct.pack(">H", len(path)) + path.encode() + b"\0\0" + struct.pack(">I", len(payload)) + payload

    def _body(self) -> bytes:
        if self._load.codec == "json":
            return json.dumps({"items": self._load.items}).encode()
        return b"\x81\xa5items\xcd" + struct.pack(">H", self._load.items)


def measure(worker: Worker, load: Load) -> tuple[float, float]:
    """CPU seconds of the worker, and seconds on the clock, per item."""
    replay = Replay(worker.addresses[load.handler], load)
    before = worker.cpu_seconds()
    seconds = replay.run()
    count = load.requests * load.items
    return (worker.cpu_seconds() - before) / count, seconds / count


@contextlib.contextmanager
def workers(peer: str) -> Iterator[tuple[Worker, Worker]]:
    """Our worker and the peer's, side by side."""
    with tempfile.TemporaryDirectory() as ours_folder, tempfile.TemporaryDirectory() as peer_folder:
        ours = Worker("ours", sys.executable, ours_folder)
        try:
            theirs = Worker("peer", peer, peer_folder)
            try:
                yield ours, theirs
            finally:
                theirs.stop()
        finally:
            ours.stop()


def main(arguments: list[str] | None = None) -> int:
    """Measure, alternately, and print one table."""
    parser = argparse.ArgumentParser(description="CPU time of a worker for each item, ours beside Dynamo's own")
    parser.add_argument("--peer", default=".peers/1.6.1/bin/python", help="a Python that has ai-dynamo-runtime")
    parser.add_argument("--items", type=int, default=1024, help="items of each answer, 256 to 65535")
    parser.add_argument("--streams", type=int, default=32, help="answers at once")
    parser.add_argument("--requests", type=int, default=128, help="answers in each measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--codec", choices=("msgpack", "json"), default="msgpack")
    parser.add_argument("--serve", choices=("ours", "peer"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        serve(options.serve)
        return 0
    print(f"{options.requests} answers of {options.items} items, {options.streams} at once, {options.codec}")
    print(f"{'handler':8} {'ours':>12} {'peer':>12} {'ratio':>7}   {'ours':>12} {'peer':>12}")
    print(f"{'':8} {'us CPU/item':>12} {'us CPU/item':>12} {'':7}   {'items/s':>12} {'items/s':>12}")
    with workers(options.peer) as (ours, theirs):
        for handler in HANDLERS:
            load = Load(handler, options.items, options.streams, options.requests, options.codec)
            measure(ours, load), measure(theirs, load)  # warm up
            results = [(measure(ours, load), measure(theirs, load)) for _ in range(options.rounds)]
            cpu = [statistics.median(result[who][0] for result in results) for who in (0, 1)]
            clock = [statistics.median(result[who][1] for result in results) for who in (0, 1)]
            print(
                f"{handler:8} {cpu[0] * 1e6:12.2f} {cpu[1] * 1e6:12.2f} {cpu[1] / cpu[0]:6.1f}x   "
                f"{1 / clock[0]:12,.0f} {1 / clock[1]:12,.0f}"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
