"""What a listener does after a pause, and what a forked child does with the parent's sockets and promises."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from dynamo_fast.net.listener import Listener
from dynamo_fast.testing import clock

NO_FORK = pytest.mark.skipif(sys.platform == "win32", reason="this system has no fork")


def test_a_pause_is_told_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)

    def told() -> int:
        return caplog.text.count("cannot accept connections")

    async def main() -> None:
        listener = Listener("127.0.0.1", 0, 16, asyncio.Protocol)
        for _ in range(5):
            listener.pause(OSError(errno.EMFILE, "too many open files"))
            await asyncio.sleep(5)
            assert not listener.paused
        assert told() == 1
        await asyncio.sleep(60)
        listener.pause(OSError(errno.EMFILE, "too many open files"))
        assert told() == 2
        await asyncio.sleep(5)
        listener.close()
        await asyncio.sleep(0)  # its own socket is closed in the next turn

    clock.run(main())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells the backlog of a socket")
@pytest.mark.parametrize("paused", [False, True])
async def test_the_backlog_is_what_was_asked_for(paused: bool) -> None:
    accepted = asyncio.Event()

    class Greeted(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            accepted.set()

    listener = Listener("127.0.0.1", 0, 1234, Greeted)
    if paused:
        listener.pause(OSError(errno.EMFILE, "too many open files"))
    _, writer = await asyncio.open_connection("127.0.0.1", listener.port)
    await asyncio.wait_for(accepted.wait(), 10)
    backlogs = set()
    for number in listener.open_sockets():
        endpoint = socket.socket(fileno=number)
        # struct tcp_info of a listening socket: tcpi_sacked, at offset 28, is the longest backlog
        info = endpoint.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
        endpoint.detach()
        backlogs.add(int.from_bytes(info[28:32], sys.byteorder))
    writer.transport.abort()
    listener.close()
    await asyncio.sleep(0)
    assert backlogs == {1234}


@pytest.mark.parametrize("turns", [0, 1, 2])
async def test_a_listener_that_is_paused_as_it_opens_leaves_nothing_open(turns: int) -> None:
    accepted = asyncio.Event()

    class Greeted(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            accepted.set()

    listener = Listener("127.0.0.1", 0, 16, Greeted)
    for _ in range(turns):
        await asyncio.sleep(0)
    listener.pause(OSError(errno.EMFILE, "too many open files"))
    _, writer = await asyncio.open_connection("127.0.0.1", listener.port)
    await asyncio.wait_for(accepted.wait(), 10)
    writer.transport.abort()
    listener.close()
    await asyncio.sleep(0)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", listener.port)


def run(program: str) -> str:
    """What the program prints."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


PROMISES = """
import os, resource
from dynamo_fast.net.descriptors import PROCESS

resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

class End:
    promised = 0

    def descriptors(self):
        return self.promised, 0

end = End()
PROCESS.add(end, calls=False)
while PROCESS.promise():
    end.promised += 1
if os.fork():
    os.wait()
else:
    print(end.promised > 20, PROCESS.promise(), flush=True)
"""


@NO_FORK
def test_a_forked_child_may_use_what_was_promised_in_its_parent() -> None:
    assert run(PROMISES) == "True True\n"


UNPROMISED = """
import asyncio, os, resource
from dynamo_fast import Context, TcpStreamServer
from dynamo_fast.config import ResponseServerConfig
from dynamo_fast.errors import ResourceExhausted

resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

async def main():
    server = await TcpStreamServer.create(ResponseServerConfig(host="127.0.0.1"))
    taken = []
    try:
        for _ in range(100):
            taken.append(server.register(Context()))
    except ResourceExhausted as error:
        print(10 < len(taken) < 64, error)

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit of open files")
def test_a_router_sends_no_request_whose_answer_it_has_no_descriptor_for() -> None:
    assert run(UNPROMISED).startswith("True This process has no descriptor for the worker's connection: ")
