"""Who may import whom: a floor imports only floors below it, and siblings leave each other alone."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "dynamo_fast"
FLOORS = [
    {"errors"},
    {"_codec_py"},
    {"_codec"},
    {"codec"},
    {"wire"},
    {"context", "config", "deadlines", "net"},
    {"observability"},
    {"egress", "ingress", "discovery"},
    {"runtime"},
    {"conformance"},
    {"cli"},
    {"__main__"},
]
#: One may import another of its floor: a worker is told where to register.
NEIGHBOURS = {("ingress", "discovery"), ("egress", "discovery")}
MODULES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    """The rooms of the package that a module imports."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        names += [each.name for each in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module == "dynamo_fast":
            names += [f"dynamo_fast.{each.name}" for each in node.names]
        rooms |= {name.split(".")[1] for name in names if name.startswith("dynamo_fast.")}
    return rooms


def floor_of(room: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_what_is_below_it(path: Path) -> None:
    room = room_of(path)
    for other in imports_of(path) - {room, "__version__"}:
        assert floor_of(other) < floor_of(room) or (room, other) in NEIGHBOURS, f"{room} imports {other}"


def test_the_core_does_no_input_or_output() -> None:
    for path in MODULES:
        if room_of(path) in ("errors", "codec", "_codec_py", "wire"):
            text = path.read_text(encoding="utf-8")
            assert "import socket" not in text
            assert "import asyncio" not in text or path.name == "error.py"  # for the class of a timeout
