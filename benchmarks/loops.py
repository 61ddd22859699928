"""Our caller on other event loops and Pythons, each a wheel of this checkout in an environment of its own.

A Python that is not installed on this machine is left out, and said.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from scripts.wheels import interpreter

__all__ = ["measure_all"]

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.11", "3.13")
UVLOOPS = ("0.22", "0.23")
WORKS = ("burst", "packet", "sequential", "concurrent")
Rounds = list[dict[str, Any]]


def measure_all(rounds: int) -> dict[str, dict[str, Rounds]]:
    """By work, and interpreter with its loop."""
    from benchmarks.router import call, environment, process

    results: dict[str, dict[str, Rounds]] = {work: {} for work in WORKS}
    with tempfile.TemporaryDirectory() as folder:
        settings = environment(folder)
        callers = _callers(Path(folder))
        with process([sys.executable, "-m", "benchmarks.replay_worker"], settings):
            del settings["PYTHONPATH"]  # the wheels are to be measured, not the checkout
            for work in WORKS:
                for _ in range(rounds):
                    for name, (python, kind) in callers.items():
                        results[work].setdefault(name, []).extend(call(python, kind, work, settings))
    return results


def _callers(folder: Path) -> dict[str, tuple[str, str]]:
    """By name: the interpreter of its environment, and the kind of `caller.py`."""
    callers: dict[str, tuple[str, str]] = {}
    for version in PYTHONS:
        python = interpreter(version)
        if python is None:
            print(f"without CPython {version}: it is not installed")
            continue
        wheels = folder / version
        subprocess.run([python, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(wheels), str(ROOT)], check=True)
        (wheel,) = map(str, wheels.glob("dynamo_fast*.whl"))
        for uvloop in UVLOOPS:
            installed = _environment(python, folder / f"{version}-{uvloop}", wheel, f"uvloop=={uvloop}.*")
            callers[f"{version}, uvloop {uvloop}"] = (installed, "ours")
        callers[f"{version}, asyncio"] = (installed, "asyncio")
    return callers


def _environment(python: str, folder: Path, *packages: str) -> str:
    """An environment with these packages; its interpreter."""
    subprocess.run([python, "-m", "venv", str(folder)], check=True)
    installed = str(folder / "bin" / "python")
    subprocess.run([installed, "-m", "pip", "install", "--quiet", *packages], check=True)
    return installed
