"""The worker's deadlines on a turned clock."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from dynamo_fast import Context, EndpointId, Worker
from dynamo_fast.config import TcpServerConfig, WorkerConfig
from dynamo_fast.discovery.memory import MemoryDiscovery
from dynamo_fast.testing import clock
from tests.ingress.conftest import ENDPOINT, address_of, echo
from tests.ingress.requester import Requester, request_frame, two_part
from tests.ingress.test_push_handler import begun, data_of

HOUR = 3600.0


def now() -> float:
    return asyncio.get_running_loop().time()


def on_a_turned_clock(
    main: Callable[[Worker, Requester], Awaitable[None]],
    handler: Any = echo,
    server: dict[str, Any] | None = None,
    **settings: Any,
) -> None:
    """Run `main` with a worker that serves `handler`, and a requester."""

    async def run() -> None:
        server_config = TcpServerConfig(host="127.0.0.1", **(server or {}))
        worker = await Worker.start(MemoryDiscovery(), WorkerConfig(**settings), server_config)
        await worker.serve(handler, ENDPOINT)
        async with Requester(address_of(worker)) as requester:
            await main(worker, requester)
        await worker.close()
        assert worker.admission.running == 0

    clock.run(run())


def test_a_worker_takes_requests_for_a_moment_after_it_has_left_discovery() -> None:
    async def main(worker: Worker, requester: Requester) -> None:
        began = now()
        closing = asyncio.ensure_future(worker.close())
        while await worker.discovery.list(EndpointId.parse(ENDPOINT)):
            await asyncio.sleep(0)
        await asyncio.sleep(19)
        assert await data_of(await begun(requester, [1])) == [1]
        await closing
        assert 20 <= now() - began <= 21

    on_a_turned_clock(main, leave_delay=20.0)


def test_a_handler_that_swallows_its_cancellation_is_cancelled_again() -> None:
    cancelled: list[float] = []

    async def stubborn(request: Any, context: Context) -> AsyncIterator[Any]:
        yield 1
        for _ in range(3):
            try:
                await asyncio.sleep(HOUR)
            except asyncio.CancelledError:
                cancelled.append(now())

    async def main(worker: Worker, requester: Requester) -> None:
        (served,) = worker.endpoints.values()
        answer = await begun(requester, None)
        assert await answer.read() is not None
        began = now()
        answer.reset()
        await served.handler.drained()
        assert [round(at - began) for at in cancelled] == [1, 2, 3]

    on_a_turned_clock(main, stubborn)


def test_a_handler_may_take_as_long_as_it_likes() -> None:
    async def slow(request: Any) -> AsyncIterator[Any]:
        for number in range(3):
            await asyncio.sleep(24 * HOUR)
            yield number

    async def main(worker: Worker, requester: Requester) -> None:
        answer = await begun(requester, None)
        for number in range(3):
            assert b'"data":%d}' % number in await answer.reader.readuntil(b'"complete_final":false}')

    on_a_turned_clock(main, slow)


def test_a_connection_stays_while_it_is_used() -> None:
    """The connection of a router that asks now and then stays; that of one that has asked nothing is closed."""

    async def main(worker: Worker, requester: Requester) -> None:
        host, _, port = worker.server.transport("").address.rstrip("/").rpartition(":")
        silent_reader, silent = await asyncio.open_connection(host, int(port))
        began = now()
        assert await data_of(await begun(requester, [1])) == [1]
        assert await silent_reader.read() == b""
        assert 29 <= now() - began <= 31
        silent.close()
        for _ in range(5):
            await asyncio.sleep(800)  # of 900
            assert await data_of(await begun(requester, [1])) == [1]
        began = now()
        assert await requester.reader.read() == b""
        assert 899 <= now() - began <= 901

    on_a_turned_clock(main)


def test_a_request_that_begins_within_its_time_may_come_slowly() -> None:
    async def main(worker: Worker, requester: Requester) -> None:
        frame = request_frame(requester.path, two_part(json.dumps(requester.control()).encode(), b"[1]"))
        await asyncio.sleep(29)  # of 30: the first request
        requester.writer.write(frame[:10])
        await asyncio.sleep(59)  # of 60: the frame
        requester.writer.write(frame[10:])
        assert await requester.ack() == ""
        answer = await requester.dialled()
        assert await answer.read() is not None
        assert await data_of(answer) == [1]
        requester.writer.write(frame[:10])
        began = now()
        await asyncio.sleep(30)
        requester.writer.write(frame[10:20])
        assert await requester.reader.read() == b""
        assert 59 <= now() - began <= 61

    on_a_turned_clock(main)


def test_a_stalled_answer_is_given_up_after_its_time() -> None:
    async def endless(request: Any) -> AsyncIterator[Any]:
        while True:
            yield "x" * 100_000

    async def main(worker: Worker, requester: Requester) -> None:
        (served,) = worker.endpoints.values()
        began = now()
        answer = await begun(requester, None)
        answer.writer.transport.pause_reading()  # type: ignore[attr-defined]  # what asyncio makes is a Transport
        await served.handler.drained()
        assert 299 <= now() - began <= 303

    on_a_turned_clock(main, endless)


def test_a_finished_answer_whose_router_never_closes_is_closed() -> None:
    async def main(worker: Worker, requester: Requester) -> None:
        answer = await begun(requester, [1])
        began = now()
        assert (await answer.reader.read()).endswith(b'"sentinel"')
        assert 9 <= now() - began <= 11

    on_a_turned_clock(main)


def test_an_answer_that_its_handler_stopped_is_closed_though_its_router_never_does() -> None:
    async def stops(request: Any, context: Context) -> AsyncIterator[Any]:
        yield 1
        context.stop_generating()

    async def main(worker: Worker, requester: Requester) -> None:
        answer = await begun(requester, None)
        await answer.reader.read()  # the item, and the worker's end of file
        assert list(worker.dialler.open_sockets())
        await asyncio.sleep(9)
        assert list(worker.dialler.open_sockets())
        await asyncio.sleep(2)
        assert not list(worker.dialler.open_sockets())

    on_a_turned_clock(main, stops)
