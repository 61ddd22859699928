"""`dynamo-fast tap` in front of `dynamo-fast serve`, called with `dynamo-fast call`: three processes."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

from tests.cli.test_main import LIMIT, run, settings
from tests.programs import started

COMMAND = [sys.executable, "-u", "-m", "dynamo_fast"]


def test_a_call_through_the_tap_is_shown(tmp_path: Path) -> None:
    (tmp_path / "engine.py").write_text("async def echo(request):\n    yield request\n")
    with started([*COMMAND, "serve", "engine:echo", "--endpoint", "a.b.c"], settings(tmp_path), tmp_path) as worker:
        assert worker.stdout is not None
        upstream, _, path = worker.stdout.readline().split()[-1].partition("/")
        with started([*COMMAND, "tap", "--json", "127.0.0.1:0", upstream], settings(tmp_path)) as tap:
            assert tap.stdout is not None
            note = json.loads(tap.stdout.readline())
            listens, _, passes_on_to = note["text"].removeprefix("listening on ").partition(", passing on to ")
            assert passes_on_to == upstream
            assert run(tmp_path, "call", f"{listens}/{path}", '{"a":1}').stdout == '{"a":1}\n'
            kinds = []
            while "sentinel" not in kinds:
                kinds.append(json.loads(tap.stdout.readline())["kind"])
            assert [kind for kind in kinds if kind not in ("connection", "note", "ack")] == [
                *("request", "handshake", "prologue", "item", "final", "sentinel")
            ]
            tap.send_signal(signal.SIGINT)
            assert tap.wait(LIMIT) == 130
        worker.terminate()


def test_a_tap_that_cannot_listen_is_one_line(tmp_path: Path) -> None:
    done = run(tmp_path, "tap", "0.0.0.0:0", "127.0.0.1:1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("dynamo-fast tap: error: a tap listens on loopback only, not on 0.0.0.0")
    assert done.stderr.count("\n") == 1
