"""The pure Python of `ai-dynamo`, without its binding: programs of it run on this project through `dynamo-fast run`."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.interop.frontends import program

__all__ = ["ours", "pure_wheel", "site_packages"]


def site_packages(version: str) -> Path:
    """Where that Python has its packages."""
    return next(program(version).parents[1].glob("lib/python*/site-packages"))


def pure_wheel(version: str, folder: Path) -> Path:
    """A folder for PYTHONPATH with what the wheel `ai-dynamo` brings, and nothing of `ai-dynamo-runtime`."""
    packages = site_packages(version)
    record = packages / f"ai_dynamo-{version}.dist-info" / "RECORD"
    files = [line.split(",")[0].split("/") for line in record.read_text(encoding="utf-8").splitlines()]
    view = folder / f"ai-dynamo-{version}"
    (view / "dynamo").mkdir(parents=True)
    for name in {parts[1] for parts in files if parts[0] == "dynamo"}:
        (view / "dynamo" / name).symlink_to(packages / "dynamo" / name)
    return view


def ours(*arguments: str) -> list[str]:
    """The command that runs a program on this project."""
    return [sys.executable, "-m", "dynamo_fast", "run", *arguments]
