"""The gate that counts instructions: what it lets pass, and what it does where nothing can be counted."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
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


@pytest.mark.parametrize("recorded_with", ["these", "others"])
def test_only_what_the_same_builds_have_recorded_can_fail(
    recorded_with: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    versions = cost.versions() if recorded_with == "these" else {**cost.versions(), "build": "another"}
    recorded = {cost.PYTHON: {"with": versions, "instructions": {"frame: encode": 100}}}
    monkeypatch.setattr(cost, "RECORDED", tmp_path / "cost.json")
    cost.RECORDED.write_text(json.dumps(recorded), encoding="utf-8")
    monkeypatch.setattr(cost, "count", lambda case: 103.0)
    monkeypatch.setattr(shutil, "which", lambda program: program)
    monkeypatch.setattr(sys, "argv", ["cost", "frame: encode"])
    if recorded_with == "these":
        with pytest.raises(SystemExit, match="more than 2% above what is recorded: frame: encode"):
            cost.main()
    else:
        cost.main()
        assert capsys.readouterr().out.endswith(": no count fails\n")


@pytest.mark.timeout(300)  # valgrind makes an import about a hundred times slower
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")
def test_a_count_is_the_difference_of_two_processes() -> None:
    """An import costs something, and the same each time; the interpreter's own start is not in it."""
    nothing, some = (cost.count(cost.imports(module)) for module in ("sys", "colorsys"))
    assert nothing < 100_000 < some
    with tempfile.NamedTemporaryFile(dir=cost.ROOT, prefix=".coverage."):  # what a tool leaves in the checkout
        again = cost.count(cost.imports("colorsys"))
    assert abs(some - again) < some * 0.005
