"""`DirectTransport` and `Poller`, compiled and interpreted: writing, reading, closing, and every way of being lost."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

from dynamo_fast.net import _direct
from tests.interpreted import interpreted

PATIENCE = 30
LARGE = bytes(range(256)) * 65536  # 16 MiB: more than the kernel takes
RESET = struct.pack("ii", 1, 0)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="epoll is Linux's")
MODULES = {"imported": _direct, "interpreted": interpreted(_direct)}


class Recorder:
    """A protocol that notes what it is told. `keeps`: what it says to an end of file."""

    def __init__(self, keeps: bool = False) -> None:
        self.keeps = keeps
        self.received = b""
        self.told: list[str] = []
        self.lost_by: Exception | None = None
        self.lost = asyncio.Event()
        self.paused = asyncio.Event()
        self.resumed = asyncio.Event()
        self.ended = asyncio.Event()
        self.got = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self.received += data
        self.got.set()
        if data == b"fail":
            raise ZeroDivisionError("of the test")

    def eof_received(self) -> bool:
        self.told.append("eof")
        self.ended.set()
        return self.keeps

    def pause_writing(self) -> None:
        self.told.append("pause")
        self.paused.set()

    def resume_writing(self) -> None:
        self.told.append("resume")
        self.resumed.set()

    def connection_lost(self, error: Exception | None) -> None:
        self.told.append("lost")
        self.lost_by = error
        self.lost.set()


class Place:
    """A listening socket, a poller, and what they open."""

    def __init__(self, module: Any, host: str = "127.0.0.1") -> None:
        self.poller = module.Poller(asyncio.get_running_loop())
        self.listener = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        self.host, self.port = self.listener.getsockname()[:2]
        self.opened = contextlib.ExitStack()
        self.opened.enter_context(self.listener)

    def dial(self, protocol: Recorder, first: bytes = b"first") -> tuple[Any, socket.socket]:
        """A connection that is connected, and its other end."""
        transport = self.poller.connect(self.host, self.port, protocol, first)
        assert transport.connected
        return transport, self.accept()

    def accept(self) -> socket.socket:
        other, _ = self.listener.accept()
        self.opened.enter_context(other)
        other.setblocking(False)
        return other


@pytest.fixture(params=MODULES)
async def place(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    made = Place(MODULES[request.param])
    yield made
    made.opened.close()
    made.poller.close()
    assert made.poller.open_sockets() == []


async def soon(event: asyncio.Event) -> None:
    await asyncio.wait_for(event.wait(), PATIENCE)


async def read(other: socket.socket, size: int = 1 << 30) -> bytes:
    """What comes, up to `size` bytes or the end of file."""
    loop, received = asyncio.get_running_loop(), b""
    while len(received) < size and (
        data := await asyncio.wait_for(loop.sock_recv(other, min(1 << 20, size - len(received))), PATIENCE)
    ):
        received += data
    return received


def test_what_is_compiled_has_the_types_that_stand_beside_it() -> None:
    is_compiled = not str(_direct.__file__).endswith(".py")
    assert ("__dict__" in dir(_direct.DirectTransport)) != is_compiled


async def test_what_is_written_first_leaves_with_the_connection(place: Place) -> None:
    transport, other = place.dial(Recorder())
    transport.write(b" second")
    assert other.recv(100) in (b"first second", b"first")
    assert other.getsockname()[1] == place.port
    assert transport.get_extra_info("peername") == (place.host, place.port)
    assert transport.get_extra_info("sslcontext", 7) == 7
    endpoint = transport.get_extra_info("socket")
    assert endpoint.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert not endpoint.getblocking()
    transport.abort()
    assert transport.get_extra_info("peername") is None


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
async def test_ipv6(module: Any) -> None:
    try:
        place = Place(module, "::1")
    except OSError:
        pytest.skip("this machine has no IPv6")
    transport, other = place.dial(Recorder())
    assert await read(other, 5) == b"first"
    transport.abort()
    place.opened.close()
    place.poller.close()


async def test_what_comes_is_read(place: Place) -> None:
    protocol = Recorder()
    transport, other = place.dial(protocol)
    other.send(b"hello")
    await soon(protocol.got)
    assert protocol.received == b"hello"
    transport.close()
    await soon(protocol.lost)
    assert protocol.told == ["lost"]
    assert protocol.lost_by is None


async def test_an_end_of_file_closes(place: Place) -> None:
    protocol = Recorder()
    transport, other = place.dial(protocol)
    other.shutdown(socket.SHUT_WR)
    assert await read(other) == b"first"
    assert transport.is_closing()
    await soon(protocol.lost)
    assert protocol.told == ["eof", "lost"]


async def test_a_protocol_may_write_on_after_an_end_of_file(place: Place) -> None:
    protocol = Recorder(keeps=True)
    transport, other = place.dial(protocol)
    other.shutdown(socket.SHUT_WR)
    await soon(protocol.ended)
    assert not transport.is_closing()
    transport.write(LARGE)
    transport.write_eof()
    transport.write(b" dropped")
    assert await read(other) == b"first" + LARGE
    transport.close()
    await soon(protocol.lost)
    assert protocol.told == ["eof", "pause", "resume", "lost"]


async def test_after_an_end_of_file_a_reset_shows_in_a_write(place: Place) -> None:
    protocol, another = Recorder(keeps=True), Recorder()
    transport, other = place.dial(protocol)
    _, bystander = place.dial(another)
    other.shutdown(socket.SHUT_WR)
    await soon(protocol.ended)
    other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    other.close()
    bystander.send(b"hello")
    await soon(another.got)
    assert protocol.told == ["eof"]  # as a transport of the event loop: it reads no more
    transport.write(b"more")
    await soon(protocol.lost)
    assert isinstance(protocol.lost_by, OSError)
    bystander.close()
    await soon(another.lost)


async def test_a_reset_loses_the_connection(place: Place) -> None:
    protocol = Recorder()
    transport, other = place.dial(protocol)
    other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    other.close()
    await soon(protocol.lost)
    assert transport.is_closing()
    assert isinstance(protocol.lost_by, ConnectionResetError)
    transport.write(b"dropped")
    transport.write_eof()
    transport.close()
    transport.abort()
    assert protocol.told == ["lost"]


async def test_a_write_to_a_connection_that_was_reset_loses_it(place: Place) -> None:
    protocol = Recorder()
    transport, other = place.dial(protocol)
    other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    other.close()
    transport.write(b"into the void")  # before the poller looks
    assert transport.is_closing()
    assert not protocol.told  # not in the call
    await soon(protocol.lost)
    assert isinstance(protocol.lost_by, OSError)


async def test_a_slow_reader_pauses_the_protocol_and_gets_everything(place: Place) -> None:
    protocol = Recorder()
    transport, other = place.dial(protocol, b"")
    transport.write(LARGE)
    assert protocol.told == ["pause"]
    assert transport.get_write_buffer_size() > 65536
    transport.write(b"and more")
    transport.write_eof()
    assert await read(other) == LARGE + b"and more"
    assert transport.get_write_buffer_size() == 0
    assert protocol.told == ["pause", "resume"]
    other.send(b"back")
    await soon(protocol.got)
    transport.close()
    await soon(protocol.lost)


async def test_what_waits_is_written_before_a_close(place: Place) -> None:
    protocol = Recorder()
    transport, other = place.dial(protocol, b"")
    transport.write(LARGE)
    transport.close()
    transport.close()
    transport.write(b"dropped")
    assert not protocol.lost.is_set()
    assert await read(other) == LARGE
    await soon(protocol.lost)
    assert protocol.told == ["pause", "lost"]
    assert protocol.lost_by is None


async def test_an_abort_drops_what_waits(place: Place) -> None:
    protocol = Recorder()
    transport, other = place.dial(protocol, b"")
    transport.write(LARGE)
    transport.close()
    transport.abort()
    await soon(protocol.lost)
    with contextlib.suppress(ConnectionResetError):
        assert len(await read(other)) < len(LARGE)
    assert transport.get_write_buffer_size() == 0


async def test_a_reader_that_vanishes_while_a_close_waits(place: Place) -> None:
    protocol = Recorder()
    transport, other = place.dial(protocol, b"")
    transport.write(LARGE)
    transport.close()
    other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    other.close()
    await soon(protocol.lost)
    assert isinstance(protocol.lost_by, OSError)


async def test_a_bug_of_the_protocol_closes_its_connection_only(place: Place) -> None:
    loop, told = asyncio.get_running_loop(), []
    loop.set_exception_handler(lambda _, context: told.append(context["exception"]))
    broken, sound = Recorder(), Recorder()
    transport, other = place.dial(broken)
    another, its_other = place.dial(sound)
    its_other.send(b"hello")
    other.send(b"fail")
    await soon(broken.lost)
    await soon(sound.got)
    assert [type(each) for each in told] == [ZeroDivisionError]
    assert transport.is_closing()
    assert not another.is_closing()
    another.abort()
    loop.set_exception_handler(None)


async def test_connections_that_close_each_other_in_one_look(place: Place) -> None:
    class Closes(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            for each in transports:
                each.abort()

    protocols = [Closes(), Closes()]
    dialled = [place.dial(each) for each in protocols]
    transports = [transport for transport, _ in dialled]
    for _, other in dialled:
        other.send(b"hello")
    for each in protocols:
        await soon(each.lost)
    assert sorted(each.received for each in protocols) == [b"", b"hello"]


async def test_a_poller_that_is_closed_watches_its_last_connections(place: Place) -> None:
    protocol = Recorder()
    _, other = place.dial(protocol)
    place.poller.close()
    assert place.poller.open_sockets()
    other.close()
    await soon(protocol.lost)
    assert place.poller.open_sockets() == []


# Connections that take time, or fail


async def test_a_refused_connection_says_so(place: Place) -> None:
    place.listener.close()
    with pytest.raises(ConnectionRefusedError, match="Connection refused"):
        place.poller.connect(place.host, place.port, Recorder(), b"first")


async def test_a_connection_that_cannot_be_begun_says_so(place: Place) -> None:
    with pytest.raises(OSError, match="unreachable|denied|Invalid|not permitted|assign"):
        place.poller.connect("255.255.255.255", 1, Recorder(), b"first")


@pytest.fixture
def full(place: Place) -> Place:
    """As `place`, with a backlog that is full: the kernel answers no dial until one is accepted."""
    place.listener.listen(0)
    for _ in range(2):
        dialled = place.opened.enter_context(socket.socket())
        dialled.setblocking(False)
        dialled.connect_ex((place.host, place.port))
    return place


async def test_a_connection_that_takes_time_is_waited_for(full: Place) -> None:
    protocol = Recorder()
    transport = full.poller.connect(full.host, full.port, protocol, b"first")
    assert not transport.connected
    waits = asyncio.ensure_future(transport.wait())
    full.listener.setblocking(False)
    own_port = transport.get_extra_info("socket").getsockname()[1]
    while True:
        other, address = await asyncio.wait_for(asyncio.get_running_loop().sock_accept(full.listener), PATIENCE)
        full.opened.enter_context(other)
        if address[1] == own_port:
            break
    await asyncio.wait_for(waits, PATIENCE)
    assert transport.connected
    transport.write(b" second")
    assert await read(other, 12) == b"first second"
    transport.close()
    await soon(protocol.lost)


async def test_a_connection_that_is_given_up_is_closed_without_a_word(full: Place) -> None:
    protocol = Recorder()
    transport = full.poller.connect(full.host, full.port, protocol, b"first")
    waits = asyncio.ensure_future(transport.wait())
    await asyncio.sleep(0)
    waits.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waits
    assert transport.is_closing()
    assert transport.get_extra_info("socket").fileno() == -1
    await asyncio.sleep(0)
    assert not protocol.told


async def test_a_connection_that_fails_later_raises(full: Place) -> None:
    transport = full.poller.connect(full.host, full.port, Recorder(), b"first")
    waits = asyncio.ensure_future(transport.wait())
    await asyncio.sleep(0)
    full.opened.close()  # the kernel refuses the next attempt of the dial
    with pytest.raises(ConnectionRefusedError):
        await asyncio.wait_for(waits, PATIENCE)
    assert transport.is_closing()
