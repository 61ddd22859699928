"""Draws the packages of dynamo_fast and who imports whom, from the code: `python -m scripts.architecture [FILE.svg]`.

The picture has a row for each floor. An arrow means "imports"; an arrow that follows from others (A imports B, B imports
C, A imports C) is left out. `tests/test_layers.py` holds the code to `FLOORS`, and the picture to the code.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable
from html import escape
from pathlib import Path

import dynamo_fast

ROOT = Path(__file__).resolve().parents[1]
#: The package that is imported: the one of this tree, and the installed one where a wheel is tested.
PACKAGE = Path(dynamo_fast.__file__).resolve().parent
PICTURE = ROOT / "docs" / "figures" / "architecture.svg"

#: From the top down: a floor imports only floors below it, and the rooms of one floor do not import each other.
FLOORS = [
    ["cli", "testing"],
    ["standin"],
    ["gateway"],
    ["backend"],
    ["llm"],
    ["runtime", "health_check", "prometheus_names"],
    ["egress", "ingress"],
    ["discovery", "observability", "inspect", "conformance"],
    ["context", "net"],
    ["logs"],
    ["wire", "streams"],
    ["codec", "deadlines"],
    ["sources"],
    ["config"],
    ["errors"],
    ["reasons", "_native", "_lazy"],
]
#: Modules that stand in the room of another.
BACKENDS = {"_codec": "codec", "_codec_py": "codec", "__main__": "cli"}

BOX_WIDTH, BOX_HEIGHT, GAP, FLOOR_HEIGHT, MARGIN = 176, 52, 28, 96, 24


def room_of(path: Path) -> str:
    """The package, or the module of the first level, that a file belongs to."""
    name = Path(path.relative_to(PACKAGE).parts[0]).stem
    return BACKENDS.get(name, name)


def modules() -> list[Path]:
    """Every Python module of the package but the file of its public names."""
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def imports_of(path: Path) -> set[str]:
    """The rooms of the package that a module imports, for typing too; its own room is left out."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [each.name for each in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "dynamo_fast":
            names += [f"dynamo_fast.{each.name}" for each in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
    rooms = {name.split(".")[1] for name in names if name.startswith("dynamo_fast.")}
    return {BACKENDS.get(room, room) for room in rooms} - {room_of(path), "__version__"}


def graph() -> dict[str, set[str]]:
    """Each room, and the rooms that it imports."""
    edges: dict[str, set[str]] = {room: set() for floor in FLOORS for room in floor}
    for path in modules():
        edges[room_of(path)] |= imports_of(path)
    return edges


def reduced(edges: dict[str, set[str]]) -> dict[str, set[str]]:
    """The same without the arrows that follow from others."""
    return {
        room: {each for each in targets if not any(each in reachable(edges, via) for via in targets - {each})}
        for room, targets in edges.items()
    }


def reachable(edges: dict[str, set[str]], start: str) -> set[str]:
    """Every room that `start` needs, at any distance."""
    found: set[str] = set()
    waiting = [start]
    while waiting:
        for target in edges[waiting.pop()] - found:
            found.add(target)
            waiting.append(target)
    return found


def draw() -> str:
    """The picture, as SVG."""
    widest = max(len(floor) for floor in FLOORS)
    width = 2 * MARGIN + widest * BOX_WIDTH + (widest - 1) * 2 * GAP
    height = 2 * MARGIN + (len(FLOORS) - 1) * FLOOR_HEIGHT + BOX_HEIGHT
    places = dict(_places(width))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">',
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 8 4 0 8z" fill="#888"/></marker></defs>',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    parts += _arrows(places)
    for room, (x, y) in places.items():
        parts += [
            f'<rect x="{x}" y="{y}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="6" fill="#f3f6fa" stroke="#345"/>',
            f'<text x="{x + BOX_WIDTH / 2:g}" y="{y + 31}" text-anchor="middle" font-size="15">{escape(room)}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])


def _places(width: int) -> Iterable[tuple[str, tuple[int, int]]]:
    for number, floor in enumerate(FLOORS):
        step = BOX_WIDTH + 2 * GAP
        left = (width - (len(floor) - 1) * step - BOX_WIDTH) // 2
        for column, room in enumerate(floor):
            yield room, (left + column * step, MARGIN + number * FLOOR_HEIGHT)


def _arrows(places: dict[str, tuple[int, int]]) -> list[str]:
    arrows = []
    for room, targets in reduced(graph()).items():
        for target in sorted(targets):
            (x, y), (to_x, to_y) = places[room], places[target]
            begin, end = (x + BOX_WIDTH / 2, y + BOX_HEIGHT), (to_x + BOX_WIDTH / 2, to_y)
            bend = (end[1] - begin[1]) / 2
            arrows.append(
                f'<path d="M{begin[0]:g} {begin[1]} C{begin[0]:g} {begin[1] + bend:g} {end[0]:g} {end[1] - bend:g} '
                f'{end[0]:g} {end[1]}" fill="none" stroke="#888" marker-end="url(#head)"/>'
            )
    return arrows


def main() -> int:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURE
    target.write_text(draw(), encoding="utf-8")
    print(f"wrote {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
