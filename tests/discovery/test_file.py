"""The file backend: what it writes, what it takes for a record, how records age, and how soon a change is seen."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import stat
import time
from pathlib import Path
from typing import Any

import pytest

from dynamo_fast.discovery import inotify
from dynamo_fast.discovery.base import Added, DiscoveryEvent, Removed
from dynamo_fast.discovery.file import BEAT, TTL, FileDiscovery
from dynamo_fast.discovery.file_bucket import POLL
from dynamo_fast.discovery.folder import Folder
from dynamo_fast.wire.address import EndpointId
from tests.discovery.records import ENDPOINT, instance
from tests.discovery.waiting import LIMIT, Clock

NAME = "test%2Fback%5Fend%2Fa%2Db%2Ec%20%C3%A9%2F1f"
FAKE = EndpointId("n", "c", "fake")
RECORD: dict[str, Any] = {
    "type": "Endpoint",
    "component": "c",
    "endpoint": "fake",
    "namespace": "n",
    "instance_id": 0x1234,
    "transport": {"tcp": "127.0.0.1:1/x"},
    "device_type": "cuda",
}


@pytest.fixture(params=["inotify", "polling"])
def how(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "polling":
        monkeypatch.setattr(inotify, "inotify_simple", None)
    elif inotify.inotify_simple is None:
        pytest.skip("no inotify-simple (the extra `inotify`, on Linux)")
    return str(request.param)


def folder(root: Path) -> Path:
    path = root / "v1" / "instances"
    path.mkdir(parents=True, exist_ok=True)
    return path


def put(root: Path, name: str, content: str) -> Path:
    temporary = folder(root) / ".tmp_0123"
    temporary.write_text(content)
    return temporary.rename(folder(root) / name)


def most_queued_events() -> int:
    return int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())


class Ear:
    """Hears of one endpoint."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[DiscoveryEvent] = asyncio.Queue()
        self.discovery: FileDiscovery

    @classmethod
    async def open(cls, root: Path, endpoint: EndpointId = FAKE) -> Ear:
        ear = cls()
        ear.discovery = FileDiscovery(root)
        await ear.discovery.watch(endpoint, ear.events.put_nowait)
        return ear

    async def hear(self) -> DiscoveryEvent:
        return await asyncio.wait_for(self.events.get(), LIMIT)


async def test_a_record_is_a_file_of_dynamos_name_content_and_mode(tmp_path: Path) -> None:
    discovery = FileDiscovery(tmp_path)
    mask = os.umask(0o022)
    try:
        await discovery.register(instance(0x1F))
    finally:
        os.umask(mask)
    assert os.listdir(folder(tmp_path)) == [NAME]
    file = folder(tmp_path) / NAME
    assert file.read_bytes() == instance(0x1F).encode()
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    await discovery.close()
    assert os.listdir(folder(tmp_path)) == []


async def test_the_root_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYN_FILE_KV", str(tmp_path / "here"))
    assert FileDiscovery().root == tmp_path / "here"


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("n%2Fc%2Ffake%2F1234", json.dumps(RECORD), 0x1234),
        ("n%2fc%2ffake%2f1234", json.dumps(RECORD, indent=2), 0x1234),
        ("n%2Fc%2Ffake%2F1234", json.dumps({**RECORD, "more": 1, "device_type": None}), 0x1234),
        ("n%2Fc%2Ffake%2F1234", json.dumps({**RECORD, "transport": {"nats_tcp": "subject"}}), 0x1234),
        ("n%2Fc%2Ffake%2F9999", json.dumps(RECORD), 0x1234),  # the content's id counts
        ("n%2Fc%2Ffake%2Fffffffffffffffff", json.dumps({**RECORD, "instance_id": 2**64 - 1}), 2**64 - 1),
        ("n%2Fc%2Ffake%2F1234", json.dumps({**RECORD, "device_type": "tpu"}), None),
        ("n%2Fc%2Ffake%2F1234", json.dumps({**RECORD, "request_plane_codec": "cbor"}), None),
        ("n%2Fc%2Ffake%2F1234", json.dumps({**RECORD, "type": "Model"}), None),
        ("n%2Fc%2Ffake%2F1234", json.dumps({**RECORD, "transport": {"quic": "x"}}), None),
        ("n%2Fc%2Ffake%2F1234", json.dumps({**RECORD, "instance_id": "4660"}), None),
        ("n%2Fc%2Ffake%2F1234", json.dumps(RECORD)[:-5], None),
        ("n%2Fc%2Ffake%2F1234", "", None),
        ("n%2Fc%2Fother%2F1234", json.dumps(RECORD), None),
        ("garbage", json.dumps(RECORD), None),
        (".tmp_0001", json.dumps(RECORD), None),
    ],
)
async def test_what_dynamo_takes_for_a_record_is_one(
    tmp_path: Path, how: str, name: str, content: str, expected: int | None
) -> None:
    ear = await Ear.open(tmp_path)
    put(tmp_path, name, content)
    good = put(tmp_path, "n%2Fc%2Ffake%2F1", json.dumps({**RECORD, "instance_id": 1}))
    seen = {(await ear.hear()).instance.instance_id for _ in range(1 if expected is None else 2)}
    assert seen == ({1} if expected is None else {1, expected})
    good.unlink()
    event = await ear.hear()  # and nothing else before
    assert isinstance(event, Removed)
    assert event.instance.instance_id == 1
    await ear.discovery.close()


async def test_a_file_that_is_written_in_place_is_seen_once_it_is_whole(tmp_path: Path, how: str, clock: Clock) -> None:
    ear = await Ear.open(tmp_path)
    with (folder(tmp_path) / "n%2Fc%2Ffake%2F1234").open("w") as file:
        text = json.dumps(RECORD)
        file.write(text[:10])
        file.flush()
        put(tmp_path, *record(1))
        await clock.turn(POLL)
        assert (await ear.hear()).instance.instance_id == 1  # and nothing else before
        file.write(text[10:])
    await clock.turn(BEAT)  # a directory's own time does not tell that a file in it was written to: the heartbeat looks
    assert (await ear.hear()).instance.instance_id == 0x1234
    await ear.discovery.close()


async def test_what_is_removed_and_put_again_at_once_is_two_events(tmp_path: Path) -> None:
    if inotify.inotify_simple is None:
        pytest.skip("only the kernel can tell (the extra `inotify`, on Linux)")
    put(tmp_path, "n%2Fc%2Ffake%2F1234", json.dumps(RECORD))
    ear = await Ear.open(tmp_path)
    first = await ear.hear()

    async def put_again() -> None:
        (folder(tmp_path) / "n%2Fc%2Ffake%2F1234").unlink()
        put(tmp_path, "n%2Fc%2Ffake%2F1234", json.dumps(RECORD))

    await ear.discovery.store.thread.run(put_again())  # in the thread that looks: it sees nothing in between
    assert [await ear.hear(), await ear.hear()] == [Removed(first.instance), Added(first.instance)]
    await ear.discovery.close()


@pytest.mark.usefixtures("clock")  # no heartbeat, which looks at every file
async def test_a_change_of_one_file_is_a_look_at_that_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 10,000 workers of which 1 % changes in a second, scanning the directory each time would take a whole core."""
    if inotify.inotify_simple is None:
        pytest.skip("only the kernel can tell (the extra `inotify`, on Linux)")
    ear = await Ear.open(tmp_path)
    looked, scanned = [], Folder.scan

    def scan(folder: Folder[Any]) -> Any:
        looked.append("the directory")
        return scanned(folder)

    monkeypatch.setattr(Folder, "scan", scan)
    put(tmp_path, "n%2Fc%2Ffake%2F1234", json.dumps(RECORD))
    added = await ear.hear()
    put(tmp_path, "n%2Fc%2Ffake%2F1234", json.dumps({**RECORD, "device_type": "cpu"}))
    replaced = await ear.hear()
    (folder(tmp_path) / "n%2Fc%2Ffake%2F1234").unlink()
    assert [type(each) for each in (added, replaced, await ear.hear())] == [Added, Added, Removed]
    assert not looked
    await ear.discovery.close()


@pytest.mark.usefixtures("clock")
async def test_the_directory_is_scanned_when_the_kernel_lost_events(tmp_path: Path) -> None:
    if inotify.inotify_simple is None:
        pytest.skip("only the kernel can tell (the extra `inotify`, on Linux)")
    ear = await Ear.open(tmp_path)

    async def too_many() -> None:
        put(tmp_path, "n%2Fc%2Ffake%2F1234", "{}")
        for number in range(most_queued_events()):
            (folder(tmp_path) / f"other{number & 1}").touch()
            (folder(tmp_path) / f"other{number & 1}").unlink()
        put(tmp_path, "n%2Fc%2Ffake%2F1234", json.dumps(RECORD))

    await ear.discovery.store.thread.run(too_many())  # in the thread that reads the events: the queue runs over
    assert isinstance(await ear.hear(), Added)
    await ear.discovery.close()


async def test_a_folder_that_is_removed_and_made_again_is_watched_on(tmp_path: Path, how: str, clock: Clock) -> None:
    put(tmp_path, "n%2Fc%2Ffake%2F1234", json.dumps(RECORD))
    ear = await Ear.open(tmp_path)
    await ear.hear()
    (folder(tmp_path) / "n%2Fc%2Ffake%2F1234").unlink()
    (tmp_path / "v1" / "instances").rmdir()
    await clock.turn(POLL)
    assert isinstance(await ear.hear(), Removed)
    put(tmp_path, "n%2Fc%2Ffake%2F1234", json.dumps(RECORD))
    await clock.turn(BEAT)
    assert isinstance(await ear.hear(), Added)
    await ear.discovery.close()


async def test_the_owner_touches_its_record_and_puts_it_back(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    discovery = FileDiscovery(tmp_path)
    await discovery.register(instance(0x1F))
    file = folder(tmp_path) / NAME
    inode = file.stat().st_ino
    os.utime(file, (1, 1))
    await clock.turn(BEAT - 0.01)
    assert file.stat().st_mtime == 1
    await clock.turn(0.02)
    assert file.stat().st_mtime > 1
    assert file.stat().st_ino == inode
    file.unlink()
    await clock.turn(BEAT)
    assert file.read_bytes() == instance(0x1F).encode()
    assert "putting it back" in caplog.text
    await discovery.close()


def record(number: int) -> tuple[str, str]:
    return f"n%2Fc%2Ffake%2F{number:x}", json.dumps({**RECORD, "instance_id": number})


def set_back(file: Path, seconds: float) -> None:
    """As if it had been touched that long ago, on the store's clock."""
    then = file.stat().st_mtime - seconds
    os.utime(file, (then, then))


async def test_a_watcher_removes_a_record_without_a_heartbeat(tmp_path: Path, clock: Clock) -> None:
    stale, fresh = put(tmp_path, *record(0x1234)), put(tmp_path, *record(1))
    ear = await Ear.open(tmp_path)
    assert {(await ear.hear()).instance.instance_id for _ in range(2)} == {1, 0x1234}
    set_back(stale, TTL - 1)
    await beats(clock, 4, fresh)
    assert stale.exists()
    set_back(stale, 2)
    await beats(clock, 4, fresh)
    removed = await ear.hear()
    assert isinstance(removed, Removed)
    assert removed.instance.instance_id == 0x1234
    assert os.listdir(folder(tmp_path)) == [fresh.name]
    await ear.discovery.close()


async def test_only_what_is_a_record_by_name_and_content_is_removed(tmp_path: Path, clock: Clock) -> None:
    kept = {
        folder(tmp_path) / "notes.txt": "mine",
        folder(tmp_path) / "n%2Fc%2Ffake%2F7": "not a record",
        folder(tmp_path) / "n%2Fc%2Fother%2F8": json.dumps(RECORD),
        folder(tmp_path) / "copy of a record": json.dumps(RECORD),
        folder(tmp_path) / ".tmp_mine": json.dumps(RECORD),
    }
    for file, content in kept.items():
        file.write_text(content)
        set_back(file, 3600)
    (folder(tmp_path) / "sub").mkdir()
    expired = put(tmp_path, *record(1))
    set_back(expired, 3600)
    ear = await Ear.open(tmp_path)
    assert isinstance(await ear.hear(), Added)
    await clock.turn(3 * TTL)
    assert isinstance(await ear.hear(), Removed)
    assert all(file.read_text() == content for file, content in kept.items())
    await ear.discovery.close()


async def beats(clock: Clock, number: int, *alive: Path) -> None:
    """So many heartbeats, of this process and, by the server's clock, of the owners of these files."""
    for _ in range(number):
        for file in alive:
            os.utime(file)
        await clock.turn(BEAT)


@pytest.mark.parametrize("ahead", [15, -15, 3600, -3600])
async def test_a_wall_clock_that_differs_from_the_servers_removes_nothing(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, ahead: int
) -> None:
    real, real_ns = time.time, time.time_ns
    monkeypatch.setattr(time, "time", lambda: real() + ahead)
    monkeypatch.setattr(time, "time_ns", lambda: real_ns() + ahead * 10**9)
    healthy, dead = put(tmp_path, *record(1)), put(tmp_path, *record(2))
    set_back(dead, TTL + 1)
    discovery = FileDiscovery(tmp_path)
    await discovery.register(instance(0x1F))
    await beats(clock, 4, healthy)
    assert not dead.exists()  # by the server's clock
    assert healthy.exists()
    assert (folder(tmp_path) / NAME).exists()
    assert "putting it back" not in caplog.text
    await discovery.close()


async def test_a_server_that_takes_its_stamps_from_the_clients_clocks(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    utime = os.utime

    def ahead(path: Any) -> None:
        utime(path, (time.time() + 15, time.time() + 15))

    healthy = put(tmp_path, *record(1))
    monkeypatch.setattr(os, "utime", ahead)  # ours is 15 s ahead of theirs
    discovery = FileDiscovery(tmp_path)
    await discovery.register(instance(0x1F))
    for _ in range(10):
        utime(healthy)
        await clock.turn(BEAT)
    assert healthy.exists()
    assert "putting it back" not in caplog.text
    await clock.turn(3 * BEAT)
    assert not healthy.exists()  # once it is silent
    await discovery.close()


async def test_a_stamp_of_the_future_ages_too(tmp_path: Path, clock: Clock) -> None:
    dead = put(tmp_path, *record(1))
    set_back(dead, -3600)  # its server's clock was set back since
    ear = await Ear.open(tmp_path)
    assert isinstance(await ear.hear(), Added)
    await clock.turn(2 * TTL - BEAT)
    assert dead.exists()
    await clock.turn(3 * BEAT)
    assert isinstance(await ear.hear(), Removed)
    assert not dead.exists()
    await ear.discovery.close()


async def test_a_process_that_was_paused_lets_the_others_wake_up_first(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    healthy = put(tmp_path, *record(1))
    ear = await Ear.open(tmp_path)
    await ear.hear()
    await clock.turn(2 * BEAT)
    now = Folder._now
    monkeypatch.setattr(Folder, "_now", lambda folder: now(folder) + 60 * 10**9)  # the server's clock, a minute later
    await clock.jump(60)  # as when a machine sleeps: the owner of the record was paused, too
    await clock.turn(BEAT)
    assert healthy.exists()
    for _ in range(4):
        set_back(healthy, -60)  # its heartbeats go on
        await clock.turn(BEAT)
    assert healthy.exists()
    assert ear.events.empty()
    await clock.turn(3 * TTL)  # and end
    assert isinstance(await ear.hear(), Removed)
    await ear.discovery.close()


async def test_an_owner_does_not_remove_its_own_record(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    discovery = FileDiscovery(tmp_path)
    await discovery.register(instance(0x1F))
    await discovery.watch(ENDPOINT, lambda event: None)
    file = folder(tmp_path) / NAME
    inode = file.stat().st_ino
    # A file server that is far ahead, and on which our touch does not show.
    monkeypatch.setattr(Folder, "touch", lambda folder, key: 10**12 + 10**18)
    await clock.turn(20 * TTL)
    assert file.stat().st_ino == inode
    await discovery.close()


async def test_trouble_with_the_folder_is_logged_once_and_ends(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    discovery = FileDiscovery(tmp_path)
    await discovery.register(instance(1))
    (file,) = folder(tmp_path).iterdir()
    await clock.turn(BEAT)
    scandir, calls = os.scandir, 0

    def refuse(path: Any) -> Any:
        nonlocal calls
        if str(path) != str(folder(tmp_path)):
            return scandir(path)
        calls += 1
        raise PermissionError("not for you")

    monkeypatch.setattr(os, "scandir", refuse)
    set_back(file, TTL)
    await clock.turn(4 * BEAT)
    assert calls >= 3
    assert time.time() - file.stat().st_mtime < TTL / 2  # the record is kept alive meanwhile
    monkeypatch.setattr(os, "scandir", scandir)
    assert caplog.text.count("not for you") == 1
    await clock.turn(2 * BEAT)
    assert "works again" in caplog.text
    assert await discovery.list(ENDPOINT) == [instance(1)]
    await discovery.close()
