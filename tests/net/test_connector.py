"""Dialling: its time limit, its retries, and the options of the socket."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import sys
from collections.abc import Iterator

import pytest

from dynamo_fast.errors import ConnectionTimeout
from dynamo_fast.net.connector import Connector

PATIENCE = 30


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as endpoint:
        yield endpoint


@pytest.fixture
def full() -> Iterator[int]:
    """A port whose backlog is full: the kernel answers no further dial."""
    with contextlib.ExitStack() as stack:
        endpoint = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(2):
            dialled = stack.enter_context(socket.socket())
            dialled.setblocking(False)
            dialled.connect_ex(endpoint.getsockname())
        yield endpoint.getsockname()[1]


def port_of(endpoint: socket.socket) -> int:
    return int(endpoint.getsockname()[1])


@pytest.mark.skipif(sys.platform != "linux", reason="TCP_USER_TIMEOUT is Linux's")
@pytest.mark.parametrize("kept_alive", [True, False], ids=["kept alive", "not"])
async def test_the_options_of_the_socket(listening: socket.socket, kept_alive: bool) -> None:
    dial = Connector(PATIENCE, user_timeout=7).dial(
        "127.0.0.1", port_of(listening), asyncio.Protocol, kept_alive=kept_alive
    )
    transport, protocol = await dial
    assert isinstance(protocol, asyncio.Protocol)
    dialled = transport.get_extra_info("socket")
    assert dialled.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == kept_alive
    assert dialled.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == (7000 if kept_alive else 0)
    transport.abort()


@pytest.mark.skipif(sys.platform != "linux", reason="a full backlog answers no dial on Linux only")
async def test_a_dial_has_a_time_limit(full: int) -> None:
    with pytest.raises(ConnectionTimeout) as raised:
        await Connector(0.05).dial("127.0.0.1", full, asyncio.Protocol)
    assert str(raised.value) == f"127.0.0.1:{full} took no connection within 0.05 s"
    task = asyncio.current_task()
    assert task is not None
    assert not getattr(task, "cancelling", int)()


@pytest.mark.skipif(sys.platform != "linux", reason="a full backlog answers no dial on Linux only")
async def test_the_cancellation_of_a_dial_is_the_callers(full: int) -> None:
    own = Connector(PATIENCE)
    task = asyncio.ensure_future(own.dial("127.0.0.1", full, asyncio.Protocol))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not len(own._dialling)


@pytest.mark.parametrize("retry", [True, False], ids=["retry", "once"])
async def test_a_refused_dial_is_not_tried_again(retry: bool) -> None:
    with socket.socket() as endpoint:
        endpoint.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionRefusedError):
            await Connector(PATIENCE, retry=retry).dial("127.0.0.1", port_of(endpoint), asyncio.Protocol)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit of descriptors")
@pytest.mark.parametrize("retry", [True, False], ids=["retry", "once"])
async def test_a_dial_waits_for_a_descriptor(
    listening: socket.socket, retry: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import resource

    port = port_of(listening)
    own = Connector(PATIENCE, retry=retry)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    pauses = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    monkeypatch.setattr(asyncio, "sleep", pause)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        if retry:
            transport, _ = await own.dial("127.0.0.1", port, asyncio.Protocol)
            transport.abort()
            assert pauses == [0.2]
        else:
            with pytest.raises(OSError, match="Too many open files") as raised:
                await own.dial("127.0.0.1", port, asyncio.Protocol)
            assert raised.value.errno == errno.EMFILE
            assert not pauses
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# Direct connections


@pytest.mark.skipif(sys.platform != "linux", reason="epoll is Linux's")
async def test_a_direct_dial_to_this_machine_is_connected_at_once(listening: socket.socket) -> None:
    own = Connector(PATIENCE, direct=True)
    transport = own.dial_directly("127.0.0.1", port_of(listening), asyncio.Protocol(), b"first")
    assert transport is not None
    assert transport.connected
    transport.abort()
    own.close()
    own.close()
    assert own.dial_directly("127.0.0.1", port_of(listening), asyncio.Protocol(), b"first") is None


@pytest.mark.skipif(sys.platform != "linux", reason="epoll is Linux's")
async def test_a_direct_dial_has_a_time_limit(full: int) -> None:
    own = Connector(0.05, direct=True)
    transport = own.dial_directly("127.0.0.1", full, asyncio.Protocol(), b"first")
    assert transport is not None
    with pytest.raises(ConnectionTimeout) as raised:
        await own.connected(transport, "127.0.0.1", full)
    assert str(raised.value) == f"127.0.0.1:{full} took no connection within 0.05 s"
    assert transport.is_closing()
    own.close()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit of descriptors")
@pytest.mark.parametrize("retry", [True, False], ids=["retry", "once"])
async def test_a_direct_dial_without_a_descriptor_is_left_to_the_loop(listening: socket.socket, retry: bool) -> None:
    import resource

    own = Connector(PATIENCE, retry=retry, direct=True)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        if retry:
            assert own.dial_directly("127.0.0.1", port_of(listening), asyncio.Protocol(), b"first") is None
        else:
            with pytest.raises(OSError, match="Too many open files"):
                own.dial_directly("127.0.0.1", port_of(listening), asyncio.Protocol(), b"first")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        own.close()
