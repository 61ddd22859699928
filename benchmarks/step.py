"""What a step of serving engines and a request cost, with all answers of a pair of processes on one connection or not.

    python -m benchmarks.step [--rounds 1] [--workers 4] [WORK ...]

Both ends are of one make: ours, native and through the drop-in, and Dynamo's. Ours have the multiplexed response plane
(docs/spec/mux.md), and beside it the plane of Dynamo, which has one connection for each answer. The works:

    N at 20 ms              N streams of several workers at one router, an item on each every 20 ms, all at the same time
    N at 20 ms, generator   the same at a router alone: N streams of `replay.c`, which costs almost nothing, as 16 engines
                            that step one after the other, 1.25 ms apart
    sequential, concurrent  one-item requests to one worker, one after the other and 32 at once
    WORK, TLS               the same with TLS, ours only

The implementations take turns in every round. CPU is user and system time of a process and all its threads: of the caller,
and of all workers together. Prints tables; writes JSON, and a plot if matplotlib is there. It takes about 4 minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from benchmarks import report, router, tls
from benchmarks.router import HERE, PEERS, Rounds, environment, process
from benchmarks.timing import machine

PEER = "1.6.1"
PACED = ("64 at 20 ms", "256 at 20 ms", "1,024 at 20 ms", "4,096 at 20 ms")
GENERATED = tuple(f"{work}, generator" for work in PACED)
REQUESTS = ("sequential", "concurrent")
WITH_TLS = tuple(f"{work}, TLS" for work in ("256 at 20 ms", *REQUESTS))
WORKS = (*PACED, *GENERATED, *REQUESTS, *WITH_TLS)
ONCE = "4,096 at 20 ms"
"""A work that others than ours need half a minute for; the others are done twice in each round."""


class Pair(NamedTuple):
    """Both ends of one make: its interpreter, its kind in `worker.py` and in `caller.py`, and the setting of its plane."""

    python: str
    kind: str
    mux: str = "auto"


def pairs() -> dict[str, Pair]:
    """Those that can be run here, by the names that they have in all tables."""
    made = {
        report.OURS: Pair(sys.executable, "ours"),
        report.DROP_IN: Pair(sys.executable, "dropin"),
        report.OFF: Pair(sys.executable, "ours", "off"),
    }
    if PEERS[PEER].exists():
        made[f"Dynamo {PEER}"] = Pair(str(PEERS[PEER]), "peer")
    else:
        print(f"without Dynamo {PEER}: {PEERS[PEER]} is missing (make peers)")
    return made


def measure(pair: Pair, work: str, workers: int, variables: Mapping[str, str]) -> Rounds:
    """A round or two of one pair; none if it is Dynamo's, and fails."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        settings = {**environment(folder), **variables, "DYNAMO_FAST_MUX": pair.mux, "BENCH_WORKERS": str(workers)}
        settings["BENCH_ENDPOINT"] = "bench.worker.engine" if work in PACED else "bench.worker.run"
        command = [pair.python, str(HERE / "worker.py"), pair.kind]
        pids = [stack.enter_context(process(command, settings)).pid for _ in range(workers)]
        settings["WORKER_PID"] = ",".join(map(str, pids))
        return router.call(pair.python, pair.kind, work, settings, rounds=1 if work == ONCE else 2)


def measure_generated(pair: Pair, work: str) -> Rounds:
    """As `measure`, with the generator at the other end: it answers each router in the way that the router asks for."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {**environment(folder), "DYNAMO_FAST_MUX": pair.mux}
        with process([sys.executable, "-m", "benchmarks.replay_worker", "msgpack", "mux"], settings):
            return router.call(pair.python, pair.kind, work, settings, rounds=1 if work == ONCE else 2)


def measure_all(works: list[str], rounds: int, workers: int) -> dict[str, dict[str, Rounds]]:
    """By work and pair."""
    results: dict[str, dict[str, Rounds]] = {work: {} for work in works}
    made = pairs()
    with tempfile.TemporaryDirectory() as folder:
        for name in works:
            work = name.removesuffix(", TLS").removesuffix(", generator")
            is_tls = name in WITH_TLS
            variables = tls.modes(Path(folder))["TLS"] if is_tls else {}
            able = {who: pair for who, pair in made.items() if not is_tls or pair.kind == "ours"}
            for _ in range(rounds):
                for who, pair in able.items():
                    if name in GENERATED:
                        measured = measure_generated(pair, work)
                    else:
                        measured = measure(pair, work, workers if work in PACED else 1, variables)
                    results[name].setdefault(who, []).extend(measured)
            print(f"{name} done", file=sys.stderr)
    return results


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="benchmarks.step", description="What a step of serving engines costs.")
    parser.add_argument("works", nargs="*", metavar="WORK", help=f"of {'; '.join(WORKS)} (default: all)")
    parser.add_argument("--rounds", type=int, default=1, help="the implementations take turns in each (default: 1)")
    parser.add_argument("--workers", type=int, default=4, help="processes that serve the streams (default: 4)")
    parser.add_argument("--figures", type=Path, default=Path("docs/figures"), help="where the JSON and the plot go")
    options = parser.parse_args()
    if unknown := set(options.works) - set(WORKS):
        parser.error(f"{', '.join(sorted(unknown))}: not of {'; '.join(WORKS)}")
    table = router.tabulate(measure_all(options.works or list(WORKS), options.rounds, options.workers))
    router.show(table)
    router.write("step", machine("dynamo-fast", "uvloop", "orjson", "msgspec"), table, options.figures)
    router.plot(table, "Both ends: CPU of the caller for an item", options.figures / "step")


if __name__ == "__main__":
    main()
