"""What `benchmarks.router` reached: its figures as tables in the documents.

    python -m benchmarks.report [FOLDER ...]

Writes the figures in docs/figures into docs/performance.md and README.md, between the comments there that name a table. The
folders are those of other runs (`benchmarks.router --figures FOLDER`), whose ratios stand beside the first ones in the last
column. A reference is the better of Dynamo 1.3.1 and 1.6.1 in the same run.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["FIGURES", "PAGES", "aims", "tables", "write"]

FIGURES = Path("docs/figures")
PAGES = (Path("docs/performance.md"), Path("README.md"))

OURS = "dynamo_fast"
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
    aim: float
    others: tuple[str, ...] = PEERS

    def values(self, folder: Path) -> tuple[float, float]:
        """Ours, and the best of the others."""
        rows = figures(folder, self.part)[self.work]
        best = max if self.key in MORE_IS_BETTER else min
        return rows[OURS][self.key], best(rows[other][self.key] for other in self.others if other in rows)

    def ratio(self, folder: Path) -> float:
        ours, other = self.values(folder)
        return ours / other if self.others != PEERS or self.key in MORE_IS_BETTER else other / ours


@dataclass(frozen=True)
class Bound:
    """A figure of ours, and what it was to be at most."""

    text: str
    value: Callable[[Path], float]
    aim: float
    unit: str


AGAINST_DYNAMO = (
    Ratio("caller, one stream in bursts: CPU an item", "caller", "burst", "cpu_per_item", 40),
    Ratio("the same: items a second", "caller", "burst", "items_per_second", 40),
    Ratio("caller, 32 streams of 100 items: items a second", "caller", "32x100", "items_per_second", 15),
    Ratio("caller, one item a packet: CPU an item", "caller", "packet", "cpu_per_item", 8),
    Ratio("caller, one-item requests in sequence: CPU a request", "caller", "sequential", "cpu_per_request", 4),
    Ratio("the same: median time to the item", "caller", "sequential", "first_item_p50", 3),
    Ratio("caller, one-item requests, 32 at once: CPU a request", "caller", "concurrent", "cpu_per_request", 4),
    Ratio("the same: requests a second", "caller", "concurrent", "requests_per_second", 2),
    Ratio("worker, 32 answers of 1,024 items at once: CPU an item", "worker", "run", "cpu_per_item", 40),
    Ratio("both ends, one stream: items a second", "both", "burst", "items_per_second", 30),
    Ratio("both ends, 32 streams of 100 items: items a second", "both", "32x100", "items_per_second", 15),
    Ratio(
        "both ends, one-item requests, 32 at once: requests a second", "both", "concurrent", "requests_per_second", 3
    ),
)
AGAINST_FLOORS = (
    Ratio("bursts: CPU an item, a loop that decodes every item", "caller", "burst", "cpu_per_item", 2, LOOP),
    Ratio("one item a packet: CPU an item, a receiver in C", "caller", "packet", "cpu_per_item", 3, RECEIVER),
    Ratio("items of 1 MiB: items a second, a loop that decodes", "caller", "1 MiB", "items_per_second", 0.5, LOOP),
)
UNITS = {
    "cpu_per_item": (1e6, " µs"),
    "cpu_per_request": (1e6, " µs"),
    "first_item_p50": (1e6, " µs"),
    "items_per_second": (1, ""),
    "requests_per_second": (1, ""),
}

ITEMS = (("items_per_second", 1.0),)
GAP = (("gap_p99", 1e6),)
CPU = (("cpu_per_item", 1e6),)
FIRST_ITEM = (("first_item_p50", 1e6), ("first_item_p99", 1e6))
ANSWER = (("answer_p50", 1e6), ("answer_p99", 1e6))
PEAK = (("peak_mib", 1.0),)
IDLE = (("kib_per_stream", 1.0),)
PICK = (("seconds", 1e6),)


def figures(folder: Path, part: str) -> Figures:
    """What the benchmark wrote. Raises OSError if that part was not measured."""
    found: Figures = json.loads((folder / f"{part}.json").read_text(encoding="utf-8"))["figures"]
    return found


def _growth(folder: Path) -> float:
    rows = figures(folder, "growth")
    many, one = (rows[f"{streams} at once"][OURS]["cpu_per_item"] for streams in ("10,000", "1"))
    return float(many / one)


def _slowest_pick(folder: Path) -> float:
    return float(max(figures(folder, "picks")["1,000 workers"].values()) * 1e6)


def _idle(folder: Path) -> float:
    return float(figures(folder, "growth-idle")[OURS]["kib_per_stream"])


BOUNDS = (
    Bound("CPU an item with 10,000 streams at once, of that with one", _growth, 1.5, "times"),
    Bound("choosing among 1,000 instances, the slowest mode", _slowest_pick, 5, "µs"),
    Bound("memory of an idle stream", _idle, 8, "KiB"),
)


def number(value: float) -> str:
    """Three digits are all that a figure of a shared machine is good for."""
    if value >= 1000:
        return f"{round(value, 3 - len(str(int(value)))):,.0f}"
    return f"{value:.3g}"


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def table(*rows: Sequence[str], notes: int = 0) -> str:
    """The first is the head. Figures stand to the right, except in the last `notes` columns."""
    head, *lines = rows
    figures_in = len(head) - 1 - notes
    return "\n".join([row(*head), f"|---|{'---:|' * figures_in}{'---|' * notes}", *(row(*line) for line in lines)])


def _reached(line: Ratio, folders: list[Path]) -> list[str]:
    """The cells of a line: what, ours, the other's, the ratio, what was aimed at, and the ratio of each run."""
    factor, unit = UNITS[line.key]
    ours, other = (number(value * factor) + unit for value in line.values(folders[0]))
    ratios = [number(line.ratio(folder)) for folder in folders]
    return [line.text, ours, other, ratios[0], number(line.aim), ", ".join(ratios)]


def _kept(bound: Bound, folders: list[Path]) -> list[str]:
    """The cells of a line: what, ours, what was aimed at, and each run."""
    values = [number(bound.value(folder)) for folder in folders]
    return [bound.text, f"{values[0]} {bound.unit}", f"{number(bound.aim)} {bound.unit}", ", ".join(values)]


def aims(folders: list[Path]) -> str:
    """What was aimed at, and what is reached. Raises OSError if a part was not measured in one of the folders."""
    dynamo = ("against Dynamo", "here", "the better of 1.3.1 and 1.6.1", "ratio", "aimed at", "each run")
    floor = ("against the floor", "here", "floor", "ratio", "aimed at", "each run")
    growth = ("growth", "here", "aimed at, at most", "each run")
    return "\n\n".join(
        (
            table(dynamo, *(_reached(line, folders) for line in AGAINST_DYNAMO), notes=1),
            table(floor, *(_reached(line, folders) for line in AGAINST_FLOORS), notes=1),
            table(growth, *(_kept(bound, folders) for bound in BOUNDS), notes=1),
        )
    )


def summary(folder: Path) -> str:
    """The first of these tables in short."""
    lines = (
        _reached(line, [folder])[:4] for line in AGAINST_DYNAMO if line.text.startswith(("caller", "worker", "both"))
    )
    return table(("", "here", "reference", "ratio"), *lines)


GRIDS: dict[str, dict[str, tuple[tuple[str, float], ...]]] = {
    "caller": {
        "µs of CPU an item": CPU,
        "items a second": ITEMS,
        "µs to the first item, p50 / p99": FIRST_ITEM,
        "µs between items, p99": GAP,
        "MiB at most": PEAK,
    },
    "worker": {
        "µs of CPU an item": CPU,
        "items a second": ITEMS,
        "µs to the end of the answer, p50 / p99": ANSWER,
        "MiB at most": PEAK,
    },
    "both": {"µs of the caller's CPU an item": CPU, "items a second": ITEMS},
    "growth": {"µs of CPU an item": CPU, "items a second": ITEMS},
    "loops": {"µs of CPU an item": CPU},
    "worker-idle": {"KiB of the worker's memory": IDLE},
    "growth-idle": {"KiB of the caller's memory": IDLE},
    "picks": {"µs a pick": PICK},
}
"""By part of the benchmark: the titles of its tables, and what is in them."""


def grid(folder: Path, part: str, title: str) -> str:
    """One figure, or two, of each work (a line) and each implementation (a column)."""
    found, keys = figures(folder, part), GRIDS[part][title]
    if keys is PICK:
        found = {mode: {size: {"seconds": row[mode]} for size, row in found.items()} for mode in found["1 workers"]}
    if keys is IDLE:
        found = {"an idle stream": found}
    columns = list(dict.fromkeys(name for rows in found.values() for name in rows))
    lines = ([work, *(_cell(rows.get(column, {}), keys) for column in columns)] for work, rows in found.items())
    return table((title, *columns), *(line for line in lines if any(line[1:])))


def _cell(figures_of: dict[str, float | None], keys: tuple[tuple[str, float], ...]) -> str:
    values = [(figures_of.get(key), factor) for key, factor in keys]
    return " / ".join(number(value * factor) for value, factor in values if value is not None)


def tables(folders: list[Path]) -> dict[str, str]:
    """All that stands in the documents, by the name of its comments."""
    made = {part: "\n\n".join(grid(folders[0], part, title) for title in titles) for part, titles in GRIDS.items()}
    return {"aims": aims(folders), "summary": summary(folders[0]), **made}


def between(name: str) -> re.Pattern[str]:
    """What stands between the comments of a table."""
    return re.compile(rf"(?<=<!-- {name} -->\n\n).*?(?=\n\n<!-- end of {name} -->)", re.DOTALL)


def write(folders: list[Path]) -> None:
    """Put the tables into the pages. Raises OSError if a part was not measured."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for name, made in tables(folders).items():
            text = made.join(between(name).split(text))
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write([FIGURES, *map(Path, sys.argv[1:])])
