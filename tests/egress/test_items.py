"""`Items` and `NextItem`, compiled and interpreted: an item that is there, one that must be waited for, and the end."""

from __future__ import annotations

import asyncio
import collections.abc
import gc
import inspect
import weakref
from typing import Any

import pytest

from dynamo_fast.egress import _items
from dynamo_fast.egress._frames import Frames as Queue
from dynamo_fast.errors import RemoteError
from dynamo_fast.wire.payload import Annotated, PayloadCodec
from tests.interpreted import interpreted
from tests.waiting import LIMIT

BOTH = pytest.mark.parametrize("module", [_items, interpreted(_items)], ids=["imported", "interpreted"])
CODECS = pytest.mark.parametrize("codec", PayloadCodec)


class Frames:
    """What `Items` asks of a receiver."""

    def __init__(self, *frames: bytes | memoryview) -> None:
        self.frames = Queue()
        self.frames.extend(list(frames))
        self.ended = False
        self.waiter: asyncio.Future[None] | None = None

    def readable(self) -> asyncio.Future[None]:
        self.waiter = asyncio.get_running_loop().create_future()
        return self.waiter

    def come(self, *frames: bytes, ended: bool = False) -> None:
        self.frames.extend(list(frames))
        self.ended = ended
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)


def items_of(module: Any, frames: Frames, codec: PayloadCodec = PayloadCodec.JSON, bare: bool = False) -> Any:
    class Stream(module.Items):  # type: ignore[misc]
        unusual: tuple[bytes | memoryview, ...] = ()
        cancelled_waits = 0

        def _unusual(self, frame: bytes | memoryview) -> Annotated | None:
            self.unusual += (frame,)
            return codec.decode_item(frame).data

        def _end(self) -> None:
            self._open = False

        def wait_cancelled(self) -> None:
            self.cancelled_waits += 1

    stream = Stream(frames, codec.items)
    stream._bare = bare
    return stream


def test_what_is_compiled_has_the_types_that_stand_beside_it() -> None:
    is_compiled = not str(_items.__file__).endswith(".py")
    assert inspect.isgetsetdescriptor(vars(_items.Items)["_scan"]) == is_compiled  # in Python it is a slot


@BOTH
@CODECS
def test_a_plain_item_is_its_data_and_nothing_else_is_looked_at(module: Any, codec: PayloadCodec) -> None:
    values = [1, "a", [1, {"b": None}], {}, 0, False]
    stream = items_of(module, Frames(*map(codec.encode_item, values)), codec)
    for value in values:
        item = stream.pull()
        assert type(item) is Annotated
        assert item == codec.decode_item(codec.encode_item(value)).data
    assert stream.unusual == ()
    assert stream.pull() is None


@BOTH
@CODECS
def test_what_is_not_quite_a_plain_item_is_looked_at_fully(module: Any, codec: PayloadCodec) -> None:
    head, tail = codec.envelope
    two = b"1,2" if codec is PayloadCodec.JSON else b"\x01\x02"
    odd: list[bytes | memoryview] = [
        codec.encode_item(None),
        codec.encode_item({"_dynamo_annotated": True, "data": 1, "event": "e"}),
        codec.encode_error_item(RemoteError("no")),
        codec.final,
        memoryview(codec.encode_item(1)),  # as the codec hands on a large frame
        head + tail,
        head + two + tail,
        head + b"\xc1" + tail,
        head[:-1],
        b"",
    ]
    for frame in odd:
        stream = items_of(module, Frames(frame), codec)
        stream._unusual = None
        with pytest.raises(TypeError, match="NoneType"):
            stream.pull()


@BOTH
@CODECS
def test_bare_items_are_their_data_and_those_without_are_left_out(module: Any, codec: PayloadCodec) -> None:
    event = codec.encode_item({"_dynamo_annotated": True, "data": {"a": 1}, "event": "e"})
    frames = Frames(*map(codec.encode_item, (0, None, "a")), event)
    stream = items_of(module, frames, codec, bare=True)
    assert [stream.pull() for _ in range(4)] == [0, "a", {"a": 1}, None]


@BOTH
async def test_an_item_that_is_there_and_one_that_comes_later(module: Any) -> None:
    frames = Frames(PayloadCodec.JSON.encode_item(1))
    stream = items_of(module, frames)

    async def collect() -> list[Any]:
        return [each.data() async for each in _iterable(stream)]

    task = asyncio.ensure_future(collect())
    for number in (2, 3):
        while frames.waiter is None or frames.waiter.done():
            await asyncio.sleep(0)
        frames.come(PayloadCodec.JSON.encode_item(number), ended=number == 3)
    assert await asyncio.wait_for(task, LIMIT) == [1, 2, 3]
    with pytest.raises(StopAsyncIteration):
        await stream.__anext__()


class _iterable:  # noqa: N801  # as a function
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __aiter__(self) -> Any:
        return self

    def __anext__(self) -> Any:
        return self._stream.__anext__()


@BOTH
async def test_a_wake_up_for_nothing(module: Any) -> None:
    frames = Frames()
    task = asyncio.create_task(items_of(module, frames).__anext__())
    for _ in range(2):
        await asyncio.sleep(0)
        frames.come()
        await asyncio.sleep(0)
    frames.come(PayloadCodec.JSON.encode_item(7))
    assert (await asyncio.wait_for(task, LIMIT)).data() == 7


@BOTH
async def test_it_is_a_coroutine_that_begins_when_it_is_awaited(module: Any) -> None:
    frames = Frames(*map(PayloadCodec.JSON.encode_item, range(5)))
    stream = items_of(module, frames)
    item = stream.__anext__()
    assert isinstance(item, collections.abc.Coroutine)
    assert len(frames.frames) == 5
    assert (await item).data() == 0
    with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
        await item
    assert (await asyncio.create_task(stream.__anext__())).data() == 1
    assert (await asyncio.wait_for(stream.__anext__(), LIMIT)).data() == 2
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(stream.__anext__(), 0)  # it has not begun: the item is not lost
    assert [each.data() for each in await asyncio.gather(stream.__anext__(), stream.__anext__())] == [3, 4]
    with pytest.raises(StopIteration) as done:
        items_of(module, Frames(PayloadCodec.JSON.encode_item((1, 2)))).__anext__().send(None)
    assert done.value.value.data() == [1, 2]


@BOTH
async def test_a_wait_that_is_cancelled_loses_nothing(module: Any) -> None:
    frames = Frames()
    stream = items_of(module, frames)
    for _ in range(2):
        task = asyncio.create_task(stream.__anext__())
        await asyncio.sleep(0)
        assert "NextItem" in repr(task)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert stream.cancelled_waits == 2
    item = stream.__anext__()
    item.send(None)
    item.close()
    assert stream.cancelled_waits == 3
    frames.come(PayloadCodec.JSON.encode_item(1))
    assert (await stream.__anext__()).data() == 1
    item = stream.__anext__()
    item.close()
    with pytest.raises(RuntimeError):
        item.send(None)
    assert stream.cancelled_waits == 3, "it had not begun to wait"
    with pytest.raises(KeyError, match="a"):
        stream.__anext__().throw(KeyError("a"))
    with pytest.raises(KeyError):
        stream.__anext__().throw(KeyError)


@BOTH
async def test_what_ends_the_answer_is_raised_to_who_awaits(module: Any) -> None:
    frames = Frames(b"?")
    stream = items_of(module, frames)
    item = stream.__anext__()
    with pytest.raises(Exception, match="malformed"):
        await item
    with pytest.raises(RuntimeError, match="already awaited"):
        await item
    del item, stream
    gc.collect()


@BOTH
async def test_an_item_that_waits_keeps_its_stream_and_no_longer(module: Any) -> None:
    frames = Frames()
    stream = items_of(module, frames)
    item = stream.__anext__()
    assert asyncio.isfuture(item.send(None))
    gone = weakref.ref(stream)
    del stream
    assert gone() is not None
    item.close()
    gc.collect()
    assert gone() is None
