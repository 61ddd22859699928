"""Puts each kept mutant into a copy of the code and runs the test that must fail: `python -m tests.mutants.run [WORD]`.

A mutant is killed if its test fails: by an assertion, or by an error that is raised in the test. It lives if the test
passes. Everything else is no verdict, and fails the run as well: an edit that does not fit the code any more, a test that
cannot be collected or set up, and a time limit, unless the entry says that the mutant makes its test hang. So neither a
list that was left behind nor a loaded machine is taken for a kill.
"""

from __future__ import annotations

import argparse
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.mutants.kept import MUTANTS, Mutant

__all__ = ["Outcome", "Place", "judge", "main", "mutated"]

ROOT = Path(__file__).parents[2]
COPIED = ("dynamo_fast", "tests", "docs", "scripts", "benchmarks", "pyproject.toml", "README.md", "Makefile")
LIMIT = 60.0
"""Seconds that a test may take."""
_START = 30.0  # seconds that pytest may need around its tests
LIMIT_OF_HANGING = 6.0
"""The same for a test that a mutant is known to make hang. Without the mutant each takes less than a second."""
_FAILED, _PASSED, _TIMED_OUT = 1, 0, -1  # exit statuses of pytest, and ours
_VERDICT = re.compile(r"^FAILED |ERROR at teardown of", re.MULTILINE)
_TIMEOUT = re.compile(r"^FAILED .* - (([\w.]+\.)?TimeoutError\b|Failed: Timeout )", re.MULTILINE)


class Place(NamedTuple):
    """Where a mutant is put: the file's path below the copy, and the text that the file gets."""

    path: str
    text: str


class Outcome(NamedTuple):
    """What became of a mutant; `trouble` is empty if it was killed."""

    mutant: Mutant
    trouble: str
    seconds: float


def mutated(folder: Path, mutant: Mutant) -> Place:
    """The one file below `mutant.within` that has the mutant's text, and what it says with the mutant.

    Raises LookupError if there is no such file, or more than one such place.
    """
    within = folder / mutant.within
    files = [within] if within.is_file() else sorted(within.rglob("*.py"))
    found = [(file, count) for file in files if (count := file.read_text("utf-8").count(mutant.before))]
    if len(found) != 1 or found[0][1] != 1:
        places = ", ".join(f"{count} times in {file.relative_to(folder)}" for file, count in found) or "nowhere"
        raise LookupError(
            f"its text must be at exactly one place in {mutant.within}, but is {places}:\n{mutant.before}"
        )
    file = found[0][0]
    text = file.read_text("utf-8").replace(mutant.before, mutant.after)
    return Place(str(file.relative_to(folder)), text)


@contextmanager
def edited(folder: Path, place: Place) -> Iterator[None]:
    """The copy in `folder` with the mutant in it."""
    path = folder / place.path
    original = path.read_bytes()
    # Compiled forms would run in its place, and some take it only as they were built with it.
    translated = [] if path.stem.startswith("_codec") else folder.rglob("*.so")
    compiled = {file: file.with_name(f"{file.name}.aside") for file in translated if "_codec" not in file.name}
    for file, aside in compiled.items():
        file.rename(aside)
    path.write_text(place.text, encoding="utf-8")
    try:
        yield
    finally:
        path.write_bytes(original)
        for file, aside in compiled.items():
            aside.rename(file)


def copy_tree(folder: Path) -> None:
    """Copy what the tests need."""
    ignored = shutil.ignore_patterns("__pycache__", ".hypothesis")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=ignored)
        elif source.exists():
            shutil.copy(source, folder / name)


def run_tests(folder: Path, tests: Iterable[str], environment: Mapping[str, str], limit: float) -> tuple[int, str]:
    """The exit status of pytest in the copy, and what it printed. Each test may take `limit` seconds."""
    options = ["-q", "-x", "-rfE", "-p", "no:cacheprovider", f"--timeout={limit:g}"]
    command = [sys.executable, "-m", "pytest", *options, *tests]
    variables = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "200"}
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env={**variables, **environment},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_START + limit * max(1, len(list(tests))),
            check=False,
        )
    except subprocess.TimeoutExpired:  # it does not even hear pytest's own limit
        return _TIMED_OUT, f"it ran for more than {limit:g} s, and did not stop then"
    return done.returncode, done.stdout + done.stderr


def judge(mutant: Mutant, status: int, output: str) -> str:
    """What is wrong with the end of the test; empty if it says that the mutant was killed."""
    if status == _PASSED:
        return "it LIVES: the test passes"
    hung = status == _TIMED_OUT or (status == _FAILED and _TIMEOUT.search(output) is not None)
    failed = status == _FAILED and _VERDICT.search(output) is not None
    if (failed and not hung) or (hung and mutant.hangs):
        return ""
    reason = "a time limit, and the entry does not say that it hangs" if hung else f"pytest ended with {status}"
    return f"no verdict: {reason}\n{output[-3000:]}"


def try_mutant(folder: Path, mutant: Mutant) -> Outcome:
    """Run the mutant's test on the copy in `folder`, which is as before afterwards."""
    began = time.monotonic()
    try:
        place = mutated(folder, mutant)
    except LookupError as error:
        return Outcome(mutant, f"no verdict: {error}", 0.0)
    with edited(folder, place):
        limit = LIMIT_OF_HANGING if mutant.hangs else LIMIT
        status, output = run_tests(folder, [mutant.test], dict(mutant.environment), limit)
    return Outcome(mutant, judge(mutant, status, output), time.monotonic() - began)


def check_unharmed(folders: list[Path], mutants: Iterable[Mutant]) -> str:
    """Run every test without a mutant, a share in each of the `folders`; returns what is wrong, empty if they pass."""
    runs = sorted({(mutant.environment, mutant.test) for mutant in mutants})

    def work(number: int) -> str:
        shares: dict[tuple[tuple[str, str], ...], list[str]] = {}
        for environment, test in runs[number :: len(folders)]:
            shares.setdefault(environment, []).append(test)
        for environment, tests in shares.items():
            status, output = run_tests(folders[number], tests, dict(environment), LIMIT)
            if status != _PASSED:
                return output[-4000:]
        return ""

    with ThreadPoolExecutor(len(folders)) as pool:
        return "".join(pool.map(work, range(len(folders))))


def try_all(folders: list[Path], mutants: list[Mutant]) -> Iterator[Outcome]:
    """The outcomes as they come, one mutant at a time in each of the `folders`."""
    free: queue.Queue[Path] = queue.Queue()
    for folder in folders:
        free.put(folder)

    def work(mutant: Mutant) -> Outcome:
        folder = free.get()
        try:
            return try_mutant(folder, mutant)
        finally:
            free.put(folder)

    with ThreadPoolExecutor(len(folders)) as pool:
        for done in as_completed([pool.submit(work, mutant) for mutant in mutants]):
            yield done.result()


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="Run the kept mutants.")
    parser.add_argument("word", nargs="?", default="", help="only mutants whose name, place or test contains this")
    # Twice the processors: a third of the tests only wait until their time is over.
    jobs = min(2 * (os.cpu_count() or 1), 16)
    parser.add_argument("--jobs", type=int, default=jobs, help=f"how many at once (here: {jobs})")
    options = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if any(options.word in text for text in (*mutant[:2], mutant.test))]
    if not chosen:
        print(f"no mutant has {options.word!r} in its name, place or test")
        return 2
    began = time.monotonic()
    bad = []
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        folders = [Path(name, str(number)) for number in range(max(1, options.jobs))]
        for folder in folders:
            folder.mkdir()
            copy_tree(folder)
        print(f"the tests without a mutant ({len({mutant.test for mutant in chosen})})", flush=True)
        if trouble := check_unharmed(folders, chosen):
            print(f"they do not pass:\n{trouble}")
            return 1
        for number, outcome in enumerate(try_all(folders, chosen), 1):
            word = "killed" if not outcome.trouble else "LIVES " if "LIVES" in outcome.trouble else "?     "
            print(f"{number:3}/{len(chosen)}  {word} {outcome.seconds:5.1f} s  {outcome.mutant.name}", flush=True)
            if outcome.trouble:
                bad.append(outcome)
    for outcome in bad:
        print(f"\n{outcome.mutant.name}\n{outcome.mutant.within}, {outcome.mutant.test}\n{outcome.trouble}")
    print(f"\n{len(chosen) - len(bad)} of {len(chosen)} mutants were killed, in {time.monotonic() - began:.0f} s")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
