"""The request connections: acknowledgements in order, refusals in words that Dynamo knows, and hostile peers."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from typing import Any

import pytest

from dynamo_fast.ingress.worker import Worker
from dynamo_fast.wire.address import EndpointId, legacy_endpoint_path
from tests.ingress.conftest import Start, address_of, server_of
from tests.ingress.requester import PATIENCE, Requester, request_frame
from tests.ingress.test_push_handler import begun, data_of


def socket_address(worker: Worker) -> tuple[str, int]:
    host, _, port = server_of(worker).address.rpartition(":")
    return host.strip("[]"), int(port)


async def test_acknowledgements_come_at_once_and_in_order(start: Start) -> None:
    gate = asyncio.Event()

    async def slow(request: Any) -> AsyncIterator[Any]:
        await gate.wait()
        yield request

    worker = await start(slow)
    async with Requester(address_of(worker)) as requester:
        subjects = []
        for number in range(30):
            requester.send(requester.control(), b"1", path="unknown" if number % 3 == 1 else None)
            subjects.append(requester.subject)
        acks = [await requester.ack() for _ in range(30)]
        assert [bool(ack) for ack in acks] == [number % 3 == 1 for number in range(30)]
        assert set(acks) == {"", "Server unavailable: unknown endpoint unknown"}
        gate.set()
        answer = await requester.dialled(subjects[0])
        await answer.read()
        assert await data_of(answer) == [1]


@pytest.mark.parametrize(
    ("path", "ack"),
    [
        (b"", "Server unavailable: unknown endpoint "),
        (b"x" * 65535, "Server unavailable: unknown endpoint " + "x" * 65535),
        (b"\xff\xfe", "Invalid endpoint path"),
        (b"/PATH", "Server unavailable: unknown endpoint /PATH"),
    ],
    ids=["empty", "enormous", "no text", "slash"],
)
async def test_paths_that_nobody_serves(worker: Worker, path: bytes, ack: str) -> None:
    async with Requester(address_of(worker)) as requester:
        requester.writer.write(request_frame(path, b""))
        assert await requester.ack() == ack
        answer = await begun(requester, [1])
        assert await data_of(answer) == [1]


async def test_both_releases_paths_are_served_as_long_as_they_are_clear(start: Start) -> None:
    worker = await start()
    legacy = legacy_endpoint_path(EndpointId("a", "b", "c"), worker.discovery.connection_id)
    async with Requester(address_of(worker)) as requester:
        requester.send(requester.control(), b"[1]", path=legacy)
        assert await requester.ack() == ""

        async def other(request: Any) -> AsyncIterator[Any]:
            yield "other"

        second = await worker.serve(other, "a.another.c")
        requester.send(requester.control(), b"[1]", path=legacy)  # it may mean either: neither is guessed
        assert await requester.ack() == f"Server unavailable: unknown endpoint {legacy}"
        await second.close()
        requester.send(requester.control(), b"[1]", path=legacy)
        assert await requester.ack() == ""


@pytest.mark.parametrize("headers", [b"", b"not json", b"[]", b"\xff", b'{"x-frontend-send-ts-ns":"soon"}'])
async def test_headers_are_never_a_reason_to_refuse(worker: Worker, headers: bytes) -> None:
    async with Requester(address_of(worker)) as requester:
        control = requester.control()
        import json

        from tests.ingress.requester import two_part

        requester.writer.write(request_frame(requester.path, two_part(json.dumps(control).encode(), b"[1]"), headers))
        assert await requester.ack() == ""


async def test_a_frame_over_the_limit_closes_its_connection_only(start: Start) -> None:
    worker = await start(server={"max_message_size": 1000})
    async with Requester(address_of(worker)) as other, Requester(address_of(worker)) as requester:
        frame = request_frame("x", b"p" * 2000)
        requester.writer.write(frame[: len(frame) - 1990])  # it is refused on its lengths
        assert await requester.ack() == f"Read error: message too large: {len(frame)} bytes (max: 1000 bytes)"
        assert await asyncio.wait_for(requester.reader.read(), PATIENCE) == b""
        answer = await begun(other, [1])
        assert await data_of(answer) == [1]


async def test_a_frame_that_dribbles_in_has_its_time(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    worker = await start(server={"frame_timeout": 0.1})
    _, writer = await asyncio.open_connection(*socket_address(worker))
    reader, slow = await asyncio.open_connection(*socket_address(worker))
    slow.write(b"\x00")
    assert await asyncio.wait_for(reader.read(), PATIENCE) == b""
    assert "1 bytes of a request frame came, but not the rest within 0.1 s" in caplog.text
    writer.transport.abort()
    slow.transport.abort()


async def test_connections_that_say_nothing_have_their_time_and_their_number(start: Start) -> None:
    worker = await start(server={"idle_timeout": 0.2, "max_connections": 20})
    connections = [await asyncio.open_connection(*socket_address(worker)) for _ in range(30)]
    ended = await asyncio.wait_for(asyncio.gather(*(reader.read() for reader, _ in connections)), PATIENCE)
    assert ended == [b""] * 30
    for _, writer in connections:
        writer.transport.abort()


@pytest.mark.parametrize(
    "bytes_",
    [b"\x00" * 8, struct.pack(">H", 5) + b"abc", b"GET / HTTP/1.1\r\n\r\n"],
    ids=["empty frame", "cut", "http"],
)
async def test_garbage_touches_nobody_else(worker: Worker, bytes_: bytes) -> None:
    async with Requester(address_of(worker)) as requester:
        _, writer = await asyncio.open_connection(*socket_address(worker))
        writer.write(bytes_)
        writer.write_eof()
        answer = await begun(requester, [1])
        assert await data_of(answer) == [1]
        writer.transport.abort()


async def test_a_full_worker_refuses_and_goes_on(start: Start) -> None:
    gate = asyncio.Event()

    async def slow(request: Any) -> AsyncIterator[Any]:
        await gate.wait()
        yield request

    worker = await start(slow, server={"engine_request_limit": 1, "request_queue_limit": 2})
    async with Requester(address_of(worker)) as requester:
        for _ in range(6):
            requester.send(requester.control(), b"1")
        acks = [await requester.ack() for _ in range(6)]
        assert acks == ["", "", *["Server overloaded: worker at capacity"] * 4]
        assert worker.admission.rejected == 4
        gate.set()
        (served,) = worker.endpoints.values()
        while served.metrics.inflight:
            answer = await requester.dialled(next(iter(requester._dialled)))
            requester._dialled.pop(answer.handshake.header["subject"])
            await answer.read()
            await data_of(answer)
            await asyncio.sleep(0)


async def test_endpoints_that_come_and_go_leave_nothing(start: Start) -> None:
    worker = await start()
    for _ in range(100):
        served = await worker.serve(lambda request: request, "x.y.z")
        await served.close()
    assert list(worker.endpoints) == [EndpointId("a", "b", "c")]
    assert len(server_of(worker)._endpoints) == len(server_of(worker)._aliases) == 1
