"""What pyproject.toml says of the package is what the rest of the tree says of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = (ROOT / "pyproject.toml").read_text("utf-8")
FOR_DEVELOPERS = {"bench", "docs", "examples", "test", "testing"}


def extras() -> dict[str, str]:
    """Each extra, and its requirements as they are written."""
    _, _, after = PROJECT.partition("[project.optional-dependencies]\n")
    table, _, _ = after.partition("\n[")
    return dict(re.findall(r"^(\w+) = \[(.*?)\](?: +#[^\n]*)?$", table, re.MULTILINE | re.DOTALL))


def test_all_has_every_extra_that_is_for_use() -> None:
    (listed,) = re.findall(r"dynamo-fast\[([\w,]+)\]", extras()["all"])
    assert sorted(listed.split(",")) == sorted(extras().keys() - FOR_DEVELOPERS - {"all"})


def texts() -> Iterator[Path]:
    """What tells a user to install something; the source of a wheel has less of it."""
    for folder in ("dynamo_fast", "docs", "deploy", "examples"):
        yield from (each for each in (ROOT / folder).rglob("*") if each.suffix in (".py", ".md", ".yaml", ".yml"))
    yield from ROOT.glob("*.md")


def test_each_extra_that_is_named_somewhere_exists() -> None:
    named = {
        (str(path.relative_to(ROOT)), extra)
        for path in texts()
        for found in re.findall(r"dynamo[-_]fast\[([\w,]+)\]", path.read_text("utf-8"))
        for extra in found.split(",")
    }
    assert {(path, extra) for path, extra in named if extra not in extras()} == set()


@pytest.mark.parametrize("name", ["orjson", "aiohttp", "xxhash"])
def test_what_is_optional_is_no_requirement(name: str) -> None:
    _, _, after = PROJECT.partition("\ndependencies = [")
    assert name not in after.partition("\n]")[0]
