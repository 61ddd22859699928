"""What a request and a token cost: ours and our drop-in beside Dynamo's own binding, grpc.aio and the floor, in one run.

    python -m benchmarks.router [--rounds 3] [caller] [worker] [both] [growth] [picks] [loops]

    caller   against a worker that costs almost nothing
    worker   against a caller that costs almost nothing, and what an idle stream takes of its memory
    both     both ends, each implementation with its own
    tls      both ends ours: plain, TLS, and mutual TLS, on sessions and on Dynamo's plane
    growth   the caller, with 1 to 10,000 streams at once, and what an idle stream takes of its memory
    picks    choosing among 1 to 1,000 workers
    loops    our caller on other event loops and Pythons, each a wheel in an environment of its own (not unless it is named)

The implementations take turns in every round, each caller is a process of its own, and the figures are medians of the
rounds. All of them run on uvloop, and each caller reads an answer in the fastest way that it has. CPU is user and system
time of the process under test, all its threads. Real Dynamo is found in `.peers` (`make peers`); whatever is missing is
left out, and said. Prints tables; writes JSON, and plots if matplotlib is there. At the end of all parts, what was aimed at
stands beside what was reached (`report.py`).
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import loops, picks, report, tls, worker_side
from benchmarks.caller import WORKS, peak_kib
from benchmarks.replay_worker import compiled, request_frame
from benchmarks.timing import machine

HERE = Path(__file__).parent
PEERS = {version: Path(".peers") / version / "bin" / "python" for version in ("1.3.1", "1.6.1")}
STREAMS = ("burst", "packet", "4 KiB", "1 MiB")
"""Works of one stream, for which there is a loop that decodes."""
PACED = ("64 at 20 ms", "256 at 20 ms", "1,024 at 20 ms", "4,096 at 20 ms")
CALLER_WORKS = ("burst", "packet", "32x100", *PACED, "sequential", "concurrent", "4 KiB", "1 MiB")
BOTH_WORKS = ("burst", "32x100", "sequential", "concurrent", "4 KiB", "1 MiB")
TLS_WORKS = ("burst", "sequential", "concurrent")
EXTRAS = {report.RAW: "raw", report.SINK: "sink"}
"""What our router offers to who needs less than an iterator of decoded items."""
EXTRA_WORKS = ("burst", "packet", "32x100", *PACED)
GROWTH = {1: True, 100: True, 1_000: True, 10_000: False}
"""Streams at once, and whether others than our router get that much work, too.

Dynamo would take minutes of the last one. On a busy machine the drop-in's requests would wait longer than they may (5 s).
"""
PATIENCE = 150
"""Seconds that one caller may take."""
PARTS = ("caller", "worker", "both", "tls", "growth", "picks", "loops")
Rounds = list[dict[str, Any]]
Table = dict[str, dict[str, dict[str, Any]]]


def environment(folder: str) -> dict[str, str]:
    return {
        **os.environ,
        "DYN_FILE_KV": folder,
        "DYN_TCP_RPC_HOST": "127.0.0.1",
        "DYN_TCP_RESPONSE_STREAM_HOST": "lo",
        "DYN_EVENT_PLANE": "zmq",
        "DYN_TCP_REQUEST_TIMEOUT": "60",  # thousands of requests at once, on a busy machine
        "DYN_LOG": "error",  # without it Dynamo 1.6.1 writes a line for each request
        "PYTHONPATH": str(HERE.parent),
    }


class Ready(NamedTuple):
    """A process that runs: what it said, and its id."""

    line: str
    pid: int


@contextlib.contextmanager
def process(command: list[str], settings: dict[str, str]) -> Iterator[Ready]:
    """A process that says one line when it is ready."""
    with subprocess.Popen(
        command, env=settings, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as started:
        try:
            assert started.stdout is not None
            line = started.stdout.readline().strip()
            if not line:
                sys.exit(f"{' '.join(command)} did not start")
            yield Ready(line, started.pid)
        finally:
            started.kill()


def available() -> dict[str, tuple[str, str]]:
    """The callers that can be timed here: name, and its interpreter and kind."""
    callers = {report.OURS: (sys.executable, "ours"), report.DROP_IN: (sys.executable, "dropin")}
    for version, python in PEERS.items():
        if python.exists():
            callers[f"Dynamo {version}"] = (str(python), "peer")
        else:
            print(f"without Dynamo {version}: {python} is missing (make peers)")
    try:
        import grpc.aio  # noqa: F401  # is it there?
    except ImportError:
        print("without grpc.aio: grpcio is not installed")
    else:
        callers["grpc.aio"] = (sys.executable, "grpc")
    return callers


def call(python: str, kind: str, work: str, settings: dict[str, str], rounds: int = 2) -> Rounds:
    """Some rounds of one caller; none if it is another's, and hangs or fails."""
    command = [python, str(HERE / "caller.py"), kind, work, str(rounds)]
    try:
        done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        if kind not in ("peer", "grpc"):
            raise
        print(f"{' '.join(command)} did not end within {PATIENCE} s, and is left out", file=sys.stderr)
        return []
    measured = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if not measured:
        failure = f"{' '.join(command)}: {done.stderr[-2000:]}"
        if kind not in ("peer", "grpc"):
            sys.exit(failure)
        print(f"left out: {failure}", file=sys.stderr)
    return measured


def measure_callers(rounds: int) -> dict[str, dict[str, Rounds]]:
    """By work and caller."""
    callers = available()
    results: dict[str, dict[str, Rounds]] = {work: {} for work in CALLER_WORKS}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        settings = environment(folder)
        stack.enter_context(process([sys.executable, "-m", "benchmarks.replay_worker"], settings))
        if "grpc.aio" in callers:
            worker = stack.enter_context(process([sys.executable, "-m", "benchmarks.grpc_worker"], settings))
            settings["GRPC_TARGET"] = f"127.0.0.1:{worker.line}"
        receiver = compiled("receive", folder)
        for work in CALLER_WORKS:
            for _ in range(rounds):
                extras = {name: (sys.executable, kind) for name, kind in EXTRAS.items() if work in EXTRA_WORKS}
                for name, (python, kind) in {**callers, **extras}.items():
                    results[work].setdefault(name, []).extend(call(python, kind, work, settings))
                if work in STREAMS:
                    loop = call(sys.executable, "floor", work, settings)
                    results[work].setdefault("floor: decode in a loop", []).extend(loop)
                if work == "packet":
                    woken = call(sys.executable, "wake", work, settings)
                    results[work].setdefault("floor: wake a task", []).extend(woken)
                results[work].setdefault("floor: receive in C", []).append(receive(receiver, work, folder))
            print(f"{work} done", file=sys.stderr)
    return results


def receive(program: str, work: str, folder: str) -> dict[str, Any]:
    """One round of the floor in C."""
    (file,) = (Path(folder) / "v1" / "instances").glob("b*")
    host, port = json.loads(file.read_text())["transport"]["tcp"].partition("/")[0].split(":")
    todo = WORKS[work]
    with subprocess.Popen([program, host, port], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as receiver:
        assert receiver.stdin is not None
        assert receiver.stdout is not None
        own_port = int(receiver.stdout.readline())
        frame = request_frame({"items": todo.items, "size": todo.size, "pace": todo.pace}, own_port)
        together = bool(todo.pace) and todo.concurrent > 1
        receiver.stdin.write(b"%d %d %d %d\n" % (len(frame), todo.requests, todo.concurrent, together) + frame)
        receiver.stdin.flush()
        _, seconds, cpu = map(float, receiver.stdout.readline().split())
        peak = peak_kib(receiver.pid)
        receiver.stdin.close()
    return {
        "items": todo.items * todo.requests,
        "requests": todo.requests,
        "seconds": seconds,
        "cpu": cpu,
        "peak_kib": peak,
    }


def measure_both(rounds: int) -> dict[str, dict[str, Rounds]]:
    """Each implementation's caller against its own worker."""
    callers = available()
    results: dict[str, dict[str, Rounds]] = {work: {} for work in BOTH_WORKS}
    with contextlib.ExitStack() as stack:
        settings = {}
        for name, (python, kind) in callers.items():
            settings[name] = environment(stack.enter_context(tempfile.TemporaryDirectory()))
            worker = stack.enter_context(process(worker_side.program(kind, python), settings[name]))
            settings[name] |= {"GRPC_TARGET": f"127.0.0.1:{worker.line}", "WORKER_PID": str(worker.pid)}
        for work in BOTH_WORKS:
            for _ in range(rounds):
                for name, (python, kind) in callers.items():
                    results[work].setdefault(name, []).extend(call(python, kind, work, settings[name]))
            print(f"{work} done", file=sys.stderr)
    return results


def measure_tls(rounds: int) -> dict[str, dict[str, Rounds]]:
    """Our caller against our worker: plain, with TLS, and with certificates of both ends.

    The first two have their answers on a connection that stays (docs/spec/mux.md). In the other rows a worker dials for
    every answer, as in Dynamo's plane. Its TLS sessions are resumed; in the last row each handshake is a whole one.
    """
    results: dict[str, dict[str, Rounds]] = {work: {} for work in TLS_WORKS}
    with contextlib.ExitStack() as stack:
        settings: dict[str, dict[str, str]] = {}
        modes = tls.modes(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        rows = {f"{name}, sessions": {**modes[name], "DYNAMO_FAST_MUX": "auto"} for name in ("plain", "TLS")}
        rows |= {name: {**variables, "DYNAMO_FAST_MUX": "off"} for name, variables in modes.items()}
        for name, variables in rows.items():
            settings[name] = environment(stack.enter_context(tempfile.TemporaryDirectory())) | variables
            worker = stack.enter_context(process(worker_side.program("ours", sys.executable), settings[name]))
            settings[name]["WORKER_PID"] = str(worker.pid)
        for work in TLS_WORKS:
            for _ in range(rounds):
                for name, each in settings.items():
                    results[work].setdefault(name, []).extend(call(sys.executable, "ours", work, each))
            print(f"{work} done", file=sys.stderr)
    return results


def measure_growth(rounds: int) -> dict[str, dict[str, Rounds]]:
    """Callers with more and more streams of 100 items at once; 20,000 items at least."""
    callers = {name: each for name, each in available().items() if each[1] != "grpc"}
    results: dict[str, dict[str, Rounds]] = {}
    with tempfile.TemporaryDirectory() as folder:
        settings = environment(folder)
        with process([sys.executable, "-m", "benchmarks.replay_worker"], settings):
            for streams, with_others in GROWTH.items():
                work = f"{streams:,} at once"
                for _ in range(rounds):
                    for name, (python, kind) in callers.items():
                        if kind == "ours" or with_others:
                            results.setdefault(work, {}).setdefault(name, []).extend(call(python, kind, work, settings))
    return results


def measure_idle(rounds: int) -> dict[str, float]:
    """KiB of a caller's memory for each stream that waits for an item; medians."""
    callers = {name: each for name, each in available().items() if each[1] != "grpc"}
    with tempfile.TemporaryDirectory() as folder:
        settings = environment(folder)
        with process([sys.executable, "-m", "benchmarks.replay_worker"], settings):
            samples = {
                name: [call(python, kind, "idle", settings)[0]["kib_per_stream"] for _ in range(rounds)]
                for name, (python, kind) in callers.items()
            }
    return {name: statistics.median(each) for name, each in samples.items()}


@contextlib.contextmanager
def all_workers() -> Iterator[dict[str, worker_side.Worker]]:
    """The workers that can be timed here, by name."""
    kinds = {**available(), "floor: write in C": ("", "floor")}
    with contextlib.ExitStack() as stack:
        yield {
            name: stack.enter_context(worker_side.started(kind, python, environment("")))
            for name, (python, kind) in kinds.items()
        }


def _can(kind: str, work: str) -> bool:
    """Whether this kind of worker does that work."""
    if kind == "grpc":
        return worker_side.WORKS[work].streams <= worker_side.MOST_OF_GRPC
    return kind != "floor" or work in worker_side.FLOOR_WORKS


def measure_workers(rounds: int) -> dict[str, dict[str, Rounds]]:
    """By work and worker."""
    results: dict[str, dict[str, Rounds]] = {}
    with all_workers() as workers:
        for name, work in worker_side.WORKS.items():
            able = {who: each for who, each in workers.items() if _can(each.kind, name)}
            results[name] = {who: [] for who in able}
            for number in range(rounds + 1):
                for who, worker in able.items():
                    measured = worker_side.measure(worker, work)
                    if number:  # the first one warms up
                        results[name][who].append(measured)
            print(f"{name} done", file=sys.stderr)
    return results


def measure_idle_workers(rounds: int) -> dict[str, float]:
    """KiB of a worker's memory for each answer that waits for its next item; medians."""
    samples: dict[str, list[float]] = {}
    for _ in range(rounds):
        with all_workers() as workers:  # anew each time: memory that was given back by one round is there for the next
            for name, worker in workers.items():
                if worker.kind in worker_side.PROGRAM_KINDS:
                    samples.setdefault(name, []).append(worker_side.idle_kib(worker))
    return {name: statistics.median(each) for name, each in samples.items()}


def values(measured: dict[str, Any]) -> dict[str, float | None]:
    """The figures of one round, per item and per request."""

    def percentile(key: str, share: float) -> float | None:
        times = measured.get(key)
        return times[int(len(times) * share)] if times else None

    return {
        "items_per_second": measured["items"] / measured["seconds"],
        "requests_per_second": measured["requests"] / measured["seconds"],
        "cpu_per_item": measured["cpu"] / measured["items"],
        "cpu_per_request": measured["cpu"] / measured["requests"],
        "first_item_p50": percentile("first_item", 0.5),
        "first_item_p99": percentile("first_item", 0.99),
        "answer_p50": percentile("answer", 0.5),
        "answer_p99": percentile("answer", 0.99),
        "cpu_of_both": _of_both(measured),
        "worker_cpu_per_item": _of_workers(measured),
        "cores": measured["cpu"] / measured["seconds"],
        "gap_p50": measured.get("gap_p50"),
        "gap_p99": measured.get("gap_p99"),
        "peak_mib": measured["peak_kib"] / 1024,
    }


def _of_both(measured: dict[str, Any]) -> float | None:
    """CPU of both ends for a request, if the worker's was measured."""
    worker = measured.get("worker_cpu")
    return None if worker is None else float((measured["cpu"] + worker) / measured["requests"])


def _of_workers(measured: dict[str, Any]) -> float | None:
    """The workers' CPU for an item, if it was measured."""
    worker = measured.get("worker_cpu")
    return None if worker is None else float(worker / measured["items"])


def figures(rounds: Rounds) -> dict[str, Any]:
    """The medians of some rounds, and each round's values of what ratios are made of (`report.Ratio`)."""
    each = [values(measured) for measured in rounds]
    columns = {key: [row[key] for row in each] for key in each[0]}
    known = {key: [value for value in column if value is not None] for key, column in columns.items()}
    medians = {key: statistics.median(column) if column else None for key, column in known.items()}
    return {**medians, "rounds": {key: columns[key] for key in report.UNITS}}


COLUMNS = {
    "items_per_second": ("items/s", 1.0),
    "requests_per_second": ("requests/s", 1.0),
    "cpu_per_item": ("us CPU/item", 1e6),
    "cpu_per_request": ("us CPU/request", 1e6),
    "first_item_p50": ("first p50 us", 1e6),
    "first_item_p99": ("p99 us", 1e6),
    "answer_p50": ("answer p50 us", 1e6),
    "answer_p99": ("p99 us", 1e6),
    "cpu_of_both": ("us both/request", 1e6),
    "worker_cpu_per_item": ("us worker/item", 1e6),
    "cores": ("cores", 1.0),
    "gap_p50": ("gap p50 us", 1e6),
    "gap_p99": ("p99 us", 1e6),
    "peak_mib": ("peak MiB", 1.0),
}


def show(table: Table) -> None:
    filled = {
        key for rows in table.values() for row in rows.values() for key, value in row.items() if value is not None
    }
    columns = {key: column for key, column in COLUMNS.items() if key in filled}
    for work, rows in table.items():
        print(f"\n{work:26}" + "".join(f"{title:>16}" for title, _ in columns.values()))
        for name, row in rows.items():
            cells = ((row.get(key), factor) for key, (_, factor) in columns.items())
            print(f"{name:26}" + "".join(f"{'':>16}" if c is None else f"{c * f:16,.1f}" for c, f in cells))
        measured = [own for own in report.OWN if own in rows]
        for name, row in rows.items():
            ratios = ", ".join(f"{row['cpu_per_item'] / rows[own]['cpu_per_item']:.2f}x {own}" for own in measured)
            if measured and name not in report.OWN:
                print(f"    CPU an item of {name}: {ratios}")


def plot(table: Table, title: str, path: Path) -> None:
    """CPU of an item as bars, one group a work, logarithmic."""
    try:
        import matplotlib
    except ImportError:
        print("no plot: matplotlib is not installed (pip install 'dynamo-fast[bench]')")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"font.size": 10, "svg.fonttype": "none", "svg.hashsalt": "dynamo_fast"})
    colours = {
        report.OURS: "#1b7f4d",
        report.DROP_IN: "#79b88f",
        report.OFF: "#c5dccb",
        report.RAW: "#0f4d2f",
        report.SINK: "#083020",
        "Dynamo 1.3.1": "#9bb8dd",
        "Dynamo 1.6.1": "#3568b0",
        "grpc.aio": "#b0772a",
        "floor: wake a task": "#dcdcdc",
        "floor: decode in a loop": "#c9c9c9",
        "floor: receive in C": "#8a8a8a",
        "floor: write in C": "#8a8a8a",
    }
    known = [name for name in colours if any(name in rows for rows in table.values())]
    names = known or list(next(iter(table.values())))
    figure, axis = pyplot.subplots(figsize=(max(11, 1.1 * len(table), len(names) * len(table) / 8), 4.8))
    width = 0.84 / len(names)
    for index, name in enumerate(names):
        values = [(rows.get(name) or {}).get("cpu_per_item") or 0 for rows in table.values()]
        places = [group + (index - (len(names) - 1) / 2) * width for group in range(len(table))]
        bars = axis.bar(places, [value * 1e6 for value in values], width * 0.94, color=colours.get(name), label=name)
        labels = [report.number(value * 1e6) if value else "" for value in values]
        axis.bar_label(bars, labels, fontsize=6.5, padding=2, rotation=90)
    axis.set(yscale="log", title=title, ylabel="microseconds of CPU per item")
    axis.set_xticks(range(len(table)), [work.replace(" at ", "\nat ").replace(", ", "\n") for work in table])
    axis.margins(y=0.12)
    axis.grid(True, axis="y", color="#e4e4e4", linewidth=0.7)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=9, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.19))
    figure.tight_layout()
    for suffix in ("svg", "png"):
        figure.savefig(path.with_suffix(f".{suffix}"), dpi=140, metadata={"Date": None} if suffix == "svg" else None)
    pyplot.close(figure)


def tabulate(rounds: dict[str, dict[str, Rounds]]) -> Table:
    return {work: {who: figures(each) for who, each in rows.items() if each} for work, rows in rounds.items()}


def write(name: str, facts: dict[str, str], data: object, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(
        json.dumps({"machine": facts, "figures": data}, indent=1) + "\n", encoding="utf-8"
    )


def run_picks(rounds: int, facts: dict[str, str], folder: Path) -> None:
    """Measure, print and write the picks."""
    seconds = picks.measure_all(rounds)
    picks.show(seconds)
    write("picks", facts, seconds, folder)


def run_idle(part: str, rounds: int, facts: dict[str, str], folder: Path) -> None:
    """Measure, print and write what idle streams take."""
    kib = IDLE[part](rounds)
    print("\n" + "\n".join(f"{name:26}{each:10.1f} KiB an idle stream" for name, each in kib.items()))
    write(f"{part}-idle", facts, {name: {"kib_per_stream": each} for name, each in kib.items()}, folder)


def run(part: str, rounds: int, facts: dict[str, str], folder: Path) -> None:
    """Measure, print, write and plot one part."""
    if part == "picks":
        run_picks(rounds, facts, folder)
        return
    title, measure = TABLES[part]
    table = measure(rounds)
    show(table)
    write(part, facts, table, folder)
    plot(table, title, folder / part)
    if part in IDLE:
        run_idle(part, rounds, facts, folder)


TABLES: dict[str, tuple[str, Callable[[int], Table]]] = {
    "caller": ("The caller: CPU of an item", lambda rounds: tabulate(measure_callers(rounds))),
    "worker": ("The worker: CPU of an item", lambda rounds: tabulate(measure_workers(rounds))),
    "both": ("Both ends: CPU of the caller for an item", lambda rounds: tabulate(measure_both(rounds))),
    "tls": ("Both ends ours: CPU of the caller for an item", lambda rounds: tabulate(measure_tls(rounds))),
    "growth": ("The caller, with more and more streams of 100 items", lambda rounds: tabulate(measure_growth(rounds))),
    "loops": ("Our caller on other loops and Pythons", lambda rounds: tabulate(loops.measure_all(rounds))),
}
IDLE = {"growth": measure_idle, "worker": measure_idle_workers}


def part(name: str) -> str:
    if name not in PARTS:
        raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(PARTS)}")
    return name


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="benchmarks.router", description="What a request and a token cost.")
    parser.add_argument("parts", nargs="*", type=part, metavar="PART", help="by default all but loops")
    parser.add_argument("--rounds", type=int, default=3, help="the implementations take turns in each (default: 3)")
    parser.add_argument("--figures", type=Path, default=Path("docs/figures"), help="where the JSON and the plots go")
    options = parser.parse_args()
    facts = machine("dynamo-fast", "uvloop", "orjson", "msgspec", "grpcio")
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    for each in options.parts or PARTS[:-1]:
        print(f"\n--- {each}", flush=True)
        run(each, options.rounds, facts, options.figures)
    if not options.parts:
        print(f"\n--- what was aimed at\n\n{report.aims(options.figures)}")


if __name__ == "__main__":
    main()
