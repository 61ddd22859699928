"""What a program may do from a thread of its own, at the caller."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from dynamo_fast import AddressedPushRouter, PushRouter, Worker
from dynamo_fast import Context as RequestContext
from dynamo_fast.discovery.memory import MemoryDiscovery
from dynamo_fast.runtime import Context, DistributedRuntime

LIMIT = 30


@pytest.fixture(autouse=True)
def loopback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DYN_FILE_KV", str(tmp_path))
    monkeypatch.setenv("DYN_TCP_RPC_HOST", "127.0.0.1")
    monkeypatch.setenv("DYN_TCP_RESPONSE_STREAM_HOST", "127.0.0.1")
    monkeypatch.setenv("DYNAMO_FAST_LEAVE_DELAY", "0")
    monkeypatch.setenv("DYNAMO_FAST_CANCEL_GRACE", "0.1")


class Patient:
    """Yields an item, waits until its context is stopped, and says how."""

    def __init__(self) -> None:
        self.ended: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    async def __call__(self, request: Any, context: Any) -> AsyncIterator[Any]:
        yield 1
        await context.async_killed_or_stopped()
        await asyncio.sleep(0)
        self.ended.set_result(context.is_killed())


def failure(act: Callable[[], object]) -> BaseException:
    """What `act` raises in a thread."""
    raised: list[BaseException] = []

    def attempt() -> None:
        try:
            act()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join(LIMIT)
    (error,) = raised
    return error


async def test_a_caller_stops_its_answer_from_a_thread() -> None:
    runtime = DistributedRuntime(asyncio.get_running_loop(), "mem", "tcp")
    patient = Patient()
    serving = runtime.endpoint("a.b.c").serve_endpoint(patient)
    client = await runtime.endpoint("a.b.c").client()
    await client.wait_for_instances()
    context = Context()
    stream = await client.round_robin(None, annotated=False, context=context)
    assert await stream.__anext__() == 1
    threading.Timer(0.05, context.stop_generating).start()  # when the loop has nothing to do but to wait
    with pytest.raises(StopAsyncIteration):
        await asyncio.wait_for(stream.__anext__(), LIMIT)
    assert await asyncio.wait_for(patient.ended, LIMIT) is False
    runtime.shutdown()
    await asyncio.wait_for(serving, LIMIT)


@pytest.mark.parametrize("how", ["close", "kill"])
async def test_a_caller_ends_its_answer_from_a_thread(how: str) -> None:
    discovery = MemoryDiscovery()
    worker = await Worker.start(discovery)
    patient = Patient()
    await worker.serve(patient, "a.b.c")
    context = RequestContext()
    async with (
        await AddressedPushRouter.create() as router,
        await PushRouter.create("a.b.c", discovery, router) as calls,
    ):
        stream = await calls.generate(None, context)
        assert (await stream.__anext__()).data() == 1
        threading.Timer(0.05, stream.close if how == "close" else context.kill).start()
        with pytest.raises(StopAsyncIteration):
            await asyncio.wait_for(stream.__anext__(), LIMIT)
        assert await asyncio.wait_for(patient.ended, LIMIT) is True
        assert [entry.in_flight for entry in calls.table] == [0]
        stream.close()
        await asyncio.wait_for(worker.close(), LIMIT)


async def test_another_loop_is_told_that_it_is_another() -> None:
    runtime = DistributedRuntime(asyncio.get_running_loop(), "mem", "tcp")
    patient = Patient()
    serving = runtime.endpoint("a.b.c").serve_endpoint(patient)
    client = await runtime.endpoint("a.b.c").client()
    await client.wait_for_instances()
    stream = await client.round_robin(None, annotated=False)
    assert await stream.__anext__() == 1

    async def call() -> None:
        await client.round_robin(None)

    async def iterate() -> None:
        await stream.__anext__()

    error = failure(lambda: asyncio.run(call()))
    assert isinstance(error, RuntimeError)
    assert "a client is called on the event loop that it was made on" in str(error)
    error = failure(lambda: asyncio.run(iterate()))
    assert isinstance(error, RuntimeError)
    assert "attached to a different loop" in str(error)
    error = failure(lambda: Context().async_killed_or_stopped())
    assert isinstance(error, RuntimeError)
    assert str(error) == "no running event loop"
    stream._stream.close()
    runtime.shutdown()
    await asyncio.wait_for(serving, LIMIT)
