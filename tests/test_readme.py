"""The examples of the README are run as they stand there."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from tests.programs import started

ROOT = Path(__file__).parents[1]
LIMIT = 30.0


def examples() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)


def settings(folder: Path) -> dict[str, str]:
    return {
        **os.environ,
        "DYN_FILE_KV": str(folder),
        "DYN_TCP_RPC_HOST": "127.0.0.1",
        "DYN_TCP_RESPONSE_STREAM_HOST": "127.0.0.1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)]),
    }


def test_the_caller_gets_what_the_worker_yields(tmp_path: Path) -> None:
    caller, drop_in, worker = (
        next(each for each in examples() if word in each)
        for word in ("await router.generate", "round_robin", "await serve(")
    )
    handler = worker.replace("asyncio.run(main())", "")
    (tmp_path / "my_engine.py").write_text(handler)
    command = [
        sys.executable,
        "-m",
        "dynamo_fast",
        "serve",
        "my_engine:generate",
        "--endpoint",
        "demo.backend.generate",
    ]
    with started(command, settings(tmp_path)) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("serving demo.backend.generate at 127.0.0.1:")
        for example in (caller, drop_in):
            answer = subprocess.run(
                [sys.executable, "-c", example],
                env=settings(tmp_path),
                capture_output=True,
                text=True,
                timeout=LIMIT,
                check=True,
            )
            assert answer.stdout == "{'text': 'hello'}\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(LIMIT) == 0


def test_the_worker_runs_as_it_stands(tmp_path: Path) -> None:
    worker = next(each for each in examples() if "await serve(" in each)
    command = [sys.executable, "-c", worker]
    with started(command, settings(tmp_path), stderr=subprocess.DEVNULL) as process:
        call = [sys.executable, "-m", "dynamo_fast", "call", "demo.backend.generate", '{"prompt": "a b"}']
        answer = subprocess.run(call, env=settings(tmp_path), capture_output=True, text=True, timeout=LIMIT, check=True)
        assert answer.stdout == '{"text":"a"}\n{"text":"b"}\n'
        process.send_signal(signal.SIGINT)
        process.wait(LIMIT)
    assert not list((tmp_path / "v1" / "instances").iterdir())  # it took its record along


def test_the_frames_print_what_the_comments_say(tmp_path: Path) -> None:
    frames = next(each for each in examples() if "TwoPartDecoder" in each)
    done = subprocess.run(
        [sys.executable, "-c", frames],
        env=settings(tmp_path),
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=True,
    )
    assert done.stdout.splitlines()[1:] == ["(b'header', b'data')", "10"]


def test_there_is_no_other_example() -> None:
    tested = ("router.generate", "round_robin", "serve(", "TwoPart")
    assert not [each for each in examples() if not any(word in each for word in tested)]


def test_each_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = [page.name for page in (ROOT / "docs").glob("*.md") if page.name != "README.md"]
    assert not [page for page in pages if f"]({page})" not in index]
