"""The runner of the mutants: what it takes for a kill, and that its list fits the code."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutants import run
from tests.mutants.kept import MUTANTS, Mutant

FAILED = "FAILED tests/test_x.py::test_y - AssertionError: assert 1 == 2"
TIMEOUTS = [
    "FAILED tests/test_x.py::test_y - TimeoutError",
    "FAILED tests/test_x.py::test_y[a - b] - asyncio.exceptions.TimeoutError",
    "FAILED tests/test_x.py::test_y - Failed: Timeout (>8.0s) from pytest-timeout.",
]


def mutant(*, hangs: bool = False) -> Mutant:
    return Mutant("a slip", "package", "before", "after", "tests/test_x.py", hangs)


def test_a_test_that_fails_kills() -> None:
    assert run.judge(mutant(), 1, FAILED) == ""
    assert run.judge(mutant(), 1, "___ ERROR at teardown of test_y ___") == ""


def test_a_test_that_passes_lets_live() -> None:
    assert "LIVES" in run.judge(mutant(), 0, "1 passed")
    assert "LIVES" in run.judge(mutant(hangs=True), 0, "1 passed")


@pytest.mark.parametrize("output", TIMEOUTS)
def test_a_time_limit_kills_only_what_is_known_to_hang(output: str) -> None:
    assert run.judge(mutant(hangs=True), 1, output) == ""
    assert "no verdict" in run.judge(mutant(), 1, output)


def test_what_says_nothing_about_the_mutant_is_no_kill() -> None:
    assert "no verdict" in run.judge(mutant(), 2, "Interrupted: 1 error during collection")
    assert "no verdict" in run.judge(mutant(), 4, "ERROR: not found: tests/test_x.py::test_y")
    assert "no verdict" in run.judge(mutant(), 1, "ERROR tests/test_x.py::test_y - OSError: no port is free")


def test_a_mutant_is_found_by_its_text(tmp_path: Path) -> None:
    (tmp_path / "package" / "part").mkdir(parents=True)
    (tmp_path / "package" / "part" / "here.py").write_text("1 before 2")
    (tmp_path / "package" / "other.py").write_text("nothing")
    assert run.mutated(tmp_path, mutant()) == (str(Path("package", "part", "here.py")), "1 after 2")
    (tmp_path / "package" / "other.py").write_text("before")
    with pytest.raises(LookupError, match="exactly one place in package, but is 1 times in .*other"):
        run.mutated(tmp_path, mutant())
    (tmp_path / "package" / "other.py").unlink()
    (tmp_path / "package" / "part" / "here.py").unlink()
    with pytest.raises(LookupError, match="nowhere"):
        run.mutated(tmp_path, mutant())


def test_an_edit_is_undone(tmp_path: Path) -> None:
    source, compiled = tmp_path / "a.py", tmp_path / "a.cpython-311.so"
    source.write_text("good")
    compiled.write_text("compiled")
    with run.edited(tmp_path, run.Place("a.py", "bad")):
        assert source.read_text() == "bad"
        assert not compiled.exists()
    assert source.read_text() == "good"
    assert compiled.read_text() == "compiled"


def test_the_list_fits_the_code() -> None:
    """Each text is at one place, what comes out can be compiled, and the test is there."""
    for each in MUTANTS:
        compile(run.mutated(run.ROOT, each).text, each.name, "exec")
        file, _, test = each.test.partition("::")
        assert f"def {test.partition('[')[0]}(" in (run.ROOT / file).read_text("utf-8"), each.test


def test_there_are_at_least_sixty_of_different_names() -> None:
    assert len({each.name for each in MUTANTS}) == len(MUTANTS) >= 60
