"""The gate that counts instructions: what it lets pass, and what it does where nothing can be counted."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import cost

RECORDED = json.loads(cost.RECORDED.read_text(encoding="utf-8"))


def test_a_case_fails_above_two_percent_and_not_below() -> None:
    recorded = {"dearer": 1_000.0, "at the limit": 1_000.0, "cheaper": 1_000.0}
    measured = {"dearer": 1_021.0, "at the limit": 1_020.0, "cheaper": 500.0, "new": 7.0}
    table, dearer = cost.compare(measured, recorded)
    assert dearer == ["dearer"]
    assert [line.split()[-1] for line in table.splitlines()[1:]] == ["+2.1%", "+2.0%", "-50.0%", "new"]


@pytest.mark.parametrize("python", RECORDED)
def test_every_case_is_recorded(python: str) -> None:
    assert list(RECORDED[python]["instructions"]) == list(cost.CASES)


def run(*arguments: str, path: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.cost", *arguments]
    return subprocess.run(
        command, env={**os.environ, "PATH": path}, cwd=cost.ROOT, capture_output=True, text=True, check=False
    )


def test_without_valgrind_it_says_so_and_passes(tmp_path: Path) -> None:
    done = run(path=str(tmp_path))
    assert (done.returncode, done.stdout) == (
        0,
        "skipped: valgrind is not installed, and nothing else counts instructions\n",
    )


def test_a_name_that_no_case_begins_with_is_refused(tmp_path: Path) -> None:
    done = run("calller", path=str(tmp_path))
    assert done.returncode == 1
    assert "no case begins with calller: frame: decode a run, " in done.stderr


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")
def test_a_count_is_the_difference_of_two_processes() -> None:
    """An import costs something, and the same each time; the interpreter's own start is not in it.

    The start of an interpreter varies by some 10,000 instructions. So the import is one of millions.
    """
    nothing, some, again = (cost.count(cost.imports(module)) for module in ("sys", "decimal, json", "decimal, json"))
    assert nothing < 100_000
    assert some > 5_000_000
    assert abs(some - again) < some * 0.01
