"""A floor imports only floors below it, the rooms of one floor leave each other alone, and nothing is circular."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from scripts.architecture import FLOORS, PACKAGE, PICTURE, draw, imports_of, modules, reachable, room_of

MODULES = modules()


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def floor_of(room: str) -> int:
    """Counted from the bottom."""
    return next(number for number, rooms in enumerate(reversed(FLOORS)) if room in rooms)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_only_what_is_below_it(path: Path) -> None:
    room = room_of(path)
    for other in imports_of(path):
        assert floor_of(other) < floor_of(room), f"{room} imports {other}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Not for typing either: two files that need each other to be understood are one piece."""
    edges = {f"dynamo_fast.{name_of(path).removesuffix('.py').replace('/', '.')}": set[str]() for path in MODULES}
    edges = {name.removesuffix(".__init__"): targets for name, targets in edges.items()}
    for path in MODULES:
        name = f"dynamo_fast.{name_of(path).removesuffix('.py').replace('/', '.')}".removesuffix(".__init__")
        edges[name] = {each for each in imported_modules(path) if each in edges}
    circles = sorted(name for name in edges if name in reachable(edges, name))
    assert not circles


def imported_modules(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{each.name}" for each in node.names)}
    return found


def test_the_core_does_no_input_or_output() -> None:
    for path in MODULES:
        if room_of(path) in ("errors", "codec", "wire"):
            text = path.read_text(encoding="utf-8")
            assert "import socket" not in text
            assert "import asyncio" not in text or path.name == "error.py"  # for the class of a timeout


def test_the_picture_is_drawn_from_this_code() -> None:
    assert PICTURE.read_text(encoding="utf-8") == draw(), "run `make architecture` and commit the picture"
