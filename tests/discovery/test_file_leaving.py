"""The file backend when a process leaves, and when its folder is damaged."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dynamo_fast.discovery.base import Added
from dynamo_fast.discovery.file import FileDiscovery
from dynamo_fast.errors import InvalidRequest
from tests.discovery.records import ENDPOINT, instance
from tests.discovery.test_file import Ear, folder


@pytest.fixture
async def discovery(tmp_path: Path) -> AsyncIterator[FileDiscovery]:
    discovery = FileDiscovery(tmp_path)
    yield discovery
    await discovery.close()


def files(root: Path) -> list[str]:
    return sorted(path.name for path in folder(root).iterdir())


async def test_a_process_that_left_registers_nothing_more(discovery: FileDiscovery, tmp_path: Path) -> None:
    ours = instance(discovery.connection_id)
    await discovery.register(ours)
    assert len(files(tmp_path)) == 1
    discovery.withdraw()
    assert files(tmp_path) == []
    with pytest.raises(InvalidRequest, match="this process has left discovery"):
        await discovery.register(ours)
    await discovery.unregister(ours)  # it is gone already
    discovery.withdraw()
    assert files(tmp_path) == []
    assert await discovery.list() == []  # it may still look
    await discovery.close()
    discovery.withdraw()


async def test_a_record_that_cannot_be_removed_is_left_to_expire(
    discovery: FileDiscovery, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await discovery.register(instance(discovery.connection_id))
    moved = folder(tmp_path).rename(tmp_path / "moved")
    (tmp_path / "v1" / "instances").write_text("a file where the folder was")
    with caplog.at_level(logging.WARNING):
        discovery.withdraw()
    assert "is left to expire" in caplog.text
    assert len(list(moved.iterdir())) == 1


async def test_a_registration_that_fails_leaves_nothing_behind(discovery: FileDiscovery, tmp_path: Path) -> None:
    too_long = instance(1, ENDPOINT._replace(name="x" * 300))  # more than a name of a file may have
    with pytest.raises(OSError, match="too long"):
        await discovery.register(too_long)
    await discovery.register(instance(2))
    assert await discovery.list() == [instance(2)]
    assert len(files(tmp_path)) == 1  # no temporary file either


async def test_a_failed_change_of_a_record_keeps_the_earlier_one(discovery: FileDiscovery, tmp_path: Path) -> None:
    before = instance(1, address="127.0.0.1:1/before")
    await discovery.register(before)
    (record,) = folder(tmp_path).iterdir()
    record.unlink()
    record.mkdir()  # a file cannot be renamed onto a folder
    with pytest.raises(OSError, match=r"directory"):
        await discovery.register(instance(1, address="127.0.0.1:1/after"))
    record.rmdir()
    await discovery.unregister(before)  # it is still registered
    with pytest.raises(InvalidRequest, match="was not registered"):
        await discovery.unregister(before)


async def test_a_closed_watch_hears_no_more(discovery: FileDiscovery, tmp_path: Path) -> None:
    heard: list[object] = []
    watch = await discovery.watch(ENDPOINT, heard.append)
    ear = await Ear.open(tmp_path, ENDPOINT)
    watch.close()
    await discovery.register(instance(1))
    assert await ear.hear() == Added(instance(1))
    assert await discovery.list(ENDPOINT) == [instance(1)]
    assert heard == []
    await ear.discovery.close()
