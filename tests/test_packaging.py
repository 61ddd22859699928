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


def actions() -> list[tuple[str, str]]:
    """Each action that a workflow uses, and the reference that it is used by."""
    found: list[tuple[str, str]] = []
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        found += re.findall(r"^ +- uses: ([\w/-]+)@(.+)$", path.read_text("utf-8"), re.MULTILINE)
    return found


@pytest.mark.skipif(not (ROOT / ".github").is_dir(), reason="the workflows are in the repository alone")
def test_each_action_is_pinned_by_a_commit_and_says_its_version() -> None:
    """A tag can be moved to other code, which would run with the right to publish."""
    assert actions()
    assert [used for used in actions() if not re.fullmatch(r"[0-9a-f]{40} # v\d+\.\d+\.\d+.*", used[1])] == []


def extensions() -> list[Path]:
    """The source of each extension that setup.py builds."""
    listed = re.findall(r'^    "(dynamo_fast\.[\w.]+)",$', (ROOT / "setup.py").read_text("utf-8"), re.MULTILINE)
    return [ROOT / "dynamo_fast" / "_codec.pyx", *(ROOT / f"{name.replace('.', '/')}.py" for name in listed)]


@pytest.mark.skipif(not (ROOT / "setup.py").is_file(), reason="the sources of the extensions are not in a wheel")
def test_each_extension_declares_that_it_runs_without_the_global_lock() -> None:
    """One that does not would switch the lock on again for the whole program that imports it."""
    assert len(extensions()) > 30
    declared = re.compile(r"# cython: .*\bfreethreading_compatible=True\b")
    assert [path.name for path in extensions() if not declared.match(path.read_text("utf-8").partition("\n")[0])] == []
