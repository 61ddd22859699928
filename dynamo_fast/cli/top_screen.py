"""`Screen`: a snapshot of a gateway, or of discovery, drawn with rich."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dynamo_fast.gateway.state import Sample, Snapshot
from dynamo_fast.wire.text import printable

__all__ = ["Screen", "rate", "seconds", "sparkline"]

_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 60
"""Samples in the widest plot."""
_HEALTH = {"ready": ("●", "green"), "listed": ("○", "bright_black"), "avoided": ("◆", "yellow")}
_ROWS = 12
"""Rows of a table where the height of the screen is unknown."""
_FEW = 4


class Screen:
    """Draws the snapshots of one gateway, one after the other. It keeps the last samples, and the last snapshot."""

    def __init__(self, where: str) -> None:
        """`where`: the URL of the gateway, or `discovery`, which has no traffic."""
        self._where = printable(where)
        self._last: Snapshot | None = None
        self._samples: deque[Sample] = deque(maxlen=_WIDTH)

    def draw(self, snapshot: Snapshot, width: int, height: int | None = None) -> RenderableType:
        """`width` and `height` of the screen, in characters and lines; without `height` nothing is cut at its end."""
        rows = _ROWS if height is None else max(3, (height - 30) // 2)
        self._samples.extend(snapshot.samples)
        parts: list[RenderableType] = [self._title(snapshot)]
        if self._where != "discovery":
            parts += ["", _plots(self._samples, width)]
        parts += ["", self._endpoints(snapshot, rows), "", _instances(snapshot, rows)]
        if snapshot.failures:
            parts += ["", _failures(snapshot, _FEW)]
        if snapshot.models:
            parts += ["", _models(snapshot, max(_FEW, rows // 2))]
        if snapshot.changes:
            parts += ["", _changes(snapshot, _FEW)]
        self._last = snapshot
        return Group(*parts)

    def _title(self, snapshot: Snapshot) -> Text:
        text = Text.assemble(("dynamo-fast top ", "bold cyan"), (self._where, "bold"))
        if self._where != "discovery":
            text.append(f"   up {_age(snapshot.now - snapshot.started)}", "dim")
            if snapshot.processes > 1:
                text.append(f", {snapshot.processes} processes", "dim")
        text.append(f"   {time.strftime('%H:%M:%S', time.localtime(snapshot.now))}", "dim")
        return text

    def _endpoints(self, snapshot: Snapshot, rows: int) -> Table:
        traffic = self._where != "discovery"
        table = _table(
            "endpoint", *(["items/s", "in flight", "requests", "items", "errors"] if traffic else []), "instances"
        )
        before = {} if self._last is None else {each.name: each.items for each in self._last.endpoints}
        passed = 0.0 if self._last is None else snapshot.now - self._last.now
        for each in snapshot.endpoints[:rows]:
            speed = max(each.items - before.get(each.name, each.items), 0) / passed if passed > 0 else 0.0
            cells: list[str | Text] = [
                rate(speed),
                f"{each.in_flight:,}",
                f"{each.requests:,}",
                f"{each.items:,}",
                _alarm(each.errors),
            ]
            table.add_row(_plain(each.name, "bold"), *(cells if traffic else []), _alarm_none(each.instances))
        return _ended(table, len(snapshot.endpoints), rows, "no endpoint")


# Parts ----------------------------------------------------------------------------------------------------------------


def _plots(samples: Collection[Sample], width: int) -> Table:
    plots: list[tuple[str, Callable[[Sample], float | None], Callable[[float | None], str]]] = [
        ("in flight", lambda sample: sample.in_flight, rate),
        ("requests/s", lambda sample: sample.requests, rate),
        ("items/s", lambda sample: sample.items, rate),
        ("errors/s", lambda sample: sample.errors, rate),
        ("first item p50", lambda sample: sample.first_p50, seconds),
        ("first item p99", lambda sample: sample.first_p99, seconds),
        ("between items p50", lambda sample: sample.between_p50, seconds),
        ("between items p99", lambda sample: sample.between_p99, seconds),
    ]
    grid = Table.grid(padding=(0, 3, 0, 0))
    bars = max(8, min(width // 2 - 32, _WIDTH))
    cells = []
    for name, of, shown in plots:
        values = [of(sample) for sample in samples]
        last = values[-1] if values else None
        style = "red" if name == "errors/s" and last else "yellow" if name.endswith("p99") else "cyan"
        cells.append(
            Text.assemble(
                (f"{name:<17}", "bright_black"), (f"{shown(last):>9}  ", "bold"), (sparkline(values, bars), style)
            )
        )
    for left, right in zip(cells[::2], cells[1::2], strict=True):
        grid.add_row(left, right)
    return grid


def _instances(snapshot: Snapshot, rows: int) -> Table:
    table = _table("instance", "endpoint", "address", "health", "in flight", "since")
    table.expand, table.columns[2].ratio = True, 1  # the address has what is left
    for each in snapshot.instances[:rows]:
        mark, colour = _HEALTH[each.health]
        table.add_row(
            _plain(each.id),
            _plain(each.endpoint),
            _plain(each.address, "dim"),
            Text.assemble((mark, colour), f" {each.health}"),
            f"{each.in_flight:,}",
            _age(snapshot.now - each.since),
        )
    return _ended(table, snapshot.instances_total, rows, "no instance")


def _models(snapshot: Snapshot, rows: int) -> Table:
    table = _table("model", "endpoint", "takes", "requests", "instances")
    for each in snapshot.models[:rows]:
        name = ", ".join([each.name, *each.aliases])
        table.add_row(
            _plain(name, "bold"), _plain(each.endpoint), each.input, ", ".join(each.types), f"{each.instances:,}"
        )
    return _ended(table, len(snapshot.models), rows, "")


def _failures(snapshot: Snapshot, rows: int) -> Table:
    table = _table("last errors", "", "", "")
    for each in snapshot.failures[:rows]:
        words = ": ".join(filter(None, (each.kind, each.message))) or "(its text is hidden)"
        table.add_row(_clock(each.at), Text(str(each.status), "bold red"), _plain(each.endpoint), _plain(words))
    return table


def _changes(snapshot: Snapshot, rows: int) -> Table:
    table = _table("coming and going", "", "", "")
    for each in snapshot.changes[:rows]:
        colour = "green" if each.what == "joined" else "yellow"
        table.add_row(
            _clock(each.at), Text(each.what, colour), _plain(each.endpoint), _plain(f"{each.kind} {each.name}", "dim")
        )
    return table


def _table(*names: str) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 2, 0, 0), pad_edge=False, header_style="bright_black")
    numbers = {"items/s", "in flight", "requests", "items", "errors", "instances", "since"}
    for name in names:
        is_number = name in numbers and names[0] != "model"
        table.add_column(name, justify="right" if is_number else "left", no_wrap=True, overflow="ellipsis")
    return table


def _ended(table: Table, known: int, rows: int, nothing: str) -> Table:
    """The table, and a row that says what it leaves out, or that there is nothing."""
    if known > rows:
        table.add_row(Text(f"... and {known - rows:,} more", "dim"))
    elif not known:
        table.add_row(Text(nothing, "dim"))
    return table


# Texts and numbers ----------------------------------------------------------------------------------------------------


def sparkline(values: Iterable[float | None], width: int) -> str:
    """The last `width` values as bars, the largest one full; a space where there is none. 0 is the lowest bar."""
    shown = list(values)[-width:]
    top = max((value for value in shown if value is not None), default=0.0)
    bars = [
        " " if value is None else _BARS[0 if top <= 0 else min(int(value / top * len(_BARS)), len(_BARS) - 1)]
        for value in shown
    ]
    return "".join(bars).rjust(width)


def rate(value: float | None) -> str:
    """A number with a letter for thousands and millions."""
    if value is None:
        return "-"
    for letter, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size * (10 if letter == "k" else 1):
            return f"{value / size:.1f} {letter}"
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.1f}"


def seconds(value: float | None) -> str:
    """A time with its unit."""
    if value is None:
        return "-"
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if value >= size:
            return f"{value / size:,.0f} {unit}" if value >= 99.5 * size else f"{value / size:.3g} {unit}"
    return f"{value * 1e6:.0f} us"


def _age(passed: float) -> str:
    whole = max(int(passed), 0)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if whole >= size:
            return f"{whole // size} {unit}"
    return f"{whole} s"


def _clock(at: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at))


def _plain(text: str, style: str = "") -> Text:
    """A text of a peer: no markup in it is obeyed, and nothing that a terminal obeys is in it."""
    return Text(printable(text), style)


def _alarm(errors: int) -> Text:
    return Text(f"{errors:,}", "bold red" if errors else "")


def _alarm_none(instances: int) -> Text:
    return Text(f"{instances:,}", "" if instances else "yellow")
