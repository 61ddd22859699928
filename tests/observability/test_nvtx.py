"""Ranges for NVIDIA's profilers, seen as a profiler sees them, and compared with what Dynamo 1.6.1 was seen to mark."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dynamo_fast.config import NvtxConfig
from dynamo_fast.egress.push_router import PushRouter
from dynamo_fast.egress.router import AddressedPushRouter, MarkedPushRouter
from dynamo_fast.errors import DynamoError, InvalidConfig
from dynamo_fast.observability import nvtx
from tests.observability.test_spans import ENDPOINT, World, settings
from tests.waiting import LIMIT, until

__all__ = ["settings"]

RECORDED = Path(__file__).parents[2] / "docs" / "spec" / "planes" / "nvtx" / "ranges.txt"
VARIABLES = ["DYN_ENABLE_RUST_NVTX", "DYNAMO_FAST_NVTX"]

PROGRAM = """
import asyncio
from dynamo_fast.runtime import DistributedRuntime

async def generate(request):
    yield request

async def main():
    runtime = DistributedRuntime(asyncio.get_running_loop(), "file", "tcp")
    endpoint = runtime.endpoint("demo.backend.generate")
    serving = asyncio.ensure_future(endpoint.serve_endpoint(generate))
    client = await endpoint.client()
    await client.wait_for_instances()
    for _ in range(2):
        assert [item.data() async for item in await client.round_robin("hello")] == ["hello"]
    runtime.shutdown()
    await serving

asyncio.run(main())
"""


class FakeDomain:
    """In place of the package `nvtx`."""

    def __init__(self) -> None:
        self.open: dict[int, str] = {}
        self.log: list[str] = []
        self._count = 0

    def start_range(self, name: str) -> int:
        self._count += 1
        self.open[self._count] = name
        self.log.append(f"+{name}")
        return self._count

    def end_range(self, handle: int) -> None:
        self.log.append(f"-{self.open.pop(handle)}")


@pytest.fixture
def domain(monkeypatch: pytest.MonkeyPatch) -> FakeDomain:
    domain = FakeDomain()
    monkeypatch.setattr(nvtx, "load_nvtx", lambda: domain)
    monkeypatch.setenv("DYNAMO_FAST_NVTX", "1")
    return domain


ONE = [
    "+transport.tcp.request",
    "+transport.tcp.send",
    "-transport.tcp.send",
    "+transport.response.wait_backend",
    "-transport.response.wait_backend",
    "-transport.tcp.request",
]


def recorded_ranges() -> list[str]:
    """What a process of Dynamo 1.6.1 marked for its first request."""
    names: dict[str, str] = {}
    found = []
    for kind, number, name in re.findall(r"(startA|end) id=(\d+) name=(\S*)", RECORDED.read_text(encoding="utf-8"))[:6]:
        if kind == "startA":
            names[number] = name
        found.append(("+" if kind == "startA" else "-") + names[number])
    return found


async def test_a_request_is_marked_as_dynamo_marks_it(domain: FakeDomain) -> None:
    async with World() as world:
        assert type(world.addressed) is MarkedPushRouter
        await world.call("x")
    assert domain.log == ONE == recorded_ranges()


async def test_the_ranges_of_several_requests_overlap_and_all_end(domain: FakeDomain) -> None:
    async with World() as world:
        await asyncio.gather(*(world.call("x") for _ in range(20)))
    assert sorted(domain.log) == sorted(20 * ONE)
    assert domain.log != 20 * ONE
    assert domain.open == {}


async def test_a_request_that_fails_leaves_no_range_open(domain: FakeDomain) -> None:
    async with World() as world:
        with pytest.raises(DynamoError):
            await world.call("bad")
        calling = asyncio.ensure_future(world.router.generate("x"))
        await asyncio.sleep(0)
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        await world.worker.server.close()
        with pytest.raises(DynamoError):
            await world.call("x")
        await world.addressed.clients.close()
        with pytest.raises(DynamoError):
            await (await PushRouter.create(ENDPOINT, world.discovery, world.addressed)).generate("x")
        await until(lambda: not domain.open)


async def test_a_router_is_marked_only_if_a_variable_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    async with await AddressedPushRouter.create() as router:
        assert type(router) is AddressedPushRouter
    monkeypatch.setenv("DYN_NVTX", "1")  # which 1.6.1 does not read
    assert not NvtxConfig.from_env().enabled
    for name in VARIABLES:
        assert NvtxConfig.from_env({name: "true"}).enabled


async def test_without_the_package_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvtx", None)
    monkeypatch.setenv("DYNAMO_FAST_NVTX", "1")
    nvtx.load_nvtx.cache_clear()
    with pytest.raises(InvalidConfig, match=r"pip install dynamo_fast\[nvtx\]"):
        await AddressedPushRouter.create()


@pytest.mark.skipif(shutil.which("cc") is None or sys.platform != "linux", reason="no C compiler for the injection")
@pytest.mark.parametrize("variable", VARIABLES)
def test_a_profiler_sees_the_ranges(tmp_path: Path, variable: str) -> None:
    library, log = tmp_path / "injection.so", tmp_path / "ranges.log"
    source = Path(__file__).with_name("nvtx_injection.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-Wall", "-Werror", "-o", library, source], check=True, timeout=LIMIT)
    environment = {**os.environ, variable: "1", "NVTX_INJECTION64_PATH": str(library), "NVTX_LOG": str(log)}
    subprocess.run([sys.executable, "-c", PROGRAM], env=environment, check=True, timeout=LIMIT)
    assert log.read_text(encoding="utf-8").splitlines() == [
        "start 1 transport.tcp.request",
        "start 2 transport.tcp.send",
        "end 2",
        "start 3 transport.response.wait_backend",
        "end 3",
        "end 1",
        "start 4 transport.tcp.request",
        "start 5 transport.tcp.send",
        "end 5",
        "start 6 transport.response.wait_backend",
        "end 6",
        "end 4",
    ]
