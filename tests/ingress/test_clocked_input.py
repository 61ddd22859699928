"""The input of a bidirectional request, from our router to our worker, on a turned clock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from dynamo_fast import AddressedPushRouter, AddressedRequest, Context, ManyIn, Worker
from dynamo_fast.config import TcpServerConfig, WorkerConfig
from dynamo_fast.discovery.memory import MemoryDiscovery
from dynamo_fast.testing import clock
from tests.egress.conftest import make_router
from tests.ingress.conftest import ENDPOINT, address_of

HOUR = 3600.0


def on_a_turned_clock(main: Callable[[AddressedPushRouter, str], Awaitable[None]], handler: Any) -> None:
    """Run `main` with a router and the address of a worker that serves `handler`."""

    async def run() -> None:
        config = WorkerConfig(leave_delay=0.0)
        worker = await Worker.start(MemoryDiscovery(), config, TcpServerConfig(host="127.0.0.1"))
        await worker.serve(handler, ENDPOINT, bidirectional=True)
        async with await make_router() as router:
            await main(router, address_of(worker))
            assert router.metrics.inflight == 0
        await worker.close()

    clock.run(run())


def test_a_slow_handler_stops_its_input() -> None:
    taken = 0
    gate = asyncio.Event()

    async def source() -> AsyncIterator[str]:
        nonlocal taken
        for _ in range(2000):
            taken += 1
            yield "x" * 64_000

    async def handler(requests: Any) -> AsyncIterator[Any]:
        await gate.wait()
        yield sum([len(each) async for each in requests])

    async def main(router: AddressedPushRouter, address: str) -> None:
        answer = await router.generate(AddressedRequest(ManyIn(source()), address))
        await asyncio.sleep(10)  # which pass when nothing moves any more
        assert taken < 1000
        gate.set()
        assert [item.data() async for item in answer] == [2000 * 64_000]

    on_a_turned_clock(main, handler)


def test_what_an_input_raises_in_the_middle_of_an_answer_is_the_callers_to_hear() -> None:
    begun = asyncio.Event()

    async def source() -> AsyncIterator[int]:
        yield 1
        await begun.wait()
        raise LookupError("no more input")

    async def handler(requests: Any, context: Context) -> AsyncIterator[Any]:
        async for each in requests:
            yield each

    async def main(router: AddressedPushRouter, address: str) -> None:
        answer = await router.generate(AddressedRequest(ManyIn(source()), address))
        assert (await answer.__anext__()).data() == 1
        begun.set()
        with pytest.raises(LookupError, match="no more input"):
            await asyncio.wait_for(answer.__anext__(), HOUR)

    on_a_turned_clock(main, handler)
