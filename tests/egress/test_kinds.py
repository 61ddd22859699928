"""Raw items, typed items and sinks: a real worker of each codec, and a worker of plain sockets for what goes wrong."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import threading
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypedDict

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo_fast.config import ResponseServerConfig, TcpServerConfig, WorkerConfig
from dynamo_fast.context import Context
from dynamo_fast.discovery.memory import MemoryDiscovery
from dynamo_fast.egress.call import RoutedStream
from dynamo_fast.egress.push_router import PushRouter
from dynamo_fast.egress.response_stream import ResponseStream
from dynamo_fast.egress.router import AddressedPushRouter, AddressedRequest
from dynamo_fast.egress.sink import Delivery
from dynamo_fast.errors import Disconnected, PayloadError, RemoteError, ResponseTimeout
from dynamo_fast.ingress.worker import Worker
from dynamo_fast.runtime import DistributedRuntime
from dynamo_fast.wire import _raw
from dynamo_fast.wire.payload import Annotated, PayloadCodec
from tests.egress.conftest import make_router
from tests.egress.raw_worker import FINAL, LIMIT, SENTINEL, RawStream, RawWorker
from tests.garbage import no_garbage
from tests.interpreted import interpreted
from tests.waiting import until

CODECS = pytest.mark.parametrize("codec", PayloadCodec)
interpreted_raw = interpreted(_raw)
BOTH = pytest.mark.parametrize("raw", [_raw, interpreted_raw], ids=["imported", "interpreted"])


class Token(msgspec.Struct):
    text: str
    index: int = 0


@dataclasses.dataclass
class DataToken:
    text: str
    index: int = 0


class DictToken(TypedDict):
    text: str
    index: int


VALUES: list[Any] = [
    {"text": "a", "index": 1},
    {"text": '"},"event":"error"}', "index": 2},
    {"text": "x" * 100_000, "index": 3},
]


async def answer(request: Any) -> AsyncIterator[Any]:
    for each in request["items"]:
        yield each
    if request.get("error"):
        raise ValueError(request["error"])


async def started(discovery: MemoryDiscovery) -> Worker:
    return await Worker.start(discovery, WorkerConfig(leave_delay=0.0), TcpServerConfig(host="127.0.0.1"))


@asynccontextmanager
async def both_ends(codec: PayloadCodec) -> AsyncIterator[PushRouter]:
    discovery = MemoryDiscovery()
    async with await started(discovery) as worker:
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("DYN_REQUEST_PLANE_CODEC", codec.value)
            await worker.serve(answer, "a.b.c")
        async with await make_router() as router, await PushRouter.create("a.b.c", discovery, router) as calls:
            yield calls
        await asyncio.wait_for(worker.close(), LIMIT)


class Kept:
    """A sink that keeps what it is given; `act` is called with each item."""

    def __init__(self, act: Any = None) -> None:
        self.got: list[Any] = []
        self.act = act

    def begin(self, delivery: Delivery) -> None:
        self.delivery = delivery
        self.got.append("begin")

    def item(self, item: Any) -> None:
        self.got.append(item.data() if isinstance(item, Annotated) else item)
        if self.act is not None:
            self.act(self)

    def end(self, error: BaseException | None) -> None:
        self.got.append(("end", type(error), str(error)))


END = ("end", type(None), "None")


# Raw


@BOTH
def test_one_json_value_or_several_members(raw: Any) -> None:
    values = ["1", '"a"', '"a,\\",]}"', "[1,2]", '{"a":[1,{"b":"}"}]}', "null", ' {"a": 1, "b": 2} ', '"\\\\"']
    for value in values:
        assert raw.is_one_value(value.encode()), value
    for value in [
        "",
        "1,2",
        '1,"event":"error"',
        '1},"x":{"y":2',
        '"a',
        '"a\\"',
        "[1",
        "]",
        '{"a":1},"b":{"c":2}',
        '"\\',
    ]:
        assert not raw.is_one_value(value.encode()), value


@settings(deadline=None)
@given(
    st.lists(
        st.sampled_from([b'"', b"{", b"}", b"[", b"]", b",", b":", b"\\", b"a", b" ", b"\xff", b"x" * 15]), max_size=60
    )
)
def test_the_compiled_scan_and_the_interpreted_one_see_the_same(parts: list[bytes]) -> None:
    text = b"".join(parts)
    assert _raw.is_one_value(text) == interpreted_raw.is_one_value(text)


@given(
    st.recursive(
        st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
@settings(deadline=None)
def test_json_is_one_value_and_with_a_member_behind_it_is_not(value: Any) -> None:
    text = msgspec.json.encode(value)
    for raw in (_raw, interpreted_raw):
        assert raw.is_one_value(text)
        for more in (b',"event":"e"', b'},"x":{"y":2', b'"', b"]"):
            assert not raw.is_one_value(text + more)


@CODECS
async def test_raw_items_are_the_bytes_of_their_data(codec: PayloadCodec) -> None:
    events = [{"_dynamo_annotated": True, "data": {"a": 1}, "event": "e", "id": "7", "comment": ["c"]}]
    odd = [None, {"_dynamo_annotated": True, "event": "only"}]
    async with both_ends(codec) as calls:
        stream = await calls.generate({"items": [*VALUES, 1, "a", *events, *odd]}, raw=True)
        items = [each async for each in stream]
        assert [each.data() for each in items] == [*map(codec.encode, [*VALUES, 1, "a", {"a": 1}]), None, None]
        assert [type(each.data()) for each in items[:6]] == [bytes] * 6
        assert (items[5].event(), items[5].id(), items[5].comments()) == ("e", "7", ["c"])
        assert items[7].event() == "only"
        failing = await calls.random({"items": [1], "error": "no"}, raw=True)
        assert (await failing.__anext__()).data() == codec.encode(1)
        with pytest.raises(RemoteError, match="no"):
            await failing.__anext__()
        with pytest.raises(StopAsyncIteration):
            await failing.__anext__()


@CODECS
def test_a_frame_of_two_values_is_no_raw_item(codec: PayloadCodec) -> None:
    head, tail = codec.envelope
    reader = codec.reader(raw=True)
    for body in (b"", b"?" if codec is PayloadCodec.JSON else b"\xc1"):
        with pytest.raises(PayloadError):
            reader.decode(head + body + tail)
    if codec is PayloadCodec.JSON:
        wrapper = reader.decode(head + b'1,"event":"e","other":2' + tail)
        assert wrapper.data == Annotated(b"1", None, "e")


# Typed


@CODECS
@pytest.mark.parametrize("kind", [Token, DataToken, DictToken, dict[str, Any]])
async def test_typed_items_are_values_of_the_type(codec: PayloadCodec, kind: Any) -> None:
    event = {"_dynamo_annotated": True, "data": VALUES[0], "event": "e"}
    async with both_ends(codec) as calls:
        stream = await calls.generate({"items": [*VALUES, event, None]}, response_type=kind)
        items = [each async for each in stream]
        expected = [msgspec.convert(value, kind) for value in (*VALUES, VALUES[0])]
        assert [each.data() for each in items] == [*expected, None]
        assert items[3].event() == "e"


@CODECS
async def test_pydantic_validates(codec: PayloadCodec) -> None:
    pydantic = pytest.importorskip("pydantic")

    class Model(pydantic.BaseModel):  # type: ignore[misc, name-defined]
        text: str
        index: int = 0

    async with both_ends(codec) as calls:
        stream = await calls.generate({"items": VALUES}, response_type=Model)
        assert [each.data() async for each in stream] == [Model(**value) for value in VALUES]
        stream = await calls.generate({"items": [{"text": "a", "index": "b"}]}, response_type=Model)
        with pytest.raises(PayloadError, match=r"valid integer.* - at `\$\.index` \(in an item that is to be Model\)"):
            await stream.__anext__()


@CODECS
async def test_a_value_that_does_not_fit_ends_its_own_request_only(codec: PayloadCodec) -> None:
    async with both_ends(codec) as calls:
        other = await calls.generate({"items": VALUES}, response_type=Token)
        wrong = await calls.generate({"items": [VALUES[0], {"text": 1}, VALUES[1]]}, response_type=Token)
        assert (await wrong.__anext__()).data() == Token("a", 1)
        text = r"^Expected `str`, got `int` - at `\$\.text` \(in an item that is to be Token\)$"
        with pytest.raises(PayloadError, match=text):
            await wrong.__anext__()
        with pytest.raises(StopAsyncIteration):
            await wrong.__anext__()
        assert len([each async for each in other]) == 3
        assert [entry.in_flight for entry in calls.table] == [0]


async def test_a_type_that_cannot_be_decoded_is_refused_at_once() -> None:
    async with both_ends(PayloadCodec.JSON) as calls:
        with pytest.raises(TypeError, match="response_type"):
            await calls.generate({"items": []}, response_type=dict[str, Token] | Token)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="raw=True yields bytes"):
            await calls.random({"items": []}, response_type=Token, raw=True)
        assert [entry.in_flight for entry in calls.table] == [0]


# Sinks


@CODECS
@pytest.mark.parametrize("how", [{}, {"raw": True}, {"response_type": Token}], ids=["plain", "raw", "typed"])
async def test_a_sink_gets_what_the_stream_would_have_yielded(codec: PayloadCodec, how: dict[str, Any]) -> None:
    async with both_ends(codec) as calls:
        stream = await calls.direct({"items": VALUES}, calls.instance_ids()[0], **how)
        expected = [each.data() async for each in stream]
        sink = Kept()
        delivery = await calls.round_robin({"items": VALUES}, sink=sink, **how)
        await asyncio.wait_for(delivery.wait_ended(), LIMIT)
        assert delivery is sink.delivery
        assert sink.got == ["begin", *expected, END]
        sink = Kept()
        delivery = await calls.generate({"items": VALUES[:1], "error": "no"}, sink=sink)
        await asyncio.wait_for(delivery.wait_ended(), LIMIT)
        assert [each[1] for each in sink.got[2:]] == [RemoteError]
        assert [entry.in_flight for entry in calls.table] == [0]


async def deliver(
    router: AddressedPushRouter, worker: RawWorker, sink: Any, context: Context | None = None
) -> tuple[Delivery, RawStream]:
    request = AddressedRequest.new(None, worker.address)
    call = asyncio.ensure_future(router.generate(request, context, sink=sink))
    raw = await worker.request()
    raw.acknowledge()
    stream = await raw.dial()
    return await asyncio.wait_for(call, LIMIT), stream


class Flushed(Kept):
    """A sink that is told when the items that came together were given out."""

    def flush(self) -> None:
        self.got.append("flush")


async def test_a_sink_may_be_told_when_items_that_came_together_were_given_out(
    router: AddressedPushRouter, worker: RawWorker
) -> None:
    sink = Flushed()
    _, stream = await deliver(router, worker, sink)
    sink.got.clear()
    stream.items(1, 2)
    await until(lambda: sink.got[-1:] == ["flush"])
    assert sink.got == [1, 2, "flush"]
    stream.items(3)
    stream.end()
    await until(lambda: sink.got[-1] == END)
    assert [each for each in sink.got if each != "flush"] == [1, 2, 3, END]
    assert sink.got[-2] in (3, "flush")  # nothing is told after the end


async def test_a_flush_that_raises_ends_the_answer(router: AddressedPushRouter, worker: RawWorker) -> None:
    class Failing(Kept):
        def flush(self) -> None:
            if 1 in self.got:
                raise LookupError("on purpose")

    sink = Failing()
    _, stream = await deliver(router, worker, sink)
    stream.items(1)
    await until(lambda: isinstance(sink.got[-1], tuple))
    assert sink.got[-1][1] is LookupError
    await asyncio.wait_for(stream.received(), LIMIT)  # the worker is told


@CODECS
async def test_bare_and_mixed_an_item_with_something_beside_its_data_comes_whole(codec: PayloadCodec) -> None:
    event = {"_dynamo_annotated": True, "data": VALUES[0], "event": "e"}
    comment = {"_dynamo_annotated": True, "comment": ["c"]}
    async with both_ends(codec) as calls:
        stream = await calls.generate({"items": [VALUES[0], event, comment, VALUES[1]]})
        inner = stream._stream
        inner._bare = inner._mixed = True
        items = [each async for each in inner]
        assert [items[0], items[3]] == VALUES[:2]
        assert [(each.data(), each.event(), each.comments()) for each in items[1:3]] == [
            (VALUES[0], "e", None),
            (None, None, ["c"]),
        ]


async def test_no_task_is_woken_for_an_item_and_nothing_is_left(router: AddressedPushRouter, worker: RawWorker) -> None:
    with no_garbage():
        callers: list[Any] = []
        sink = Kept(lambda _: callers.append(_current_task()))
        delivery, stream = await deliver(router, worker, sink)
        del delivery
        sink.delivery = None  # type: ignore[assignment]  # nothing needs to be held
        stream.items(1, 2)
        await until(lambda: len(sink.got) == 3)
        stream.items(3)
        stream.end()
        await until(lambda: sink.got[-1] == END)
        assert sink.got == ["begin", 1, 2, 3, END]
        assert callers == [None, None, None]
        assert await stream.received() == [b""]


class KeepsError:
    """A sink that keeps why its answer has ended."""

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def begin(self, delivery: Delivery) -> None:
        pass

    def item(self, item: Any) -> None:
        raise AssertionError(item)

    def end(self, error: BaseException | None) -> None:
        self.error = error


@pytest.mark.parametrize("how", ["error", "lost"])
async def test_a_sink_may_keep_the_error_of_its_answer(
    router: AddressedPushRouter, worker: RawWorker, how: str
) -> None:
    """The traceback passes the delivery, which must not refer to the sink any more: else they hold each other."""
    with no_garbage():
        sink = KeepsError()
        delivery, stream = await deliver(router, worker, sink)
        if how == "error":
            stream.send(data=b'{"data":{"event":"error","comment":["boom"]},"complete_final":false}')
        else:
            stream.reset()
        await asyncio.wait_for(delivery.wait_ended(), LIMIT)
        assert isinstance(sink.error, RemoteError if how == "error" else Disconnected)
        await stream.received()
        kept = weakref.ref(sink)
        del delivery, sink, stream
        assert kept() is None


def _current_task() -> asyncio.Task[Any] | None:
    return asyncio.current_task()


async def test_a_pause_holds_the_worker_back(worker: RawWorker) -> None:
    config = ResponseServerConfig(host="127.0.0.1", max_buffered_frames=4)
    async with await make_router(config) as router:
        sink = Kept(lambda sink: sink.delivery.pause())
        delivery, stream = await deliver(router, worker, sink)
        receiver: Any = delivery._stream._receiver
        stream.items(*range(3))
        await until(lambda: len(sink.got) == 2)
        stream.items(*range(3, 10))
        await until(lambda: receiver._connection._paused)
        assert sink.got == ["begin", 0]
        assert delivery.paused
        sink.act = None
        delivery.resume()
        stream.end()
        await until(lambda: sink.got[-1] == END)
        assert sink.got == ["begin", *range(10), END]


async def test_pausing_and_resuming_within_an_item(router: AddressedPushRouter, worker: RawWorker) -> None:
    sink = Kept(lambda sink: (sink.delivery.pause(), sink.delivery.resume()))
    _, stream = await deliver(router, worker, sink)
    stream.items(*range(50))
    stream.end()
    await until(lambda: sink.got[-1] == END)
    assert sink.got == ["begin", *range(50), END]


@pytest.mark.parametrize("where", ["begin", "item", "end"])
async def test_what_a_sink_raises_ends_its_own_request_only(
    router: AddressedPushRouter, worker: RawWorker, where: str
) -> None:
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))

    class Failing(Kept):
        pass

    def fail(self: Kept, *_: Any) -> None:
        raise KeyError(where)

    other = Kept()
    _, other_stream = await deliver(router, worker, other)
    setattr(Failing, where, fail)
    sink = Failing()
    _, stream = await deliver(router, worker, sink)
    if where != "begin":
        stream.items(1, 2)
    if where == "end":
        stream.end()
        await until(lambda: reported)
        assert sink.got == ["begin", 1, 2]
        assert str(reported[0]["exception"]) == "'end'"
        assert reported[0]["message"].endswith("Failing.end() raised")
    else:
        assert (await stream.received())[0] == b'"kill"'
        await until(lambda: sink.got)
        assert [each for each in sink.got if each != "begin"] == [("end", KeyError, repr(where))]
        assert reported == []
    other_stream.items(7)
    other_stream.end()
    await until(lambda: other.got[-1] == END)
    assert other.got == ["begin", 7, END]
    assert router.metrics.inflight == 0


@pytest.mark.parametrize("how", ["close", "from an item", "from a thread", "kill", "stop"])
async def test_an_answer_that_is_ended_from_this_side(router: AddressedPushRouter, worker: RawWorker, how: str) -> None:
    context = Context()
    sink = Kept((lambda sink: sink.delivery.close()) if how == "from an item" else None)
    delivery, stream = await deliver(router, worker, sink, context)
    if how == "close":
        delivery.close()
    elif how == "from an item":
        stream.items(1, 2, 3)
    elif how == "from a thread":
        thread = threading.Thread(target=delivery.close)
        thread.start()
        thread.join(LIMIT)
    elif how == "kill":
        context.kill()
    else:
        context.stop_generating()
    assert await stream.next_control() == (b'"stop"' if how == "stop" else b'"kill"')
    if how == "stop":
        stream.items(1)
        stream.half_close()
    await asyncio.wait_for(delivery.wait_ended(), LIMIT)
    assert sink.got == (["begin", 1, END] if how in ("stop", "from an item") else ["begin", END])
    delivery.close()
    delivery.resume()
    assert sink.got[-1] == END
    assert sink.got.count(END) == 1


@pytest.mark.parametrize("paused", [False, True])
async def test_a_worker_that_dies(router: AddressedPushRouter, worker: RawWorker, paused: bool) -> None:
    sink = Kept((lambda sink: sink.delivery.pause()) if paused else None)
    delivery, stream = await deliver(router, worker, sink)
    stream.items(1, 2)
    await until(lambda: len(sink.got) >= 2)
    stream.reset()
    if paused:
        await until(lambda: delivery._stream._receiver.ended)
        assert sink.got == ["begin", 1]
        sink.act = None
        delivery.resume()
    await asyncio.wait_for(delivery.wait_ended(), LIMIT)
    assert sink.got == ["begin", 1, 2, ("end", Disconnected, "Stream ended before generation completed")]


async def test_a_worker_that_falls_silent(worker: RawWorker) -> None:
    async with await make_router(ResponseServerConfig(host="127.0.0.1", inactivity_timeout=0.05)) as router:
        sink = Kept()
        delivery, stream = await deliver(router, worker, sink)
        stream.items(1)
        await asyncio.wait_for(delivery.wait_ended(), LIMIT)
        assert sink.got == ["begin", 1, ("end", ResponseTimeout, "backend response inactivity timeout")]


async def test_an_item_after_the_final_marker(router: AddressedPushRouter, worker: RawWorker) -> None:
    sink = Kept()
    delivery, stream = await deliver(router, worker, sink)
    stream.send(data=FINAL)
    stream.items(1)
    stream.send(SENTINEL)
    await asyncio.wait_for(delivery.wait_ended(), LIMIT)
    assert sink.got[1][2] == "Response received after generation ended - this should never happen"


# The drop-in


@pytest.mark.parametrize("annotated", [True, False])
async def test_the_drop_in_has_all_three(monkeypatch: pytest.MonkeyPatch, annotated: bool) -> None:
    monkeypatch.setenv("DYN_TCP_RPC_HOST", "127.0.0.1")
    monkeypatch.setenv("DYN_TCP_RESPONSE_STREAM_HOST", "127.0.0.1")
    monkeypatch.setenv("DYNAMO_FAST_LEAVE_DELAY", "0")
    runtime = DistributedRuntime(asyncio.get_running_loop(), "mem", "tcp")
    serving = runtime.endpoint("a.b.c").serve_endpoint(answer)
    client = await runtime.endpoint("a.b.c").client()
    (instance,) = await client.wait_for_instances()
    request = {"items": VALUES}

    async def data_of(stream: Any) -> list[Any]:
        return [each.data() if annotated else each async for each in stream]

    raw = await data_of(await client.round_robin(request, annotated, raw=True))
    assert raw == list(map(PayloadCodec.MSGPACK.encode, VALUES)) or raw == list(map(PayloadCodec.JSON.encode, VALUES))
    typed = await data_of(await client.direct(request, instance, annotated, response_type=Token))
    assert typed == [Token(**value) for value in VALUES]
    sink = Kept()
    delivery = await client.generate(request, annotated, sink=sink)
    await asyncio.wait_for(delivery.wait_ended(), LIMIT)
    assert sink.got == ["begin", *VALUES, END]
    sink = Kept()
    delivery = await client.random({"items": [], "error": "no"}, annotated, sink=sink)
    await asyncio.wait_for(delivery.wait_ended(), LIMIT)
    assert issubclass(sink.got[1][1], ValueError)
    with pytest.raises(ValueError, match="to be Token"):
        await data_of(await client.random({"items": [1]}, annotated, response_type=Token))
    runtime.shutdown()
    await asyncio.wait_for(serving, LIMIT)
    gc.collect()


# What type checkers see


if TYPE_CHECKING:
    from typing_extensions import assert_type

    async def _types(router: AddressedPushRouter, calls: PushRouter, request: AddressedRequest, sink: Kept) -> None:
        assert_type(await router.generate(request), ResponseStream[Any])
        assert_type(await router.generate(request, raw=True), ResponseStream[bytes])
        assert_type(await router.generate(request, response_type=Token), ResponseStream[Token])
        assert_type(await router.generate(request, response_type=DictToken), ResponseStream[DictToken])
        assert_type(await router.generate(request, sink=sink), Delivery)
        assert_type(await router.generate(request, raw=True, sink=sink), Delivery)
        assert_type(await router.generate(request, response_type=Token, sink=sink), Delivery)
        assert_type(await calls.generate(None), RoutedStream[Any])
        assert_type(await calls.generate(None, sink=sink), Delivery)
        async for item in await router.generate(request, response_type=Token):
            assert_type(item.data(), Token)
        async for each in await calls.generate(None, response_type=Token):
            assert_type(each, Annotated[Token])
        async for raw in await calls.generate(None, raw=True):
            assert_type(raw.data(), bytes)
