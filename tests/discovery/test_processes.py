"""Worker scripts as real processes: what they leave behind, and what a blocked event loop does to their records."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dynamo_fast.discovery import file as file_module
from dynamo_fast.discovery.base import Added, Discovery, DiscoveryEvent
from dynamo_fast.discovery.etcd import EtcdDiscovery
from dynamo_fast.discovery.etcd_client import EtcdClient, prefix_range
from dynamo_fast.discovery.file import FileDiscovery
from dynamo_fast.wire.address import EndpointId
from tests.discovery.etcd_server import Etcd, etcd
from tests.discovery.test_etcd import config
from tests.discovery.test_file import folder
from tests.interop.peers import environment

SCRIPT = Path(__file__).with_name("script.py")
LIMIT = 30


@dataclass
class Store:
    """One store, for this process and for a script."""

    kind: str
    folder: Path
    server: Etcd

    @property
    def environment(self) -> dict[str, str]:
        settings = {
            "ETCD_ENDPOINTS": self.server.url,
            "ETCD_LEASE_TTL": "60",
            "ETCD_STARTUP_CONNECT_TIMEOUT_SECONDS": "5",
        }
        return environment(self.folder, **settings) | {"DYNAMO_FAST_LEAVE_DELAY": "0"}

    def records(self) -> int:
        """How many there are, without any of our discovery."""
        if self.kind == "file":
            return len(os.listdir(folder(self.folder)))

        async def count() -> int:
            client = EtcdClient(config(self.server))
            answer = await client.call("kv/range", prefix_range("v1/instances/"), dict)
            await client.close()
            return len(answer.get("kvs", ()))

        return asyncio.run(count())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    with etcd(tmp_path_factory.mktemp("etcd")) as running:
        yield running


@pytest.fixture(params=["file", "etcd"])
def store(request: pytest.FixtureRequest, tmp_path: Path, server: Etcd) -> Iterator[Store]:
    yield Store(request.param, tmp_path, server)
    if request.param == "etcd":  # what a test that failed has left must not fail the next one
        asyncio.run(_empty(server))


async def _empty(server: Etcd) -> None:
    client = EtcdClient(config(server))
    await client.call("kv/deleterange", prefix_range("v1/instances/"), dict)
    await client.close()


@pytest.mark.parametrize("how", ["last", "cancelled", "after"])
def test_a_script_that_shuts_its_runtime_down_leaves_no_record(store: Store, how: str) -> None:
    """So it is with the real one, on a quiet machine; on a busy one it sometimes leaves its record in etcd."""
    for _ in range(3):
        script = run(store, [sys.executable, str(SCRIPT), "ours", store.kind, how])
        assert script.stdout.splitlines() == ["serving"], script.stderr
        assert store.records() == 0
        assert script.returncode == 0, script.stderr


@pytest.mark.parametrize("library", ["native", "ours"])
@pytest.mark.parametrize("how", ["end", "raise"])
def test_a_script_that_closes_nothing_leaves_no_record(store: Store, library: str, how: str) -> None:
    script = run(store, [sys.executable, str(SCRIPT), library, store.kind, how])
    assert script.stdout.splitlines() == ["serving"], script.stderr
    assert store.records() == 0
    if how == "end":
        assert script.returncode == 0, script.stderr


def run(store: Store, command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=store.environment, capture_output=True, text=True, timeout=LIMIT, check=False, cwd=store.folder
    )


async def test_a_blocked_event_loop_keeps_its_record(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_module, "TTL", 1.0)
    monkeypatch.setattr(file_module, "BEAT", 0.1)
    # etcd grants no lease of less than 2 s
    blocked, settings = ("2.5", {}) if store.kind == "file" else ("4", {"ETCD_LEASE_TTL": "2"})
    discovery: Discovery = (
        FileDiscovery(store.folder) if store.kind == "file" else EtcdDiscovery.connect(config(store.server))
    )
    events: asyncio.Queue[DiscoveryEvent] = asyncio.Queue()
    await discovery.watch(EndpointId("a", "b", "c"), events.put_nowait)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(SCRIPT), "native", store.kind, "block", blocked),
        env={**store.environment, **settings},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert await asyncio.wait_for(process.stdout.readline(), LIMIT) == b"serving\n"
        assert isinstance(await asyncio.wait_for(events.get(), LIMIT), Added)
        began = time.monotonic()
        process.stdin.write(b"block\n")
        assert await asyncio.wait_for(process.stdout.readline(), LIMIT) == b"awake\n"
        assert time.monotonic() - began >= 2
        assert len(await discovery.list()) == 1
        assert events.empty()
        process.stdin.write(b"end\n")
        assert await asyncio.wait_for(process.wait(), LIMIT) == 0
        assert await discovery.list() == []
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        await discovery.close()
