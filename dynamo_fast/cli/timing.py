"""Careful timing of short calls on a machine that others use, too.

Every case is timed in every round, in turn, so that what disturbs a round disturbs all of them alike; a sample is many
calls, and the figure is the lower quartile of the rounds, because what disturbs only ever adds. Ratios between cases of one
run are what counts.
"""

from __future__ import annotations

import gc
import platform
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["machine", "measure"]

_SAMPLE_SECONDS = 0.01


def measure(cases: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds for one call of each case."""
    counts = {name: _calls_per_sample(call) for name, call in cases.items()}
    samples: dict[str, list[float]] = {name: [] for name in cases}
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, call in cases.items():
                samples[name].append(_time(call, counts[name]) / counts[name])
    finally:
        gc.enable()
    return {name: sorted(each)[len(each) // 4] for name, each in samples.items()}


def _calls_per_sample(call: Callable[[], object]) -> int:
    count = 1
    while (taken := _time(call, count)) < _SAMPLE_SECONDS / 4:
        count *= 2
    return max(1, round(count * _SAMPLE_SECONDS / taken))


def _time(call: Callable[[], object], count: int) -> float:
    repeat = range(count)
    began = time.perf_counter()
    for _ in repeat:
        call()
    return time.perf_counter() - began


def machine(*packages: str) -> dict[str, str]:
    """What ran: the interpreter, the processor and the versions of the packages."""
    facts = {"python": f"{platform.python_implementation()} {platform.python_version()}", "cpu": _processor()}
    for package in packages:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "not installed"
    return facts


def _processor() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
