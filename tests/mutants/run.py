"""Puts each kept mutant into a copy of the code and runs the test that must fail: `python -m tests.mutants.run [WORD]`.

A mutant is killed if its test fails by an assertion or an error of its own. It lives if the test passes, and that fails
the run. A test that cannot be collected, or an edit that does not fit the code any more, fails the run as well: the list
has to move with the code.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

from tests.mutants.kept import MUTANTS, Mutant

ROOT = Path(__file__).parents[2]
COPIED = ("dynamo_fast", "tests", "scripts", "docs", "pyproject.toml", "README.md", "Makefile")
LIMIT = 120.0
"""Seconds that a test may take: a mutant that makes it hang is killed, too."""
_FAILED, _PASSED = 1, 0  # exit statuses of pytest; the others are about the run, not about the test


class Outcome(NamedTuple):
    mutant: Mutant
    killed: bool
    seconds: float
    report: str


def edit(folder: Path, mutant: Mutant) -> str:
    """Put the mutant into the copy in `folder`; returns what is wrong with the edit, "" if nothing is."""
    path = folder / mutant.file
    if not path.exists():
        return f"there is no {mutant.file}"
    text = path.read_text(encoding="utf-8")
    if text.count(mutant.before) != 1:
        return f"its text stands {text.count(mutant.before)} times in {mutant.file}, expected once:\n{mutant.before}"
    path.write_text(text.replace(mutant.before, mutant.after), encoding="utf-8")
    for compiled in path.parent.glob(f"{path.stem}.*.so"):  # or the mutant would not be what runs
        compiled.unlink()
    return ""


def copy_tree(folder: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__", ".hypothesis")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=ignored)
        elif source.exists():
            shutil.copy(source, folder / name)


def run_tests(folder: Path, tests: Iterable[str]) -> tuple[int, str]:
    """The exit status of pytest in the copy, and what it printed."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False
        )
    except subprocess.TimeoutExpired:
        return _FAILED, f"it ran for more than {LIMIT:g} s"
    return done.returncode, done.stdout + done.stderr


def try_mutant(mutant: Mutant) -> Outcome:
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutant-") as name:
        folder = Path(name)
        copy_tree(folder)
        wrong = edit(folder, mutant)
        if wrong:
            return Outcome(mutant, False, time.monotonic() - began, wrong)
        status, output = run_tests(folder, [mutant.test])
    report = "" if status == _FAILED else f"pytest ended with {status}:\n{output[-2000:]}"
    return Outcome(mutant, status == _FAILED, time.monotonic() - began, report)


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the kept mutants.")
    parser.add_argument("word", nargs="?", default="", help="only mutants whose name or file contains this")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="how many at once")
    options = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if options.word in mutant.name or options.word in mutant.file]
    status, output = run_tests(ROOT, sorted({mutant.test for mutant in chosen}))
    if status != _PASSED:
        print(f"the tests do not pass without a mutant:\n{output[-4000:]}")
        return 1
    alive = []
    with ThreadPoolExecutor(options.jobs) as pool:
        for done in as_completed([pool.submit(try_mutant, mutant) for mutant in chosen]):
            outcome = done.result()
            word = "killed" if outcome.killed else "LIVES "
            print(f"{word} {outcome.seconds:5.1f} s  {outcome.mutant.name}", flush=True)
            if not outcome.killed:
                alive.append(outcome)
    for outcome in alive:
        print(f"\n{outcome.mutant.name} ({outcome.mutant.file}, {outcome.mutant.test})\n{outcome.report}")
    print(f"{len(chosen) - len(alive)} of {len(chosen)} mutants were killed")
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main())
