"""The benchmark of the router compares like with like, and its ratios are those of its figures."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import frontend, report, router, worker_side
from tests.interop.frontends import program

CALLERS = router.available()

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks read /proc and use epoll"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler for the other ends of the benchmarks"),
]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a caller; workers run for it."""
    settings = router.environment(str(tmp_path_factory.mktemp("store")))
    with router.process([sys.executable, "-m", "benchmarks.replay_worker"], settings):
        if "grpc.aio" not in CALLERS:
            yield settings
            return
        with router.process([sys.executable, "-m", "benchmarks.grpc_worker"], settings) as port:
            yield {**settings, "GRPC_TARGET": f"127.0.0.1:{port}"}


def test_the_router_and_the_drop_in_have_rows_of_their_own() -> None:
    assert [CALLERS[name][1] for name in report.OWN] == ["ours", "dropin"]


@pytest.mark.parametrize("name", CALLERS)
def test_a_caller_runs_on_uvloop_and_reads_every_item(name: str, settings: dict[str, str]) -> None:
    python, kind = CALLERS[name]
    for measured in router.call(python, kind, "32x100", settings):
        assert (measured["loop"], measured["requests"], measured["items"]) == ("uvloop", 32, 3_200)


@pytest.mark.parametrize("name", CALLERS)
def test_a_worker_answers_with_every_item(name: str) -> None:
    """Enough items for a machine whose kernel counts CPU by the tick: the fastest worker takes 40 ms for them."""
    python, kind = CALLERS[name]
    with worker_side.started(kind, python, router.environment("")) as worker:
        measured = worker_side.measure(worker, worker_side.Work("batch", 1024, 4, 32))
    assert (measured["items"], len(measured["answer"])) == (32_768, 32)
    assert measured["cpu"] > 0


@pytest.mark.frontend
@pytest.mark.parametrize("version", frontend.PEERS)
def test_a_frontend_delivers_every_token_of_each_worker(version: str) -> None:
    program(version)
    works = (frontend.Work(200, 4, 2), frontend.Work(3, 2, 2, pace=1), frontend.Work(1, 40, 8, stream=False))
    with frontend.all_workers(version) as workers:
        assert list(workers) == list(frontend.implementations(version))
        for worker in workers.values():
            assert [worker.measure(work)["items"] for work in works] == [800, 6, 40]


def rounds(*cpu: float) -> router.Rounds:
    return [{"items": 1, "requests": 1, "seconds": 1, "cpu": each, "peak_kib": 1024} for each in cpu]


def test_a_ratio_is_one_of_medians_with_the_spread_of_the_rounds(tmp_path: Path) -> None:
    """Rounds are paired: both were disturbed by the same neighbours. The better of the peers is the reference."""
    table: dict[str, Any] = router.tabulate(
        {
            "burst": {
                report.OURS: rounds(1, 2, 3),
                report.DROP_IN: rounds(2, 2, 2),
                "Dynamo 1.3.1": rounds(90, 90, 90),
                "Dynamo 1.6.1": rounds(10, 30, 60),
            }
        }
    )
    router.write("caller", {}, table, tmp_path)
    assert json.loads((tmp_path / "caller.json").read_text())["figures"] == table
    line = report.Ratio("bursts", "caller", "burst", "cpu_per_item", 40)
    assert line.ratio(tmp_path, report.OURS) == (15, [10, 15, 20])
    assert line.ratio(tmp_path, report.DROP_IN) == (15, [5, 15, 30])
    _, _, cells = report.reached(tmp_path, "against", "the better", [line]).splitlines()
    assert cells == ("| bursts | 2,000,000 µs | 2,000,000 µs | 30,000,000 µs | 15 (10 to 20) | 15 (5 to 30) | 40 |")
