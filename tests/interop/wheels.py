"""The pure Python of `ai-dynamo`, without its binding: programs of it run on this project through `dynamo-fast run`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.interop.peers import ROOT

__all__ = ["dynamo_python", "environment", "ours", "pure_wheel"]


def dynamo_python(version: str) -> Path:
    """The Python that has the whole of `ai-dynamo`; skips the test, saying why, if there is none."""
    peer = ROOT / ".peers" / f"frontend-{version}"
    if not (peer / ".done").exists():
        pytest.skip(f"no real frontend {version}: `make peers` makes .peers/frontend-{version}, from the package index")
    return peer / "bin" / "python"


def site_packages(version: str) -> Path:
    """Where that Python has its packages."""
    return next(dynamo_python(version).parents[1].glob("lib/python*/site-packages"))


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


def environment(folder: Path, **settings: str) -> dict[str, str]:
    """The environment of a program that stays on this machine, and finds others through files in `folder`."""
    return {
        **os.environ,
        "DYN_FILE_KV": str(folder / "store"),
        "DYN_TCP_RPC_HOST": "127.0.0.1",
        "DYN_TCP_RESPONSE_STREAM_HOST": "lo",  # 1.3.1 takes the name of an interface only
        "DYN_EVENT_PLANE": "zmq",
        "DYN_LOG": "warn",
        "HOME": str(folder),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": "",
        "PYTHONUNBUFFERED": "1",
        **settings,
    }
