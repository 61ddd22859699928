"""Who a cancellation is for: the handler, wherever its request's task waits. And what a handler ends by itself."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, cast

import pytest

from dynamo_fast.context import Context
from dynamo_fast.ingress.answer import Batch
from dynamo_fast.runtime.decorators import dynamo_endpoint
from tests.garbage import no_garbage
from tests.ingress.conftest import Start, address_of
from tests.ingress.requester import PATIENCE, Answer, Requester
from tests.waiting import until

LARGE = "x" * 200_000

needs_groups = pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.timeout and TaskGroup need Python 3.11")
aio: Any = asyncio  # for what mypy does not know, as it checks for Python 3.10


async def begun(requester: Requester) -> Answer:
    answer = await requester.call(None)
    prologue = await answer.read()
    assert prologue is not None
    assert prologue.header == {"error": None}
    return answer


async def unread_until(ended: asyncio.Event, requester: Requester) -> list[Any]:
    """The small items of an answer that is not read before `ended`: its handler is suspended at a yield until then."""
    answer = await begun(requester)
    transport = cast(asyncio.Transport, answer.writer.transport)
    transport.pause_reading()
    await asyncio.wait_for(ended.wait(), PATIENCE)
    transport.resume_reading()
    return [each for each in await answer.items() if each.get("data") != {"data": LARGE}]


class OneOff:
    """An engine's timeout around its yields: `how` it says so."""

    def __init__(self, how: str) -> None:
        self.how = how
        self.ended = asyncio.Event()

    async def __call__(self, request: Any) -> AsyncIterator[Any]:
        try:
            async with aio.timeout(0.1):
                while True:
                    yield LARGE
        except asyncio.TimeoutError:
            self.ended.set()
            if self.how == "raises":
                raise
            if self.how == "yields":
                yield "partial"
                yield Batch(["and", "more"])


@needs_groups
@pytest.mark.parametrize("how", ["yields", "raises", "ends"])
@pytest.mark.parametrize("wrap", [lambda handler: handler, dynamo_endpoint(Any, Any)], ids=["bare", "dynamo_endpoint"])
async def test_a_timeout_around_a_yield_is_a_timeout_though_the_router_does_not_read(
    start: Start, how: str, wrap: Callable[[Any], Any]
) -> None:
    handler = OneOff(how)
    async with Requester(address_of(await start(wrap(handler)))) as requester:
        *items, final = await unread_until(handler.ended, requester)
    assert final == {"complete_final": True}
    if how == "raises":
        (error,) = items
        assert error["data"]["error"]["message"] == "TimeoutError: "
    else:
        expected = ["partial", "and", "more"] if how == "yields" else []
        assert [each["data"]["data"] for each in items] == expected


@needs_groups
async def test_the_error_of_a_task_of_the_handler_is_the_handlers(start: Start) -> None:
    ended = asyncio.Event()

    async def fail() -> None:
        await until(lambda: worker.dialler.stalled)  # the handler is suspended at its yield
        raise ValueError("the true error")

    async def handler(request: Any) -> AsyncIterator[Any]:
        try:
            async with aio.TaskGroup() as group:
                group.create_task(fail())
                while True:
                    yield LARGE
        except Exception as error:
            ended.set()
            raise error.exceptions[0] from None  # type: ignore[attr-defined]  # an ExceptionGroup

    worker = await start(handler)
    async with Requester(address_of(worker)) as requester:
        error, final = await unread_until(ended, requester)
    assert error["data"]["error"]["message"] == "ValueError: the true error"
    assert final == {"complete_final": True}


@needs_groups
async def test_a_task_group_that_is_closed_at_its_yield_is_no_error_of_the_loop(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    """It raises a BaseExceptionGroup then, with the GeneratorExit inside."""

    async def fail() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError("in its end")

    async def handler(request: Any) -> AsyncIterator[Any]:
        async with aio.TaskGroup() as group:
            group.create_task(fail())
            await asyncio.sleep(0)
            yield object()  # which cannot be sent

    async with Requester(address_of(await start(handler))) as requester:
        answer = await begun(requester)
        assert len(await answer.items()) == 2
    assert "a handler did not end cleanly" in caplog.text
    assert "asyncio" not in {record.name for record in caplog.records if record.levelno >= logging.ERROR}


async def test_an_iterator_that_is_no_generator_ends_by_a_cancellation(start: Start) -> None:
    ended = asyncio.Event()

    class Items:
        def __aiter__(self) -> Items:
            return self

        async def __anext__(self) -> str:
            task = asyncio.current_task()
            assert task is not None
            asyncio.get_running_loop().call_later(0.05, self.cancel, task)
            return LARGE

        def cancel(self, task: asyncio.Task[Any]) -> None:
            task.cancel()
            ended.set()

    async with Requester(address_of(await start(lambda request: Items()))) as requester:
        error, final = await unread_until(ended, requester)
    assert error["data"]["error"]["reason"] == "backend.cancelled"
    assert final == {"complete_final": True}


@needs_groups
async def test_a_cancellation_that_was_handed_on_leaves_nothing_for_the_garbage_collector(start: Start) -> None:
    handler = OneOff("raises")
    worker = await start(handler)
    (served,) = worker.endpoints.values()
    async with Requester(address_of(worker)) as requester:
        with no_garbage():
            await unread_until(handler.ended, requester)
            await asyncio.wait_for(served.handler.drained(), PATIENCE)


async def test_a_shutdown_past_its_deadline_reaches_a_handler_whose_router_does_not_read(start: Start) -> None:
    ended = asyncio.Event()

    async def handler(request: Any) -> AsyncIterator[Any]:
        try:
            while True:
                yield LARGE
        except asyncio.CancelledError:
            ended.set()
            raise

    worker = await start(handler, shutdown_timeout=0.05)
    async with Requester(address_of(worker)) as requester:
        answer = asyncio.ensure_future(unread_until(ended, requester))
        (served,) = worker.endpoints.values()
        while not served.handler.items_sent:
            await asyncio.sleep(0)
        closing = asyncio.ensure_future(worker.close())
        error, final = await answer
        assert error["data"]["error"]["reason"] == "backend.engine_shutdown"
        assert final == {"complete_final": True}
        await asyncio.wait_for(closing, PATIENCE)


# A handler that stops its own context


class SelfMade:
    """A handler that ends its own answer by `stop`, a method of its context, and goes on in one of several ways."""

    def __init__(self, stop: Callable[[Context], None], goes_on: str) -> None:
        self.stop = stop
        self.goes_on = goes_on

    async def __call__(self, request: Any, context: Context) -> AsyncIterator[Any]:
        if self.goes_on == "batch":
            yield Batch(self.batch(context))
            return
        yield 1
        yield {"two": 2}
        yield {"_dynamo_annotated": True, "data": 3}
        self.stop(context)
        if self.goes_on == "yields":
            yield 4
        elif self.goes_on == "raises":
            raise ValueError("after its end")
        elif self.goes_on == "waits":
            await asyncio.Event().wait()

    def batch(self, context: Context) -> Iterator[Any]:
        yield from (1, {"two": 2}, {"_dynamo_annotated": True, "data": 3})
        self.stop(context)
        yield 4


def in_a_thread(context: Context) -> None:
    thread = threading.Thread(target=context.stop_generating)
    thread.start()
    thread.join()


@pytest.mark.parametrize("goes_on", ["yields", "raises", "returns", "waits", "batch"])
@pytest.mark.parametrize("stop", [Context.stop_generating, Context.kill], ids=["stop", "kill"])
async def test_what_a_handler_yielded_before_it_stopped_its_own_context_is_delivered(
    start: Start, stop: Callable[[Context], None], goes_on: str
) -> None:
    async with Requester(address_of(await start(SelfMade(stop, goes_on)))) as requester:
        answer = await begun(requester)
        items = [await answer.read() for _ in range(3)]
        assert [each and each.item["data"]["data"] for each in items] == [1, {"two": 2}, 3]
        assert await answer.read() is None  # an end of file, without a sentinel and without a reset


async def test_a_router_that_does_not_read_the_rest_of_a_stopped_answer_is_given_up(start: Start) -> None:
    async def handler(request: Any, context: Context) -> AsyncIterator[Any]:
        while not context.is_stopped():
            yield LARGE

    worker = await start(handler, close_timeout=0.1)  # which is that of a finished answer, too
    async with Requester(address_of(worker)) as requester:
        answer = await begun(requester)
        cast(asyncio.Transport, answer.writer.transport).pause_reading()
        (served,) = worker.endpoints.values()
        (request,) = served.handler._running
        while not request.stream.corked.paused:
            await asyncio.sleep(0)
        request.context.stop_generating()
        await asyncio.wait_for(served.handler.drained(), PATIENCE)
        await asyncio.wait_for(worker.dialler.all_closed(), PATIENCE)


# From an engine's thread


@pytest.mark.parametrize("kill", [False, True])
async def test_a_context_that_is_stopped_from_a_thread_wakes_its_handler(start: Start, kill: bool) -> None:
    woken: asyncio.Future[tuple[bool, bool, bool]] = asyncio.get_running_loop().create_future()

    async def handler(request: Any, context: Context) -> AsyncIterator[Any]:
        yield 1
        seen: list[bool] = []

        def engine() -> None:
            (context.kill if kill else context.stop_generating)()
            seen.append(context.is_stopped())

        thread = threading.Thread(target=engine)
        thread.start()
        await context.async_killed_or_stopped()
        thread.join()
        woken.set_result((seen[0], context.is_stopped(), context.is_killed()))
        await asyncio.Event().wait()  # it is cancelled

    async with Requester(address_of(await start(handler))) as requester:
        answer = await begun(requester)
        first = await answer.read()
        assert first is not None
        assert await asyncio.wait_for(woken, PATIENCE) == (True, True, kill)
        assert await answer.read() is None


async def test_a_stop_from_a_thread_keeps_what_was_yielded(start: Start) -> None:
    async with Requester(address_of(await start(SelfMade(in_a_thread, "waits")))) as requester:
        answer = await begun(requester)
        for _ in range(3):
            assert await answer.read() is not None
        assert await answer.read() is None
