"""Tests do not sleep: they wait for an event or a condition (`tests.waiting`), or they turn a clock.

The exceptions are listed here, file by file, each with how many there may be and why.
"""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent
SLEEP = re.compile(r"\bsleep\((?!0\))")

TURNED = "on a turned clock, where it takes no time"
PROCESS = "runs in a process of its own, for a real peer"
ALLOWED: dict[str, tuple[int, str]] = {
    "waiting.py": (2, "the pause between two looks at a condition: the only one"),
    "testing/test_clock.py": (6, TURNED),
    "faults/proxy.py": (1, TURNED + ", and between two looks on a real one"),
    "faults/world.py": (8, TURNED + "; with the other backend and on uvloop a step is 0.2 s"),
    "faults/test_idle.py": (3, TURNED),
    "ingress/test_time.py": (1, TURNED),
    "ends.py": (1, PROCESS),
    "soak.py": (2, "no test: the handler's pace, and the time between two looks"),
    "mux/test_both_ends.py": (1, "a handler that yields without an end, until it is stopped"),
    "ingress/test_push_handler.py": (2, "a handler that blocks the loop's thread, which is what is tested"),
    "interop/peer_client.py": (2, PROCESS),
    "interop/peer_worker.py": (4, PROCESS),
    "interop/kv_calls.py": (1, PROCESS),
    "interop/test_fleet.py": (1, "a handler's pace, for real peers"),
    "interop/test_middle.py": (1, "a handler's pace, for real peers"),
    "interop/test_worker.py": (1, "a handler's pace, for real peers"),
    "compat/process.py": (3, PROCESS),
    "compat/push_handlers.py": (4, PROCESS),
    "compat/scenarios.py": (7, "the same lines run on real Dynamo, which says nothing to wait for"),
    "conformance/broken.py": (1, PROCESS + ": an implementation that hangs"),
    "cli/test_serve.py": (2, PROCESS),
    "discovery/etcd_server.py": (1, "waits for a real etcd"),
    "discovery/script.py": (1, PROCESS),
    "discovery/test_cluster.py": (1, "waits for a lease of a real etcd to end"),
    "discovery/test_etcd.py": (2, "waits for a real etcd"),
    "discovery/waiting.py": (1, "the pause between two looks at a condition"),
    "egress/test_clocked.py": (20, TURNED),
    "egress/test_tcp_client.py": (1, "gives the loop time to tell the pool of a lost connection"),
    "ingress/test_answers.py": (1, "passes the real millisecond after which corked items are written"),
    "ingress/test_clock.py": (5, TURNED),
    "ingress/test_clocked.py": (9, TURNED),
    "ingress/test_clocked_input.py": (1, TURNED),
    "mutants/kept.py": (3, "no test: texts of mutants"),
    "net/test_pauses.py": (3, TURNED),
    "runtime/test_runtime.py": (1, "a handler's pace"),
    "discovery/test_file.py": (4, "polling of files, in a thread"),
}


def test_tests_do_not_sleep() -> None:
    found = {
        path.relative_to(TESTS).as_posix(): len(SLEEP.findall(path.read_text(encoding="utf-8")))
        for path in TESTS.rglob("*.py")
    }
    too_many = {
        name: f"{count} sleeps, allowed are {ALLOWED.get(name, (0,))[0]}"
        for name, count in found.items()
        if count > ALLOWED.get(name, (0, ""))[0]
    }
    assert too_many == {}, "wait for an event, or turn the clock: see tests/waiting.py and docs/testing.md"


def test_every_exception_is_needed() -> None:
    assert [name for name in ALLOWED if not (TESTS / name).exists()] == []
