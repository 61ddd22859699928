"""docs/testing-your-service.md: its files are a project of their own, whose tests pass."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs" / "testing-your-service.md").read_text(encoding="utf-8")
LIMIT = 60
SCOPE = ("-o", "asyncio_default_fixture_loop_scope=function")


def project(folder: Path) -> None:
    for name, source in re.findall(r"```python\n# (\S+\.py)\n(.*?)```", PAGE, re.DOTALL):
        (folder / name).write_text(source, encoding="utf-8")


def outcome_of(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, *SCOPE, *options, "."]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=LIMIT, cwd=folder)


def test_the_example(tmp_path: Path) -> None:
    project(tmp_path)
    done = outcome_of(tmp_path, "--strict-markers", "-W", "error")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout


def test_a_handler_that_does_not_end_fails_its_test(tmp_path: Path) -> None:
    project(tmp_path)
    (tmp_path / "test_service.py").write_text(
        "import asyncio, pytest\n"
        "@pytest.mark.asyncio\n"
        "async def test_it(dynamo_plane):\n"
        "    async def stubborn(request):\n"
        "        yield 1\n"
        "        for _ in range(8):\n"
        "            try:\n"
        "                await asyncio.Event().wait()\n"
        "            except asyncio.CancelledError:\n"
        "                pass\n"
        "    await dynamo_plane.serve(stubborn, 'a.b.c')\n"
        "    async with await dynamo_plane.call('a.b.c', None) as stream:\n"
        "        await anext(stream)\n",
        encoding="utf-8",
    )
    done = outcome_of(tmp_path)
    assert done.returncode == 1, done.stdout
    assert "0 requests are under way at the router, and 1 at the worker" in done.stdout
