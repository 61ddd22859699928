"""Consumers as people write them: cancelled while they wait, and gone; or polling, and back at once."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import socket
import sys
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from dynamo_fast import AddressedPushRouter, AddressedRequest, PushRouter, Worker
from dynamo_fast.config import PushRouterConfig, ResponseServerConfig, TcpServerConfig, WorkerConfig
from dynamo_fast.discovery.memory import MemoryDiscovery
from dynamo_fast.errors import Cancelled
from dynamo_fast.runtime import Client, DistributedRuntime
from dynamo_fast.testing import clock
from tests.egress.conftest import make_router
from tests.waiting import happens_after, until

ENDPOINT = "demo.backend.generate"
PATIENCE = 2.0


class World:
    """A worker whose handler yields what a test puts into `items`, and an answer of it."""

    def __init__(self) -> None:
        self.items: asyncio.Queue[int] = asyncio.Queue()
        self.ended = False
        self.stream: Any = None
        self.workers: PushRouter | None = None
        self.router: AddressedPushRouter

    async def handler(self, request: Any) -> AsyncIterator[int]:
        try:
            while True:
                yield await self.items.get()
        finally:
            self.ended = True

    @property
    def inflight(self) -> int:
        """Of the router, and of its choice of a worker."""
        chosen = [] if self.workers is None else [entry.in_flight for entry in self.workers.table]
        return self.router.metrics.inflight + sum(chosen)


@contextlib.asynccontextmanager
async def world(kind: str, patience: float = PATIENCE) -> AsyncIterator[World]:
    found, discovery = World(), MemoryDiscovery()
    config = WorkerConfig(leave_delay=0.0, cancel_grace=0.1)
    async with (
        await Worker.start(discovery, config, TcpServerConfig(host="127.0.0.1")) as worker,
        await make_router(ResponseServerConfig(host="127.0.0.1", abandoned_after=patience)) as found.router,
    ):
        served = await worker.serve(found.handler, ENDPOINT)
        if kind == "addressed":
            found.stream = await found.router.generate(AddressedRequest.for_instance(None, served.instance))
        else:
            found.workers = await PushRouter.create(ENDPOINT, discovery, found.router, config=PushRouterConfig())
            found.stream = await found.workers.generate(None)
        yield found
        if found.workers is not None:
            found.workers.close()


async def waiting(stream: Any) -> asyncio.Task[Any]:
    """A task that waits for the next item."""
    task = asyncio.ensure_future(_next(stream))
    await clock.settle()
    return task


async def _next(stream: Any) -> Any:
    return (await stream.__anext__()).data()


async def cancelled(stream: Any) -> BaseException:
    """What the cancelled task has raised: its traceback holds the stream, as a web framework's does."""
    task = await waiting(stream)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError as error:
        return error
    raise AssertionError("the wait was not cancelled")


@pytest.fixture(autouse=True)
def no_collection() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


def on_a_turned_clock(kind: str, main: Callable[[World], Any], patience: float = PATIENCE) -> None:
    async def run() -> None:
        async with world(kind, patience) as found:
            await main(found)

    clock.run(run())


@pytest.mark.parametrize("kind", ["addressed", "routed"])
def test_a_stream_whose_wait_was_cancelled_is_closed(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    async def main(found: World) -> None:
        held = await cancelled(found.stream)
        await happens_after(PATIENCE, lambda: not found.inflight)
        await clock.advance(1)
        assert found.ended
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert "is abandoned: the wait for its next item was cancelled" in record.getMessage()
        with pytest.raises(Cancelled, match=r"2 s later nothing had asked .* \(DYNAMO_FAST_ABANDONED_AFTER\)"):
            await found.stream.__anext__()
        with pytest.raises(StopAsyncIteration):
            await found.stream.__anext__()
        assert held is not None

    with caplog.at_level(logging.WARNING, "dynamo_fast.egress"):
        on_a_turned_clock(kind, main)


def test_the_error_of_an_abandoned_stream_leaves_no_garbage() -> None:
    async def main(found: World) -> None:
        await cancelled(found.stream)
        await happens_after(PATIENCE, lambda: not found.inflight)
        with pytest.raises(Cancelled) as caught:
            await found.stream.__anext__()
        kept = weakref.ref(found.stream)
        del caught
        found.stream = None
        assert kept() is None

    on_a_turned_clock("addressed", main)


@pytest.mark.parametrize("kind", ["addressed", "routed"])
def test_a_consumer_that_polls_loses_nothing(kind: str) -> None:
    async def main(found: World) -> None:
        for number in range(5):
            for _ in range(50):
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(_next(found.stream), 0.05)
            found.items.put_nowait(number)
            assert await asyncio.wait_for(_next(found.stream), 0.05) == number
        found.stream.close()
        await clock.settle()
        assert not found.inflight

    on_a_turned_clock(kind, main)


@pytest.mark.parametrize("kind", ["addressed", "routed"])
def test_the_time_counts_from_the_last_cancelled_wait(kind: str) -> None:
    async def main(found: World) -> None:
        await cancelled(found.stream)
        await clock.advance(PATIENCE - 0.5)
        await cancelled(found.stream)
        await happens_after(PATIENCE, lambda: not found.inflight)

    on_a_turned_clock(kind, main)


@pytest.mark.parametrize("kind", ["addressed", "routed"])
def test_a_consumer_that_has_asked_again_may_take_its_time(kind: str) -> None:
    async def main(found: World) -> None:
        await cancelled(found.stream)
        found.items.put_nowait(1)
        assert await _next(found.stream) == 1
        await clock.advance(3600)
        found.items.put_nowait(2)
        assert await _next(found.stream) == 2
        waits = await waiting(found.stream)
        await clock.advance(3600)
        found.items.put_nowait(3)
        assert await waits == 3
        found.stream.close()

    on_a_turned_clock(kind, main)


def test_without_a_limit_a_stream_stays_open() -> None:
    async def main(found: World) -> None:
        held = await cancelled(found.stream)
        await clock.advance(3600)
        found.items.put_nowait(1)
        assert await _next(found.stream) == 1
        found.stream.close()
        assert held is not None

    on_a_turned_clock("routed", main, patience=0)


@pytest.mark.parametrize("kind", ["addressed", "routed"])
def test_a_stream_that_is_dropped_after_the_cancellation_is_closed_at_once(kind: str) -> None:
    async def main(found: World) -> None:
        await cancelled(found.stream)
        stream, found.stream = sys.getrefcount(found.stream), None
        assert stream < 10
        await clock.settle()
        assert not found.inflight

    on_a_turned_clock(kind, main)


async def test_the_drop_ins_streams_are_closed_too(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in {
        "DYN_FILE_KV": str(tmp_path),
        "DYN_TCP_RPC_HOST": "127.0.0.1",
        "DYN_TCP_RESPONSE_STREAM_HOST": "127.0.0.1",
        "DYNAMO_FAST_LEAVE_DELAY": "0",
        "DYNAMO_FAST_ABANDONED_AFTER": "1",
    }.items():
        monkeypatch.setenv(name, value)
    found = World()
    runtime = DistributedRuntime(asyncio.get_running_loop(), "file", "tcp")
    endpoint = runtime.endpoint(ENDPOINT)
    serving = endpoint.serve_endpoint(found.handler)
    client: Client = await endpoint.client()
    await client.wait_for_instances()
    stream = await client.round_robin(None)
    for number in range(3):
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(stream.__anext__(), 0.01)
        found.items.put_nowait(number)
        assert (await stream.__anext__()).data() == number
    wait = asyncio.ensure_future(_next(stream))
    await asyncio.sleep(0)
    wait.cancel()
    await until(lambda: found.ended)
    with pytest.raises(Exception, match="nothing had asked for an item again"):
        await stream.__anext__()
    assert [record.levelno for record in caplog.records if "is abandoned" in record.getMessage()] == [logging.WARNING]
    runtime.shutdown()
    await serving


async def test_a_client_of_starlette_that_leaves_ends_its_request() -> None:
    """The real framework, without `async with`: it cancels its task inside `__anext__`."""
    uvicorn = pytest.importorskip("uvicorn", reason="uvicorn is not installed")
    responses = pytest.importorskip("starlette.responses", reason="starlette is not installed")
    found, discovery = World(), MemoryDiscovery()
    config = WorkerConfig(leave_delay=0.0, cancel_grace=0.1)
    worker = await Worker.start(discovery, config, TcpServerConfig(host="127.0.0.1"))
    await worker.serve(found.handler, ENDPOINT)
    async with await make_router(ResponseServerConfig(host="127.0.0.1", abandoned_after=0.1)) as found.router:
        found.workers = await PushRouter.create(ENDPOINT, discovery, found.router, config=PushRouterConfig())

        async def lines() -> AsyncIterator[str]:
            assert found.workers is not None
            async for item in await found.workers.generate(None):
                yield f"{item.data()}\n"

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await responses.StreamingResponse(lines())(scope, receive, send)

        server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None))
        listener = socket.create_server(("127.0.0.1", 0))
        serving = asyncio.ensure_future(server._serve([listener]))  # as `serve`, without its signal handlers
        await until(lambda: server.started)
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        found.items.put_nowait(1)
        await asyncio.wait_for(reader.readuntil(b"1\n"), 20)
        assert found.inflight
        writer.close()
        await until(lambda: found.ended and not found.inflight)
        server.should_exit = True
        await serving
        found.workers.close()
    await worker.close()
