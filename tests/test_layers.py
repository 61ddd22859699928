"""A floor imports only floors below it, and the rooms of one floor leave each other alone."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from scripts.architecture import FLOORS, PACKAGE, PICTURE, draw, imports_of, modules, reachable, room_of

MODULES = modules()


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def dotted(path: Path) -> str:
    """The name under which a module is imported."""
    return ".".join(("dynamo_fast", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


def modules_imported_by(path: Path) -> set[str]:
    """The modules of the package that a module names in its import statements, for typing too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names |= {node.module, *(f"{node.module}.{each.name}" for each in node.names)}
    return names & {dotted(each) for each in MODULES} - {dotted(path)}


def floor_of(room: str) -> int:
    """Counted from the bottom."""
    return next(number for number, rooms in enumerate(reversed(FLOORS)) if room in rooms)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_only_what_is_below_it(path: Path) -> None:
    room = room_of(path)
    for other in imports_of(path):
        assert floor_of(other) < floor_of(room), f"{room} imports {other}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    edges = {dotted(path): modules_imported_by(path) for path in MODULES}
    assert [name for name in edges if name in reachable(edges, name)] == []


def test_the_core_does_no_input_or_output() -> None:
    for path in MODULES:
        if room_of(path) in ("errors", "codec", "wire"):
            text = path.read_text(encoding="utf-8")
            assert "import socket" not in text
            assert "import asyncio" not in text or path.name == "error.py"  # for the class of a timeout


def test_the_picture_is_drawn_from_this_code() -> None:
    assert PICTURE.read_text(encoding="utf-8") == draw(), "run `make architecture` and commit the picture"
