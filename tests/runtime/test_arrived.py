"""The futures of a stream's items: what asyncio and its users can do with one that has arrived, and with one that waits."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from dynamo_fast.egress._frames import Frames as Queue
from dynamo_fast.egress._items import Items
from dynamo_fast.runtime import Context, DistributedRuntime, _arrived
from dynamo_fast.runtime.client import AsyncResponseStream
from dynamo_fast.wire.payload import PayloadCodec
from tests.interpreted import interpreted
from tests.waiting import LIMIT

BOTH = pytest.mark.parametrize("module", [_arrived, interpreted(_arrived)], ids=["imported", "interpreted"])


class Frames:
    """What `Items` asks of a receiver whose frames have come."""

    def __init__(self, values: list[Any]) -> None:
        self.frames = Queue()
        self.frames.extend([PayloadCodec.JSON.encode_item(value) for value in values])
        self.ended = False


def futures(module: Any, *values: Any) -> Iterator[Any]:
    """The futures of the data of items that are there already."""
    items = Items(Frames(list(values)), PayloadCodec.JSON.items)  # type: ignore[arg-type]
    items._bare = True
    stream = module.FutureItems(items, asyncio.get_running_loop())
    return iter([stream.__anext__() for _ in values])


async def test_what_is_compiled_has_the_types_that_stand_beside_it() -> None:
    is_compiled = not str(_arrived.__file__).endswith(".py")
    assert hasattr(next(futures(_arrived, 1)), "__dict__") != is_compiled


@BOTH
async def test_it_is_a_future_that_is_done(module: Any) -> None:
    loop = asyncio.get_running_loop()
    future = next(futures(module, {"a": 1}))
    assert isinstance(future, asyncio.Future)
    assert asyncio.isfuture(future)
    assert asyncio.ensure_future(future) is future
    assert future.done()
    assert not future.cancelled()
    assert not future.cancel()
    assert not future.cancel("why")
    assert future.result() == {"a": 1}
    assert future.exception() is None
    assert future.get_loop() is loop
    assert repr(future) == "<Future finished result={'a': 1}>"
    assert await future == {"a": 1}
    assert await future == {"a": 1}
    with pytest.raises(asyncio.InvalidStateError):
        future.set_result(1)
    with pytest.raises(asyncio.InvalidStateError):
        future.set_exception(ValueError())
    real: asyncio.Future[Any] = loop.create_future()
    missing = [name for name in dir(real) if not name.startswith("_") and not hasattr(future, name)]
    assert missing == []


@BOTH
@pytest.mark.parametrize("value", [[1, 2], [], "", 0, False, {"a": [1]}])
async def test_any_value_travels(module: Any, value: Any) -> None:
    first, second = futures(module, value, value)
    assert await first == value
    with pytest.raises(StopIteration) as done:
        next(second.__await__())
    assert done.value.value == value


@BOTH
async def test_what_asyncio_does_with_futures(module: Any) -> None:
    one, two, three, four, five, six, seven = futures(module, *range(1, 8))
    assert await asyncio.wait_for(one, LIMIT) == 1
    assert list(await asyncio.gather(two, one, two)) == [2, 1, 2]
    assert await asyncio.shield(three) == 3
    done, pending = await asyncio.wait({four})
    assert (done, pending) == ({four}, set())
    assert [await each for each in asyncio.as_completed([five])] == [5]
    assert asyncio.wrap_future(six) is six

    async def await_it(future: Any) -> Any:
        return await future

    assert await asyncio.create_task(await_it(seven)) == 7
    called: list[Any] = []
    one.add_done_callback(called.append)
    assert called == []
    assert one.remove_done_callback(called.append) == 0
    await asyncio.sleep(0)
    assert called == [one]


@BOTH
def test_a_loop_runs_until_it(module: Any) -> None:
    loop = asyncio.new_event_loop()
    try:

        async def make() -> Any:
            return futures(module, 5)

        assert loop.run_until_complete(next(loop.run_until_complete(make()))) == 5
    finally:
        loop.close()


# An item that has not come


class Steps:
    """A handler that yields what the test puts into its queue; `ended` is done when it is told to stop."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Any] = asyncio.Queue()
        self.ended: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    async def __call__(self, request: Any, context: Context) -> AsyncIterator[Any]:
        stopped = context.async_killed_or_stopped()
        while True:
            step = asyncio.ensure_future(self.queue.get())
            await asyncio.wait({step, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if stopped.done():
                step.cancel()
                self.ended.set_result(context.is_killed())
                return
            if step.result() is None:
                return
            if isinstance(step.result(), Exception):
                raise step.result()
            yield step.result()


@pytest.fixture
async def steps(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Steps, list[AsyncResponseStream]]]:
    """The handler, and the one list that holds the stream of its answer: a test may take it out."""
    monkeypatch.setenv("DYN_TCP_RPC_HOST", "127.0.0.1")
    monkeypatch.setenv("DYN_TCP_RESPONSE_STREAM_HOST", "127.0.0.1")
    monkeypatch.setenv("DYNAMO_FAST_LEAVE_DELAY", "0")
    runtime = DistributedRuntime(asyncio.get_running_loop(), "mem", "tcp")
    handler = Steps()
    serving = runtime.endpoint("a.b.c").serve_endpoint(handler)
    client = await runtime.endpoint("a.b.c").client()
    await client.wait_for_instances()
    holder = [await client.round_robin(None, annotated=False)]
    yield handler, holder
    holder.clear()
    runtime.shutdown()
    await asyncio.wait_for(serving, LIMIT)


async def test_those_who_wait_get_the_items_in_their_order(steps: Any) -> None:
    handler, (stream,) = steps
    waits = [stream.__anext__() for _ in range(4)]
    assert all(isinstance(each, asyncio.Future) and not each.done() for each in waits)
    handler.queue.put_nowait(1)
    assert await asyncio.wait_for(waits[0], LIMIT) == 1
    assert not waits[1].done()
    handler.queue.put_nowait(2)
    handler.queue.put_nowait(None)
    assert await asyncio.wait_for(waits[1], LIMIT) == 2
    for wait in (*waits[2:], stream.__anext__()):
        with pytest.raises(StopAsyncIteration, match="Stream exhausted"):
            await asyncio.wait_for(wait, LIMIT)


async def test_an_error_is_for_the_first_who_waits_and_the_end_for_the_others(steps: Any) -> None:
    handler, (stream,) = steps
    waits = [stream.__anext__() for _ in range(3)]
    handler.queue.put_nowait(ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        await asyncio.wait_for(waits[0], LIMIT)
    for wait in waits[1:]:
        with pytest.raises(StopAsyncIteration):
            await asyncio.wait_for(wait, LIMIT)


async def test_a_wait_that_is_cancelled_takes_no_item(steps: Any) -> None:
    handler, (stream,) = steps
    first, second = stream.__anext__(), stream.__anext__()
    assert first.cancel()
    assert not first.cancel()
    handler.queue.put_nowait(1)
    assert await asyncio.wait_for(second, LIMIT) == 1
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(stream.__anext__(), 0.001)
    handler.queue.put_nowait(2)
    assert await asyncio.wait_for(stream.__anext__(), LIMIT) == 2


async def test_a_stream_that_is_dropped_while_someone_waits_goes_on(steps: Any) -> None:
    handler, holder = steps
    wait = holder.pop().__anext__()
    gc.collect()
    handler.queue.put_nowait(1)
    assert await asyncio.wait_for(wait, LIMIT) == 1
    assert await asyncio.wait_for(handler.ended, LIMIT) is True  # for then it was dropped, and the worker told


async def test_a_wait_that_is_cancelled_does_not_keep_its_stream(steps: Any) -> None:
    handler, holder = steps
    gone = weakref.ref(holder[0])

    async def consume(stream: AsyncResponseStream) -> None:
        async for _ in stream:
            pass

    task = asyncio.ensure_future(consume(holder.pop()))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    del task
    gc.collect()
    assert gone() is None
    assert await asyncio.wait_for(handler.ended, LIMIT) is True
