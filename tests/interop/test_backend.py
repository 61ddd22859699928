"""The life of an engine on the real `Worker` of 1.6.1 and on ours: one program sees the same calls and the same errors.

1.3.1 has other texts (`BackendUnknown: ...`); where the releases differ, this project does as 1.6.1.
"""

from __future__ import annotations

import json
import signal
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.interop.frontends import LIMIT, environment, program
from tests.interop.wheels import ours, pure_wheel
from tests.llm.folders import make_folder

pytestmark = pytest.mark.frontend

VERSION = "1.6.1"
PROGRAM = str(Path(__file__).with_name("recorded_engine.py"))

FAILING = [
    "start",
    "register_prometheus",
    "component_metrics_dp_ranks",
    "kv_event_sources",
    "on_ready",
    "attach_snapshot_publisher",
    "on_endpoint_ready",
    "supported_controls",
    "supported_updates",
]
SERVING = [
    [],
    ["--no-kv-routing"],
    ["--raw", "--no-kv-routing"],
    ["--mode", "prefill"],
    ["--mode", "prefill", "--fail", "cleanup"],
    ["--mode", "decode"],
    ["--fail", "health_check_payload"],
]


def life(command: list[str], folder: Path, **settings: str) -> tuple[list[dict[str, Any]], int]:
    """What the engine tells, and the exit status. The program gets SIGTERM as soon as it has told how it is checked."""
    folder.mkdir()
    make_folder(folder / "model")
    settings = {"DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS": "1", "DYN_PREFILL_DRAIN_TIMEOUT_S": "1", **settings}
    told = []
    with subprocess.Popen(
        command, cwd=folder, env=environment(folder, **settings), stdout=subprocess.PIPE, text=True
    ) as process:
        ends_late = threading.Timer(2 * LIMIT, process.kill)
        ends_late.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith('{"event"'):  # 1.6.1 logs to standard output, too
                    told.append(json.loads(line))
                    if told[-1]["event"] == "health_check_payload":
                        process.send_signal(signal.SIGTERM)
            return told, process.wait(LIMIT)
        finally:
            ends_late.cancel()
            process.kill()


@pytest.mark.parametrize(
    "options",
    [
        *(["--fail", step] for step in FAILING),
        ["--fail", "start", "--error", "ValueError"],
        ["--fail", "start", "--error", "InvalidArgument"],
        *SERVING,
    ],
    ids=" ".join,
)
def test_an_engine_lives_as_on_the_real_worker(options: list[str], tmp_path: Path) -> None:
    real, wheel = [str(program(VERSION)), PROGRAM, "model", *options], pure_wheel(VERSION, tmp_path)
    with ThreadPoolExecutor(1) as beside:
        expecting = beside.submit(life, real, tmp_path / "real", PYTHONPATH="")
        got, status = life(ours(PROGRAM, "model", *options), tmp_path / "ours", PYTHONPATH=str(wheel))
        expected, _ = expecting.result()
    assert got == expected
    assert status == (0 if got[-1]["event"] == "ended" else 7)  # the real one may crash at the interpreter's exit
