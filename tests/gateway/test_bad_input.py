"""What clients send and do that they should not: a proper status within a limit, bounded memory, the worker told."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from dynamo_fast import Context
from dynamo_fast.testing import clock
from tests.gateway.conftest import Stage, staged
from tests.waiting import until

Begin = Callable[..., Awaitable[Stage]]
GENEROUS = 20.0
"""Seconds that a busy machine may take for what is done in milliseconds."""


async def error_of(response: Any) -> str:
    """The text of the error in a body."""
    body = await response.json()
    assert body["error"]["code"] == response.status
    message: str = body["error"]["message"]
    return message


# Requests that are none -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [b"{", b"nonsense", b'{"a":1} x', b"\xff", b'{"a":1e999}', b"[" * 100_000])
@pytest.mark.parametrize("path", ["/a/b/c", "/v1/chat/completions"])
async def test_what_is_not_json_is_400(stage: Stage, path: str, body: bytes) -> None:
    async with stage.post(body, path) as response:
        assert response.status == 400
        assert (await error_of(response)).startswith("the body is not JSON")


async def test_an_empty_body_is_null(begin: Begin) -> None:
    async def echo(request: Any, context: Context) -> AsyncIterator[Any]:
        yield [request]

    stage = await begin(echo)
    async with stage.post(b"", headers={"Accept": "application/json"}) as response:
        assert await response.json() == [[None]]


async def test_a_body_that_is_too_long_is_413_before_it_is_read(begin: Begin) -> None:
    stage = await begin(max_body=1000)
    reader, writer = await stage.connect()
    writer.write(b"POST /a/b/c HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1001\r\n\r\n")
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), GENEROUS)
    assert head.startswith(b"HTTP/1.1 413 ")
    assert b"Connection: close" in head
    writer.close()


@pytest.mark.parametrize(
    "rest",
    [
        b"Content-Length: 5\r\nContent-Encoding: gzip\r\n\r\nhello",
        b"Content-Length: 5\r\nContent-Encoding: deflate\r\n\r\nhello",
        b"Transfer-Encoding: chunked\r\n\r\n5\r\nhelloXX\r\n",
        b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n",
    ],
    ids=["gzip", "deflate", "chunk", "size"],
)
async def test_a_body_that_cannot_be_read_is_400(stage: Stage, rest: bytes, caplog: pytest.LogCaptureFixture) -> None:
    reader, writer = await stage.connect()
    writer.write(b"POST /a/b/c HTTP/1.1\r\nHost: localhost\r\n" + rest)
    answer = await asyncio.wait_for(reader.read(), GENEROUS)
    assert b" 400 " in answer.splitlines()[0]
    writer.close()


async def test_a_chunked_body_that_becomes_too_long_is_413(begin: Begin) -> None:
    stage = await begin(max_body=100_000)

    async def parts() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b" " * 10_000

    async with stage.client.post("/a/b/c", data=parts()) as response:
        assert response.status == 413
        assert await error_of(response) == "the body has more than 100000 bytes"


async def test_a_body_that_does_not_come_is_408(begin: Begin) -> None:
    stage = await begin(body_timeout=0.05)
    reader, writer = await stage.connect()
    writer.write(b"POST /a/b/c HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n123")
    assert (await asyncio.wait_for(reader.readline(), GENEROUS)).startswith(b"HTTP/1.1 408 ")
    writer.close()


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("POST", "/a/b/nothing", 404, "no instance serves a.b.nothing"),
        ("POST", "/a/b/%0a%1b", 404, "no instance serves a.b.\\n\\x1b"),
        ("POST", "/a", 404, "nothing is at /a"),
        ("GET", "/a/b/c", 405, "GET is not offered here: expected POST"),
        ("DELETE", "/v1/models", 405, "DELETE is not offered here: expected GET"),
        ("PUT", "/v1/chat/completions", 405, "PUT is not offered here: expected POST"),
        ("OPTIONS", "/a/b/c", 405, "OPTIONS is not offered here: expected POST"),
    ],
)
async def test_unknown_paths_are_404_and_wrong_methods_405(
    stage: Stage, method: str, path: str, status: int, message: str
) -> None:
    from yarl import URL

    url = URL(f"{stage.server.url}{path}", encoded=True)
    async with stage.client.request(method, url) as response:
        assert (response.status, await error_of(response)) == (status, message)
        assert ("Allow" in response.headers) == (status == 405)


@pytest.mark.parametrize(
    "garbage", [b"\x16\x03\x01\x02\x00\x01\x00", b"GET / HTTP/9.9\r\n\r\n", b"x" * 20_000 + b"\r\n"]
)
async def test_what_is_no_http_is_400_and_closed(stage: Stage, garbage: bytes) -> None:
    reader, writer = await stage.connect()
    writer.write(garbage)
    answer = await asyncio.wait_for(reader.read(), GENEROUS)
    assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.0 400 "))
    writer.close()


MALFORMED = [
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET /a b c HTTP/1.1\r\n\r\n",
    b"POST /a/b/c HTTP/1.1\r\nContent-Length: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nHost\x00: \x1b[2J\r\n\r\n",
    b"GET / HTTP/1.1\r\nX: " + b"x" * 20_000 + b"\r\n\r\n",
]


async def test_malformed_requests_are_one_line_in_the_log_however_many(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    async def send(garbage: bytes) -> None:
        reader, writer = await stage.connect()
        writer.write(garbage)
        assert await asyncio.wait_for(reader.read(), GENEROUS)
        writer.close()

    for garbage in MALFORMED:
        await send(garbage)
    for _ in range(10):
        await asyncio.gather(*map(send, MALFORMED))
    await stage.server.close()
    records = [record for record in caplog.records if record.levelno >= logging.INFO]
    lines = [record.getMessage() for record in records]
    assert lines[0].startswith("127.0.0.1 sent what is not HTTP: ")
    counts = [int(more[1]) for line in lines[1:] if (more := re.match("([0-9]+) more within 5 s, the last: 127", line))]
    assert 1 + sum(counts) == 11 * len(MALFORMED)
    assert len(lines) == 1 + len(counts) < sum(counts)
    assert all(line.isprintable() for line in lines)
    assert not any(record.exc_info for record in records)


async def test_a_head_that_never_ends_is_closed_in_time(begin: Begin) -> None:
    stage = await begin(idle_timeout=0.1)
    reader, writer = await stage.connect()
    writer.write(b"POST /a/b/c HTTP/1.1\r\nX-Long:")
    assert await asyncio.wait_for(reader.read(), GENEROUS) == b""
    writer.close()


# Headers --------------------------------------------------------------------------------------------------------------


async def context_of(request: Any, context: Context) -> AsyncIterator[Any]:
    """Yields what the worker is told beside the request."""
    yield {"id": context.id(), "metadata": context.metadata, "trace": context.trace_headers()}


async def test_the_headers_of_a_request_reach_the_worker(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYN_LOGGING_JSONL", "1")  # then traces are followed
    stage = await begin(context_of)
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    headers = {"X-Request-Id": "mine", "traceparent": parent, "tracestate": "a=b", "X-Dynamo-Metadata-Some-Key": "v"}
    async with stage.post(None, headers={**headers, "Accept": "application/json"}) as response:
        (seen,) = await response.json()
        assert (response.headers["X-Request-Id"], seen["id"]) == ("mine", "mine")
        assert seen["metadata"] == {"some-key": "v"}
        assert seen["trace"]["traceparent"].split("-")[1] == parent.split("-")[1]
        assert seen["trace"]["tracestate"] == "a=b"
        assert response.headers["traceparent"].split("-")[1] == parent.split("-")[1]


async def test_an_answer_names_its_worker_and_a_request_may(stage: Stage) -> None:
    instance_id = f"{stage.worker.discovery.connection_id:x}"
    async with stage.post({"items": [1]}) as response:
        assert response.headers["x-dynamo-instance-id"] == instance_id
    async with stage.post({"items": [1]}, headers={"x-dynamo-instance-id": instance_id}) as response:
        assert response.status == 200
    async with stage.post({"items": [1]}, headers={"x-dynamo-instance-id": "1"}) as response:
        assert (response.status, await error_of(response)) == (404, "a.b.c has no instance 1")
    async with stage.post({"items": [1]}, headers={"x-dynamo-instance-id": "no"}) as response:
        assert response.status == 400


async def test_an_id_must_be_printable_and_unique(stage: Stage) -> None:
    async with stage.post({}, headers={"X-Request-Id": "x" * 257}) as response:
        assert response.status == 400
    async with stage.post({"items": [1], "hangs": True}, headers={"X-Request-Id": "one"}) as first:
        assert first.status == 200
        async with stage.post({}, headers={"X-Request-Id": "one"}) as second:
            assert second.status == 409
    await until(lambda: stage.inflight == 0)
    async with stage.post({"items": [1]}, headers={"X-Request-Id": "one"}) as third:
        assert third.status == 200


# Too much at once -----------------------------------------------------------------------------------------------------


async def test_one_request_too_many_is_503_and_says_when_to_come_back(begin: Begin) -> None:
    stage = await begin(max_requests=1)
    async with stage.post({"items": [1], "hangs": True}):
        async with stage.post({}) as response:
            assert (response.status, response.headers["Retry-After"]) == (503, "1")
        async with stage.client.get("/health") as response:
            assert response.status == 200
    await until(lambda: stage.server.running == 0)
    async with stage.post({}) as response:
        assert response.status == 200


async def test_one_request_too_many_of_a_client_is_429(begin: Begin) -> None:
    stage = await begin(max_requests_per_client=1)
    async with stage.post({"items": [1], "hangs": True}), stage.post({}) as response:
        assert (response.status, response.headers["Retry-After"]) == (429, "1")
    await until(lambda: stage.server.running == 0)
    async with stage.post({}) as response:
        assert response.status == 200


async def test_one_connection_too_many_is_503(begin: Begin) -> None:
    stage = await begin(max_connections=2)
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(2):
            _, writer = await stage.connect()
            stack.callback(writer.close)
        await until(lambda: stage.server.connections == 2)
        reader, writer = await stage.connect()
        stack.callback(writer.close)
        assert (await asyncio.wait_for(reader.read(), GENEROUS)).startswith(b"HTTP/1.1 503 ")
    await until(lambda: stage.server.connections == 0)
    async with stage.post({}) as response:
        assert response.status == 200


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.turned_clock
async def test_thousands_of_idle_connections_cost_little_and_are_closed(begin: Begin) -> None:
    resource = pytest.importorskip("resource", reason="this system tells no limit of descriptors")
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(3_000, (descriptors - 200) // 2)
    stage = await begin(idle_timeout=60.0, max_connections=count + 10)
    before = resident()
    clients = []
    try:
        for _ in range(count):
            client = socket.socket()
            client.setblocking(False)
            clients.append(client)
            with contextlib.suppress(BlockingIOError):
                client.connect(("127.0.0.1", stage.server.port))
            if len(clients) % 200 == 0:
                await until(lambda: stage.server.connections >= len(clients) - 1)
        await until(lambda: stage.server.connections == count)
        assert (resident() - before) / count < 64 * 1024
        async with stage.post({"items": [1]}) as response:
            assert response.status == 200
            await response.read()
        assert stage.server.connections >= count
        await clock.advance(60.0)
        assert stage.server.connections == 0
    finally:
        for client in clients:
            client.close()


# Readers that stop, and clients that go -------------------------------------------------------------------------------


class Flood:
    """An engine that yields without end, and what it knows."""

    def __init__(self) -> None:
        self.items = 0
        self.stopped = asyncio.Event()

    async def __call__(self, request: Any, context: Context) -> AsyncIterator[Any]:
        try:
            while not context.is_stopped():
                self.items += 1
                yield "x" * 10_000
        finally:
            self.stopped.set()


async def asked(stage: Stage, receive_buffer: int = 4096) -> socket.socket:
    """A connection that has asked and reads nothing."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    client.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(client, ("127.0.0.1", stage.server.port))
    await loop.sock_sendall(client, b"POST /a/b/c HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}")
    return client


async def standing(flood: Flood) -> int:
    """Wait until the engine yields no more; how many items that were."""
    before = -1
    while before != flood.items:
        before = flood.items
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(flood.stopped.wait(), 0.2)
    return flood.items


async def test_a_slow_reader_slows_the_worker_and_gets_everything(tmp_path: Path) -> None:
    flood = Flood()
    async with staged(tmp_path, flood) as stage:
        client = await asked(stage)
        loop = asyncio.get_running_loop()
        held = await standing(flood)
        assert 0 < held * 10_000 < 64 * 1024 * 1024
        received = 0
        while received < held * 10_000 * 2:  # it goes on as soon as the client reads
            received += len(await asyncio.wait_for(loop.sock_recv(client, 1 << 20), GENEROUS))
        assert flood.items > held
        client.close()
        await asyncio.wait_for(flood.stopped.wait(), GENEROUS)


async def test_a_reader_that_stops_is_cut_and_the_worker_told(tmp_path: Path) -> None:
    flood = Flood()
    async with staged(tmp_path, flood, write_timeout=0.3) as stage:
        client = await asked(stage)
        await asyncio.wait_for(flood.stopped.wait(), GENEROUS)
        await until(lambda: stage.server.connections == 0 and stage.server.running == 0)
        client.close()


@pytest.mark.parametrize("accept", ["text/event-stream", "application/x-ndjson", "application/json"])
@pytest.mark.parametrize("items", [[], [1]])
async def test_the_worker_of_a_client_that_has_gone_is_stopped(stage: Stage, accept: str, items: list[int]) -> None:
    reader, writer = await stage.connect()
    body = b'{"hangs":true,"items":%b}' % str(items).encode()
    head = b"POST /a/b/c HTTP/1.1\r\nHost: localhost\r\nAccept: %b\r\n" % accept.encode()
    head += b"Content-Length: %d\r\n\r\n" % len(body)
    writer.write(head + body)
    await until(lambda: stage.inflight == 1)
    if items and accept != "application/json":
        await reader.readuntil(b"\n1\n" if accept == "application/x-ndjson" else b"data: 1\n\n")
    writer.close()
    await until(lambda: stage.inflight == 0)
    await until(lambda: stage.server.running == 0)


async def test_a_client_that_goes_while_it_sends_its_body_leaves_nothing(stage: Stage) -> None:
    _, writer = await stage.connect()
    writer.write(b"POST /a/b/c HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
    await until(lambda: stage.server.running == 1)
    writer.close()
    await until(lambda: stage.server.running == 0 and stage.server.connections == 0)
    assert stage.inflight == 0


async def test_an_answer_that_is_collected_has_a_limit(tmp_path: Path) -> None:
    flood = Flood()
    async with staged(tmp_path, flood, max_answer=100_000) as stage:
        async with stage.post({}, headers={"Accept": "application/json"}) as response:
            assert response.status == 502
            assert "more than 100000 bytes" in await error_of(response)
        await asyncio.wait_for(flood.stopped.wait(), GENEROUS)


async def test_a_large_answer_of_one_piece_to_a_reader_that_stops_is_cut(tmp_path: Path) -> None:
    async def large(request: Any, context: Context) -> AsyncIterator[Any]:
        yield "x" * 8_000_000

    async with staged(tmp_path, large, write_timeout=0.3) as stage:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, ("127.0.0.1", stage.server.port))
        head = b"POST /a/b/c HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\nContent-Length: 2\r\n\r\n{}"
        await loop.sock_sendall(client, head)
        await until(lambda: stage.server.connections == 1)
        await until(lambda: stage.server.connections == 0)
        client.close()
