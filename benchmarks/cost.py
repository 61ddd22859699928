"""What the package costs in instructions, counted by valgrind: a gate that does not depend on the mood of the machine.

    python -m benchmarks.cost [--record] [CASE ...]

A case is named by the beginning of its name ("caller", "worker: an item"); without one all are counted. Each is done
twice, in processes of their own, with a different amount of work: the difference of the two counts, divided by the
difference of the work, is the cost of one. So the start of the interpreter, imports and connections cancel out. Only
instructions in user space count, of all threads of the process under test. Its other end is another process, which is
not counted: `replay.c` answers callers, sockets of this process call workers (`worker_side.py`).

Prints the counts beside those in cost.json that were recorded for this version of Python. Fails if one is more than 2 %
above, provided that they were recorded with the same builds and libraries: with others a count may differ by more, so the
table is printed and nothing fails. --record writes cost.json. Without valgrind nothing is counted, which is said, and is no
failure.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import worker_side
from benchmarks.caller import WORKS
from benchmarks.timing import machine
from dynamo_fast.codec import BACKEND

__all__ = ["ALLOWED", "CASES", "RECORDED", "compare", "count", "main"]

ROOT = Path(__file__).parents[1]
PACKAGES = ("benchmarks", "dynamo_fast")
RECORDED = Path(__file__).with_name("cost.json")
ALLOWED = 0.02
"""What a count may be above what is recorded, of it."""
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
PATIENCE = 300
"""Seconds that one process may take."""

FRAME = """
from dynamo_fast.codec import TwoPartCodec, TwoPartDecoder, TwoPartMessage
codec, feed = TwoPartCodec(), TwoPartDecoder().feed
message = TwoPartMessage.from_data(bytes(96))
frame = codec.encode_message(message)
run = frame * 500
def repeat(call, argument, times):
    together = min(times, 500)
    kept = []
    for _ in range(times // together):
        kept.append([float(), *map(bytes, range(0, 480, 16))])
        for _ in range(together):
            call(argument)
repeat({call}, {argument}, {times})
"""
"""An object that is made and released again and again lies in the same place of one of the allocator's pools. What
that place costs, 0 to 14 instructions, depends on all that was allocated before. So an object of each size is kept
after each 500 calls, and every place has its turn."""

WORKER = """
import asyncio, sys, uvloop
from benchmarks import worker
from dynamo_fast.discovery.memory import MemoryDiscovery
from dynamo_fast.ingress import response_connection
from dynamo_fast.ingress.worker import Worker
response_connection._CORK_SECONDS *= 100  # the clock does not wait for valgrind, which is about that much slower
async def main():
    discovery = MemoryDiscovery()  # without heartbeats, whose number depends on the time
    await (await Worker.start(discovery)).serve(worker.HANDLERS[sys.argv[1]], worker.ENDPOINT.format(sys.argv[1]))
    print((await discovery.list())[0].transport.address, flush=True)
    await asyncio.Event().wait()
uvloop.run(main())
"""


@dataclass(frozen=True)
class Case:
    """`run` does the work that many times in a process under the command that it is given; `units` are in each time."""

    run: Callable[[list[str], int], None]
    units: int
    times: tuple[int, int]


@functools.cache
def home() -> Path:
    """Where a process runs, and imports from: links to the packages, and nothing else.

    An import lists each folder that it searches. In the checkout itself each other file would count, and differently each
    time that a tool leaves one there.
    """
    folder = ROOT / "build" / "cost"
    folder.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES:
        with contextlib.suppress(FileExistsError):
            (folder / package).symlink_to(ROOT / package)
    return folder


def settings(folder: str) -> dict[str, str]:
    """The whole environment of a process: what else is in ours must not count."""
    return {
        "PATH": os.defpath,
        "PYTHONPATH": str(home()),
        "PYTHONHASHSEED": "0",
        "UV_USE_IO_URING": "0",  # valgrind has none
        "DYN_FILE_KV": folder,
        "DYN_TCP_RPC_HOST": "127.0.0.1",
        "DYN_TCP_RESPONSE_STREAM_HOST": "lo",
        "DYN_EVENT_PLANE": "zmq",
    }


def run_python(under: list[str], *arguments: str, folder: str = "") -> None:
    """One process, to its end. Raises CalledProcessError."""
    command = [*under, sys.executable, *arguments]
    done = subprocess.run(
        command, cwd=home(), env=settings(folder), capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr[-2000:]}")


def frame(call: str, argument: str, units: int = 1) -> Case:
    """A call of the codec, which handles that many frames."""
    return Case(
        lambda under, times: run_python(under, "-c", FRAME.format(call=call, argument=argument, times=times)),
        units,
        (20_000 // units, 120_000 // units),
    )


def imports(module: str) -> Case:
    """The import of a module, against an interpreter that does nothing."""
    return Case(lambda under, times: run_python(under, "-c", f"import {module}" if times else "pass"), 1, (0, 1))


def caller(kind: str, work: str, codec: str, times: tuple[int, int]) -> Case:
    """A work of `caller.py`, done in each of its rounds, against a worker in C."""

    def run(under: list[str], rounds: int) -> None:
        with replay_worker(codec) as folder:
            run_python(under, "-m", "benchmarks.caller", kind, work, str(rounds), "counted", folder=folder)

    return Case(run, WORKS[work].requests * WORKS[work].items, times)


@contextlib.contextmanager
def replay_worker(codec: str) -> Iterator[str]:
    """A worker that `replay.c` does the work of; the folder of its file store."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.replay_worker", codec]
        environment = {**os.environ, **settings(folder)}
        with subprocess.Popen(command, cwd=home(), env=environment, stdout=subprocess.PIPE) as worker:
            try:
                assert worker.stdout is not None
                assert worker.stdout.readline() == b"ready\n"
                yield folder
            finally:
                worker.kill()


@contextlib.contextmanager
def counted_worker(under: list[str], handler: str) -> Iterator[str]:
    """A worker with one handler of `worker.py`; the address of its endpoint."""
    command = [*under, sys.executable, "-c", WORKER, handler]
    with subprocess.Popen(command, cwd=home(), env=settings(""), stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip() or sys.exit("the worker did not start")
        finally:
            process.terminate()  # valgrind writes its count; a killed one does not


class InTurn(worker_side.Replay):
    """Goes on when the worker has closed an answer, too: what comes together must not depend on who is quicker."""

    def _close(self, connection: socket.socket) -> None:
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(1 << 16):
            pass
        super()._close(connection)


def worker(work: worker_side.Work, times: tuple[int, int]) -> Case:
    """Answers of a handler of `worker.py`, one after the other."""

    def run(under: list[str], rounds: int) -> None:
        with counted_worker(under, work.handler) as address:
            for _ in range(rounds):
                replay = InTurn(address, work)
                replay.run()
                replay.close()

    return Case(run, work.requests * work.items, times)


def step(side: str) -> Case:
    """An item of each of 256 streams of a session at once (`mux_step.py`)."""
    streams = 256

    def run(under: list[str], steps: int) -> None:
        run_python(under, "-m", "benchmarks.mux_step", side, str(streams), str(steps))

    return Case(run, streams, (20, 60))


def caller_on_a_session(kind: str, work: str, times: tuple[int, int]) -> Case:
    """As `caller`, against our own worker, which answers on a session; it is not counted."""

    def run(under: list[str], rounds: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "benchmarks.worker", "ours"]
            with subprocess.Popen(command, env=settings(folder), stdout=subprocess.PIPE) as worker:
                try:
                    assert worker.stdout is not None
                    assert worker.stdout.readline() == b"ready\n"
                    run_python(under, "-m", "benchmarks.caller", kind, work, str(rounds), "counted", folder=folder)
                finally:
                    worker.kill()

    return Case(run, WORKS[work].requests * WORKS[work].items, times)


CASES = {
    "frame: decode a run": frame("feed", "run", 500),
    "frame: decode one": frame("codec.decode_message", "frame"),
    "frame: encode": frame("codec.encode_message", "message"),
    "caller: an item, native, MessagePack": caller("ours", "burst", "msgpack", (1, 3)),
    "caller: an item, native, JSON": caller("ours", "burst", "json", (1, 3)),
    "caller: an item, drop-in, MessagePack": caller("dropin", "burst", "msgpack", (1, 3)),
    "caller: an item, drop-in, JSON": caller("dropin", "burst", "json", (1, 3)),
    "caller: a raw item, MessagePack": caller("raw", "burst", "msgpack", (1, 3)),
    "caller: a raw item, JSON": caller("raw", "burst", "json", (1, 3)),
    "caller: a raw item to a sink, MessagePack": caller("sink", "burst", "msgpack", (1, 3)),
    "caller: a raw item to a sink, JSON": caller("sink", "burst", "json", (1, 3)),
    "caller: a raw item to a sink, drop-in": caller("bare", "burst", "msgpack", (1, 3)),
    "caller: a request, native": caller("ours", "sequential", "msgpack", (1, 4)),
    "caller: a request, drop-in": caller("dropin", "sequential", "msgpack", (1, 4)),
    "worker: an item": worker(worker_side.Work("run", 10_240, 1, 1), (1, 7)),
    "worker: an item of a Batch": worker(worker_side.Work("batch", 10_240, 1, 1), (1, 7)),
    "worker: a request": worker(worker_side.Work("run", 1, 1, 300), (1, 4)),
    "mux, caller: an item of a step": step("caller"),
    "mux, worker: an item of a step": step("worker"),
    "mux, caller: a request, native": caller_on_a_session("ours", "sequential", (1, 4)),
    "mux, caller: a request, drop-in": caller_on_a_session("dropin", "sequential", (1, 4)),
    "import dynamo_fast.codec": imports("dynamo_fast.codec"),
}


def count(case: Case) -> float:
    """Instructions of one unit."""
    for times in case.times:  # modules are compiled, and files are in the cache
        case.run([], times)
    less, more = (counted(case, times) for times in case.times)
    return (more - less) / (case.times[1] - case.times[0]) / case.units


def counted(case: Case, times: int) -> int:
    """Instructions of a whole process."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "counts"
        case.run(["valgrind", "--tool=callgrind", "--quiet", f"--callgrind-out-file={file}"], times)
        found = re.search(r"^totals: (\d+)", file.read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    return int(found[1])


def compare(measured: dict[str, float], recorded: dict[str, float]) -> tuple[str, list[str]]:
    """A table of both, and the cases that cost more than is allowed."""
    lines = [f"{'instructions':40}{'recorded':>14}{'measured':>14}{'change':>9}"]
    dearer = []
    for name, value in measured.items():
        before = recorded.get(name)
        if before is None:
            lines.append(f"{name:40}{'':14}{value:14,.0f}{'new':>9}")
            continue
        lines.append(f"{name:40}{before:14,.0f}{value:14,.0f}{value / before - 1:+9.1%}")
        if value > before * (1 + ALLOWED):
            dearer.append(name)
    return "\n".join(lines), dearer


def record(measured: dict[str, float], recorded: dict[str, Any]) -> None:
    """Into cost.json, under this version of Python; cases that were not counted keep what they have."""
    before = recorded.get(PYTHON, {}).get("instructions", {})
    kept = {
        name: round(measured.get(name, before.get(name, 0))) for name in CASES if name in measured or name in before
    }
    recorded[PYTHON] = {"with": versions(), "instructions": kept}
    RECORDED.write_text(json.dumps(dict(sorted(recorded.items())), indent=1) + "\n", encoding="utf-8")


def versions() -> dict[str, str]:
    """What a count depends on, besides the package's source."""
    built = (sysconfig.get_config_var("CONFIG_ARGS") or "").replace("'", "").split()
    options = [each for each in built if each.startswith(("--enable", "--with"))]
    libc = " ".join(platform.libc_ver())
    return {
        "codec": BACKEND,
        "build": " ".join([platform.python_compiler(), libc, *options]),
        **machine("uvloop", "orjson", "msgspec"),
    }


def chosen(prefixes: list[str]) -> dict[str, Case]:
    """The cases whose names begin so; all if there is no prefix. Raises SystemExit if there is none."""
    found = {name: case for name, case in CASES.items() if not prefixes or name.startswith(tuple(prefixes))}
    return found or sys.exit(f"no case begins with {' or '.join(prefixes)}: {', '.join(CASES)}")


def main() -> None:
    """Count, print, and compare or record."""
    parser = argparse.ArgumentParser(prog="benchmarks.cost", description="What the package costs in instructions.")
    parser.add_argument("cases", nargs="*", metavar="CASE", help="the beginning of the names of some; by default all")
    parser.add_argument("--record", action="store_true", help="write the counts to cost.json, for this Python")
    options = parser.parse_args()
    cases = chosen(options.cases)
    if shutil.which("valgrind") is None:
        print("skipped: valgrind is not installed, and nothing else counts instructions")
        return
    measured = {}
    for name, case in cases.items():
        measured[name] = count(case)
        print(f"{name}: {measured[name]:,.0f}", file=sys.stderr, flush=True)
    recorded = json.loads(RECORDED.read_text(encoding="utf-8")) if RECORDED.exists() else {}
    of_this = recorded.get(PYTHON, {"with": {}, "instructions": {}})
    table, dearer = compare(measured, of_this["instructions"])
    print(table)
    if options.record:
        record(measured, recorded)
        return
    if of_this["with"] != versions():
        print(f"recorded with {of_this['with']}\nmeasured with {versions()}: no count fails")
    elif dearer:
        sys.exit(f"more than {ALLOWED:.0%} above what is recorded: {', '.join(dearer)}")


if __name__ == "__main__":
    main()
