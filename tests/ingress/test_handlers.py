"""Handlers as people write them: what is served, in which form, and what is refused before its first request."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Iterator
from typing import Any

import pytest

from dynamo_fast import AddressedRequest, Context, Worker
from dynamo_fast.config import TcpServerConfig, WorkerConfig
from dynamo_fast.discovery.memory import MemoryDiscovery
from dynamo_fast.egress.response_stream import ResponseStream
from dynamo_fast.errors import RemoteError
from dynamo_fast.ingress.handlers import adapted
from dynamo_fast.ingress.threaded import Threaded, Threads
from dynamo_fast.observability.current import current_request
from tests.egress.conftest import SERVER, make_router
from tests.ingress.conftest import Start
from tests.waiting import LIMIT, until


@contextlib.asynccontextmanager
async def stream(worker: Worker, request: Any = 3) -> AsyncIterator[ResponseStream[Any]]:
    (served,) = worker.endpoints.values()
    async with await make_router(SERVER) as router:
        call = router.generate(AddressedRequest.for_instance(request, served.instance))
        async with await asyncio.wait_for(call, LIMIT) as made:
            yield made


async def answer(worker: Worker, request: Any = 3) -> list[Any]:
    async with stream(worker, request) as made:
        return [item.data() async for item in made]


# Handlers of each form


async def stream_of(request: int) -> AsyncIterator[int]:
    for number in range(request):
        yield number


async def one(request: int, context: Context) -> dict[str, Any]:
    return {"n": request, "id": context.id()}


async def nothing(request: int) -> None:
    return None


def in_thread(request: int, context: Context) -> Iterator[Any]:
    yield from range(request)
    yield threading.current_thread() is threading.main_thread()


def returns_stream(request: int) -> AsyncIterator[int]:
    return stream_of(request)


def returns_generator(request: int) -> Iterator[Any]:
    return in_thread(request, Context())


def returns_coroutine(request: int) -> Awaitable[Any]:
    return nothing(request)


class Stream:
    """A class whose objects are async iterators."""

    def __init__(self, request: int) -> None:
        self.left = request

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> int:
        if not self.left:
            raise StopAsyncIteration
        self.left -= 1
        return self.left


class Iterable:
    def __init__(self, request: int) -> None:
        self.request = request

    def __aiter__(self) -> AsyncIterator[int]:
        return stream_of(self.request)


class Engine:
    async def generate(self, request: int) -> AsyncIterator[int]:
        async for item in stream_of(request):
            yield item

    async def once(self, request: int) -> int:
        return request

    def __call__(self, request: int) -> Iterator[int]:
        yield from range(request)


@functools.wraps(stream_of)
def decorated(*arguments: Any, **named: Any) -> Any:
    return stream_of(*arguments, **named)


def two(first: int, request: int) -> Iterator[int]:
    yield first
    yield request


@pytest.mark.parametrize(
    ("handler", "items"),
    [
        (stream_of, [0, 1, 2]),
        (nothing, [None]),
        (in_thread, [0, 1, 2, False]),
        (returns_stream, [0, 1, 2]),
        (returns_generator, [0, 1, 2, False]),
        (returns_coroutine, [None]),
        (Stream, [2, 1, 0]),
        (Iterable, [0, 1, 2]),
        (Engine().generate, [0, 1, 2]),
        (Engine().once, [3]),
        (Engine(), [0, 1, 2]),
        (decorated, [0, 1, 2]),
        (lambda request: stream_of(request + 1), [0, 1, 2, 3]),
        (functools.partial(two, 7), [7, 3]),
    ],
)
async def test_each_form_is_answered(start: Start, handler: Any, items: list[Any]) -> None:
    assert await answer(await start(handler)) == items


async def test_a_coroutine_gets_the_context(start: Start) -> None:
    (item,) = await answer(await start(one))
    assert item["n"] == 3
    assert len(item["id"]) == 36


def test_what_is_called_already_stays_as_it_is() -> None:
    assert adapted(stream_of, 1) is stream_of
    generate = Engine().generate
    assert adapted(generate, 1) is generate


def plain(request: Any) -> dict[str, int]:
    return {"n": 1}


def without_annotation(request):  # type: ignore[no-untyped-def]
    return stream_of(request)


class Plain:
    def __call__(self, request: Any) -> str:
        return ""


@pytest.mark.parametrize(
    ("handler", "text"),
    [
        (None, "'NoneType' object is no handler: it cannot be called"),
        (3, "'int' object is no handler"),
        (stream_of(1), "'async_generator' object is no handler"),
        (plain, "the handler plain is a plain function: write it as"),
        (without_annotation, "says so in its annotation, `-> AsyncIterator"),
        (Plain(), "Plain.__call__ is a plain function"),
        (Plain, "the handler Plain is a class whose objects are no async iterators"),
    ],
)
async def test_what_is_no_handler_is_refused_when_it_is_served(handler: Any, text: str) -> None:
    discovery = MemoryDiscovery()
    async with await Worker.start(discovery, None, TcpServerConfig(host="127.0.0.1")) as worker:
        with pytest.raises(TypeError) as caught:
            await worker.serve(handler, "a.b.c")
        assert text in str(caught.value)
        assert not worker.endpoints
        assert await discovery.list() == []


async def test_a_generator_in_a_thread_cannot_be_bidirectional(start: Start) -> None:
    with pytest.raises(TypeError, match="the handler in_thread runs in a thread, where it cannot take"):
        await start(in_thread, bidirectional=True)


async def test_what_a_callable_returns_is_said_if_it_is_nothing_to_send(start: Start) -> None:
    with pytest.raises(Exception, match="TypeError: the handler returned a str, which is neither"):
        await answer(await start(repr))


async def test_push_handlers_may_be_coroutines(start: Start) -> None:
    async def push(request: Any, context: Context, response_sender: Any) -> None:
        for number in range(request):
            response_sender.send(number)

    assert await answer(await start(push)) == [0, 1, 2]


async def test_the_log_names_the_handler_as_it_is_written(start: Start, logged: pytest.LogCaptureFixture) -> None:
    async def fails(request: Any) -> None:
        raise ValueError("no")

    worker = await start(fails)
    (served,) = worker.endpoints.values()
    assert served.handler.handler_name.endswith("fails")
    with pytest.raises(RemoteError, match="ValueError: no"):
        await answer(worker)


# In a thread


async def test_what_a_generator_raises_goes_to_the_caller(start: Start) -> None:
    def fails(request: Any) -> Iterator[int]:
        yield 1
        raise ValueError("no")

    async with stream(await start(fails)) as made:
        assert (await made.__anext__()).data() == 1
        with pytest.raises(RemoteError, match="ValueError: no"):
            await made.__anext__()


async def test_a_thread_that_cannot_be_started_is_an_error_and_gives_its_place_back(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    worker = await start(in_thread, handler_threads=1)
    for _ in range(2):
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", refuse)
            with pytest.raises(RemoteError, match="can't start new thread"):
                await asyncio.wait_for(answer(worker), LIMIT)
    assert await asyncio.wait_for(answer(worker), LIMIT) == [0, 1, 2, False]


async def test_a_generator_cannot_pretend_to_be_complete(start: Start) -> None:
    def generator(request: Any) -> Iterator[int]:
        yield 1
        raise StopAsyncIteration

    with pytest.raises(RemoteError, match="the generator raised StopAsyncIteration"):
        await answer(await start(generator))


async def test_a_generator_in_a_thread_knows_its_request(start: Start) -> None:
    tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="")

    def handler(request: Any, context: Context) -> Iterator[bool]:
        yield current_request.get() is context
        tenant.set("a")
        yield tenant.get() == "a"

    assert await answer(await start(handler)) == [True, True]


async def test_a_slow_router_holds_the_generator_back(start: Start) -> None:
    """Its caller takes nothing: the generator makes what the sockets and buffers hold, and waits at a `yield`."""
    ahead: list[Threaded] = []
    made = 0

    def endless(request: Any) -> Iterator[bytes]:
        nonlocal made
        while True:
            made += 1
            yield b"x" * 100_000

    def handler(request: Any) -> AsyncIterator[Any]:
        ahead.append(Threaded(lambda: endless(request), Threads(1)))
        return ahead[0]

    async with stream(await start(handler)) as answer:
        await until(lambda: ahead and len(ahead[0]._items) == 16)
        assert made < 2000
        await answer.__anext__()


async def test_the_generator_is_closed_when_the_caller_leaves(start: Start) -> None:
    closed = threading.Event()
    thread: list[threading.Thread] = []

    def endless(request: Any) -> Iterator[int]:
        thread.append(threading.current_thread())
        try:
            while True:
                yield 1
        finally:
            assert threading.current_thread() is thread[0]
            closed.set()

    worker = await start(endless)
    async with stream(worker) as made:
        await made.__anext__()
        made.close()
        await until(closed.is_set)
        await until(lambda: not thread[0].is_alive())
        await until(lambda: worker.admission.running == 0)


async def test_a_generator_may_ask_whether_it_is_still_wanted(start: Start) -> None:
    ended, pause = threading.Event(), threading.Event()

    def patient(request: Any, context: Context) -> Iterator[int]:
        yield 1
        while not context.is_stopped():
            pause.wait(0.001)
        ended.set()

    async with stream(await start(patient)) as made:
        await made.__anext__()
        made.close()
        await until(ended.is_set)


async def test_further_requests_wait_for_a_thread(start: Start) -> None:
    go = threading.Event()
    begun: list[int] = []

    def held(request: Any) -> Iterator[int]:
        begun.append(request)
        assert go.wait(LIMIT)
        yield request

    worker = await start(held, handler_threads=2)
    answers = [asyncio.ensure_future(answer(worker, number)) for number in range(5)]
    await until(lambda: len(begun) == 2 and worker.admission.running == 5)
    go.set()
    assert await asyncio.gather(*answers) == [[0], [1], [2], [3], [4]]


async def test_a_request_that_waits_for_a_thread_may_be_cancelled(start: Start) -> None:
    go = threading.Event()

    def held(request: Any) -> Iterator[int]:
        assert go.wait(LIMIT)
        yield request

    worker = await start(held, handler_threads=1)
    first = asyncio.ensure_future(answer(worker, 1))
    await until(lambda: worker.admission.running == 1)
    async with stream(worker, 2) as second:
        second.close()
        await until(lambda: worker.admission.running == 1)
    go.set()
    assert await first == [1]


async def test_leaving_waits_for_a_generator_that_blocks_only_so_long(
    tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    go = threading.Event()

    def stuck(request: Any) -> Iterator[int]:
        yield 1
        assert go.wait(LIMIT)

    config = WorkerConfig(leave_delay=0.0, cancel_grace=0.05, connect_timeout=0.1, shutdown_timeout=0.05)
    worker = await Worker.start(MemoryDiscovery(), config, TcpServerConfig(host="127.0.0.1"))
    await worker.serve(stuck, "a.b.c")
    async with stream(worker) as made:
        await made.__anext__()
        with caplog.at_level(logging.WARNING):
            await asyncio.wait_for(worker.close(), LIMIT)
        assert "did not end in time" in caplog.text
        go.set()
        await until(lambda: not any(each.name == "dynamo-fast-handler" for each in threading.enumerate()))


async def test_the_end_of_the_block_closes_the_worker() -> None:
    async with await Worker.start(MemoryDiscovery(), None, TcpServerConfig(host="127.0.0.1")) as worker:
        await worker.serve(stream_of, "a.b.c")
        assert await answer(worker) == [0, 1, 2]
    assert not worker.endpoints
    assert isinstance(worker, Worker)
