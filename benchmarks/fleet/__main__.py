"""What a router does with 1,000 and 10,000 workers in discovery.

    python -m benchmarks.fleet [--workers 1000 10000] [--routers 1 10] [--backends mem file etcd]

For each of these: the time until a router knows all workers, and then one that comes and one that goes; the CPU of
watching while nothing happens, and while each second 1 % of the workers go and others come; the memory of a known worker,
and of one that was called, with its connections; and the loss of a tenth of the workers at once, under load, while their
records are still there: requests lost, seconds until the last of them, and until discovery has forgotten the workers.

The workers are records and one program that answers at all their addresses (`workers.py`). Routers are processes of their
own (`routers.py`), except with `mem`, where all are in one. What needs more descriptors than a process may have is left
out, and said. Prints a table; adds to the figures of other runs in fleet.json, which `benchmarks.report` puts into
docs/scaling.md. With 1,000 workers each case takes about a minute, with 10,000 two.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import socket
import statistics
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from benchmarks import report, router
from benchmarks.fleet.commands import Process
from benchmarks.fleet.routers import RETRIES
from benchmarks.timing import machine
from scripts import etcd

BACKENDS = ("mem", "file", "etcd")
LEASE_SECONDS = 10
"""How long a lost worker's key stays in etcd; a file stays as long (`discovery.file.TTL`)."""
CHANGING = 0.01
"""The share of the workers that changes in a second."""
STREAMS = 64
"""Of the load, of all routers together; each is asked for 100 ms of items at a time."""
SPARE_DESCRIPTORS = 1_000
TIME_LIMITS = {"DYN_TCP_REQUEST_TIMEOUT": "5"}
"""The default, which says how late a lost request may fail."""
VISITS = 20
"""Workers that come and go, one at a time."""
Row = dict[str, float | None]


@dataclass(frozen=True)
class Case:
    """What is measured together."""

    backend: str
    workers: int
    routers: int

    def __str__(self) -> str:
        return f"{self.backend}, {self.workers:,} workers, {self.routers} router{'s' * (self.routers > 1)}"

    @property
    def doomed(self) -> int:
        """How many workers are lost at once."""
        return self.workers // 10

    @property
    def connections(self) -> int:
        """From all routers to all workers; those of one process share theirs."""
        return self.workers * (1 if self.backend == "mem" else self.routers)

    @contextlib.contextmanager
    def fleet(self, settings: Mapping[str, str]) -> Iterator[Fleet]:
        """The processes, with all records in discovery. The workers' end first, as they do in the measurement."""
        living = self.workers - self.doomed
        with contextlib.ExitStack() as stack:

            def started(module: str, *arguments: object) -> Process:
                program = f"benchmarks.fleet.{module}"
                return stack.enter_context(Process(program, self.backend, *arguments, settings=settings))

            if self.backend == "mem":
                host = started("routers", self.routers, living, self.doomed)
                yield Fleet(self, [host], Hosted(host, "living"), Hosted(host, "doomed"))
            else:
                first, rest = started("workers", 1, living), started("workers", 1 + living, self.doomed)
                routers = [started("routers", 1) for _ in range(self.routers)]
                yield Fleet(self, routers, Workers(first), Workers(rest))


class Workers:
    """Some of the workers, in a process of their own."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def begin(self, name: str, **arguments: Any) -> None:
        self._process.begin(name, **arguments)

    def result(self) -> Any:
        return self._process.result()

    def lose(self) -> None:
        """All at once, without a farewell."""
        self._process.kill()


class Hosted(Workers):
    """The same in the process of the routers."""

    def __init__(self, process: Process, name: str) -> None:
        super().__init__(process)
        self._name = name

    def begin(self, name: str, **arguments: Any) -> None:
        self._process.begin(f"{self._name} {name}", **arguments)

    def lose(self) -> None:
        self.begin("lose")
        self.result()


class Fleet:
    """The measurements, in their order: each leaves the fleet as the next one needs it."""

    def __init__(self, case: Case, routers: list[Process], living: Workers, doomed: Workers) -> None:
        self._case = case
        self._routers = routers
        self._living = living
        self._doomed = doomed

    def measure(self, seconds: float, visits: int, most_connections: int) -> Row:
        """All of it. `seconds` is how long each measurement of CPU takes, `visits` how many workers come and go."""
        row = {**self._start(), **self._visits(visits), **self._watching(seconds)}
        if self._case.connections > most_connections:
            print(
                f"{self._case}: no calls, which need {self._case.connections:,} descriptors (of {most_connections:,})"
            )
            return row
        return {**row, **self._called(), **self._loss()}

    def _ask(self, name: str, **arguments: Any) -> list[Any]:
        """All routers at once."""
        for each in self._routers:
            each.begin(name, **arguments)
        return [each.result() for each in self._routers]

    def _start(self) -> Row:
        for workers in (self._living, self._doomed):
            workers.begin("appear")
            workers.result()
        started = self._ask("start", size=self._case.workers)
        return {"known_seconds": _median(started, "seconds"), "kib_known": _median(started, "kib")}

    def _visits(self, number: int) -> Row:
        """Seconds until a router knows. A worker that has gone before a router looked is missed, and counted."""
        self._living.begin("visit", number=number, pause=0.25)
        began = self._living.result()
        heard = list(chain.from_iterable(self._ask("known", pause=5.0)))

        def delays(what: str) -> list[float]:
            return [at - began[what][visit] for each in heard for visit, at in each[what]]

        came, went = delays("came"), delays("went")
        return {
            "missed": number * len(heard) - len(came),
            "came_p50": statistics.median(came) if came else None,
            "came_most": max(came, default=None),
            "went_p50": statistics.median(went) if went else None,
            "went_most": max(went, default=None),
        }

    def _watching(self, seconds: float) -> Row:
        """Shares of a core, for one router."""

        def idle() -> None:
            time.sleep(seconds)

        def changing() -> None:
            self._living.begin("change", per_second=self._case.workers * CHANGING, seconds=seconds)
            self._living.result()

        return {"cpu_idle": self._share(idle), "cpu_changing": self._share(changing)}

    def _share(self, act: Callable[[], None]) -> float | None:
        before: list[dict[str, float]] = self._ask("used")
        act()
        after: list[dict[str, float]] = self._ask("used")
        if self._case.backend == "mem":  # where the work of the workers is in the same process
            return None
        return statistics.median(
            (late["cpu"] - early["cpu"]) / (late["at"] - early["at"]) for early, late in zip(before, after, strict=True)
        )

    def _called(self) -> Row:
        called = self._ask("call_all")
        return {"kib_called": _median(called, "kib"), "connections": _median(called, "connections")}

    def _loss(self) -> Row:
        streams = max(1, STREAMS // len(RETRIES) // self._case.routers)
        afterwards = 2 if self._case.backend == "mem" else 2 * LEASE_SECONDS
        self._ask("load", seconds=2.0 + afterwards, streams=streams)
        time.sleep(2)
        lost_at = time.monotonic()
        self._doomed.lose()
        outcomes = list(chain.from_iterable(self._ask("outcome", lost_at=lost_at)))
        row: Row = {"forgotten": max(each["forgotten"] for each in outcomes)}
        for retries in RETRIES:
            row[f"sent_{retries}"] = sum(each[f"sent_{retries}"] for each in outcomes)
            row[f"lost_{retries}"] = sum(each[f"lost_{retries}"] for each in outcomes)
            row[f"steady_{retries}"] = max(each[f"steady_{retries}"] for each in outcomes)
        return row


def _median(results: list[dict[str, float]], key: str) -> float:
    return statistics.median(each[key] for each in results)


@contextlib.contextmanager
def settings_of(backend: str) -> Iterator[dict[str, str]]:
    """The environment of all processes; an etcd runs for it."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {**router.environment(folder), **TIME_LIMITS, "ETCD_LEASE_TTL": str(LEASE_SECONDS), "DYN_LOG": "off"}
        if backend != "etcd":
            yield settings
            return
        with etcd_server(f"{folder}/etcd") as url:
            yield {**settings, "ETCD_ENDPOINTS": url}


@contextlib.contextmanager
def etcd_server(folder: str) -> Iterator[str]:
    """An etcd of its own; its URL, once it is healthy."""
    client, peer = (f"http://127.0.0.1:{_free_port()}" for _ in range(2))
    options = {
        "--data-dir": folder,
        "--listen-client-urls": client,
        "--advertise-client-urls": client,
        "--listen-peer-urls": peer,
        "--initial-advertise-peer-urls": peer,
        "--initial-cluster": f"default={peer}",
        "--log-level": "error",
    }
    program = etcd.find() or etcd.bring()
    with subprocess.Popen([str(program), *chain.from_iterable(options.items())], stderr=subprocess.DEVNULL) as server:
        try:
            _wait_for(f"{client}/health")
            yield client
        finally:
            server.kill()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _wait_for(url: str) -> None:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=1) as answer:
            if b"true" in answer.read():
                return
        time.sleep(0.1)
    raise SystemExit(f"etcd at {url} does not become healthy")


def measure(case: Case, seconds: float, visits: int, most_connections: int) -> Row:
    """One case, with discovery and processes of its own."""
    with settings_of(case.backend) as settings, case.fleet(settings) as fleet:
        return fleet.measure(seconds, visits, most_connections)


def allow_descriptors() -> int:
    """As many as this user may have, for this process and those that it starts; how many connections that makes."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most - SPARE_DESCRIPTORS


def write(row: Row, case: Case, facts: dict[str, str], folder: Path) -> None:
    """Add the figures of a case to those that are there."""
    router.write("fleet", facts, {**report.figures(folder, "fleet"), str(case): row}, folder)


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(prog="benchmarks.fleet", description="Routers of a large fleet.")
    parser.add_argument("--workers", type=int, nargs="+", default=[1_000, 10_000])
    parser.add_argument("--routers", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS)
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement of CPU (default: 10)")
    parser.add_argument("--figures", type=Path, default=report.FIGURES, help="where fleet.json is")
    options = parser.parse_args()
    most_connections = allow_descriptors()
    facts = machine("dynamo-fast", "uvloop", "aiohttp", "inotify-simple")
    for backend in options.backends:
        for workers in options.workers:
            for routers in options.routers:
                case = Case(backend, workers, routers)
                began = time.monotonic()
                row = measure(case, options.seconds, VISITS, most_connections)
                write(row, case, facts, options.figures)
                print(f"{case}: {json.dumps(row)} ({time.monotonic() - began:.0f} s)", flush=True)
    print(report.fleet(options.figures))


if __name__ == "__main__":
    main()
