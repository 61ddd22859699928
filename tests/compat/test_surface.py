"""Every public name of `dynamo.runtime`, `dynamo.llm`, `dynamo._core` and their neighbours is here, or says why not.

The names, their parameters and members are recorded in expected/VERSION/surface.json (`tests.compat.record surface`).
"""

from __future__ import annotations

import importlib
import json
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dynamo_fast.llm import not_offered
from dynamo_fast.runtime import NotOffered
from tests.compat.names import described, signature
from tests.compat.pairs import EXPECTED, call, theirs
from tests.interop.peers import VERSIONS

HOMES = {
    "runtime": ["dynamo_fast.runtime"],
    "llm": ["dynamo_fast.llm"],
    "_core": ["dynamo_fast.runtime", "dynamo_fast.llm", "dynamo_fast.runtime.logging"],
    "llm.exceptions": ["dynamo_fast.llm.exceptions"],
    "runtime.logging": ["dynamo_fast.runtime.logging"],
    "health_check": ["dynamo_fast.health_check"],
}
"""Module of Dynamo -> the modules that have its names here."""
DIFFERENT = {
    "ModelType.__or__": "an operator calls it, and gives no names",
    "RoutedEngine.generate": "dynamo.llm's protocol of that name has other parameters than the class of dynamo._core",
    "SpanProxy.__exit__": "a `with` statement calls it, and gives no names",
}
"""Name, or name.member -> why it is not here, or has other parameters."""


def recorded(version: str) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((EXPECTED / version / "surface.json").read_text(encoding="utf-8"))
    return facts


def find(path: str, name: str) -> Any:
    """Ours; None if there is none."""
    for module in map(importlib.import_module, HOMES[path]):
        if hasattr(module, name):
            return getattr(module, name)
    return None


def missing(wanted: Any, ours: Any, name: str) -> Iterator[str]:
    """What a caller of Dynamo misses: parameters by their names, and members."""
    if wanted is not None and (ours is None or [each for each in ours if each in wanted] != wanted):
        yield f"{name}: {wanted} is {ours} here"


def differences(name: str, wanted: dict[str, Any], ours: Any) -> Iterator[str]:
    short = name.partition(":")[2]
    if ours is None:
        yield f"{short}: missing"
        return
    found = described(ours)
    yield from missing(wanted.get("parameters"), found.get("parameters"), short)
    for member, parameters in wanted.get("members", {}).items():
        if not hasattr(ours, member) and member not in getattr(ours, "__dataclass_fields__", {}):
            yield f"{short}.{member}: missing"
        elif isinstance(parameters, list):
            method = getattr(ours, member)
            known = found["members"].get(member) or signature(method)
            if known is None and member.startswith("__") and isinstance(method, types.MethodDescriptorType):
                known = []  # a slot of a compiled class: it takes no names
            yield from missing(parameters, known, f"{short}.{member}")


@pytest.mark.parametrize("version", VERSIONS)
def test_every_name_is_here_with_its_parameters(version: str) -> None:
    rust = {*not_offered.CLASSES, *not_offered.FUNCTIONS}
    found = {
        each
        for name, wanted in recorded(version).items()
        if name.partition(":")[2] not in rust
        for each in differences(name, wanted, find(*name.split(":")))
    }
    assert sorted(each for each in found if each.partition(":")[0] not in DIFFERENT) == []
    if version == VERSIONS[-1]:
        assert DIFFERENT.keys() - {each.partition(":")[0] for each in found} == set(), "the table tells too much"


def test_what_stays_rust_is_dynamos() -> None:
    known = {name.partition(":")[2] for version in VERSIONS for name in recorded(version)}
    private = {"_OfflineReplayResult", "_normalize_mocker_config"}
    assert {*not_offered.CLASSES, *not_offered.FUNCTIONS} - known == private


@pytest.mark.parametrize("name", [*not_offered.CLASSES, *not_offered.FUNCTIONS])
def test_what_stays_rust_can_be_imported_and_says_so_when_it_is_used(name: str) -> None:
    import dynamo_fast.llm

    value = getattr(dynamo_fast.llm, name)
    assert value is getattr(not_offered, name)
    with pytest.raises(NotOffered, match=f"^{name} is not offered: "):
        value(1, two=2)
    with pytest.raises(NotImplementedError):
        value()


def test_a_class_that_stays_rust_can_be_subclassed_and_compared() -> None:
    from dynamo_fast.llm import EngineType, KvRouter

    class Mine(KvRouter):  # type: ignore[misc]
        """A subclass."""

    assert not isinstance(5, KvRouter)
    assert issubclass(Mine, KvRouter)
    assert not hasattr(KvRouter, "__wrapped__")
    with pytest.raises(NotOffered, match=r"^KvRouter is not offered"):
        Mine()
    with pytest.raises(NotOffered, match=r"^EngineType\.Echo is not offered: .*dynamo\.frontend"):
        _ = EngineType.Echo


@pytest.mark.parametrize("version", VERSIONS)
def test_dynamo_has_the_names_that_were_recorded(version: str, tmp_path: Path) -> None:
    assert call(theirs(version), tmp_path, ["surface"])["surface"] == recorded(version)
