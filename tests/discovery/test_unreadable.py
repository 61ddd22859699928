"""Records that cannot be read, and folders of others: skipped with one warning, never an error, never removed."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dynamo_fast.discovery import file as file_module
from dynamo_fast.discovery import file_bucket
from dynamo_fast.discovery.base import Added, DiscoveryEvent
from dynamo_fast.discovery.etcd import EtcdDiscovery
from dynamo_fast.discovery.etcd_client import EtcdClient, encode, prefix_range
from dynamo_fast.discovery.file import FileDiscovery
from dynamo_fast.errors import PayloadError
from dynamo_fast.wire.instance import MAX_RECORD_SIZE, Instance
from tests.discovery.etcd_server import Etcd, etcd
from tests.discovery.records import ENDPOINT, instance
from tests.discovery.test_file import FAKE, RECORD, Ear, folder, put, record
from tests.discovery.waiting import until

NOBODY = 65534
LIMIT = 30
NAME = "n%2Fc%2Ffake%2F7"
KEY = "n/c/fake/7"


def nested() -> bytes:
    deep = b'{"x":' * 2000 + b"1" + b"}" * 2000
    return json.dumps(RECORD).encode()[:-1] + b',"more":' + deep + b"}"


CONTENTS: dict[str, bytes] = {
    "nested": nested(),
    "lists": b"[" * 2000 + b"]" * 2000,
    "long": json.dumps({**RECORD, "more": "x" * MAX_RECORD_SIZE}).encode(),
    "not UTF-8": json.dumps(RECORD).encode().replace(b"fake", b"fa\xff\xfe"),
    "types": b'{"type":"Endpoint","component":1,"endpoint":[],"namespace":{},"instance_id":"x","transport":7}',
    "huge number": json.dumps(RECORD).encode().replace(b"4660", b"9" * 5000),
    "negative": json.dumps({**RECORD, "instance_id": -1}).encode(),
    "surrogate": json.dumps({**RECORD, "namespace": "\ud800"}).encode(),
    "scalar": b"7",
}


def write(content: bytes) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.write_bytes(content)

    return make


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


def unix_socket(path: Path) -> None:
    before = Path.cwd()
    os.chdir(path.parent)  # the whole path may be longer than an address of a socket
    try:
        with socket.socket(socket.AF_UNIX) as endpoint:
            endpoint.bind("s")
        os.rename("s", path)
    finally:
        os.chdir(before)


def device(path: Path) -> None:
    try:
        os.mknod(path, 0o666 | 0o020000, os.makedev(1, 5))  # /dev/zero, which never ends
    except PermissionError as error:
        pytest.skip(f"this process may not make a device: {error}")


def link(path: Path) -> None:
    target = path.parents[2] / "elsewhere"
    target.write_text(json.dumps(RECORD))
    path.symlink_to(target)


THINGS: dict[str, Callable[[Path], None]] = {
    **{name: write(content) for name, content in CONTENTS.items()},
    "sparse": sparse,
    "FIFO": os.mkfifo,
    "socket": unix_socket,
    "device": device,
    "directory": lambda path: path.mkdir(),
    "link": link,
}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_module, "BEAT", 0.02)
    monkeypatch.setattr(file_bucket, "POLL", 0.01)


def warned(caplog: pytest.LogCaptureFixture, name: str) -> list[str]:
    return [
        each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING and name in each.getMessage()
    ]


@pytest.mark.parametrize("thing", THINGS)
async def test_a_file_that_is_no_record_is_skipped_with_one_warning(
    tmp_path: Path, thing: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder(tmp_path)
    bad = folder(tmp_path) / NAME
    THINGS[thing](bad)
    put(tmp_path, *record(1))
    ear = await Ear.open(tmp_path)
    assert (await ear.hear()).instance.instance_id == 1
    for number in range(2, 5):  # each of them makes it look again
        if thing not in ("link", "device"):
            os.utime(bad)
        assert [each.instance_id for each in await ear.discovery.list(FAKE)] == [*range(1, number)]
        put(tmp_path, *record(number))
        assert (await ear.hear()).instance.instance_id == number
    assert len(warned(caplog, KEY)) == 1
    assert bad.name in os.listdir(folder(tmp_path))
    await ear.discovery.close()


def test_a_limit_is_named_with_both_numbers() -> None:
    with pytest.raises(PayloadError, match=rf"more than {MAX_RECORD_SIZE} bytes \({MAX_RECORD_SIZE + 1} bytes"):
        Instance.decode(b" " * (MAX_RECORD_SIZE + 1))


async def test_a_long_file_is_named_with_both_numbers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sparse(folder(tmp_path) / NAME)
    discovery = FileDiscovery(tmp_path)
    assert await discovery.list() == []
    assert warned(caplog, KEY) == [
        f"ignoring the discovery record '{KEY}': it has {1 << 40} bytes (the limit is {MAX_RECORD_SIZE})"
    ]
    await discovery.close()


async def test_a_process_without_descriptors_keeps_what_it_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    known = put(tmp_path, *record(7))
    ear = await Ear.open(tmp_path)
    assert isinstance(await ear.hear(), Added)
    opening, refused = os.open, 0

    def refuse(path: Any, *arguments: Any) -> int:
        nonlocal refused
        if str(path) == str(known):
            refused += 1
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))
        return opening(path, *arguments)

    monkeypatch.setattr(os, "open", refuse)
    os.utime(known)  # its heartbeat makes us read it again
    await until(lambda: refused >= 3)
    assert [each.instance_id for each in await ear.discovery.list(FAKE)] == [7]
    monkeypatch.setattr(os, "open", opening)
    put(tmp_path, *record(8))
    assert (await ear.hear()).instance.instance_id == 8  # and nothing before
    assert len(warned(caplog, "Too many open files")) == 1
    await ear.discovery.close()


def test_the_command_prints_the_others(tmp_path: Path) -> None:
    for number, thing in enumerate(set(THINGS) - {"device"}):
        THINGS[thing](folder(tmp_path) / f"n%2Fc%2Ffake%2Fa{number:x}")
    put(tmp_path, *record(1))
    answer = subprocess.run(
        [sys.executable, "-m", "dynamo_fast", "instances"],
        env={**os.environ, "DYN_FILE_KV": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert answer.stdout.splitlines() == ["n.c.fake  1  127.0.0.1:1/x  json"]
    assert answer.returncode == 0
    assert len(answer.stderr.splitlines()) == len(THINGS) - 1


# etcd


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    with etcd(tmp_path_factory.mktemp("etcd")) as running:
        yield running


async def test_a_key_that_is_no_record_is_skipped_with_one_warning(
    server: Etcd, caplog: pytest.LogCaptureFixture
) -> None:
    from tests.discovery.test_etcd import config

    client = EtcdClient(config(server))
    bad = {f"v1/instances/{ENDPOINT}/a{number:x}": content for number, content in enumerate(CONTENTS.values())}

    async def spoil() -> None:
        for key, content in bad.items():
            await client.call("kv/put", {"key": encode(key), "value": encode(content)}, dict)

    await spoil()
    discovery = EtcdDiscovery.connect(config(server))
    events: asyncio.Queue[DiscoveryEvent] = asyncio.Queue()
    await discovery.watch(ENDPOINT, events.put_nowait)
    for number in range(1, 4):
        await spoil()
        await discovery.register(instance(number))
        assert await asyncio.wait_for(events.get(), 10) == Added(instance(number))
        assert len(await discovery.list(ENDPOINT)) == number
    for key in bad:
        assert len(warned(caplog, f"{key.removeprefix('v1/instances/')}'")) == 1
    await client.call("kv/deleterange", prefix_range("v1/"), dict)
    await client.close()
    await discovery.close()


# Files and folders of others


def as_nobody(work: Callable[[], Any]) -> Any:
    """What `work` returns in a forked child without rights; skips without the rights to become one."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pytest may have threads; the child does not use them
        child = os.fork()
    if child == 0:
        signal.alarm(LIMIT)
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            outcome = work()
        except BaseException as error:
            outcome = f"{type(error).__name__}: {error}"
        os.write(writing, json.dumps(outcome).encode())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        text = pipe.read()
    assert os.waitpid(child, 0)[1] == 0, "the child hung"
    return json.loads(text)


def test_a_record_of_another_user_that_cannot_be_read_or_removed(caplog: pytest.LogCaptureFixture) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        folder(root)
        root.chmod(0o755)
        folder(root).chmod(0o1777)
        (root / "v1").chmod(0o755)
        secret, stale = put(root, *record(1)), put(root, *record(2))
        secret.chmod(0o600)
        then = time.time() - 3600
        os.utime(stale, (then, then))

        def work() -> Any:
            seen: list[int] = []

            async def watch() -> None:
                discovery = FileDiscovery(root)
                await discovery.watch(FAKE, lambda event: seen.append(event.instance.instance_id))
                put(root, *record(3))
                await until(lambda: 3 in seen)
                await until(lambda: warned(caplog, "cannot be removed"))
                for number in range(4, 8):
                    put(root, *record(number))
                    await until(lambda number=number: number in seen)  # type: ignore[misc]
                await discovery.close()

            asyncio.run(watch())
            return [seen, warned(caplog, "n/c/fake/1'"), warned(caplog, "n/c/fake/2'")]

        seen, unreadable, kept = as_nobody(work)
        assert seen == [2, 3, 4, 5, 6, 7]
        assert len(unreadable) == 1
        assert "Permission denied" in unreadable[0]
        assert len(kept) == 1
        assert "Operation not permitted" in kept[0]
        assert stale.exists()


async def test_a_folder_that_is_a_link_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "root" / "v1").mkdir(parents=True)
    (tmp_path / "root" / "v1" / "instances").symlink_to(tmp_path / "theirs")
    discovery = FileDiscovery(tmp_path / "root")
    for _ in range(3):
        await discovery.list()
    assert warned(caplog, "is a link") == [
        f"the discovery directory {tmp_path / 'root' / 'v1' / 'instances'} is a link to {tmp_path / 'theirs'}"
    ]
    await discovery.close()


async def test_a_folder_of_another_user_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    folder(tmp_path)
    os.chown(tmp_path / "v1", NOBODY, -1)
    discovery = FileDiscovery(tmp_path)
    for _ in range(3):
        await discovery.list()
    (warning,) = warned(caplog, "belongs to")
    assert f"{tmp_path / 'v1'} belongs to the user {NOBODY}" in warning
    await discovery.close()
