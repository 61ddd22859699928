"""What one run or several of `benchmarks.router` reached, as tables in Markdown: as they stand in docs/performance.md.

    python -m benchmarks.report [FOLDER ...]     folders of figures; docs/figures by default

What was aimed at comes first: the figures are the first folder's, and the last column has the ratio in each of them. A
reference is the better of Dynamo 1.3.1 and 1.6.1 in the same run. Then, by part, the figures of the first folder.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["GRIDS", "aims", "grid"]

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


def _ratios(title: str, other: str, lines: tuple[Ratio, ...], folders: list[Path]) -> list[str]:
    made = [row(title, "here", other, "ratio", "aimed at", "each run"), "|---|---:|---:|---:|---:|---|"]
    for line in lines:
        factor, unit = UNITS[line.key]
        cells = [number(value * factor) + unit for value in line.values(folders[0])]
        ratios = [number(line.ratio(folder)) for folder in folders]
        made.append(row(line.text, *cells, ratios[0], number(line.aim), ", ".join(ratios)))
    return made


def aims(folders: list[Path]) -> str:
    """What was aimed at, and what is reached. Raises OSError if a part was not measured in one of the folders."""
    lines = _ratios("against Dynamo", "the better of 1.3.1 and 1.6.1", AGAINST_DYNAMO, folders)
    lines += ["", *_ratios("against the floor", "floor", AGAINST_FLOORS, folders)]
    lines += ["", row("growth", "here", "aimed at, at most", "each run"), "|---|---:|---:|---|"]
    for bound in BOUNDS:
        values = [number(bound.value(folder)) for folder in folders]
        lines.append(
            row(bound.text, f"{values[0]} {bound.unit}", f"{number(bound.aim)} {bound.unit}", ", ".join(values))
        )
    return "\n".join(lines)


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
    lines = [row(title, *columns), "|---|" + "---:|" * len(columns)]
    for work, rows in found.items():
        cells = [_cell(rows.get(column, {}), keys) for column in columns]
        if any(cells):
            lines.append(row(work, *cells))
    return "\n".join(lines)


def _cell(figures_of: dict[str, float | None], keys: tuple[tuple[str, float], ...]) -> str:
    values = [(figures_of.get(key), factor) for key, factor in keys]
    return " / ".join(number(value * factor) for value, factor in values if value is not None)


def main(folders: list[Path]) -> None:
    """Print all tables."""
    print(aims(folders))
    for part, titles in GRIDS.items():
        if (folders[0] / f"{part}.json").exists():
            for title in titles:
                print(f"\n{part}\n\n{grid(folders[0], part, title)}")


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]] or [Path("docs/figures")])
