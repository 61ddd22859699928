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
from tests.waiting import until_in_thread

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


def life(
    command: list[str], folder: Path, *, with_card: bool = False, **settings: str
) -> tuple[list[dict[str, Any]], int]:
    """What the engine tells, and the exit status.

    The program gets SIGTERM as soon as it has told how it is checked; `with_card`: once its card is there, and was kept.
    """
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
                        if with_card:
                            until_in_thread(lambda: keep_card(folder))
                        process.send_signal(signal.SIGTERM)
            return told, process.wait(LIMIT)
        finally:
            ends_late.cancel()
            process.kill()


def keep_card(folder: Path) -> bool:
    """Copy the record of the model, which goes with the worker. Returns whether there is one."""
    found = [each for each in (folder / "store").glob("v1/mdc/*") if not each.name.startswith(".")]
    if found:
        (folder / "card.json").write_bytes(found[0].read_bytes())
    return bool(found)


def card(folder: Path) -> dict[str, Any]:
    kept: dict[str, Any] = json.loads((folder / "card.json").read_text(encoding="utf-8"))["card_json"]
    return kept


@pytest.mark.parametrize("size", [0, 16, 24])
def test_a_card_without_files_is_the_card_of_the_real_worker(size: int, tmp_path: Path) -> None:
    """A mixed fleet must agree: frontends refuse a second card that differs in this number."""
    arguments = ["model", "--raw", "--no-kv-routing", "--block-size", str(size)]
    life([str(program(VERSION)), PROGRAM, *arguments], tmp_path / "real", with_card=True)
    wheel = pure_wheel(VERSION, tmp_path)
    life(ours(PROGRAM, *arguments), tmp_path / "ours", with_card=True, PYTHONPATH=str(wheel))
    assert card(tmp_path / "ours") == card(tmp_path / "real")
    assert card(tmp_path / "ours")["kv_cache_block_size"] == (size or 16)


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
