"""The input of a bidirectional call, seen by a worker of plain sockets that dials for it."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator
from typing import Any

import pytest

from dynamo_fast import AddressedPushRouter, AddressedRequest, Context, ManyIn, PushRouter, Worker
from dynamo_fast.config import TcpServerConfig
from dynamo_fast.discovery.memory import MemoryDiscovery
from dynamo_fast.egress.response_stream import ResponseStream
from tests.egress.raw_worker import LIMIT, RawRequest, RawStream, RawWorker

QUIET_TURNS = 500
"""Turns of the event loop without a new item, after which the input counts as paused."""


async def dial_input(request: RawRequest) -> RawStream:
    """Dial the router for the input of a request."""
    info = json.loads(request.control["request_stream_connection_info"]["info"])
    stream = await request.connect()
    stream.send(json.dumps({"subject": info["subject"], "stream_type": "request"}).encode())
    return stream


async def frame(stream: RawStream) -> tuple[bytes, bytes]:
    """Header and data of the next frame of the input."""
    prefix = await asyncio.wait_for(stream.reader.readexactly(24), LIMIT)
    header_size, data_size, _ = struct.unpack(">QQQ", prefix)
    return await stream.reader.readexactly(header_size), await stream.reader.readexactly(data_size)


async def begin(
    router: AddressedPushRouter, worker: RawWorker, source: AsyncIterator[Any], context: Context | None = None
) -> tuple[RawRequest, asyncio.Future[ResponseStream]]:
    call = asyncio.ensure_future(
        router.generate(AddressedRequest(ManyIn(source), worker.address), context or Context())
    )
    request = await worker.request()
    request.acknowledge()
    return request, call


async def finish(request: RawRequest, call: asyncio.Future[ResponseStream]) -> None:
    answer = await request.dial()
    answer.end()
    assert [item async for item in await asyncio.wait_for(call, LIMIT)] == []


async def test_a_worker_that_does_not_read_pauses_the_input(router: AddressedPushRouter, worker: RawWorker) -> None:
    count, size, taken = 2000, 1 << 16, 0

    async def source() -> AsyncIterator[str]:
        nonlocal taken
        while taken < count:
            taken += 1
            yield "x" * size

    request, call = await begin(router, worker, source())
    stream = await dial_input(request)
    before, quiet = -1, 0
    while quiet < QUIET_TURNS:
        before, quiet = taken, quiet + 1 if taken and taken == before else 0
        await asyncio.sleep(0)
    assert taken < count  # the socket's buffers are full, and the source waits
    for _ in range(count):
        assert await frame(stream) == (b"", b'"' + b"x" * size + b'"')
    assert await frame(stream) == (b'"sentinel"', b"")
    assert await asyncio.wait_for(stream.reader.read(), LIMIT) == b""
    assert taken == count
    await finish(request, call)


@pytest.mark.parametrize(("is_killed", "expected"), [(False, [b'"stop"', b""]), (True, [b"reset"])])
async def test_a_call_that_ended_before_the_worker_dialled_for_its_input(
    router: AddressedPushRouter, worker: RawWorker, is_killed: bool, expected: list[bytes]
) -> None:
    asked = False

    async def source() -> AsyncIterator[int]:
        nonlocal asked
        asked = True
        yield 1

    context = Context()
    request, call = await begin(router, worker, source(), context)
    stream = await request.connect()  # it is accepted before the call ends, and says what it is for after that
    context.kill() if is_killed else context.stop_generating()
    info = json.loads(request.control["request_stream_connection_info"]["info"])
    stream.send(json.dumps({"subject": info["subject"], "stream_type": "request"}).encode())
    headers = await stream.received()
    assert headers == expected
    assert not asked
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)


@pytest.mark.parametrize(("is_killed", "word"), [(False, b'"stop"'), (True, b'"kill"')])
async def test_the_end_of_a_call_ends_its_input_with_the_word_for_it(
    router: AddressedPushRouter, worker: RawWorker, is_killed: bool, word: bytes
) -> None:
    left = asyncio.Event()

    async def source() -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            left.set()

    context = Context()
    request, call = await begin(router, worker, source(), context)
    stream = await dial_input(request)
    assert await frame(stream) == (b"", b"1")
    answer = await request.dial()
    items = await asyncio.wait_for(call, LIMIT)
    context.kill() if is_killed else context.stop_generating()
    assert await frame(stream) == (word, b"")
    assert await asyncio.wait_for(stream.reader.read(), LIMIT) == b""
    await asyncio.wait_for(left.wait(), LIMIT)
    assert await answer.next_control() == word
    items.close()


async def test_a_worker_that_hangs_up_ends_the_source(router: AddressedPushRouter, worker: RawWorker) -> None:
    left = asyncio.Event()

    async def source() -> AsyncIterator[int]:
        try:
            number = 0
            while True:
                yield (number := number + 1)
                await asyncio.sleep(0)
        finally:
            left.set()

    request, call = await begin(router, worker, source())
    stream = await dial_input(request)
    assert await frame(stream) == (b"", b"1")
    stream.reset()
    await asyncio.wait_for(left.wait(), LIMIT)
    await finish(request, call)


async def test_a_source_that_is_cancelled_by_itself_ends_its_call(router: AddressedPushRouter) -> None:
    async def items() -> AsyncIterator[int]:
        yield 1
        waiting = asyncio.ensure_future(asyncio.Event().wait())
        waiting.cancel()
        await waiting

    async def echo(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for request in requests:
            yield request

    served = await Worker.start(MemoryDiscovery(), server_config=TcpServerConfig(host="127.0.0.1"))
    endpoint = await served.serve(echo, "a.b.c", bidirectional=True)
    request = AddressedRequest.for_instance(ManyIn(items()), endpoint.instance)
    with pytest.raises(RuntimeError, match="the input of the call was cancelled"):
        async for _ in await asyncio.wait_for(router.generate(request), LIMIT):
            pass
    await asyncio.wait_for(served.close(), LIMIT)


async def test_a_call_whose_input_failed_is_no_load_of_its_worker(router: AddressedPushRouter) -> None:
    async def items() -> AsyncIterator[int]:
        yield 1
        raise ValueError("mine")

    async def echo(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for request in requests:
            yield request

    discovery = MemoryDiscovery()
    served = await Worker.start(discovery, server_config=TcpServerConfig(host="127.0.0.1"))
    await served.serve(echo, "a.b.c", bidirectional=True)
    workers = await PushRouter.create("a.b.c", discovery, router)
    with pytest.raises(ValueError, match="mine"):
        async for _ in await asyncio.wait_for(workers.generate(ManyIn(items())), LIMIT):
            pass
    assert [entry.in_flight for entry in workers.table] == [0]
    workers.close()
    await asyncio.wait_for(served.close(), LIMIT)
