"""What takes long says how far it is, on a terminal and nowhere else."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dynamo_fast.cli.progress import Progress
from tests.cli.test_main import LIMIT, settings
from tests.inspect.test_conversation import ITEM
from tests.programs import started


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("hidden", [True, False])
def test_the_line_is_erased_at_the_end(monkeypatch: pytest.MonkeyPatch, hidden: bool) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    progress = Progress(hidden=hidden, quiet=0.0)
    progress.show("1 of 2\x1b[2J")
    progress.show("2 of 2")  # too soon
    progress.close()
    assert terminal.getvalue() == ("" if hidden else "\r\x1b[K1 of 2\\x1b[2J\r\x1b[K")


def test_what_is_done_soon_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    progress = Progress()
    progress.show("1 of 2")
    progress.close()
    assert terminal.getvalue() == ""


def on_a_terminal(folder: Path, *arguments: str) -> tuple[int, str, str]:
    """Run a command whose standard error is a terminal: its status, its output, and what the terminal got."""
    controller, terminal = pty.openpty()
    written: list[bytes] = []

    def read() -> None:
        try:
            while chunk := os.read(controller, 65536):
                written.append(chunk)
        except OSError:  # the other end is closed
            return

    reader = threading.Thread(target=read)
    reader.start()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "dynamo_fast", *arguments],
            env=settings(folder),
            stdout=subprocess.PIPE,
            stderr=terminal,
            text=True,
            timeout=LIMIT,
            check=False,
        )
    finally:
        os.close(terminal)
        reader.join(LIMIT)
        os.close(controller)
    return done.returncode, done.stdout, b"".join(written).decode()


def test_a_load_shows_how_far_it_is(tmp_path: Path) -> None:
    (tmp_path / "engine.py").write_text("async def echo(request):\n    return request\n")
    serve = [sys.executable, "-m", "dynamo_fast", "serve", "engine:echo", "--endpoint", "a.b.c"]
    with started(serve, settings(tmp_path), tmp_path) as worker:
        assert worker.stdout is not None
        worker.stdout.readline()
        arguments = ["bench", "a.b.c", "{}", "--rate", "50", "--duration", "1"]
        status, output, shown = on_a_terminal(tmp_path, *arguments)
    assert status == 0
    assert output.startswith("50 requests, 0 failed, 50 items in ")
    assert " requests, 0 failed, " in shown
    assert shown.endswith("\r\x1b[K")


def test_a_large_file_is_decoded_with_progress(tmp_path: Path) -> None:
    (tmp_path / "large.bin").write_bytes(ITEM * 100_000)
    status, output, shown = on_a_terminal(tmp_path, "decode", str(tmp_path / "large.bin"))
    assert status == 0
    assert output.count("\n") == 100_000
    assert "decoding: " in shown
