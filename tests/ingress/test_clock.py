"""Every time limit of a worker, on a clock that jumps from timer to timer: hours cost nothing, and none is missed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, cast

import pytest

from dynamo_fast.config import HealthCheckConfig, TcpServerConfig, WorkerConfig
from dynamo_fast.context import Context
from dynamo_fast.discovery.memory import MemoryDiscovery
from dynamo_fast.ingress.clock import clock_of
from dynamo_fast.ingress.worker import Worker
from dynamo_fast.testing import clock
from dynamo_fast.testing.clock import TurnedEventLoop
from tests.ingress.conftest import address_of
from tests.ingress.requester import Requester, control_frame
from tests.ingress.test_push_handler import begun, data_of

LARGE = "x" * 200_000
Test = Callable[[Worker, Requester], Awaitable[None]]


def turned(handler: Any, test: Test, server: TcpServerConfig | None = None, **settings: Any) -> None:
    """Run `test` with a worker that serves `handler`, and a router, on a loop whose clock is turned."""

    async def main() -> None:
        limits = server or TcpServerConfig(host="127.0.0.1")
        worker = await Worker.start(MemoryDiscovery(), WorkerConfig(**settings), limits)
        await worker.serve(handler, "a.b.c")
        async with Requester(address_of(worker)) as requester:
            await test(worker, requester)
        await worker.close()

    clock.run(main())


def now() -> float:
    return asyncio.get_running_loop().time()


async def took(waiting: Coroutine[Any, Any, Any] | asyncio.Future[Any] | asyncio.Task[Any]) -> float:
    """How long `waiting` took, in seconds of the loop's clock."""
    began = now()
    await waiting
    return now() - began


def endless(ended: list[float]) -> Any:
    """A handler that does not look at its context. It notes when it was cancelled."""

    async def handler(request: Any) -> AsyncIterator[Any]:
        yield 1
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(now())

    return handler


def test_a_handler_has_the_grace_period_to_notice_a_stop() -> None:
    ended: list[float] = []

    async def test(worker: Worker, requester: Requester) -> None:
        answer = await begun(requester, None)
        assert await answer.read() is not None
        (served,) = worker.endpoints.values()
        answer.send(control_frame("stop"))
        assert await took(served.handler.drained()) == pytest.approx(3600)
        assert ended == [now()]

    turned(endless(ended), test, cancel_grace=3600)


def test_a_handler_that_swallows_its_cancellation_is_cancelled_again_after_the_grace_period() -> None:
    cancelled: list[float] = []

    async def stubborn(request: Any) -> AsyncIterator[Any]:
        yield 1
        while len(cancelled) < 3:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(now())

    async def test(worker: Worker, requester: Requester) -> None:
        answer = await begun(requester, None)
        assert await answer.read() is not None
        began = now()
        (served,) = worker.endpoints.values()
        answer.send(control_frame("kill"))
        await served.handler.drained()
        assert [each - began for each in cancelled] == pytest.approx([60, 120, 180])

    turned(stubborn, test, cancel_grace=60)


def test_a_router_that_reads_nothing_is_given_up_after_the_stall_timeout() -> None:
    async def handler(request: Any, context: Context) -> AsyncIterator[Any]:
        while not context.is_killed():
            yield LARGE

    async def test(worker: Worker, requester: Requester) -> None:
        answer = await begun(requester, None)
        cast(asyncio.Transport, answer.writer.transport).pause_reading()
        (served,) = worker.endpoints.values()
        assert await took(served.handler.drained()) == pytest.approx(7200)

    turned(handler, test, stall_timeout=7200)


def test_a_router_that_does_not_close_is_closed_after_the_close_timeout() -> None:
    async def handler(request: Any) -> AsyncIterator[Any]:
        yield request

    async def test(worker: Worker, requester: Requester) -> None:
        answer = await begun(requester, 1)
        (served,) = worker.endpoints.values()
        await served.handler.drained()
        assert await took(worker.dialler.all_closed()) == pytest.approx(600)
        assert (await answer.rest()).count(b"sentinel") == 1

    turned(handler, test, close_timeout=600)


def test_both_of_two_calls_of_close_end() -> None:
    async def handler(request: Any) -> AsyncIterator[Any]:
        yield request

    async def test(worker: Worker, requester: Requester) -> None:
        await begun(requester, 1)
        closing = asyncio.gather(worker.close(), worker.close())
        assert await took(asyncio.wait_for(closing, 6000)) == pytest.approx(600, abs=0.5)

    turned(handler, test, close_timeout=600, leave_delay=0)


def test_requests_are_taken_for_the_leave_delay() -> None:
    async def handler(request: Any) -> AsyncIterator[Any]:
        yield request

    async def test(worker: Worker, requester: Requester) -> None:
        closing = asyncio.ensure_future(worker.close())
        while await worker.discovery.list():
            await asyncio.sleep(0)
        assert await data_of(await begun(requester, [1])) == [[1]]
        assert await took(closing) == pytest.approx(1800)

    turned(handler, test, leave_delay=1800, close_timeout=1)


def test_a_shutdown_waits_for_its_timeout_and_then_cancels() -> None:
    ended: list[float] = []

    async def test(worker: Worker, requester: Requester) -> None:
        answer = await begun(requester, None)
        assert await answer.read() is not None
        began = now()
        (served,) = worker.endpoints.values()
        closing = asyncio.ensure_future(worker.close())
        await served.handler.drained()
        error, _ = await answer.items()
        assert error["data"]["error"]["reason"] == "backend.engine_shutdown"
        await closing
        assert [each - began for each in ended] == pytest.approx([900])

    turned(endless(ended), test, shutdown_timeout=900, leave_delay=0)


def test_the_wait_of_a_queued_request_is_counted() -> None:
    async def handler(request: Any) -> AsyncIterator[Any]:
        await asyncio.sleep(4)
        yield request

    async def test(worker: Worker, requester: Requester) -> None:
        first = await requester.call(1)
        requester.send(requester.control(), b"2")
        assert await requester.ack() == ""
        assert worker.admission.queued == 1
        await first.read()
        await data_of(first)
        second = await requester.dialled()
        await second.read()
        assert await data_of(second) == [2]
        assert worker.admission.wait.count == 1
        assert worker.admission.wait.sum == pytest.approx(4, abs=0.5)

    turned(handler, test, TcpServerConfig(host="127.0.0.1", worker_pool_size=1))


@pytest.mark.parametrize("answers", [True, False])
def test_the_canary_asks_a_silent_endpoint_and_waits_for_its_answer(
    answers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    async def engine(request: Any) -> AsyncIterator[Any]:
        asked.append(now())
        if not answers:
            await asyncio.Event().wait()
        yield 1

    config = HealthCheckConfig(enabled=True, canary_wait_time=1000, request_timeout=100)
    monkeypatch.setattr(HealthCheckConfig, "from_env", lambda: config)

    async def test(worker: Worker, requester: Requester) -> None:
        began = now()
        served = await worker.serve(engine, "x.y.z", health_check_payload={})
        await asyncio.sleep(999)
        assert (asked, served.ready) == ([], False)
        await asyncio.sleep(2)
        assert served.ready == answers
        await asyncio.sleep(1100)
        period = 1000 if answers else 1100
        assert [each - began for each in asked] == pytest.approx([1000, 1000 + period])

    turned(engine, test, leave_delay=0)


def test_the_age_of_corked_items_is_that_of_the_loops_clock() -> None:
    turns: list[str] = []

    async def handler(request: Any) -> AsyncIterator[Any]:
        loop = cast(TurnedEventLoop, asyncio.get_running_loop())
        yield "first"
        loop.call_soon(turns.append, "a turn")
        yield "young"  # the loop gets no turn, however slow this machine is
        turns.append("an item of the same turn")
        loop._now += 0.002
        yield "old"  # written, and the loop gets a turn
        turns.append("the next")

    async def test(worker: Worker, requester: Requester) -> None:
        assert await data_of(await begun(requester, None)) == ["first", "young", "old"]
        assert turns == ["an item of the same turn", "a turn", "the next"]

    turned(handler, test)


async def test_the_clock_of_a_loop_without_one_of_its_own_is_the_monotonic_clock() -> None:
    assert clock_of(asyncio.get_running_loop()) is time.monotonic


def test_a_turned_clock_is_the_clock() -> None:
    async def main() -> None:
        own = clock_of(asyncio.get_running_loop())
        before = own()
        await asyncio.sleep(5)
        assert own() - before == pytest.approx(5)

    clock.run(main())
