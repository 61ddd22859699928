"""What `benchmarks.router`, `benchmarks.step` and `benchmarks.frontend` reached: their figures as tables in the documents.

    python -m benchmarks.report

Writes the figures in docs/figures into docs/performance.md, docs/scaling.md and README.md, between the comments there that
name a table. What was not measured is left out, or stays as it is. A reference is the better of Dynamo 1.3.1 and 1.6.1 in
the same run. A ratio is one of medians; beside it, in brackets, is the lowest and the highest of the ratios within a round.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["FIGURES", "PAGES", "aims", "tables", "write"]

FIGURES = Path("docs/figures")
PAGES = (Path("docs/performance.md"), Path("docs/scaling.md"), Path("README.md"))

OURS, DROP_IN = OWN = ("dynamo_fast", "dynamo_fast.runtime")
OFF = "dynamo_fast, mux off"
"""Ours, with a connection for each answer as Dynamo has it; the others have sessions where both ends are ours."""
RAW, SINK = ("dynamo_fast, raw", "dynamo_fast, raw to a sink")
HEADS = {OURS: ("here", "ratio"), DROP_IN: ("drop-in", "its ratio")}
"""Those of ours, and what stands above their figures and ratios."""
PEERS = ("Dynamo 1.3.1", "Dynamo 1.6.1")
LOOP, RECEIVER = ("floor: decode in a loop",), ("floor: receive in C",)
MORE_IS_BETTER = ("items_per_second", "requests_per_second")
Figures = dict[str, Any]


@dataclass(frozen=True)
class Ratio:
    """How many times as good as the better peer we are, or how many times as dear as a floor; and what was aimed at."""

    text: str
    part: str
    work: str
    key: str
    aim: float | None
    drop_in_aim: float | None = None
    others: tuple[str, ...] = PEERS
    here: str = OURS
    """Whose figure stands in the column of ours; the drop-in's column is empty if that is not our plain router."""

    def rows(self, folder: Path) -> Figures:
        """The figures of the work by implementation; empty if there are none of ours or of the others."""
        rows: Figures = figures(folder, self.part).get(self.work, {})
        found = {name: row for name, row in rows.items() if row.get(self.key) is not None}
        return found if self.here in found and any(name in found for name in self.others) else {}

    def named(self, column: str) -> str:
        """Whose figure stands in this column."""
        return self.here if column == OURS else column if self.here == OURS else ""

    def reference(self, folder: Path) -> Figures:
        """The figures of the best of the others."""
        rows = [row for name, row in self.rows(folder).items() if name in self.others]
        best = max if self.key in MORE_IS_BETTER else min
        found: Figures = best(rows, key=lambda row: row[self.key])
        return found

    def ratio(self, folder: Path, who: str) -> tuple[float, list[float]]:
        """That of the medians, and that of each round."""
        ours, other = self.rows(folder)[who], self.reference(folder)
        rounds = (row.get("rounds", {}).get(self.key, []) for row in (ours, other))
        # One of a peer's processes that hung has no round.
        return self._ratio(ours[self.key], other[self.key]), list(map(self._ratio, *rounds))

    def _ratio(self, ours: float, other: float) -> float:
        is_share = self.key in MORE_IS_BETTER or self.others in (LOOP, RECEIVER)
        return ours / other if is_share else other / ours


@dataclass(frozen=True)
class Bound:
    """A figure of ours, and what it was to be at most."""

    text: str
    value: Callable[[Path], float]
    """Raises KeyError if it was not measured."""
    aim: float
    unit: str


AGAINST_DYNAMO = (
    Ratio("caller, one stream in bursts: CPU an item", "caller", "burst", "cpu_per_item", 45, 40),
    Ratio("the same: items a second", "caller", "burst", "items_per_second", 45, 40),
    Ratio("caller, 32 streams of 100 items: items a second", "caller", "32x100", "items_per_second", 15, 13),
    Ratio("caller, one item a packet: CPU an item", "caller", "packet", "cpu_per_item", 8),
    Ratio("caller, 64 streams, an item each 20 ms: CPU an item", "caller", "64 at 20 ms", "cpu_per_item", None),
    Ratio("caller, 256 streams, an item each 20 ms: CPU an item", "caller", "256 at 20 ms", "cpu_per_item", 6, 5),
    Ratio("the same, with a sink", "caller", "256 at 20 ms", "cpu_per_item", 8, here=SINK),
    Ratio("caller, 1,024 streams, an item each 20 ms: CPU an item", "caller", "1,024 at 20 ms", "cpu_per_item", None),
    Ratio("caller, one-item requests in sequence: CPU a request", "caller", "sequential", "cpu_per_request", 6, 5),
    Ratio("the same: median time to the item", "caller", "sequential", "first_item_p50", 4, 3.3),
    Ratio("caller, one-item requests, 32 at once: CPU a request", "caller", "concurrent", "cpu_per_request", 6, 5),
    Ratio("the same: requests a second", "caller", "concurrent", "requests_per_second", 3, 2.5),
    Ratio("worker, 32 answers of 1,024 items at once: CPU an item", "worker", "run", "cpu_per_item", 60),
    Ratio("worker, the same with a pause after each: CPU an item", "worker", "step", "cpu_per_item", 8),
    Ratio("worker, 256 answers, an item each 20 ms: CPU an item", "worker", "256 at 20 ms", "cpu_per_item", None),
    Ratio("worker, one-item requests, 32 at once: CPU a request", "worker", "concurrent", "cpu_per_request", 5),
    Ratio("both ends, one stream: items a second", "both", "burst", "items_per_second", 30),
    Ratio("both ends, 32 streams of 100 items: items a second", "both", "32x100", "items_per_second", 15),
    Ratio("both ends, one-item requests in sequence: median time", "both", "sequential", "first_item_p50", None),
    Ratio(
        "both ends, one-item requests, 32 at once: requests a second", "both", "concurrent", "requests_per_second", 4
    ),
    Ratio("the same: CPU of both ends a request", "both", "concurrent", "cpu_of_both", None),
)
BY_SESSIONS = (
    Ratio("256 streams of 4 workers: the caller's CPU an item", "step", "256 at 20 ms", "cpu_per_item", 25, 15),
    Ratio("the same: the workers' CPU an item", "step", "256 at 20 ms", "worker_cpu_per_item", 25),
    Ratio("1,024 streams of 4 workers: the caller's CPU an item", "step", "1,024 at 20 ms", "cpu_per_item", 15, 10),
    Ratio("the same: the workers' CPU an item", "step", "1,024 at 20 ms", "worker_cpu_per_item", None),
    Ratio("4,096 streams of 4 workers: the caller's CPU an item", "step", "4,096 at 20 ms", "cpu_per_item", None),
    Ratio("one-item requests, 32 at once: requests a second", "step", "concurrent", "requests_per_second", 8, 6),
    Ratio("the same: CPU of both ends a request", "step", "concurrent", "cpu_of_both", 10),
    Ratio("one-item requests in sequence: median time", "step", "sequential", "first_item_p50", 5),
)
AGAINST_FLOORS = (
    Ratio("bursts: CPU an item, a loop that decodes every item", "caller", "burst", "cpu_per_item", 2, others=LOOP),
    Ratio("one item a packet: CPU an item, a receiver in C", "caller", "packet", "cpu_per_item", 3, others=RECEIVER),
    Ratio(
        "256 streams to sinks, an item each 20 ms: CPU an item, a receiver in C",
        *("caller", "256 at 20 ms", "cpu_per_item", 2),
        others=RECEIVER,
        here=SINK,
    ),
    Ratio(
        "items of 1 MiB: items a second, a loop that decodes", "caller", "1 MiB", "items_per_second", 0.5, others=LOOP
    ),
)
FRONTENDS = ("1.6.1", "1.3.1")
BEHIND_FRONTENDS = tuple(
    Ratio(f"{version}: {text}", "frontend", f"{version}: {work}", key, aim, others=(f"Dynamo {version}",))
    for version in FRONTENDS
    for text, work, key, aim in (
        ("one stream: tokens a second", "one stream", "items_per_second", 10),
        ("one stream: the worker's CPU a token", "one stream", "cpu_per_item", 15),
        ("32 streams of 200 tokens: tokens a second", "32x200", "items_per_second", 3),
        ("the same: the worker's CPU a token", "32x200", "cpu_per_item", None),
        ("32 streams, a token each 20 ms: the worker's CPU a token", "32 at 20 ms", "cpu_per_item", None),
        ("one-token requests, 32 at once: requests a second", "one token", "requests_per_second", 1.6),
        ("the same: the worker's CPU a request", "one token", "cpu_per_request", None),
    )
)
UNITS = {
    "cpu_per_item": (1e6, " µs"),
    "cpu_per_request": (1e6, " µs"),
    "cpu_of_both": (1e6, " µs"),
    "worker_cpu_per_item": (1e6, " µs"),
    "first_item_p50": (1e6, " µs"),
    "items_per_second": (1, ""),
    "requests_per_second": (1, ""),
}

ITEMS = (("items_per_second", 1.0),)
GAP = (("gap_p50", 1e6), ("gap_p99", 1e6))
OF_BOTH = (("cpu_of_both", 1e6),)
CPU = (("cpu_per_item", 1e6),)
WORKERS_CPU = (("worker_cpu_per_item", 1e6),)
REQUESTS = (("requests_per_second", 1.0),)
FIRST_ITEM = (("first_item_p50", 1e6), ("first_item_p99", 1e6))
ANSWER = (("answer_p50", 1e6), ("answer_p99", 1e6))
PEAK = (("peak_mib", 1.0),)
IDLE = (("kib_per_stream", 1.0),)
PICK = (("seconds", 1e6),)


def figures(folder: Path, part: str) -> Figures:
    """What the benchmark wrote; nothing if that part was not measured."""
    try:
        found: Figures = json.loads((folder / f"{part}.json").read_text(encoding="utf-8"))["figures"]
    except FileNotFoundError:
        return {}
    return found


def _growth(folder: Path) -> float:
    rows = figures(folder, "growth")
    many, one = (rows[f"{streams} at once"][OURS]["cpu_per_item"] for streams in ("10,000", "1"))
    return float(many / one)


def _slowest_pick(folder: Path) -> float:
    return float(max(figures(folder, "picks")["1,000 workers"].values()) * 1e6)


def _idle(folder: Path) -> float:
    return float(figures(folder, "growth-idle")[OURS]["kib_per_stream"])


def _keeping_up(folder: Path) -> float:
    return 4_096 * 50 / float(figures(folder, "caller")["4,096 at 20 ms"][OURS]["items_per_second"])


def _gap(folder: Path, work: str = "4,096 at 20 ms") -> float:
    return float(figures(folder, "step")[work][OURS]["gap_p99"] * 1e3)


def _gap_at_the_router(folder: Path) -> float:
    return _gap(folder, "4,096 at 20 ms, generator")


BOUNDS = (
    Bound("CPU an item with 10,000 streams at once, of that with one", _growth, 1.5, "times"),
    Bound("choosing among 1,000 instances, the slowest mode", _slowest_pick, 5, "µs"),
    Bound("memory of an idle stream", _idle, 4, "KiB"),
    Bound("4,096 streams at 50 items a second each: the time, of what it should be", _keeping_up, 1.05, "times"),
    Bound("4,096 streams of 4 workers on sessions, an item each 20 ms: between items, p99", _gap, 25, "ms"),
    Bound("the same at the router alone, of 16 engines in C that step in turn", _gap_at_the_router, 25, "ms"),
)


def number(value: float) -> str:
    """Three digits are all that a figure of a shared machine is good for."""
    if value >= 1000:
        return f"{round(value, 3 - len(str(int(value)))):,.0f}"
    return f"{value:.3g}"


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def table(*rows: Sequence[str]) -> str:
    """The first is the head. Figures stand to the right."""
    head, *lines = rows
    return "\n".join([row(*head), f"|---|{'---:|' * (len(head) - 1)}", *(row(*line) for line in lines)])


def _own(folder: Path, lines: Sequence[Ratio]) -> list[str]:
    """Those of ours that were measured."""
    return [who for who in OWN if any(who in line.rows(folder) for line in lines)]


def _value(line: Ratio, row: Figures | None) -> str:
    if row is None:
        return ""
    factor, unit = UNITS[line.key]
    return number(row[line.key] * factor) + unit


def _with_spread(line: Ratio, folder: Path, who: str) -> str:
    if who not in line.rows(folder):
        return ""
    median, rounds = line.ratio(folder, who)
    return f"{number(median)} ({number(min(rounds))} to {number(max(rounds))})" if rounds else number(median)


def reached(folder: Path, title: str, reference: str, lines: Sequence[Ratio]) -> str:
    """A table of ratios with their spreads, and what was aimed at."""
    own = _own(folder, lines)
    head = [title, *(HEADS[who][0] for who in own), reference, *(HEADS[who][1] for who in own), "aimed at"]
    cells = [
        [
            line.text,
            *(_value(line, rows.get(line.named(who))) for who in own),
            _value(line, line.reference(folder)),
            *(_with_spread(line, folder, line.named(who)) for who in own),
            " / ".join(number(aim) for aim in (line.aim, line.drop_in_aim) if aim is not None),
        ]
        for line in lines
        if (rows := line.rows(folder))
    ]
    return table(head, *cells) if cells else ""


def aims(folder: Path) -> str:
    """What was aimed at, and what is reached, of what was measured."""
    made = (
        reached(folder, "against Dynamo", "the better of 1.3.1 and 1.6.1", AGAINST_DYNAMO),
        reached(folder, "against the floor", "floor", AGAINST_FLOORS),
        bounds(folder),
    )
    return "\n\n".join(filter(None, made))


def bounds(folder: Path) -> str:
    """The figures that were to be at most so much."""
    lines = []
    for bound in BOUNDS:
        with contextlib.suppress(KeyError):
            lines.append(
                (bound.text, f"{number(bound.value(folder))} {bound.unit}", f"{number(bound.aim)} {bound.unit}")
            )
    return table(("growth", "here", "aimed at, at most"), *lines) if lines else ""


def behind_frontends(folder: Path) -> str:
    """A worker behind Dynamo's own frontend."""
    return reached(folder, "behind the frontend of Dynamo", "Dynamo's worker", BEHIND_FRONTENDS)


def by_sessions(folder: Path) -> str:
    """Both ends, with the answers of a pair of processes on one connection."""
    return reached(folder, "both ends, answers on sessions", "Dynamo 1.6.1", BY_SESSIONS)


def summary(folder: Path) -> str:
    """The first of these tables in short."""
    own = _own(folder, AGAINST_DYNAMO)
    cells = (
        [
            line.text,
            *(_value(line, rows.get(line.named(who))) for who in own),
            _value(line, line.reference(folder)),
            *(number(line.ratio(folder, who)[0]) if (who := line.named(column)) in rows else "" for column in own),
        ]
        for line in AGAINST_DYNAMO
        if line.text.startswith(("caller", "worker", "both")) and (rows := line.rows(folder))
    )
    lines = list(cells)
    head = ["", *(HEADS[who][0] for who in own), "reference", *(HEADS[who][1] for who in own)]
    return table(head, *lines) if lines else ""


GRIDS: dict[str, dict[str, tuple[tuple[str, float], ...]]] = {
    "caller": {
        "µs of CPU an item": CPU,
        "items a second": ITEMS,
        "µs to the first item, p50 / p99": FIRST_ITEM,
        "µs between items, p50 / p99": GAP,
        "MiB at most": PEAK,
    },
    "worker": {
        "µs of CPU an item": CPU,
        "items a second": ITEMS,
        "µs to the end of the answer, p50 / p99": ANSWER,
        "MiB at most": PEAK,
    },
    "both": {"µs of the caller's CPU an item": CPU, "µs of both ends' CPU a request": OF_BOTH, "items a second": ITEMS},
    "tls": {
        "µs of both ends' CPU a request": OF_BOTH,
        "µs to the first item, p50 / p99": FIRST_ITEM,
        "items a second": ITEMS,
    },
    "step": {
        "µs of the caller's CPU an item": CPU,
        "µs of the workers' CPU an item": WORKERS_CPU,
        "µs between items, p50 / p99": GAP,
        "µs of both ends' CPU a request": OF_BOTH,
        "µs to the first item, p50 / p99": FIRST_ITEM,
        "requests a second": REQUESTS,
    },
    "growth": {"µs of CPU an item": CPU, "items a second": ITEMS},
    "loops": {"µs of CPU an item": CPU},
    "worker-idle": {"KiB of the worker's memory": IDLE},
    "growth-idle": {"KiB of the caller's memory": IDLE},
    "picks": {"µs a pick": PICK},
}
"""By part of the benchmark: the titles of its tables, and what is in them."""


def grid(folder: Path, part: str, title: str) -> str:
    """One figure, or two, of each work (a line) and each implementation (a column); empty if they were not measured."""
    found, keys = figures(folder, part), GRIDS[part][title]
    if not found:
        return ""
    if keys is PICK:
        found = {mode: {size: {"seconds": row[mode]} for size, row in found.items()} for mode in found["1 workers"]}
    if keys is IDLE:
        found = {"an idle stream": found}
    columns = list(dict.fromkeys(name for rows in found.values() for name in rows))
    lines = ([work, *(_cell(rows.get(column, {}), keys) for column in columns)] for work, rows in found.items())
    filled = [line for line in lines if any(line[1:])]
    return table((title, *columns), *filled) if filled else ""


Columns = dict[str, tuple[tuple[str, float], ...]]
FLEET: Columns = {
    "until all known, s": (("known_seconds", 1.0),),
    "one came, ms (p50 / most)": (("came_p50", 1e3), ("came_most", 1e3)),
    "missed": (("missed", 1.0),),
    "one went, ms (p50 / most)": (("went_p50", 1e3), ("went_most", 1e3)),
    "% of a core, idle / 1 % changing": (("cpu_idle", 100.0), ("cpu_changing", 100.0)),
    "KiB a known worker / and called": (("kib_known", 1.0), ("kib_called", 1.0)),
    "connections a called worker": (("connections", 1.0),),
}
LOSS: Columns = {
    "requests": (("sent_0", 1.0),),
    "lost": (("lost_0", 1.0),),
    "until the last one, s": (("steady_0", 1.0),),
    "with one retry: requests": (("sent_1", 1.0),),
    "lost ": (("lost_1", 1.0),),
    "forgotten after, s": (("forgotten", 1.0),),
}
"""What stands in the columns of the fleet's tables."""


def fleet(folder: Path) -> str:
    """The tables of `benchmarks.fleet`: what a router knows and pays, and what the loss of a tenth of the workers costs."""
    found = figures(folder, "fleet")
    if not found:
        return ""
    lost = {case: row for case, row in found.items() if "lost_0" in row}

    def made(title: str, columns: Columns, rows: Figures) -> str:
        return table(
            (title, *columns), *([case, *(_cell(row, keys) for keys in columns.values())] for case, row in rows.items())
        )

    return "\n\n".join((made("discovery", FLEET, found), made("a tenth lost at once", LOSS, lost)))


def _cell(figures_of: dict[str, float | None], keys: tuple[tuple[str, float], ...]) -> str:
    values = [(figures_of.get(key), factor) for key, factor in keys]
    if all(value is None for value, _ in values):
        return ""
    return " / ".join("–" if value is None else number(value * factor) for value, factor in values)


def tables(folder: Path) -> dict[str, str]:
    """All that stands in the documents and was measured, by the name of its comments."""
    grids = {
        part: "\n\n".join(filter(None, (grid(folder, part, title) for title in titles)))
        for part, titles in GRIDS.items()
    }
    made = {
        "aims": aims(folder),
        "summary": summary(folder),
        "step-aims": by_sessions(folder),
        "frontend": behind_frontends(folder),
        "fleet": fleet(folder),
        **grids,
    }
    return {name: text for name, text in made.items() if text}


def between(name: str) -> re.Pattern[str]:
    """What stands between the comments of a table."""
    return re.compile(rf"(?<=<!-- {name} -->\n\n).*?(?=\n\n<!-- end of {name} -->)", re.DOTALL)


def write(folder: Path) -> None:
    """Put the tables into the pages. What was not measured stays as it is."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for name, made in tables(folder).items():
            text = made.join(between(name).split(text))
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write(FIGURES)
