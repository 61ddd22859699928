"""Loops that nothing but cancellation ends, the thread they run in, and the way of events to a listener's loop."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dynamo_fast.discovery import background
from dynamo_fast.discovery.background import BackgroundThread
from dynamo_fast.discovery.base import Added, Discovery, DiscoveryEvent, Watch
from dynamo_fast.discovery.etcd import EtcdDiscovery
from dynamo_fast.discovery.file import BEAT, FileDiscovery
from dynamo_fast.discovery.file_bucket import POLL
from dynamo_fast.discovery.inotify import inotify_simple
from dynamo_fast.discovery.memory import MemoryDiscovery
from dynamo_fast.errors import InvalidRequest
from tests.discovery.etcd_server import Etcd, etcd
from tests.discovery.records import ENDPOINT, file_bucket, instance
from tests.discovery.test_etcd import config
from tests.discovery.test_file import FAKE, Ear, folder, put, record
from tests.discovery.waiting import Clock, until

LIMIT = 30


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "FIRST_RETRY", 0.001)
    monkeypatch.setattr(background, "LAST_RETRY", 0.004)


@pytest.fixture
def thread() -> Iterator[BackgroundThread]:
    made = BackgroundThread("test")
    yield made
    made.stop()
    assert not made.running


class Odd(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    "error",
    [OSError, KeyError, MemoryError, RecursionError, SystemExit, KeyboardInterrupt, Odd, asyncio.CancelledError],
)
def test_no_exception_ends_a_loop(
    thread: BackgroundThread, error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    outcomes = iter([error, error, None, error, None])
    done = threading.Event()
    turns = 0

    async def step() -> float:
        nonlocal turns
        turns += 1
        outcome = next(outcomes, None)
        if outcome is not None:
            raise outcome
        if turns >= 6:
            done.set()
        return 0.001

    async def begin() -> None:
        thread.keep("the test", step)

    thread.submit(begin()).result(LIMIT)
    assert done.wait(LIMIT)
    messages = [each.getMessage() for each in caplog.records]
    assert sum("will be tried again" in each for each in messages) == 2  # once for each spell of trouble
    assert sum("works again" in each for each in messages) == 2


def test_the_pauses_grow_to_a_bound(monkeypatch: pytest.MonkeyPatch, thread: BackgroundThread) -> None:
    monkeypatch.setattr(background, "FIRST_RETRY", 0.5)
    monkeypatch.setattr(background, "LAST_RETRY", 4.0)

    async def step() -> float:
        return 3600.0

    async def measure() -> list[float]:
        loop = thread.keep("the test", step)
        return [loop._failed(OSError()) for _ in range(6)]

    pauses = thread.submit(measure()).result(LIMIT)
    assert all(0.75 * most <= pause <= most for pause, most in zip(pauses, (0.5, 1, 2, 4, 4, 4), strict=True))


def test_a_thread_ends_and_takes_no_more_work() -> None:
    thread = BackgroundThread("test")

    async def nothing() -> None:
        """Begins the thread."""

    thread.submit(nothing()).result(LIMIT)
    (running,) = (each for each in threading.enumerate() if each.name == "test")
    assert running.daemon
    thread.stop()
    assert not running.is_alive()
    thread.stop()
    with pytest.raises(InvalidRequest, match="closed"):
        thread.submit(nothing())


async def test_a_discovery_object_that_was_only_asked_for_a_list_leaves_no_thread(tmp_path: Path) -> None:
    before = set(threading.enumerate())  # of which some may end meanwhile
    discovery = FileDiscovery(tmp_path)
    await discovery.list()
    (thread,) = set(threading.enumerate()) - before
    del discovery
    gc.collect()
    await until(lambda: not thread.is_alive())


def test_a_forked_child_has_nothing_of_it(tmp_path: Path) -> None:
    if not hasattr(os, "fork"):
        pytest.skip("no fork on this system")
    script = f"""
import asyncio, os, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from dynamo_fast.discovery.file import BEAT, FileDiscovery
from dynamo_fast.discovery.file_bucket import POLL
from dynamo_fast.errors import InvalidRequest
from tests.discovery.records import ENDPOINT, file_bucket, instance

async def child(discovery):
    try:
        await discovery.register(instance(2))
    except InvalidRequest as error:
        print("refused:", error)
    discovery.withdraw()
    await discovery.close()

discovery = FileDiscovery({str(tmp_path)!r})
asyncio.run(discovery.register(instance(1)))
pid = os.fork()
if pid == 0:
    asyncio.run(child(discovery))
    sys.exit(0)  # with everything that runs at an interpreter's exit
_, status = os.waitpid(pid, 0)
print("status", status, len(os.listdir(file_bucket(discovery).folder.path)))
asyncio.run(discovery.register(instance(3)))  # the parent's thread hears still
print("records", len(asyncio.run(discovery.list())))
"""
    answer = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False, cwd=tmp_path
    )
    refused, status, records = answer.stdout.splitlines()
    assert "make one after the fork" in refused
    assert status == "status 0 1"
    assert records == "records 2"
    assert answer.stderr == ""
    assert os.listdir(folder(tmp_path)) == []  # the parent's own exit took both out


# Listeners


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    with etcd(tmp_path_factory.mktemp("etcd")) as running:
        yield running


@pytest.fixture(params=["file", "mem", "etcd"])
def discovery(request: pytest.FixtureRequest, tmp_path: Path) -> Discovery:
    if request.param == "file":
        return FileDiscovery(tmp_path)
    if request.param == "mem":
        return MemoryDiscovery()
    return EtcdDiscovery.connect(config(request.getfixturevalue("server")))


async def test_a_listener_that_raises_does_not_end_the_watch(
    discovery: Discovery, caplog: pytest.LogCaptureFixture
) -> None:
    heard: asyncio.Queue[DiscoveryEvent] = asyncio.Queue()
    calls: list[DiscoveryEvent] = []

    def listener(event: DiscoveryEvent) -> None:
        calls.append(event)
        raise RuntimeError("a fault of the listener")

    await discovery.register(instance(1))
    await discovery.watch(ENDPOINT, listener)
    await discovery.watch(ENDPOINT, heard.put_nowait)
    await discovery.register(instance(2))
    for number in (1, 2):
        assert await asyncio.wait_for(heard.get(), LIMIT) == Added(instance(number))
    await until(lambda: len(calls) == 2)
    assert sum("a listener of discovery raised" in each.getMessage() for each in caplog.records) == 1
    await discovery.unregister(instance(1))
    await discovery.unregister(instance(2))
    await discovery.close()


async def test_a_watch_may_close_another_one_in_its_callback(discovery: Discovery) -> None:
    first: list[DiscoveryEvent] = []
    second: list[DiscoveryEvent] = []
    watches: list[Watch] = []

    def close_the_other(event: DiscoveryEvent) -> None:
        first.append(event)
        watches[0].close()

    await discovery.watch(ENDPOINT, close_the_other)
    watches.append(await discovery.watch(ENDPOINT, second.append))
    await discovery.register(instance(1))
    await discovery.register(instance(2))
    await until(lambda: len(first) == 2)
    assert second == []
    await discovery.unregister(instance(1))
    await until(lambda: len(first) == 3)
    assert second == []
    await discovery.unregister(instance(2))
    await discovery.close()


@pytest.mark.parametrize("kind", ["file", "etcd"])
def test_several_event_loops_share_one_object(kind: str, tmp_path: Path, server: Etcd) -> None:
    shared: Discovery = FileDiscovery(tmp_path) if kind == "file" else EtcdDiscovery.connect(config(server))
    ready = threading.Barrier(4, timeout=LIMIT)

    def one(number: int) -> tuple[set[int], bool]:
        async def main() -> tuple[set[int], bool]:
            seen: set[int] = set()
            elsewhere = False
            here = threading.get_ident()

            def listener(event: DiscoveryEvent) -> None:
                nonlocal elsewhere
                elsewhere = elsewhere or threading.get_ident() != here
                seen.add(event.instance.instance_id)

            watch = await shared.watch(ENDPOINT, listener)
            await asyncio.get_running_loop().run_in_executor(None, ready.wait)
            await shared.register(instance(number))
            await until(lambda: len(seen) == 4)
            await asyncio.get_running_loop().run_in_executor(None, ready.wait)
            watch.close()
            await shared.unregister(instance(number))
            return seen, elsewhere

        return asyncio.run(main())

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(one, range(1, 5)))
    assert outcomes == [({1, 2, 3, 4}, False)] * 4
    assert asyncio.run(shared.list()) == []
    asyncio.run(shared.close())


def test_a_loop_that_was_closed_is_told_no_more(tmp_path: Path) -> None:
    discovery = FileDiscovery(tmp_path)

    async def watch() -> None:
        await discovery.watch(FAKE, lambda event: None)

    async def other() -> None:
        events: asyncio.Queue[DiscoveryEvent] = asyncio.Queue()
        await discovery.watch(FAKE, events.put_nowait)
        put(tmp_path, *record(1))
        await asyncio.wait_for(events.get(), LIMIT)
        assert len(file_bucket(discovery)._watches) == 1
        await discovery.close()

    asyncio.run(watch())
    asyncio.run(other())


def queue_of_the_kernel() -> int:
    return int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())


async def test_the_kernels_queue_overflows(tmp_path: Path, clock: Clock) -> None:
    """The clock stands still, so that no heartbeat looks: only the kernel can have told."""
    if inotify_simple is None:
        pytest.skip("no inotify-simple (the extra `inotify`, on Linux)")
    most = queue_of_the_kernel()
    if most > 100_000:
        pytest.skip(f"the kernel's queue has {most} events, too many for a test")
    ear = await Ear.open(tmp_path)
    blocked, release = threading.Event(), threading.Event()

    async def block() -> None:
        blocked.set()
        release.wait(LIMIT)

    blocking = ear.discovery.store.thread.submit(block())
    assert blocked.wait(LIMIT)
    for number in range(most // 2 + 10):
        (folder(tmp_path) / f"x{number % 7}").touch()
        (folder(tmp_path) / f"x{number % 7}").unlink()
    put(tmp_path, *record(1))
    release.set()
    blocking.result(LIMIT)
    assert (await ear.hear()).instance.instance_id == 1
    put(tmp_path, *record(2))
    assert (await ear.hear()).instance.instance_id == 2
    await ear.discovery.close()


async def test_a_folder_that_was_moved_away_is_watched_no_longer(tmp_path: Path, clock: Clock) -> None:
    ear = await Ear.open(tmp_path)
    folder(tmp_path).rename(tmp_path / "old")
    put(tmp_path, *record(1))
    await clock.turn(BEAT)
    assert (await ear.hear()).instance.instance_id == 1
    changes: Callable[[], Any] = lambda: file_bucket(ear.discovery)._changes  # noqa: E731
    await until(lambda: changes() is None or changes().is_of(folder(tmp_path)))
    put(tmp_path, *record(2))
    await clock.turn(POLL)
    assert (await ear.hear()).instance.instance_id == 2
    await ear.discovery.close()


@pytest.mark.parametrize("error", [OSError("no"), asyncio.CancelledError()])
async def test_a_registration_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    discovery = FileDiscovery(tmp_path)
    await discovery.register(instance(1))
    target = file_bucket(discovery).folder
    publish = target.publish
    failures = iter([error])

    def fail(key: str, content: bytes) -> None:
        publish(key, content)
        for failure in failures:
            raise failure

    monkeypatch.setattr(target, "publish", fail)
    with pytest.raises(type(error)):
        await discovery.register(instance(1, address="127.0.0.1:2/x"))
    await until(lambda: file_bucket(discovery)._owned and (folder(tmp_path) / os.listdir(folder(tmp_path))[0]).exists())
    assert await discovery.list() == [instance(1)]
    failures = iter([error])
    with pytest.raises(type(error)):
        await discovery.register(instance(2))
    assert await discovery.list() == [instance(1)]
    await discovery.close()
