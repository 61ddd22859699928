"""A forked child does not keep its parent's sockets open."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dynamo_fast.egress.router import AddressedPushRouter, AddressedRequest
from dynamo_fast.errors import Disconnected
from tests.egress.conftest import make_router
from tests.egress.raw_worker import RawWorker
from tests.loops import LOOPS

LIMIT = 20.0
HEAD = """
import asyncio, json, os, sys
if sys.argv[1] == "uvloop":
    from uvloop import run
else:
    from asyncio import run

def fork():
    child = os.fork()
    if child == 0:
        os.read(0, 1)  # it lives until the test has closed this pipe
        os._exit(0)
    print(child, flush=True)
"""
WORKER = (
    HEAD
    + """
from dynamo_fast.config import TcpServerConfig, WorkerConfig
from dynamo_fast.discovery.memory import MemoryDiscovery
from dynamo_fast.ingress.worker import Worker

async def handler(request, context):
    yield 1
    await asyncio.sleep(0)
    fork()
    await asyncio.Event().wait()

async def main():
    worker = await Worker.start(MemoryDiscovery(), WorkerConfig(), TcpServerConfig(host="127.0.0.1"))
    served = await worker.serve(handler, "a.b.c")
    print(json.dumps(served.address), flush=True)
    await asyncio.Event().wait()

run(main())
"""
)
ROUTER = (
    HEAD
    + """
from dynamo_fast import AddressedPushRouter, AddressedRequest

async def main():
    router = await AddressedPushRouter.create()
    print(json.dumps(router.response_server.address), flush=True)
    stream = await router.generate(AddressedRequest({}, sys.argv[2]))
    await stream.__anext__()
    fork()
    await asyncio.Event().wait()

run(main())
"""
)
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


@contextmanager
def program(text: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A program that forks. Its child lives until the end of the block."""
    environment = {**os.environ, "DYN_TCP_RESPONSE_STREAM_HOST": "127.0.0.1"}
    command = [sys.executable, "-c", text, *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, env=environment, stdin=pipe, stdout=pipe, text=True, cwd=Path(__file__).parents[2]
    ) as process:
        try:
            yield process
        finally:
            process.kill()


async def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return await asyncio.wait_for(asyncio.get_running_loop().run_in_executor(None, process.stdout.readline), LIMIT)


async def ended(process: subprocess.Popen[str]) -> None:
    await asyncio.wait_for(asyncio.get_running_loop().run_in_executor(None, process.wait), LIMIT)


def is_free(address: str) -> bool:
    """Whether a server can listen there again."""
    host, _, port = address.rpartition(":")
    with socket.create_server((host, int(port)), reuse_port=False):
        return True


def assert_lives(child: str) -> None:
    os.kill(int(child), 0)


@pytest.mark.parametrize("loop", LOOPS)
async def test_a_worker_that_is_killed_is_missed_although_its_child_lives(loop: str) -> None:
    with program(WORKER, loop) as process:
        address = json.loads(await line(process))
        async with await make_router() as router:
            stream = await asyncio.wait_for(router.generate(AddressedRequest({}, address)), LIMIT)
            assert (await asyncio.wait_for(stream.__anext__(), LIMIT)).data() == 1
            child = await line(process)
            process.send_signal(signal.SIGKILL)
            with pytest.raises(Disconnected):
                await asyncio.wait_for(stream.__anext__(), LIMIT)
            await request_connections_lost(router)
            assert_lives(child)
        await ended(process)
        assert is_free(address.partition("/")[0])


async def request_connections_lost(router: AddressedPushRouter) -> None:
    async def lost() -> None:
        while list(router.client.open_sockets()):  # type: ignore[attr-defined]  # it is the TCP client
            await asyncio.sleep(0)

    await asyncio.wait_for(lost(), LIMIT)


@pytest.mark.parametrize("loop", LOOPS)
async def test_a_router_that_is_killed_is_missed_although_its_child_lives(loop: str, worker: RawWorker) -> None:
    with program(ROUTER, loop, worker.address) as process:
        address = json.loads(await line(process))
        request = await worker.request()
        request.acknowledge()
        stream = await request.dial()
        stream.items(1)
        child = await line(process)
        process.send_signal(signal.SIGKILL)
        assert (await stream.received())[-1] in (b"", b"reset")
        await request.closed()
        assert_lives(child)
        await ended(process)
        assert is_free(address)


@pytest.fixture
async def worker() -> AsyncIterator[RawWorker]:
    async with RawWorker() as worker:
        yield worker
