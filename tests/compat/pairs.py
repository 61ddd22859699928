"""Runs scenarios on a pair of implementations: a worker in one process, a caller in another."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.interop.peers import environment, interpreter

HERE = Path(__file__).parent
EXPECTED = HERE / "expected"
LIMIT = 60.0

WITH_WORKER = [
    *("calls", "errors", "requests", "responses", "envelopes", "handlers", "contexts", "cancellation"),
    *("avoidance", "unary", "push"),
]
"""Scenarios in which caller and worker can be of different makes."""
ALONE = [
    *("nobody", "names", "constructor", "serving", "decorators", "records", "binding"),
    *("metric_names", "exceptions", "health_checks", "logs", "metrics", "runtime_data", "first_tokens"),
    *("media", "parsers", "whole_answers"),
]
"""Scenarios of one process."""

SETTINGS = {
    "logs": {"DYN_LOG": "info", "DYN_SDK_DISABLE_ANSI_LOGGING": "1"},
    "metrics": {"DYN_SYSTEM_PORT": "0", "DYN_SYSTEM_HOST": "127.0.0.1"},
}
"""The environment of the caller, for those scenarios that are called alone."""


@dataclass(frozen=True)
class Side:
    """An implementation, and the Python that has it."""

    python: Path
    module: str


OURS = Side(Path(sys.executable), "dynamo_fast.runtime")


def theirs(version: str) -> Side:
    """A release of Dynamo; skips the test, saying why, if it is not here."""
    return Side(interpreter(version), "dynamo.runtime")


@contextmanager
def worker(side: Side, folder: Path, mux: str = "auto") -> Iterator[None]:
    """A worker that is ready; `mux`: what ours does about the multiplexed response plane."""
    with (folder / "worker.log").open("w") as log:
        process = subprocess.Popen(
            [str(side.python), str(HERE / "process.py"), "serve", side.module],
            env=_environment(folder, mux),
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        try:
            assert process.stdout is not None
            while not (line := process.stdout.readline()).startswith("ready"):
                assert line, f"the worker does not start: {(folder / 'worker.log').read_text()[-2000:]}"
            yield
            if side is OURS:
                _leave(process)
        finally:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def _leave(process: subprocess.Popen[str]) -> None:
    """Have a worker of ours shut down: each of its endpoints ends, and so does the process, in order."""
    process.terminate()
    told, _ = process.communicate(timeout=LIMIT)
    assert set(told.splitlines()) == {"ended ()"}
    assert process.returncode == 0


def call(side: Side, folder: Path, scenarios: Sequence[str], mux: str = "auto") -> dict[str, dict[str, Any]]:
    """The facts of each scenario; `mux` as for a worker."""
    done = subprocess.run(
        [str(side.python), str(HERE / "process.py"), "call", side.module, *scenarios],
        env={**_environment(folder, mux), **SETTINGS.get(scenarios[0], {})},
        capture_output=True,
        text=True,
        timeout=LIMIT * len(scenarios),
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert lines, f"the caller failed: {done.stderr[-3000:]}"
    facts: dict[str, dict[str, Any]] = json.loads(lines[-1])
    return facts


def _environment(folder: Path, mux: str) -> dict[str, str]:
    root = str(HERE.parents[1])
    settings = {"DYN_RUNTIME_INHIBITED_DURATION_SECS": "5", "PYTHONPATH": root, "DYNAMO_FAST_MUX": mux}
    return {**environment(folder), **settings}
