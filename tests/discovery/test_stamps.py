"""Stamps that are too coarse to tell two changes apart, and clocks that differ from the file server's."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dynamo_fast.discovery import file as file_module
from dynamo_fast.discovery import inotify
from dynamo_fast.discovery.base import Added, Removed
from dynamo_fast.discovery.file import BEAT, TTL
from tests.discovery.test_file import RECORD, Ear, folder, put, record, set_back
from tests.discovery.waiting import Clock, until

NAME, _ = record(0x1234)


@pytest.fixture
def polling(monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder's own stamp is all there is, and nobody looks at the folder for any other reason."""
    monkeypatch.setattr(inotify, "inotify_simple", None)
    monkeypatch.setattr(file_module, "BEAT", 3600.0)


@pytest.mark.usefixtures("polling")
async def test_a_change_that_leaves_the_stamp_of_the_folder_as_it_was_is_heard(tmp_path: Path) -> None:
    stamp = time.time_ns() + 10**9  # later than every look: the folder may change again within this stamp
    os.utime(folder(tmp_path), ns=(stamp, stamp))
    ear = await Ear.open(tmp_path)
    put(tmp_path, *record(1))
    os.utime(folder(tmp_path), ns=(stamp, stamp))
    assert (await ear.hear()).instance.instance_id == 1
    await ear.discovery.close()


class CoarseEntry:
    """A file of a folder whose files change with whole minutes only, as it were."""

    def __init__(self, entry: os.DirEntry[str]) -> None:
        self._entry = entry
        self.name, self.path = entry.name, entry.path

    def stat(self, *, follow_symlinks: bool = True) -> Any:
        status = self._entry.stat(follow_symlinks=follow_symlinks)
        fields = {name: getattr(status, name) for name in dir(status) if name.startswith("st_")}
        return SimpleNamespace(**{**fields, "st_ctime_ns": 60 * 10**9, "st_mtime_ns": 60 * 10**9})


@pytest.mark.usefixtures("polling")
async def test_a_record_that_is_replaced_within_one_stamp_is_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    @contextlib.contextmanager
    def coarse(path: Any) -> Iterator[Any]:
        with scandir(path) as entries:
            yield (CoarseEntry(entry) for entry in entries)

    put(tmp_path, NAME, json.dumps(RECORD))
    monkeypatch.setattr(os, "scandir", coarse)
    ear = await Ear.open(tmp_path)
    assert (await ear.hear()).instance.tcp_address == "127.0.0.1:1/x"
    put(tmp_path, NAME, json.dumps({**RECORD, "transport": {"tcp": "127.0.0.1:2/x"}}))
    heard = await ear.hear()
    if isinstance(heard, Removed):
        heard = await ear.hear()
    assert isinstance(heard, Added)
    assert heard.instance.tcp_address == "127.0.0.1:2/x"
    monkeypatch.setattr(os, "scandir", scandir)
    await ear.discovery.close()


@pytest.mark.parametrize("ahead", [7200, -7200])
async def test_the_age_of_a_record_is_measured_on_the_clock_of_the_file_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: int
) -> None:
    """Both records are silent; one is older than its time, the other is not."""
    real, real_ns = time.time, time.time_ns
    monkeypatch.setattr(time, "time", lambda: real() + ahead)
    monkeypatch.setattr(time, "time_ns", lambda: real_ns() + ahead * 10**9)
    monkeypatch.setattr(file_module, "BEAT", 0.05)
    monkeypatch.setattr(file_module, "TTL", 3600.0)
    healthy, dead = put(tmp_path, *record(1)), put(tmp_path, *record(2))
    set_back(dead, 4000)
    ear = await Ear.open(tmp_path)
    await until(lambda: not dead.exists())
    assert healthy.exists()
    await ear.discovery.close()


async def test_a_process_that_was_paused_measures_silence_anew(tmp_path: Path, clock: Clock) -> None:
    """As when a machine sleeps with all that is on it: the owners wake up a moment later."""
    healthy = put(tmp_path, *record(1))
    ear = await Ear.open(tmp_path)
    await ear.hear()
    await clock.turn(2 * BEAT)
    set_back(healthy, -2 * BEAT)
    await ear.discovery.list()  # sees that heartbeat, the last one before the pause
    await clock.jump(6 * TTL)
    for _ in range(3):  # the search for expired records is long due
        await ear.discovery.list()
    assert healthy.exists()
    for _ in range(4):
        set_back(healthy, -BEAT)
        await clock.turn(BEAT)
    assert healthy.exists()
    assert ear.events.empty()
    await ear.discovery.close()
