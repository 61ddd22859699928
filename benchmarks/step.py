"""What a step of serving engines costs: N streams of several workers at one router, an item on each every 20 ms.

    python -m benchmarks.step [--rounds 2] [--streams 64 256 1024] [--workers 4]

Both ends are of one make: ours with the plane of today and with the multiplexed one (docs/spec/mux.md), native and through
the drop-in, and Dynamo's. CPU is user and system time of a process and all its threads, for an item: of the caller, and of
all workers together. Prints a table, and writes it as JSON to the file that `--json` names. The implementations take turns
in every round; each figure is the median of the rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.router import HERE, PEERS, environment, process

PATIENCE = 150
"""Seconds that one caller may take."""


class Pair(NamedTuple):
    """Both ends of one make: its interpreter, its kind in `worker.py` and in `caller.py`, and the response plane."""

    python: str
    worker: str
    caller: str
    plane: str


def pairs() -> dict[str, Pair]:
    """Those that can be run here."""
    ours = {
        f"{name}, {label}": Pair(sys.executable, worker, caller, plane)
        for name, worker, caller in (("native", "ours", "ours"), ("drop-in", "dropin", "dropin"))
        for label, plane in (("one connection an answer", "off"), ("mux", "auto"))
    }
    return ours | {
        f"Dynamo {version}": Pair(str(python), "peer", "peer", "")
        for version, python in PEERS.items()
        if python.exists()
    }


def measure(pair: Pair, streams: int, workers: int) -> list[dict[str, Any]]:
    """Two rounds of one pair; none if it fails, which is said."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        settings = {**environment(folder), "DYNAMO_FAST_MUX": pair.plane, "BENCH_WORKERS": str(workers)}
        settings["BENCH_ENDPOINT"] = "bench.worker.engine"
        command = [pair.python, str(HERE / "worker.py"), pair.worker]
        pids = [stack.enter_context(process(command, settings)).pid for _ in range(workers)]
        settings["WORKER_PID"] = ",".join(map(str, pids))
        work = f"{streams:,} at 20 ms"
        command = [pair.python, str(HERE / "caller.py"), pair.caller, work, "2"]
        done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=PATIENCE, check=False)
    rounds = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if not rounds:
        print(f"left out: {' '.join(command)}: {done.stderr[-1000:]}", file=sys.stderr)
    return rounds


def summary(rounds: list[dict[str, Any]]) -> dict[str, float]:
    """Microseconds an item at the caller and at the workers, seconds of a round, milliseconds between items (p99)."""

    def median(values: list[float]) -> float:
        return statistics.median(values)

    return {
        "caller_us": median([each["cpu"] / each["items"] * 1e6 for each in rounds]),
        "worker_us": median([each["worker_cpu"] / each["items"] * 1e6 for each in rounds]),
        "seconds": median([each["seconds"] for each in rounds]),
        "gap_p99_ms": median([each["gap_p99"] * 1e3 for each in rounds]),
    }


def table(results: dict[int, dict[str, dict[str, float]]]) -> str:
    """Rows for people."""
    lines = [f"{'':36}{'caller':>10}{'workers':>10}{'round':>9}{'gap p99':>10}"]
    for streams, found in results.items():
        lines.append(f"{streams:,} streams, an item each 20 ms")
        lines += [
            f"  {name:34}{row['caller_us']:7.1f} us{row['worker_us']:7.1f} us{row['seconds']:7.2f} s"
            f"{row['gap_p99_ms']:7.1f} ms"
            for name, row in found.items()
        ]
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="benchmarks.step", description="What a step of serving engines costs.")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--streams", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    os.chdir(HERE.parent)
    rounds: dict[int, dict[str, list[dict[str, Any]]]] = {}
    for streams in options.streams:
        for _ in range(options.rounds):
            for name, pair in pairs().items():
                seen = measure(pair, streams, options.workers)
                rounds.setdefault(streams, {}).setdefault(name, []).extend(seen)
    results = {
        streams: {name: summary(each) for name, each in found.items() if each} for streams, found in rounds.items()
    }
    print(table(results))
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
