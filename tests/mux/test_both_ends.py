"""Both ends ours: what callers, handlers, metrics and logs see is the same on both planes."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dynamo_fast.config import ResponseServerConfig, TcpClientConfig, TcpServerConfig, TlsConfig, WorkerConfig
from dynamo_fast.context import Context
from dynamo_fast.discovery.memory import MemoryDiscovery
from dynamo_fast.egress.request_sender import ManyIn
from dynamo_fast.egress.response_server import TcpStreamServer
from dynamo_fast.egress.router import AddressedPushRouter, AddressedRequest
from dynamo_fast.egress.tcp_client import TcpRequestClient
from dynamo_fast.errors import DynamoError, RequestTooLarge
from dynamo_fast.ingress.answer import Batch
from dynamo_fast.ingress.response_sender import ResponseSender
from dynamo_fast.ingress.worker import Worker
from dynamo_fast.observability.metrics import RequestPlaneMetrics
from dynamo_fast.wire.control import MAX_CONTROL_MESSAGE_SIZE
from dynamo_fast.wire.instance import Instance
from tests.descriptors import descriptors_for
from tests.faults.tables import open_sockets
from tests.net.certificates import Authority, mutual
from tests.waiting import until

PLANES = ("off", "auto")
LIMIT = 20.0


class Ends:
    """A router and a worker, and what a handler saw."""

    def __init__(self, router: AddressedPushRouter, worker: Worker, instances: dict[str, Instance]) -> None:
        self.router = router
        self.worker = worker
        self.instances = instances

    async def call(self, endpoint: str, data: Any, context: Context | None = None, **how: Any) -> Any:
        request = AddressedRequest.for_instance(data, self.instances[endpoint])
        return await asyncio.wait_for(self.router.generate(request, context, **how), LIMIT)


async def generate(request: Any, context: Context) -> AsyncIterator[Any]:
    for number in range(request.get("items", 0)):
        yield {"number": number, "text": "x" * request.get("size", 0)}
    if "batch" in request:
        yield Batch(request["batch"])
    if "metadata" in request:
        yield dict(context.metadata)
    if "item" in request:
        yield request["item"]
    if request.get("holds"):
        yield "held"
        await asyncio.Event().wait()
    if request.get("unserialisable"):
        yield {"a": object()}
    if request.get("fails"):
        raise ValueError("boom")
    while request.get("endless"):
        await asyncio.sleep(0.001)
        yield "again"
        if context.is_stopped():
            return
    if request.get("stops itself"):
        context.stop_generating()
        yield "dropped"


async def push(request: Any, context: Context, response_sender: ResponseSender) -> AsyncIterator[Any]:
    for number in range(request["items"]):
        response_sender.send(number)
    if not request:
        yield


async def converse(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
    async for each in requests:
        yield {"got": each}


def wrong(request: Any) -> AsyncIterator[Any]:
    raise KeyError("no such model")


@asynccontextmanager
async def ends(mux: str, tls: TlsConfig | None = None, **settings: Any) -> AsyncIterator[Ends]:
    """Both ends, and at the end of the test that nothing is left of its requests.

    They are closed however it ends: the router first, so that the worker does not wait for its handlers.
    """
    metrics = RequestPlaneMetrics()
    async with AsyncExitStack() as stack:
        config = WorkerConfig(leave_delay=0.0, cancel_grace=0.05, mux=mux)
        worker = await Worker.start(MemoryDiscovery(), config, TcpServerConfig(host="127.0.0.1"), tls=tls)
        stack.push_async_callback(worker.close)
        server = await TcpStreamServer.create(ResponseServerConfig(host="127.0.0.1", mux=mux, **settings), tls=tls)
        client = TcpRequestClient(TcpClientConfig(), metrics=metrics, tls=tls)
        router = await stack.enter_async_context(AddressedPushRouter(client, server, metrics=metrics))
        handlers: dict[str, Any] = {"generate": generate, "push": push, "wrong": wrong}
        served = {name: await worker.serve(handler, f"a.b.{name}") for name, handler in handlers.items()}
        served["converse"] = await worker.serve(converse, "a.b.converse", bidirectional=True)
        yield Ends(router, worker, {name: each.instance for name, each in served.items()})
        await until(lambda: worker.admission.running == 0)
        assert metrics.inflight == 0
        assert server.pending == 0
        assert server.multiplexed == 0
        assert worker.admission.promised == 0
        await asyncio.wait_for(worker.close(), LIMIT)


@pytest.mark.parametrize("mux", PLANES)
async def test_ends_that_cannot_serve_are_closed(mux: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that fails must end soon, and leave nothing: else the next ones fail, too, or the loop does not close."""

    async def serve(*_: Any, **__: Any) -> None:
        raise LookupError("on purpose")

    before = open_sockets()
    monkeypatch.setattr(Worker, "serve", serve)
    with pytest.raises(LookupError, match="on purpose"):
        async with ends(mux):
            pass
    await until(lambda: open_sockets() == before)


@pytest.mark.parametrize("mux", PLANES)
async def test_ends_whose_test_fails_with_a_request_under_way_are_closed(mux: str) -> None:

    async def failing() -> None:
        async with ends(mux) as both:
            stream = await both.call("generate", {"holds": True})
            assert (await anext(stream)).data() == "held"
            raise LookupError("on purpose")

    before = open_sockets()
    with pytest.raises(LookupError, match="on purpose"):
        await failing()
    await until(lambda: open_sockets() == before)


async def outcome(stream: Any) -> Any:
    """The items of an answer, and how it ends."""
    items: list[Any] = []
    try:
        async for item in stream:
            items.append(item.data())  # noqa: PERF401  # what came before an error counts
    except DynamoError as error:
        return [*items, type(error).__name__, str(error), error.migratable]
    return items


class Kept:
    """A sink."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.ended = asyncio.Event()

    def begin(self, delivery: Any) -> None:
        self.seen.append("begin")

    def item(self, item: Any) -> None:
        self.seen.append(item.data())

    def end(self, error: BaseException | None) -> None:
        self.seen.append(repr(error))
        self.ended.set()


class Item(msgspec.Struct):
    number: int
    text: str


async def scenario_items(both: Ends) -> Any:
    return await outcome(await both.call("generate", {"items": 3}))


async def scenario_many_items(both: Ends) -> Any:
    return await outcome(await both.call("generate", {"items": 10_000, "size": 100}))


async def scenario_large_items(both: Ends) -> Any:
    return await outcome(await both.call("generate", {"items": 20, "size": 300_000}))


async def scenario_batch(both: Ends) -> Any:
    return await outcome(await both.call("generate", {"batch": [1, None, "x" * 100_000]}))


async def scenario_no_items(both: Ends) -> Any:
    return await outcome(await both.call("generate", {}))


async def scenario_failure(both: Ends) -> Any:
    return await outcome(await both.call("generate", {"items": 2, "fails": True}))


async def scenario_not_serialisable(both: Ends) -> Any:
    return await outcome(await both.call("generate", {"items": 1, "unserialisable": True}))


async def scenario_stops_itself(both: Ends) -> Any:
    return await outcome(await both.call("generate", {"items": 2, "stops itself": True}))


async def scenario_handler_cannot_be_called(both: Ends) -> Any:
    try:
        await both.call("wrong", {})
    except DynamoError as error:
        return type(error).__name__, str(error)


async def scenario_metadata(both: Ends) -> Any:
    return await outcome(await both.call("generate", {"metadata": True}, Context("id", {"a": "ü", "b": "2"})))


async def scenario_push(both: Ends) -> Any:
    return await outcome(await both.call("push", {"items": 1000}))


async def scenario_bidirectional(both: Ends) -> Any:
    async def items() -> AsyncIterator[Any]:
        for number in range(5):
            yield number

    return await outcome(await both.call("converse", ManyIn(items())))


async def scenario_raw(both: Ends) -> Any:
    return await outcome(await both.call("generate", {"items": 3, "size": 30_000}, raw=True))


async def scenario_typed(both: Ends) -> Any:
    return await outcome(await both.call("generate", {"items": 3}, response_type=Item))


async def scenario_wrong_type(both: Ends) -> Any:
    return await outcome(await both.call("generate", {"batch": [{"number": 1, "text": "a"}, 7]}, response_type=Item))


async def scenario_sink(both: Ends) -> Any:
    sink = Kept()
    await both.call("generate", {"items": 500, "size": 1000}, sink=sink)
    await asyncio.wait_for(sink.ended.wait(), LIMIT)
    return sink.seen


async def scenario_stop(both: Ends) -> Any:
    context = Context()
    stream = await both.call("generate", {"endless": True}, context)
    first = (await anext(stream)).data()
    context.stop_generating()
    rest = [item.data() async for item in stream]
    return first, set(rest) <= {"again"}


async def scenario_kill(both: Ends) -> Any:
    context = Context()
    stream = await both.call("generate", {"endless": True}, context)
    first = (await anext(stream)).data()
    context.kill()
    return first, [item.data() async for item in stream]


async def scenario_drop(both: Ends) -> Any:
    async with await both.call("generate", {"endless": True}) as stream:
        return (await anext(stream)).data()


async def scenario_slow_caller(both: Ends) -> Any:
    stream = await both.call("generate", {"items": 2000, "size": 1000})
    await asyncio.sleep(0)  # a turn between items, in which more comes
    count = 0
    async for _ in stream:
        count += 1
        if count % 100 == 0:
            await asyncio.sleep(0)
    return count


SCENARIOS: dict[str, Callable[[Ends], Awaitable[Any]]] = {
    name.removeprefix("scenario_"): scenario
    for name, scenario in list(globals().items())
    if name.startswith("scenario_")
}
#: How many items these sent before they were ended is a matter of time.
ENDED = {"stop", "kill", "drop"}


def counted(worker: Worker, scenario: str) -> dict[str, Any]:
    """What the worker's metrics say."""
    keys = ("requests", "inflight", "request_bytes", "response_bytes", "cancellations", "errors")
    counts = {
        str(each.labels): {key: getattr(each, key) for key in keys if scenario not in ENDED or key != "response_bytes"}
        for each in worker.metrics.endpoints
    }
    return {re.sub("'worker_id': '[0-9a-f]+'", "", labels): each for labels, each in counts.items()}


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_the_same_on_both_planes(scenario: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    found = {}
    for plane in PLANES:
        caplog.clear()
        async with ends(plane) as both:
            result = await SCENARIOS[scenario](both)
            sessions = len(both.router.response_server.sessions)
            await until(lambda both=both: both.worker.admission.running == 0)  # type: ignore[misc]
            counts = counted(both.worker, scenario)
        lines = [
            re.sub(
                r"request \S+|after \d+ items, \d+ bytes|[\d.]+ s$|\(kill\)|\(lost\)|was lost.*",
                "",
                record.getMessage(),
            )
            for record in caplog.records
            if record.name == "dynamo_fast.ingress.push_handler"
        ]
        assert sessions == (plane == "auto")
        for each in counts.values():  # a request has the offer, too
            each["request_bytes"] = bool(each["request_bytes"])
        found[plane] = {"result": result, "counts": counts, "lines": lines if scenario not in ENDED else len(lines)}
    assert found["auto"] == found["off"]


async def test_a_thousand_streams_take_one_connection() -> None:
    descriptors_for(4096)  # one is promised to each request, in case that it has no session
    async with ends("auto") as both:
        await outcome(await both.call("generate", {"items": 1}))
        before = open_sockets()
        streams = [await both.call("generate", {"holds": True}) for _ in range(1000)]
        assert open_sockets() <= before + 2  # and, at most, another connection for requests
        assert both.router.response_server.multiplexed == 1000
        assert not both.router.response_server.connections
        for stream in streams:
            assert (await anext(stream)).data() == "held"
            stream.close()


async def test_the_limit_of_streams_counts_those_on_sessions() -> None:
    async with ends("auto", max_streams=3) as both:
        streams = [await both.call("generate", {"holds": True}) for _ in range(3)]
        with pytest.raises(DynamoError, match="3 response streams are open already"):
            await both.call("generate", {})
        for stream in streams:
            stream.close()
        await until(lambda: not both.router.response_server.multiplexed)
        assert await outcome(await both.call("generate", {"item": 1})) == [1]


async def test_tls_is_done_once_for_all_answers(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    async with ends("auto", mutual(authority, authority.identity())) as both:
        for _ in range(3):
            assert await outcome(await both.call("generate", {"item": "a"})) == ["a"]
        answers = await asyncio.gather(*(both.call("generate", {"items": 3, "size": 50_000}) for _ in range(10)))
        for each in answers:
            assert [item["number"] for item in await outcome(each)] == [0, 1, 2]
        assert len(both.router.response_server.sessions) == 1


async def test_a_worker_that_dies_ends_every_stream_at_once() -> None:
    async with ends("auto") as both:
        streams = [await both.call("generate", {"endless": True}) for _ in range(10)]
        for stream in streams:
            await anext(stream)
        assert both.worker.dialler.sessions is not None
        (session,) = both.worker.dialler.sessions._sessions.values()
        session.output.transport.abort()
        for stream in streams:
            *_, kind, _, migratable = await asyncio.wait_for(outcome(stream), LIMIT)
            assert (kind, migratable) == ("Disconnected", True)
        assert await outcome(await both.call("generate", {"item": "a"})) == ["a"]


@pytest.mark.parametrize("mux", PLANES)
async def test_the_longest_control_message_is_taken(mux: str) -> None:
    """The offer of a session must not make it longer than a worker takes: then the answer has a connection of its own."""
    async with ends(mux) as both:
        size = MAX_CONTROL_MESSAGE_SIZE
        with pytest.raises(RequestTooLarge) as refused:
            await both.call("generate", {"item": 1}, Context(metadata={"m": "x" * size}))
        assert refused.value.size is not None
        size -= refused.value.size - MAX_CONTROL_MESSAGE_SIZE
        for fewer in (0, 1, 50, 200):
            context = Context(metadata={"m": "x" * (size - fewer)})
            assert await outcome(await both.call("generate", {"item": 1}, context)) == [1]
