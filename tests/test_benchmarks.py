"""The benchmark of the router compares like with like, and its ratios are those of its figures."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import frontend, report, router, worker_side
from benchmarks.fleet import __main__ as fleet
from benchmarks.replay_worker import compiled
from tests.interop.frontends import program

ROOT = Path(__file__).parents[1]
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
        with router.process([sys.executable, "-m", "benchmarks.grpc_worker"], settings) as worker:
            yield {**settings, "GRPC_TARGET": f"127.0.0.1:{worker.line}"}


def test_the_router_and_the_drop_in_have_rows_of_their_own() -> None:
    assert [CALLERS[name][1] for name in report.OWN] == ["ours", "dropin"]


@pytest.mark.parametrize("name", CALLERS)
def test_a_caller_runs_on_uvloop_and_reads_every_item(name: str, settings: dict[str, str]) -> None:
    python, kind = CALLERS[name]
    for measured in router.call(python, kind, "32x100", settings):
        assert (measured["loop"], measured["requests"], measured["items"]) == ("uvloop", 32, 3_200)


@pytest.mark.parametrize("kind", [*router.EXTRAS.values(), "ours", "dropin"])
def test_items_that_come_one_by_one_are_timed_for_each_way_of_taking_them(kind: str, settings: dict[str, str]) -> None:
    for measured in router.call(sys.executable, kind, "64 at 20 ms", settings):
        assert measured["items"] == 6_400
        assert measured["seconds"] > 1.9  # not before their time; on a busy machine some come together
        assert measured["gap_p50"] <= measured["gap_p99"]


def test_the_floor_reads_the_answers_of_all_streams_as_they_come(settings: dict[str, str], tmp_path: Path) -> None:
    measured = router.receive(compiled("receive", str(tmp_path)), "64 at 20 ms", settings["DYN_FILE_KV"])
    assert measured["items"] == 6_400
    assert measured["seconds"] > 1.9


@pytest.mark.timeout(300)
def test_each_mode_of_tls_is_measured_at_both_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trustme")
    monkeypatch.setattr(router, "TLS_WORKS", ("sequential",))
    (rows,) = router.tabulate(router.measure_tls(1)).values()
    on_sessions = ["plain, sessions", "TLS, sessions"]
    assert list(rows) == [*on_sessions, "plain", "TLS", "mutual TLS", "mutual TLS, whole handshakes"]
    assert all(row["cpu_of_both"] > 0 for row in rows.values())


@pytest.mark.parametrize("name", CALLERS)
def test_a_worker_that_pauses_between_items_is_asked_for_its_pace(name: str) -> None:
    python, kind = CALLERS[name]
    with worker_side.started(kind, python, router.environment("")) as worker:
        measured = worker_side.measure(worker, worker_side.Work("paced", 10, 4, 4, pace=20_000))
    assert measured["items"] == 40
    assert measured["seconds"] > 0.15


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


@pytest.mark.parametrize("backend", ["mem", "file"])
def test_a_fleet_is_known_called_and_lost(backend: str) -> None:
    """With files only what does not wait for records to expire: no descriptors, so no calls."""
    case = fleet.Case(backend, 40, 2)
    row = fleet.measure(case, seconds=1, visits=3, most_connections=100 if backend == "mem" else 0)
    assert row["known_seconds"]
    assert (row["missed"], row["came_p50"] is not None, row["went_p50"] is not None) == (0, True, True)
    if backend == "mem":
        assert row["connections"] == pytest.approx(1, abs=0.3)
        assert row["forgotten"]
        sent, lost, retried = (row[key] or 0 for key in ("sent_0", "lost_0", "lost_1"))
        assert retried <= lost + 8  # what was under way at the four that died
        assert lost < sent
    else:
        assert "lost_0" not in row


def test_figures_of_a_fleet_add_up_to_a_table(tmp_path: Path) -> None:
    assert report.fleet(tmp_path) == ""
    known: dict[str, float | None] = {"known_seconds": 0.5, "came_p50": 0.001, "came_most": None}
    fleet.write(known, fleet.Case("etcd", 1_000, 10), {}, tmp_path)
    fleet.write({**known, "sent_0": 2_000, "lost_0": 20}, fleet.Case("file", 1_000, 1), {}, tmp_path)
    first, second = (each.splitlines() for each in report.fleet(tmp_path).split("\n\n"))
    assert [line.split(" | ")[:3] for line in first[2:]] == [
        ["| etcd, 1,000 workers, 10 routers", "0.5", "1 / –"],
        ["| file, 1,000 workers, 1 router", "0.5", "1 / –"],
    ]
    assert [line.split(" | ")[:3] for line in second[2:]] == [["| file, 1,000 workers, 1 router", "2,000", "20"]]


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


def test_a_line_may_be_of_a_sink_and_have_two_aims(tmp_path: Path) -> None:
    by_name = {name: rounds(cpu) for name, cpu in ((report.OURS, 2), (report.SINK, 1), ("Dynamo 1.6.1", 8))}
    router.write("caller", {}, router.tabulate({"burst": by_name}), tmp_path)
    lines = [
        report.Ratio("plain", "caller", "burst", "cpu_per_item", 6, 5),
        report.Ratio("sink", "caller", "burst", "cpu_per_item", 8, here=report.SINK),
        report.Ratio("not measured", "caller", "packet", "cpu_per_item", 8),
    ]
    _, _, *cells = report.reached(tmp_path, "against", "Dynamo", lines).splitlines()
    assert cells == [
        "| plain | 2,000,000 µs | 8,000,000 µs | 4 (4 to 4) | 6 / 5 |",
        "| sink | 1,000,000 µs | 8,000,000 µs | 8 (8 to 8) | 8 |",
    ]


def test_tables_are_made_of_what_was_measured(tmp_path: Path) -> None:
    assert report.tables(tmp_path) == {}
    router.write("growth-idle", {}, {report.OURS: {"kib_per_stream": 3.0}}, tmp_path)
    assert list(report.tables(tmp_path)) == ["aims", "growth-idle"]
    assert "memory of an idle stream | 3 KiB | 4 KiB" in report.tables(tmp_path)["aims"]


@pytest.mark.parametrize("missing", ["dynamo_fast._codec", "orjson", "msgpack"])
def test_the_benchmark_of_the_codec_says_how_to_get_what_it_needs(missing: str) -> None:
    program = f"import runpy, sys; sys.modules[{missing!r}] = None; runpy.run_module('benchmarks.codec')"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install -e '.[bench]'" in done.stderr
    assert "Traceback" not in done.stderr
