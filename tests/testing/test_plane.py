"""The plane that users' tests have: a router and a worker in one process, and a network that does harm when it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from dynamo_fast.context import Context
from dynamo_fast.errors import CannotConnect, Disconnected, RemoteError
from dynamo_fast.testing import FaultProxy, Plane, clock
from tests.waiting import LIMIT, until

ENDPOINT = "demo.backend.generate"


async def numbers(request: int) -> AsyncIterator[int]:
    for number in range(request):
        yield number


class Held:
    """A handler that yields when a test says so."""

    def __init__(self) -> None:
        self.items: asyncio.Queue[int] = asyncio.Queue()
        self.stopped = False

    async def __call__(self, request: Any, context: Context) -> AsyncIterator[int]:
        try:
            while True:
                yield await self.items.get()
        finally:
            self.stopped = context.is_stopped()


async def test_a_request_and_its_answer() -> None:
    async with Plane() as plane:
        record = await plane.serve(numbers, ENDPOINT)
        assert await plane.ask(ENDPOINT, 3) == [0, 1, 2]
        assert plane.idle
        assert record.transport.address.startswith(plane.requests.address)
        assert (plane.requests.connections, plane.answers.connections) == (1, 1)


async def test_what_a_handler_raises() -> None:
    async def fails(request: Any) -> None:
        raise ValueError("no")

    async with Plane() as plane:
        await plane.serve(fails, ENDPOINT)
        with pytest.raises(RemoteError, match="ValueError: no"):
            await plane.ask(ENDPOINT, None)


async def test_an_answer_that_is_cut_is_an_error_at_both_ends() -> None:
    handler = Held()
    async with Plane() as plane:
        await plane.serve(handler, ENDPOINT)
        async with await plane.call(ENDPOINT, None) as stream:
            handler.items.put_nowait(1)
            assert (await stream.__anext__()).data() == 1
            plane.answers.cut()
            with pytest.raises(Disconnected):
                await asyncio.wait_for(stream.__anext__(), LIMIT)
        await plane.until_idle(LIMIT)
        assert handler.stopped


async def test_a_request_that_cannot_connect() -> None:
    async with Plane() as plane:
        await plane.serve(numbers, ENDPOINT)
        plane.requests.refuse()
        with pytest.raises((CannotConnect, Disconnected)):
            await asyncio.wait_for(plane.ask(ENDPOINT, 3), LIMIT)
        plane.requests.heal()
        assert await plane.ask(ENDPOINT, 3) == [0, 1, 2]


async def test_bytes_that_are_wrong_are_an_error() -> None:
    handler = Held()
    async with Plane() as plane:
        await plane.serve(handler, ENDPOINT)
        async with await plane.call(ENDPOINT, None) as stream:
            handler.items.put_nowait(1)
            assert (await stream.__anext__()).data() == 1
            plane.answers.corrupt()
            handler.items.put_nowait(2)
            with pytest.raises(Disconnected):
                await asyncio.wait_for(stream.__anext__(), LIMIT)
        await plane.until_idle(LIMIT)


async def test_what_is_held_back_arrives_later() -> None:
    handler = Held()
    async with Plane() as plane:
        await plane.serve(handler, ENDPOINT)
        async with await plane.call(ENDPOINT, None) as stream:
            handler.items.put_nowait(1)
            assert (await stream.__anext__()).data() == 1
            plane.answers.stall()
            for number in (2, 3):
                handler.items.put_nowait(number)
            await until(handler.items.empty)
            waits = asyncio.ensure_future(stream.__anext__())
            await until(lambda: any(pipe._held for link in plane.answers._links for pipe in link.pipes))
            assert not waits.done()
            plane.answers.heal()
            assert (await asyncio.wait_for(waits, LIMIT)).data() == 2
            assert (await asyncio.wait_for(stream.__anext__(), LIMIT)).data() == 3


def test_the_network_is_slow_on_a_turned_clock() -> None:
    async def main() -> None:
        async with Plane() as plane:
            await plane.serve(numbers, ENDPOINT)
            plane.answers.delay = 0.5
            began = clock.now()
            assert await plane.ask(ENDPOINT, 3) == [0, 1, 2]
            assert clock.now() - began >= 0.5
            plane.answers.delay = 0.0
            began = clock.now()
            assert await plane.ask(ENDPOINT, 3) == [0, 1, 2]
            assert clock.now() - began < 0.5

    clock.run(main())


async def test_a_request_that_is_left_under_way_is_told() -> None:
    handler = Held()
    async with Plane(cancel_grace=0.05) as plane:
        await plane.serve(handler, ENDPOINT)
        stream = await plane.call(ENDPOINT, None)
        with pytest.raises(
            TimeoutError, match=r"after 0.01 s 1 requests are under way at the router, and 1 at the worker"
        ):
            await plane.until_idle(0.01)
        stream.close()
        await plane.until_idle(LIMIT)


async def test_a_plane_ends_though_requests_are_under_way() -> None:
    handler = Held()
    async with Plane(cancel_grace=0.05) as plane:
        await plane.serve(handler, ENDPOINT)
        stream = await plane.call(ENDPOINT, None)
        handler.items.put_nowait(1)
        await stream.__anext__()
    assert handler.stopped
    stream.close()


async def test_a_proxy_passes_half_closes_on() -> None:
    """Bytes, then an end of file, then bytes the other way."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"got " + await reader.read())
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    async with FaultProxy(f"{host}:{port}") as proxy:
        address, _, number = proxy.address.rpartition(":")
        reader, writer = await asyncio.open_connection(address, int(number))
        writer.write(b"all")
        writer.write_eof()
        assert await asyncio.wait_for(reader.read(), LIMIT) == b"got all"
        writer.close()
        await writer.wait_closed()
    server.close()
    await server.wait_closed()
