from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.frontend import free_port
from dynamo_fast.net import listener as listener_module
from dynamo_fast.net.listener import Listener
from dynamo_fast.net.sockets import _KEEP_ALIVE
from dynamo_fast.testing import clock
from tests.loops import LOOPS
from tests.waiting import happens_after, until

SERVER = """
import asyncio, logging, resource, sys
from dynamo_fast.net.listener import Listener
if sys.argv[1] == "uvloop":
    from uvloop import run
else:
    from asyncio import run

logging.basicConfig(format="%(message)s", stream=sys.stdout)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

class Greeting(asyncio.Protocol):
    def connection_made(self, transport):
        transport.write(b"x")

async def main():
    listener = Listener("127.0.0.1", 0, 4096, Greeting)
    print(listener.port, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)

run(main())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit of open files")
@pytest.mark.parametrize("loop", LOOPS)
def test_running_out_of_descriptors_is_waited_out(loop: str) -> None:
    command = [sys.executable, "-c", SERVER, loop]
    pipe = subprocess.PIPE
    root = Path(__file__).parents[2]
    with (
        contextlib.ExitStack() as stack,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True, cwd=root) as server,
    ):
        stack.callback(server.kill)
        assert server.stdout is not None
        assert server.stdin is not None
        port = int(server.stdout.readline())
        connections = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20)) for _ in range(100)
        ]
        assert connections[0].recv(1) == b"x"
        assert "cannot accept connections" in server.stdout.readline()
        for connection in connections[:60]:
            connection.close()
        assert [connection.recv(1) for connection in connections[60:]] == [b"x"] * 40  # none was lost
        server.stdin.close()
        assert server.stdout.read() == ""  # it was said once


@contextlib.contextmanager
def few_descriptors(free: int) -> Iterator[Callable[[], None]]:
    """Only `free` more descriptors may be opened, until what is given is called, or to the end."""
    resource = pytest.importorskip("resource", reason="Windows has no limit of open files")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.dup(0) for _ in range(256)]  # a reserve is kept in proportion to the limit
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(taken) + 1 + free, before[1]))
        yield lambda: resource.setrlimit(resource.RLIMIT_NOFILE, before)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for each in taken:
            os.close(each)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What listeners have logged; not what a thread has, that another test has left."""
    return [each.getMessage() for each in caplog.records if each.name == listener_module.logger.name]


@pytest.mark.turned_clock
@pytest.mark.parametrize(
    ("room_after", "accepts_after"), [(0.0, 0.005), (0.1, 0.155), (1.2, 1.275), (60.0, 60.275)], ids=str
)
async def test_room_is_looked_for_ever_more_rarely_and_at_least_every_second(
    room_after: float, accepts_after: float, caplog: pytest.LogCaptureFixture
) -> None:
    listener = Listener("127.0.0.1", 0, 16, asyncio.Protocol)
    await clock.settle()
    connections = [socket.socket() for _ in range(4)]
    with few_descriptors(2) as end:
        for each in connections:
            each.connect(("127.0.0.1", listener.port))
        await clock.settle()
        assert listener.paused
        if room_after:
            await clock.advance(room_after)
        end()
        await happens_after(accepts_after - room_after, lambda: not listener.paused)
    assert len(said(caplog)) == 1
    for each in connections:
        each.close()
    listener.close()
    await clock.settle()


@pytest.mark.turned_clock
async def test_a_listener_that_pauses_says_so_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    listener = Listener("127.0.0.1", 0, 16, asyncio.Protocol)
    await clock.settle()
    counts = []
    for pause in (0.0, 59.0, 0.9, 0.2):
        await clock.advance(pause)
        listener.pause(OSError("no room"))
        await clock.advance(0.01)
        assert not listener.paused
        counts.append(len(said(caplog)))
    assert counts == [1, 1, 1, 2]
    listener.close()


async def test_a_burst_of_connections_fits_the_backlog() -> None:
    greeted = 0

    class Count(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            nonlocal greeted
            greeted += 1
            transport.abort()  # type: ignore[attr-defined]

    listener = Listener("127.0.0.1", 0, 4096, Count)
    connections = []
    for _ in range(400):  # all of them before the loop has accepted one
        connection = socket.socket()
        connection.connect(("127.0.0.1", listener.port))
        connections.append(connection)
    await until(lambda: greeted == 400)
    listener.close()
    listener.close()
    for connection in connections:
        connection.close()


async def test_accepted_connections_are_kept_alive() -> None:
    accepted: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()
    options = [(level, option) for level, option, _ in _KEEP_ALIVE]
    user_timeout = getattr(socket, "TCP_USER_TIMEOUT", None)
    if user_timeout is not None:
        options.append((socket.IPPROTO_TCP, user_timeout))

    class Look(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            endpoint = transport.get_extra_info("socket")
            accepted.set_result([endpoint.getsockopt(level, option) for level, option in options])

    listener = Listener("127.0.0.1", 0, 16, Look, user_timeout=1.5)
    _, writer = await asyncio.open_connection("127.0.0.1", listener.port)
    alive, *times = await asyncio.wait_for(accepted, 10)
    assert alive
    assert times == [value for _, _, value in _KEEP_ALIVE[1:]] + ([1500] if user_timeout is not None else [])
    writer.transport.abort()
    listener.close()


async def test_what_accepted_connections_write_is_not_held_back() -> None:
    """By Nagle's rule a second small frame waits for the acknowledgement of the first one, up to 40 ms."""
    accepted: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    class Look(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            accepted.set_result(transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    listener = Listener("127.0.0.1", 0, 16, Look)
    _, writer = await asyncio.open_connection("127.0.0.1", listener.port)
    assert await asyncio.wait_for(accepted, 10)
    writer.transport.abort()
    listener.close()


async def test_a_listener_that_is_closed_at_once_opens_nothing() -> None:
    listener = Listener("127.0.0.1", free_port(), 16, asyncio.Protocol)
    listener.close()
    await listener._opening
    with socket.socket() as again:
        again.bind(("127.0.0.1", listener.port))


@pytest.mark.parametrize("turns", range(5))
async def test_a_connection_that_is_accepted_while_the_listener_closes_is_closed(turns: int) -> None:
    """asyncio needs a turn of the loop between accepting a connection and giving it a protocol."""

    class Closing(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            if closed:
                transport.close()
            else:
                made.append(transport)

    closed = False
    made: list[asyncio.BaseTransport] = []
    listener = Listener("127.0.0.1", 0, 10, Closing)
    await listener._opening
    with socket.create_connection(("127.0.0.1", listener.port)) as dialled:
        dialled.setblocking(False)
        for _ in range(turns):
            await asyncio.sleep(0)
        closed = True
        listener.close()
        for transport in made:
            transport.close()
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(asyncio.get_running_loop().sock_recv(dialled, 1), 30) == b""
