"""The table of words is the specification's, and no other module spells a reason."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from dynamo_fast import reasons
from scripts.architecture import PACKAGE, modules

SPEC = Path(__file__).parents[1] / "docs" / "spec" / "transport.md"


def section(number: str) -> str:
    """The text of a section of the specification."""
    found = re.search(
        rf"^### {re.escape(number)} .*?(?=^#)", SPEC.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    assert found is not None
    return found[0]


def test_the_types_are_those_of_the_specification() -> None:
    rows = re.findall(r"^\| ([\w.]+) \| (\w+) \| ([\w.]+)(?: \(s\))? \|$", section("7.3"), re.MULTILINE)[1:]
    assert len(rows) == 20
    assert [tuple(words) for words in reasons.BY_TYPE.values()] == rows


def test_the_classes_are_written_as_the_types_of_the_specification() -> None:
    written = (
        section("7.3").partition("written back as legacy `error_type`: ")[2].partition("Cancelled, Unavailable")[0]
    )
    expected = {"Cancelled": "Cancelled", "Unavailable": "Unavailable"}  # which "keep their names"
    for classes, error_type in re.findall(r"([\w, ]+) -> `(\w+)`", written):
        expected |= {each.strip(): error_type for each in classes.split(",")}
    assert {name: words.error_type for name, words in reasons.BY_CLASS.items()} == expected
    for named in re.findall(r"(\w+) `([a-z]+\.\w+)`", section("7.4")):
        assert reasons.BY_CLASS[named[0]].reason == named[1]


def test_migration_follows_the_rule_of_the_specification() -> None:
    move, stay = section("7.5").partition("1.6 line")[2].split("blocked anywhere")
    assert set(re.findall(r"[a-z]+\.[a-z_]+", move)) == reasons.MIGRATABLE
    assert set(re.findall(r"[a-z]+\.[a-z_]+", stay)) == reasons.NEVER_MIGRATABLE


def test_no_constant_is_missing_in_the_tables() -> None:
    named = {each for each in vars(reasons).values() if isinstance(each, reasons.Words)}
    assert named == {*reasons.BY_TYPE.values(), *reasons.BY_CLASS.values(), reasons.INVALID_ERROR}


def test_only_the_table_spells_reasons_and_the_types_of_backends() -> None:
    spelled = set(reasons.CLASS_OF_REASON) | {name for name in reasons.BY_TYPE if "." in name}
    for path in modules():
        if path.name == "reasons.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant):
                assert node.value not in spelled, f"{path.relative_to(PACKAGE)}:{node.lineno} spells {node.value!r}"
