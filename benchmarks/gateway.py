"""What a token costs on its way to an HTTP client: our gateway beside a FastAPI service on Dynamo's binding, in one run.

    python -m benchmarks.gateway [--rounds 5]

Before the same worker, which costs almost nothing (`replay.c`), stand our gateway, a FastAPI service on Dynamo 1.6.1's
binding (`fastapi_service.py`: uvicorn, uvloop, httptools, StreamingResponse), and a relay in C that looks at nothing
(`relay.c`, the floor). They take turns in every round. The client reads bytes and counts events; it decodes nothing.

    burst          a stream of 20,000 items
    32x200         streams of 200 items, 32 at once
    64 at 20 ms    streams of 100 items, 64 at once, an item each 20 ms, as engines make them
    one item       requests of one item, 32 at once, on connections that stay open
    100 a second   requests of one item at that rate: the time to the first item, also of a router without a gateway

CPU is the server's, user and system time of all its threads. Prints a table; writes docs/figures/gateway.json. FastAPI,
uvicorn and httptools are taken from this environment (`pip install -e '.[bench]'`), Dynamo from `.peers` (`make peers`).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import selectors
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import report, router
from benchmarks.caller import peak_kib
from benchmarks.frontend import free_port
from benchmarks.replay_worker import compiled
from benchmarks.timing import machine

HERE = Path(__file__).parent
PEER = Path(".peers") / "1.6.1" / "bin" / "python"
PATH = "/bench/worker/run"
OURS, FASTAPI, FLOOR, DIRECT = report.OURS, "FastAPI on Dynamo 1.6.1", "floor: relay in C", "no gateway: our router"
PATIENCE = 60.0
EVENT = b"data: "
"""In the bytes of an answer once for each item."""
DONE, LAST_CHUNK = b"data: [DONE]\n\n", b"\r\n0\r\n\r\n"


@dataclass(frozen=True)
class Work:
    """`requests` requests of `items` items, `concurrent` at once; `pace` is in microseconds between items."""

    requests: int
    concurrent: int
    items: int
    pace: int = 0
    rate: int = 0
    """Requests a second, if that is given."""

    def body(self) -> dict[str, int]:
        """What the worker is asked for."""
        return {"items": self.items, "size": 100, "pace": self.pace}

    def request(self) -> bytes:
        """The request over HTTP."""
        body = json.dumps(self.body()).encode()
        head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


WORKS = {
    "burst": Work(1, 1, 20_000),
    "32x200": Work(96, 32, 200),
    "64 at 20 ms": Work(64, 64, 100, pace=20_000),
    "one item": Work(1_500, 32, 1),
    "100 a second": Work(300, 1, 1, rate=100),
}


class Answer:
    """One connection, and how far its answer has come. It ends with `close`."""

    def __init__(self, port: int, counted: bool) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sent = 0.0
        self.items = 0
        """Of all its answers."""
        self.first_items: list[float] = []
        """Seconds until the first item of each answer came."""
        self._counted = counted
        self._waits = False
        self._tail = b""
        self._end = b""

    def send(self, request: bytes) -> None:
        self._tail = self._end = b""
        self._waits = True
        self.sent = time.perf_counter()
        self.socket.sendall(request)

    def take(self) -> bool:
        """Read, and count the items; whether the answer has come to its end."""
        data = self.socket.recv(1 << 18)
        if not self._end:
            if not data.startswith(b"HTTP/1.1 200"):
                raise SystemExit(f"the server answered {data[:200]!r}")
            self._end = DONE if b"\r\ncontent-length:" in data.lower() else LAST_CHUNK
        joint = self._tail[1 - len(EVENT) :] + data[: len(EVENT) - 1]
        came = data.count(EVENT) + joint.count(EVENT)
        self.items += came
        if self._waits and (came or not self._counted):
            self._waits = False
            self.first_items.append(time.perf_counter() - self.sent)
        self._tail = (self._tail + data)[-32:] if len(data) < 32 else data[-32:]
        if not self._tail.endswith(self._end):
            return False
        self.items -= 1  # `[DONE]` is none
        return True

    def close(self) -> None:
        self.socket.close()


def run(port: int, work: Work, counted: bool) -> dict[str, Any]:
    """Do the work once, as fast as it goes, or at its rate. The floor's items cannot be counted: see `relay.c`."""
    answers = [Answer(port, counted) for _ in range(work.concurrent)]
    began = time.perf_counter()
    _ask(answers, work, began)
    seconds = time.perf_counter() - began
    items = sum(answer.items for answer in answers)
    if counted and items != work.requests * work.items:
        raise SystemExit(f"{items} items came, expected {work.requests * work.items}")
    for answer in answers:
        answer.close()
    return {"seconds": seconds, "first_item": sorted(time for answer in answers for time in answer.first_items)}


def _ask(answers: list[Answer], work: Work, began: float) -> None:
    request, left, idle = work.request(), work.requests, list(answers)
    selector = selectors.DefaultSelector()
    for answer in answers:
        selector.register(answer.socket, selectors.EVENT_READ, answer)
    while left or len(idle) < len(answers):
        while left and idle:
            if work.rate:
                due = began + (work.requests - left) / work.rate
                time.sleep(max(0.0, due - time.perf_counter()))
            idle.pop().send(request)
            left -= 1
        ready = selector.select(PATIENCE)
        if not ready:
            raise SystemExit(f"an answer did not come: {work}")
        idle += [key.data for key, _ in ready if key.data.take()]
    selector.close()


@dataclass
class Server:
    """A process that answers on a port."""

    process: subprocess.Popen[bytes]
    port: int
    counted: bool

    def measure(self, work: Work) -> dict[str, Any]:
        """The work, once; a round as `router.figures` takes it."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")  # the peak begins anew
        cpu = self._cpu_seconds()
        measured = run(self.port, work, self.counted)
        return {
            **measured,
            "items": work.items * work.requests,
            "requests": work.requests,
            "cpu": self._cpu_seconds() - cpu,
            "peak_kib": peak_kib(self.process.pid),
        }

    def _cpu_seconds(self) -> float:
        """The process's clock, as clock_getcpuclockid(3) names it."""
        return time.clock_gettime((~self.process.pid << 3) | 2)


async def direct(work: Work) -> dict[str, Any]:
    """The same requests at the same rate by our router, in this process."""
    from dynamo_fast import AddressedPushRouter, FileDiscovery, PushRouter

    discovery = FileDiscovery()
    first_items = []
    async with (
        await AddressedPushRouter.create() as addressed,
        await PushRouter.create("bench.worker.run", discovery, addressed) as workers,
    ):
        await workers.wait_for_instances()
        began = due = time.perf_counter()
        for _ in range(work.requests):
            due += 1 / work.rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            sent = time.perf_counter()
            stream = await workers.generate(work.body())
            await stream.__anext__()
            first_items.append(time.perf_counter() - sent)
            async for _ in stream:
                pass
        seconds = time.perf_counter() - began
    await discovery.close()
    counts = {"items": work.requests, "requests": work.requests, "cpu": 0.0, "peak_kib": 0}
    return {"seconds": seconds, "first_item": sorted(first_items), **counts}


def commands(folder: str, worker: str) -> dict[str, list[str]]:
    """The servers that can be measured here, without their ports; what is missing is said."""
    found = {OURS: [sys.executable, "-m", "dynamo_fast", "gateway", "--port"]}
    if PEER.exists():
        found[FASTAPI] = [str(PEER), str(HERE / "fastapi_service.py")]
    else:
        print(f"without {FASTAPI}: {PEER} is missing (make peers)")
    found[FLOOR] = [compiled("relay", folder), worker]
    return found


@contextlib.contextmanager
def started(command: list[str], settings: dict[str, str]) -> Iterator[Server]:
    """A server, until the block ends. It is up when it answers.

    What it says goes nowhere: Dynamo 1.6.1 writes a line for each request, whatever DYN_LOG is.
    """
    port = free_port()
    command = [*command, str(port)]
    with subprocess.Popen(command, env=settings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            _wait_for(process, port)
            yield Server(process, port, Path(command[0]).name != "relay")
        finally:
            process.kill()


def _wait_for(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + PATIENCE
    body = json.dumps(WORKS["one item"].body()).encode()
    while True:
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"{process.args!r} does not serve")
        with contextlib.suppress(OSError):  # HTTPError is one
            urllib.request.urlopen(f"http://127.0.0.1:{port}{PATH}", body, timeout=5).read()
            return
        time.sleep(0.1)


def measure(rounds: int, works: list[str]) -> dict[str, dict[str, router.Rounds]]:
    """By work and server. The first round warms up and is left out."""
    results: dict[str, dict[str, router.Rounds]] = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        settings = router.environment(folder)
        os.environ |= {name: settings[name] for name in ("DYN_FILE_KV", "DYN_TCP_RESPONSE_STREAM_HOST")}
        settings["PYTHONPATH"] += os.pathsep + sysconfig.get_path("purelib")  # FastAPI, for the peer's interpreter
        stack.enter_context(router.process([sys.executable, "-m", "benchmarks.replay_worker"], settings))
        (record,) = (Path(folder) / "v1" / "instances").glob("b*")
        worker = json.loads(record.read_text())["transport"]["tcp"].partition("/")[0]
        servers = {
            name: stack.enter_context(started(command, settings)) for name, command in commands(folder, worker).items()
        }
        for title in works:
            work = WORKS[title]
            rows = results.setdefault(title, {name: [] for name in servers})
            for number in range(rounds + 1):
                for name, server in servers.items():
                    measured = server.measure(work)
                    if number:
                        rows[name].append(measured)
                if work.rate and number:
                    rows.setdefault(DIRECT, []).append(asyncio.run(direct(work)))
            print(f"{title} done", file=sys.stderr)
    return results


def show_ratios(table: router.Table) -> None:
    """What was aimed at, beside what was reached."""
    print()
    for title, rows in table.items():
        ours, other, floor = rows[OURS], rows.get(FASTAPI), rows.get(FLOOR)
        if other is not None:
            rate = other["cpu_per_item"] / ours["cpu_per_item"]
            print(f"{title}: {rate:.1f} times the items of {FASTAPI} for the same CPU")
        if floor is not None:
            print(f"{title}: {ours['cpu_per_item'] / floor['cpu_per_item']:.1f} times the CPU of a relay in C")
        if DIRECT in rows:
            added = (ours["first_item_p99"] - rows[DIRECT]["first_item_p50"]) * 1e3
            print(f"{title}: p99 of the first item is {added:.2f} ms above the median without a gateway")


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="benchmarks.gateway", description="HTTP and SSE before a worker.")
    parser.add_argument("works", nargs="*", metavar="WORK", help=f"by default all: {', '.join(WORKS)}")
    parser.add_argument("--rounds", type=int, default=5, help="the servers take turns in each (default: 5)")
    parser.add_argument("--figures", type=Path, default=report.FIGURES, help="where the JSON goes")
    options = parser.parse_args()
    if unknown := set(options.works) - WORKS.keys():
        parser.error(f"{', '.join(unknown)}: expected {', '.join(WORKS)}")
    facts = {**machine("dynamo-fast", "aiohttp", "fastapi", "uvicorn", "uvloop"), "processors": str(os.cpu_count())}
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    table = router.tabulate(measure(options.rounds, options.works or list(WORKS)))
    router.show(table)
    show_ratios(table)
    router.write("gateway", facts, table, options.figures)


if __name__ == "__main__":
    main()
