"""The `.pxd` files beside compiled Python: each attribute that a class sets is declared there, and nothing else is.

A compiled class has no other attributes. One that was forgotten is an AttributeError when it is set, which only a test of
that very line would see.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TypeGuard

import pytest

PACKAGE = Path(__file__).parents[1] / "dynamo_fast"
TYPED = sorted(path for path in PACKAGE.rglob("*.pxd") if path.with_suffix(".py").exists())


def declared(pxd: Path) -> dict[str, set[str]]:
    """For each class the attributes that it and its bases of the same file declare."""
    found: dict[str, set[str]] = {}
    name = ""
    for line in pxd.read_text(encoding="utf-8").splitlines():
        if (begun := re.match(r"cdef class (\w+)(?:\((\w+)\))?:", line)) is not None:
            name = begun[1]
            found[name] = set(found.get(begun[2] or "", ()))
        elif name and (attribute := re.match(r"    cdef (?:public |readonly )?[\w ]+? (\w+)$", line)) is not None:
            found[name].add(attribute[1])
    return found


def assigned(cls: ast.ClassDef) -> Iterator[str]:
    """The names that the methods of a class set on `self`."""
    for method in cls.body:
        if isinstance(method, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from (node.attr for node in ast.walk(method) if is_set_on_self(node))


def is_set_on_self(node: ast.AST) -> TypeGuard[ast.Attribute]:
    if not isinstance(node, ast.Attribute) or not isinstance(node.ctx, ast.Store):
        return False
    return isinstance(node.value, ast.Name) and node.value.id == "self"


def bases(pxd: Path, name: str) -> list[str]:
    text = pxd.read_text(encoding="utf-8")
    found = re.search(rf"cdef class {name}\((\w+)\):", text)
    return [found[1]] if found is not None else []


def every_declared(pxd: Path, name: str) -> set[str]:
    """With those of its bases in other files."""
    found = set(declared(pxd).get(name, ()))
    for base in bases(pxd, name):
        for other in TYPED:
            if base in declared(other):
                found |= every_declared(other, base)
    return found


@pytest.mark.parametrize("pxd", TYPED, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_each_attribute_of_a_compiled_class_has_a_type(pxd: Path) -> None:
    tree = ast.parse(pxd.with_suffix(".py").read_text(encoding="utf-8"))
    classes = {each.name: each for each in ast.walk(tree) if isinstance(each, ast.ClassDef)}
    assert declared(pxd).keys() <= classes.keys()
    for name in declared(pxd):
        assert set(assigned(classes[name])) - every_declared(pxd, name) == set(), name


def test_there_are_such_files() -> None:
    assert len(TYPED) > 20
