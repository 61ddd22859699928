"""The benchmark of the gateway asks every server for the same, and counts what comes."""

from __future__ import annotations

import shutil
import sys

import pytest

from benchmarks import gateway, router
from benchmarks.gateway import PEER, WORKS, Work

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the benchmark reads /proc"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler for the worker and the floor"),
]


def test_each_server_passes_on_every_item(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    if not PEER.exists():
        pytest.skip(f"{PEER} is missing: `make peers`")
    monkeypatch.setitem(WORKS, "one item", Work(40, 4, 1))
    monkeypatch.setitem(WORKS, "burst", Work(2, 1, 3_000))
    monkeypatch.setitem(WORKS, "100 a second", Work(20, 1, 1, rate=100))
    table = router.tabulate(gateway.measure(1, ["one item", "burst", "100 a second"]))
    servers = {gateway.OURS, gateway.FASTAPI, gateway.FLOOR}
    assert [set(rows) for rows in table.values()] == [servers, servers, {*servers, gateway.DIRECT}]
    assert all(row["items_per_second"] > 0 for rows in table.values() for row in rows.values())
    gateway.show_ratios(table)
    assert f"times the items of {gateway.FASTAPI} for the same CPU" in capsys.readouterr().out
