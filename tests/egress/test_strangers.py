"""Connections to the response port that have not said which request they answer, and what they may cost."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import struct

import pytest

from dynamo_fast.config import ResponseServerConfig
from dynamo_fast.egress.response_stream import ResponseStream
from dynamo_fast.egress.router import AddressedPushRouter
from dynamo_fast.errors import CodecError, Disconnected, MessageTooLarge
from dynamo_fast.wire.control import MAX_CONTROL_MESSAGE_SIZE
from tests.egress.conftest import make_router
from tests.egress.raw_worker import FINAL, LIMIT, OK_PROLOGUE, SENTINEL, RawRequest, RawWorker, item, two_part
from tests.egress.test_generate import begin, data_of

FEW = ResponseServerConfig(host="127.0.0.1", max_pending_connections=4, handshake_timeout=60)
HANDSHAKE_LIMIT = 4096


def dial(router: AddressedPushRouter) -> socket.socket:
    host, _, port = router.response_server.address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=LIMIT)


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


async def has(router: AddressedPushRouter, connections: int) -> None:
    """Wait until the router has that many connections."""

    async def wait() -> None:
        while len(router.response_server.connections) != connections:
            await asyncio.sleep(0)  # the server has no event for this, and needs none

    await asyncio.wait_for(wait(), LIMIT)


def handshake(request: RawRequest) -> bytes:
    return json.dumps({"subject": request.info["subject"], "stream_type": "response"}).encode()


async def finish(call: asyncio.Task[ResponseStream], request: RawRequest) -> None:
    """The worker answers with one item."""
    request.acknowledge()
    stream = await request.dial()
    stream.items(1)
    stream.end()
    assert await data_of(await asyncio.wait_for(call, LIMIT)) == [1]


async def test_a_dial_that_is_reset_before_its_handshake_leaves_nothing(router: AddressedPushRouter) -> None:
    connections = [dial(router) for _ in range(20)]
    await has(router, 20)
    assert len(router.response_server.strangers) == 20
    for connection in connections:
        reset(connection)
    await has(router, 0)
    assert not router.response_server.strangers


async def test_the_oldest_silent_connection_makes_way(worker: RawWorker, caplog: pytest.LogCaptureFixture) -> None:
    async with await make_router(FEW) as router:
        call, request = await begin(router, worker)
        silent = []
        for number in range(5):  # four, and one because a call waits
            silent.append(dial(router))
            await has(router, number + 1)
        with caplog.at_level(logging.WARNING):
            await finish(call, request)
            assert router.response_server.strangers_reset == 1
            silent += [dial(router) for _ in range(2)]
            with pytest.raises(ConnectionResetError):
                await asyncio.get_running_loop().run_in_executor(None, silent[2].recv, 1)
        assert router.response_server.strangers_reset == 3
        for connection in silent[:2]:
            with pytest.raises(ConnectionResetError):
                connection.recv(1)
        for connection in silent[3:]:
            connection.setblocking(False)
            with pytest.raises(BlockingIOError):
                connection.recv(1)
        assert caplog.text.count("have not said which request they answer") == 1
        for connection in silent:
            connection.close()


async def test_a_handshake_that_waits_to_be_read_is_not_silence(worker: RawWorker) -> None:
    async with await make_router(FEW) as router:
        call, request = await begin(router, worker)
        request.acknowledge()
        honest = dial(router)
        honest.sendall(two_part(handshake(request)) + two_part(OK_PROLOGUE) + two_part(data=FINAL) + two_part(SENTINEL))
        silent = [dial(router) for _ in range(20)]  # without a turn of the loop
        assert await data_of(await asyncio.wait_for(call, LIMIT)) == []
        for connection in [honest, *silent]:
            connection.close()


async def test_strangers_do_not_count_as_streams(worker: RawWorker) -> None:
    async with await make_router(ResponseServerConfig(host="127.0.0.1", max_streams=2)) as router:
        silent = [dial(router) for _ in range(10)]
        await has(router, 10)
        await finish(*await begin(router, worker))
        for connection in silent:
            connection.close()


# Before the handshake a few KiB are enough


@pytest.mark.parametrize("split", [1, 24])
async def test_a_large_handshake_is_refused_on_its_prefix(router: AddressedPushRouter, split: int) -> None:
    connection = dial(router)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    prefix = struct.pack(">QQQ", HANDSHAKE_LIMIT - 24, 1, 0)
    for at in range(0, 24, split):
        connection.sendall(prefix[at : at + split])
        for _ in range(3):
            await asyncio.sleep(0)
    reader, writer = await asyncio.open_connection(sock=connection)
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(reader.read(1), LIMIT)
    writer.close()


async def test_a_large_handshake_that_comes_at_once_is_refused(router: AddressedPushRouter, worker: RawWorker) -> None:
    call, request = await begin(router, worker)
    bad = await request.connect()
    text = handshake(request)
    bad.send(text + b" " * (HANDSHAKE_LIMIT - 24 - len(text)) + b" ")
    assert await bad.received() == [b"reset"]
    good = await request.connect()
    good.send(text + b" " * (HANDSHAKE_LIMIT - 24 - len(text)))
    request.acknowledge()
    good.send(OK_PROLOGUE)
    good.end()
    assert await data_of(await asyncio.wait_for(call, LIMIT)) == []


async def test_what_comes_with_the_handshake_is_not_lost(router: AddressedPushRouter, worker: RawWorker) -> None:
    call, request = await begin(router, worker)
    request.acknowledge()
    stream = await request.connect()
    text = "x" * (MAX_CONTROL_MESSAGE_SIZE + 1)
    items = two_part(data=item(text)) * 3
    stream.writer.write(two_part(handshake(request)) + two_part(OK_PROLOGUE) + items)
    stream.end()
    assert await data_of(await asyncio.wait_for(call, LIMIT)) == [text] * 3


@pytest.mark.parametrize(
    ("prologue", "kind"),
    [
        (b"\xff" * 24, MessageTooLarge),
        (struct.pack(">QQQ", 1 << 60, 0, 0), MessageTooLarge),
        (struct.pack(">QQQ", 14, 1 << 62, 0), MessageTooLarge),
        (struct.pack(">QQQ", MAX_CONTROL_MESSAGE_SIZE - 23, 0, 0), MessageTooLarge),
        (two_part(b" " * (MAX_CONTROL_MESSAGE_SIZE - 23)), MessageTooLarge),
    ],
    ids=["all ones", "header", "data", "one byte over the limit", "complete"],
)
async def test_a_prologue_of_a_corrupted_length_may_be_tried_elsewhere(
    router: AddressedPushRouter, worker: RawWorker, prologue: bytes, kind: type[CodecError]
) -> None:
    call, request = await begin(router, worker)
    request.acknowledge()
    stream = await request.dial(prologue=None)
    stream.writer.write(prologue)
    with pytest.raises(Disconnected, match="^Worker disconnected before response stream was established$") as caught:
        await asyncio.wait_for(call, LIMIT)
    assert caught.value.migratable
    assert type(caught.value.__cause__) is kind
    assert await stream.received() == [b"reset"]
