"""What peers may make a worker hold: connections, bytes, and lines in its log."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import AsyncIterator
from typing import Any

import pytest

from dynamo_fast.context import Context
from dynamo_fast.ingress import tcp_server
from dynamo_fast.ingress.buffered_bytes import BufferedBytes, Holder
from dynamo_fast.ingress.worker import Worker
from tests.ingress.conftest import Start, address_of, server_of
from tests.ingress.requester import PATIENCE, Requester, request_frame, two_part
from tests.ingress.test_bidirectional import Conversation, dialled
from tests.ingress.test_push_handler import begun, data_of
from tests.ingress.test_tcp_server import socket_address

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def connected(worker: Worker, first: bytes = b"") -> Connection:
    reader, writer = await asyncio.open_connection(*socket_address(worker))
    writer.write(first)
    return reader, writer


async def ends(connection: Connection) -> None:
    """The worker closes the connection."""
    with contextlib.suppress(ConnectionResetError):
        assert await asyncio.wait_for(connection[0].read(), PATIENCE) == b""
    connection[1].transport.abort()


def empty(worker: Worker) -> bool:
    """Whether nothing of any request or connection is left."""
    admission, buffered, server = worker.admission, worker.buffered, server_of(worker)
    counters = (admission.promised, admission.bytes, admission.running, admission.queued, buffered.total)
    tables = (server._connections, server._idle, server._new, server._unfinished, server._closing)
    return not any(counters) and not any(len(table) for table in tables) and not buffered._held


class Losses:
    """Waits for connections that the server loses."""

    def __init__(self, worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
        server = server_of(worker)
        self._worker = worker
        self._lost = server._lost
        self._changed = asyncio.Event()
        monkeypatch.setattr(server, "_lost", self._lose)

    def _lose(self, connection: tcp_server._RequestConnection) -> None:
        self._lost(connection)
        self._changed.set()

    async def until_empty(self) -> None:
        async def wait() -> None:
            while not empty(self._worker):
                self._changed.clear()
                await self._changed.wait()

        await asyncio.wait_for(wait(), PATIENCE)


# Connections


async def test_silent_connections_do_not_shut_out_a_router(start: Start) -> None:
    worker = await start(server={"max_new_connections": 20})
    async with Requester(address_of(worker)) as known:
        assert await data_of(await begun(known, [1])) == [1]
        silent = [await connected(worker) for _ in range(300)]
        async with Requester(address_of(worker)) as newcomer:
            assert await data_of(await begun(newcomer, [2])) == [2]
            assert await data_of(await begun(known, [3])) == [3]
            await asyncio.gather(*(ends(each) for each in silent[:270]))
            assert len(server_of(worker)._new) <= 20
            assert len(server_of(worker)._connections) <= 22
    for _, writer in silent:
        writer.transport.abort()


async def test_a_connection_without_a_request_has_its_time(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    worker = await start(server={"first_request_timeout": 0.1})
    async with Requester(address_of(worker)) as known, Requester(address_of(worker)) as slow:
        assert await data_of(await begun(known, [1])) == [1]
        frame = request_frame(slow.path, two_part(json.dumps(slow.control()).encode(), b"[2]"))
        slow.writer.write(frame[:100])
        await ends(await connected(worker))
        assert "it has sent no request within 0.1 s" in caplog.text
        slow.writer.write(frame[100:])  # its first request is on its way: that has the frame timeout
        assert await slow.ack() == ""
        assert await data_of(await begun(known, [3])) == [3]


@pytest.mark.parametrize(
    ("path", "connection_info", "known"),
    [(None, {}, True), ("unknown", {}, False), (None, {"address": "nowhere"}, False)],
    ids=["accepted", "unknown endpoint", "unreadable"],
)
async def test_who_is_known(worker: Worker, path: str | None, connection_info: dict[str, str], known: bool) -> None:
    async with Requester(address_of(worker)) as requester:
        info = requester.connection_info("1", **connection_info)
        requester.send(requester.control("1", connection_info=info), b"[]", path=path)
        await requester.ack()
        assert len(server_of(worker)._new) == (not known)


async def test_a_router_that_was_refused_for_overload_is_known(start: Start) -> None:
    gate = asyncio.Event()

    async def hold(request: Any) -> AsyncIterator[Any]:
        await gate.wait()
        yield request

    worker = await start(hold, server={"engine_request_limit": 1, "request_queue_limit": 1})
    async with Requester(address_of(worker)) as first, Requester(address_of(worker)) as second:
        for _ in range(2):
            first.send(first.control(), b"1")
            assert await first.ack() == ""
        second.send(second.control(), b"1")
        assert (await second.ack()).startswith("Server overloaded: ")
        assert len(server_of(worker)._new) == 0
        gate.set()


# Bytes


async def test_unfinished_frames_have_a_limit_in_total(
    start: Start, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = await start(server={"max_message_size": 10_000, "max_buffered_bytes": 20_000})
    losses = Losses(worker, monkeypatch)
    frame = request_frame("x", b"p" * 9_900)
    sizes = (4_000, 9_500, 6_000, 1_000)
    connections = [await connected(worker, frame[:size]) for size in sizes]
    await ends(connections[1])
    assert "it holds 9500 of 20500 buffered bytes, over the limit of 20000" in caplog.text
    for size, (reader, writer) in zip(sizes, connections, strict=True):
        if size != 9_500:
            writer.write(frame[size:])
            text = await asyncio.wait_for(reader.readexactly(4 + 38), PATIENCE)
            assert text[4:] == b"Server unavailable: unknown endpoint x"
        writer.transport.abort()
    await losses.until_empty()


async def test_requests_that_wait_have_a_limit_in_bytes(start: Start) -> None:
    gate = asyncio.Event()

    async def hold(request: Any) -> AsyncIterator[Any]:
        await gate.wait()
        yield len(request)

    limits = {"max_message_size": 10_000, "max_buffered_bytes": 50_000, "engine_request_limit": 1}
    worker = await start(hold, server={**limits, "request_queue_limit": 1000})
    async with Requester(address_of(worker)) as requester:
        running = await begun(requester, "running")
        assert worker.admission.bytes == 0  # its handler has it
        subjects = []
        for _ in range(10):
            requester.send(requester.control(), json.dumps("b" * 9_000).encode())
            subjects.append(requester.subject)
        acks = [await requester.ack() for _ in range(10)]
        assert acks[:5] == [""] * 5
        for ack in acks[5:]:
            assert ack.startswith("Server overloaded: ")
            assert ack.endswith("are over the limit of 50000 (DYNAMO_FAST_MAX_BUFFERED_REQUEST_BYTES)")
        gate.set()
        assert await data_of(running) == [7]
        for subject in subjects[:5]:
            answer = await requester.dialled(subject)
            await answer.read()
            assert await data_of(answer) == [9_000]
        assert (worker.admission.bytes, worker.admission.promised) == (0, 0)


async def test_a_control_message_has_a_limit(worker: Worker) -> None:
    """What it says is kept until the answer has ended. Dynamo's routers send at most 131,072 bytes."""
    async with Requester(address_of(worker)) as requester:
        spare = 131_072 - len(json.dumps(requester.control("x", metadata={"key": ""})))
        requester.send(requester.control("x", metadata={"key": "m" * spare}), b"[]")
        assert await requester.ack() == ""
        requester.send(requester.control("x", metadata={"key": "m" * (spare + 1)}), b"[]")
        assert await requester.ack() == (
            "Server unavailable: unreadable request: a control message of 131073 bytes exceeds the limit of 131072"
        )


async def test_acknowledgements_that_are_not_read_have_a_limit_in_bytes(
    start: Start, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = await start(server={"max_message_size": 100_000, "max_buffered_bytes": 100_000})
    losses = Losses(worker, monkeypatch)
    connections = [await connected(worker) for _ in range(4)]
    frames = request_frame(b"x" * 60_000, b"") * 200  # each is echoed in its refusal
    for reader, writer in connections:
        reader._transport.pause_reading()  # type: ignore[attr-defined]  # the stream has no method for it
        writer.write(frames)
    await losses.until_empty()
    assert "over the limit of 100000 (DYNAMO_FAST_MAX_BUFFERED_REQUEST_BYTES)" in caplog.text
    for _, writer in connections:
        writer.transport.abort()


async def test_acknowledgements_that_are_read_late_are_held_no_longer(worker: Worker) -> None:
    held = asyncio.Event()

    class Noting(BufferedBytes):
        def hold(self, holder: Holder, size: int) -> None:
            super().hold(holder, size)
            if self.total > 65_536:  # more than a frame of which only a part has come
                held.set()

    server_of(worker).buffered = Noting(worker.buffered.limit)
    connection = await connected(worker)
    reader, writer = connection
    reader._transport.pause_reading()  # type: ignore[attr-defined]  # as above
    writer.write(request_frame(b"x" * 60_000, b"") * 100)
    await asyncio.wait_for(held.wait(), PATIENCE)
    text_size = 60_000 + len("Server unavailable: unknown endpoint ")
    reader._transport.resume_reading()  # type: ignore[attr-defined]
    await asyncio.wait_for(reader.readexactly(100 * (4 + text_size)), PATIENCE)
    writer.write(request_frame(b"x", b""))
    await asyncio.wait_for(reader.readexactly(4 + 38), PATIENCE)
    assert server_of(worker).buffered.total == 0
    writer.transport.abort()


async def test_a_closed_connection_that_is_not_read_has_its_time(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp_server, "_CLOSE_SECONDS", 0.1)
    worker = await start(server={"idle_timeout": 0.3})
    losses = Losses(worker, monkeypatch)
    reader, writer = await connected(worker)
    reader._transport.pause_reading()  # type: ignore[attr-defined]  # as above
    writer.write(request_frame(b"x" * 60_000, b"") * 200)
    await losses.until_empty()
    writer.transport.abort()


@pytest.mark.parametrize("whole", [False, True], ids=["part of an item", "items that wait"])
async def test_inputs_have_a_limit_in_total(
    start: Start, whole: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancelled: list[bool] = []

    async def ignores(requests: Any, context: Context) -> AsyncIterator[Any]:
        await context.async_killed_or_stopped()
        cancelled.append(context.is_killed())
        yield "too late"

    worker = await start(ignores, bidirectional=True, server={"max_message_size": 10_000, "max_buffered_bytes": 50_000})
    losses = Losses(worker, monkeypatch)
    async with Requester(address_of(worker)) as requester:
        modest, _ = await dialled(requester)
        modest.send(two_part(b"", json.dumps("i" * 9_000).encode()))
        requests, answer = await dialled(requester)
        if whole:
            requests.send(two_part(b"", json.dumps("i" * 9_000).encode()) * 5)
        else:
            requests.send(two_part(b"", b"i" * 90_000)[:45_000])
        assert await answer.rest() == b""
        assert cancelled == [True]
        assert "its input holds most of" in caplog.text
        modest.reset()
    await worker.close()
    await losses.until_empty()


# Whatever happens


async def test_a_reset_at_any_moment_leaves_nothing(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    async def slow(request: Any) -> AsyncIterator[Any]:
        for item in range(3):
            yield item
            await asyncio.sleep(0)

    worker = await start(slow, server={"engine_request_limit": 2, "request_queue_limit": 5})
    losses = Losses(worker, monkeypatch)
    async with Requester(address_of(worker)) as requester:
        frame = request_frame(requester.path, two_part(json.dumps(requester.control()).encode(), b"[1]" * 1))
        for sent in range(1, 2 * len(frame), 23):
            with socket.create_connection(socket_address(worker)) as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.sendall((frame * 2)[:sent])
            await asyncio.sleep(0)
        for turns in range(20):
            control = requester.control("x")
            requester.send(control, b"[1]")
            for _ in range(turns):
                await asyncio.sleep(0)
            accepted = not await requester.ack()
            if accepted:
                (await requester.dialled()).reset()
    await worker.close()
    await losses.until_empty()


async def test_a_reset_at_any_moment_of_an_input_leaves_nothing(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    async def copy(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for item in requests:
            yield item

    worker = await start(copy, bidirectional=True)
    losses = Losses(worker, monkeypatch)
    item = two_part(b"", json.dumps("i" * 9_000).encode())
    async with Requester(address_of(worker)) as requester:
        for turns in range(20):
            requests, answer = await dialled(requester)
            requests.send((item * 3)[: 1 + turns * 1000])
            for _ in range(turns % 4):
                await asyncio.sleep(0)
            (requests if turns % 2 else answer).reset()
    await worker.close()
    await losses.until_empty()


async def test_an_input_that_cannot_be_dialled_leaves_no_promise(start: Start) -> None:
    worker = await start(Conversation(), bidirectional=True)
    async with Requester(address_of(worker)) as requester:
        info = requester.connection_info("x", "request", address="127.0.0.1:1")
        control = requester.control("x", request_type="many_in", request_stream_connection_info=info)
        requester.send(control, b"")
        assert await requester.ack() == ""
        (served,) = worker.endpoints.values()
        await asyncio.wait_for(served.handler.drained(), PATIENCE)
    await worker.close()
    assert (worker.admission.promised, worker.admission.bytes) == (0, 0)


@pytest.mark.parametrize("turns", range(6))
async def test_a_connection_that_comes_while_the_server_closes_is_closed(start: Start, turns: int) -> None:
    worker = await start()
    with socket.create_connection(socket_address(worker)) as connection:
        connection.setblocking(False)
        for _ in range(turns):
            await asyncio.sleep(0)
        await worker.server.close()
        with contextlib.suppress(ConnectionResetError):
            received = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(connection, 1), PATIENCE)
            assert received == b""
    assert not server_of(worker)._connections


# The log


async def test_refusals_cost_a_line_for_each_cause(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    worker = await start()
    async with Requester(address_of(worker)) as requester:
        for number in range(200):
            requester.send(requester.control(), b"1", path="unknown" if number % 2 else None)
            requester.writer.write(request_frame(requester.path, b"unreadable"))
        for _ in range(400):
            await requester.ack()
    await worker.close()
    lines = [record.getMessage() for record in caplog.records if "refusing a request of" in record.getMessage()]
    assert len(lines) == 4
    assert sum("Server unavailable: unknown endpoint unknown" in line for line in lines) == 2
    assert sum("Server unavailable: unreadable request: " in line for line in lines) == 2
    assert [line.split(" more within 5 s, the last: ")[0] for line in lines[2:]] == ["199", "99"]


async def test_what_a_peer_sends_cannot_forge_a_line(worker: Worker, caplog: pytest.LogCaptureFixture) -> None:
    async with Requester(address_of(worker)) as requester:
        requester.writer.write(request_frame("a\nWARNING forged \x1b[31m" + "x" * 10_000, b""))
        await requester.ack()
    (line,) = [record.getMessage() for record in caplog.records if "forged" in record.getMessage()]
    assert line.isprintable()
    assert len(line) < 500
