"""What was aimed at, and what one run or several of `benchmarks.router` reached, as tables in Markdown.

    python -m benchmarks.targets [FOLDER ...]     folders of figures; docs/figures by default

The figures are the first folder's, and the last column has the ratio in each of them. A reference is the better of Dynamo
1.3.1 and 1.6.1 in the same run.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["tables"]

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


def tables(folders: list[Path]) -> str:
    """The tables. Raises OSError if a part was not measured in one of the folders."""
    lines = _ratios("against Dynamo", "the better of 1.3.1 and 1.6.1", AGAINST_DYNAMO, folders)
    lines += ["", *_ratios("against the floor", "floor", AGAINST_FLOORS, folders)]
    lines += ["", row("growth", "here", "aimed at, at most", "each run"), "|---|---:|---:|---|"]
    for bound in BOUNDS:
        values = [number(bound.value(folder)) for folder in folders]
        lines.append(
            row(bound.text, f"{values[0]} {bound.unit}", f"{number(bound.aim)} {bound.unit}", ", ".join(values))
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(tables([Path(name) for name in sys.argv[1:]] or [Path("docs/figures")]))
