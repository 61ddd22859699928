"""The spans of calls and requests, as a tracer provider of the program records them; all in one process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace

from dynamo_fast.context import Context
from dynamo_fast.discovery.file import FileDiscovery
from dynamo_fast.egress.call import Call
from dynamo_fast.egress.push_router import PushRouter
from dynamo_fast.egress.router import AddressedPushRouter
from dynamo_fast.egress.traced_call import TracedCall
from dynamo_fast.errors import DynamoError
from dynamo_fast.ingress.worker import Worker
from dynamo_fast.observability import spans
from dynamo_fast.observability.current import request_fields
from dynamo_fast.observability.spans import TracedContext
from dynamo_fast.runtime import DistributedRuntime
from dynamo_fast.runtime.context import Context as DropInContext
from tests.observability.otlp import Span, named
from tests.observability.recorded import Recorded, recorded
from tests.waiting import until

__all__ = ["recorded"]

ENDPOINT = "demo.backend.generate"
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class World:
    """A worker and a router on one discovery. The mode of a request says what its handler does."""

    def __init__(self) -> None:
        self.contexts: list[Context] = []
        self.fields: list[dict[str, str]] = []
        self.current: list[str] = []
        self.states: list[str] = []

    async def __aenter__(self) -> World:
        self.discovery = FileDiscovery()
        self.worker = await Worker.start(FileDiscovery())
        self.served = await self.worker.serve(self.handle, ENDPOINT)
        self.addressed = await AddressedPushRouter.create()
        self.router = await PushRouter.create(ENDPOINT, self.discovery, self.addressed)
        await self.router.wait_for_instances()
        return self

    async def __aexit__(self, *error: object) -> None:
        self.router.close()
        await self.addressed.close()
        await self.discovery.close()
        await self.worker.close()

    async def handle(self, request: str, context: Context) -> AsyncIterator[Any]:
        self.contexts.append(context)
        self.fields.append(request_fields())
        self.current.append(f"{trace.get_current_span().get_span_context().span_id:016x}")
        self.states.append(trace.get_current_span().get_span_context().trace_state.to_header())
        yield request
        if request == "bad":
            raise ValueError("on purpose")
        if request == "fails":
            raise RuntimeError("on purpose")
        if request == "own":
            with trace.get_tracer("handler").start_as_current_span("own"):
                async for item in await self.router.generate("end", context=context):
                    yield item.data()
        if request == "on":
            async for item in await self.router.generate("end", context=context):
                yield item.data()
        if request == "waits":
            await context.async_killed_or_stopped()

    async def call(self, request: Any, context: Context | None = None, headers: dict[str, str] | None = None) -> None:
        async for _ in await self.router.generate(request, context, headers):
            pass

    @property
    def instance_id(self) -> str:
        return str(self.worker.discovery.connection_id)


@pytest.fixture(autouse=True)
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "DYN_FILE_KV": str(tmp_path),
        "DYN_TCP_RPC_HOST": "127.0.0.1",
        "DYN_TCP_RESPONSE_STREAM_HOST": "127.0.0.1",
        "DYNAMO_FAST_LEAVE_DELAY": "0",
    }.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with World() as made:
        yield made


@pytest.fixture
def traced(recorded: Recorded, world: World) -> World:
    """The provider is set before the world is made: the order of the arguments."""
    return world


async def ended(recorded: Recorded, count: int) -> list[Span]:
    await until(lambda: len(recorded.spans) >= count)
    assert len(recorded.spans) == count
    return recorded.spans


async def test_a_call_and_its_request_are_two_steps_of_one_trace(recorded: Recorded, traced: World) -> None:
    await traced.call("x", Context("a"))
    found = await ended(recorded, 2)
    (call,), (request,) = named(found, "router.route_request"), named(found, "handle_payload")
    assert (call.kind, request.kind) == ("CLIENT", "SERVER")
    assert call.parent_id == ""
    assert (request.trace_id, request.parent_id) == (call.trace_id, call.span_id)
    assert call.attributes == {
        "request_id": "a",
        "router_mode": "RoundRobin",
        "worker_id": traced.instance_id,
        "request.attempt": "0",
        "migration.is_retry": False,
        "request.outcome": "success",
    }
    assert request.attributes == {
        "request_id": "a",
        "component": "backend",
        "endpoint": "generate",
        "namespace": "demo",
        "instance_id": traced.instance_id,
        "trace_id": call.trace_id,
        "parent_id": call.span_id,
        "trace_flags": "01",
    }
    assert call.events == ["route request completed"]
    assert request.events == ["request received", "request completed"]
    assert (call.error, request.error) == (None, None)


async def test_a_handler_that_calls_on_continues_its_trace(recorded: Recorded, traced: World) -> None:
    await traced.call("on")
    found = await ended(recorded, 5)
    assert len({each.trace_id for each in found}) == 1
    by_id = {each.span_id: each for each in found}
    (last,) = (each for each in named(found, "handle_payload") if by_id[each.parent_id].parent_id)
    chain = [last]
    while chain[-1].parent_id:
        chain.append(by_id[chain[-1].parent_id])
    assert [each.name for each in chain] == [
        "handle_payload",
        "router.route_request",
        "client_request",
        "handle_payload",
        "router.route_request",
    ]


async def test_a_span_of_the_handler_stands_between_its_request_and_its_call(recorded: Recorded, traced: World) -> None:
    await traced.call("own")
    found = await ended(recorded, 6)
    (own,), (around,) = named(found, "own"), named(found, "client_request")
    assert around.parent_id == own.span_id
    assert own.parent_id in {each.span_id for each in named(found, "handle_payload")}


async def test_the_callers_own_span_is_the_parent(recorded: Recorded, traced: World) -> None:
    with recorded.provider.get_tracer("program").start_as_current_span("mine"):
        await traced.call("x")
    found = await ended(recorded, 3)
    (mine,), (call,) = named(found, "mine"), named(found, "router.route_request")
    assert (call.trace_id, call.parent_id) == (mine.trace_id, mine.span_id)
    assert trace.get_current_span() is trace.INVALID_SPAN


async def test_headers_that_were_given_are_the_parent_and_their_state_goes_on(
    recorded: Recorded, traced: World
) -> None:
    await traced.call("x", headers={"traceparent": f"00-{TRACE}-{SPAN}-03", "tracestate": "a=1"})
    found = await ended(recorded, 2)
    (call,) = named(found, "router.route_request")
    assert (call.trace_id, call.parent_id) == (TRACE, SPAN)
    headers = traced.contexts[0].trace_headers()
    assert headers is not None
    assert headers["tracestate"] == "a=1"
    assert traced.states == ["a=1"]
    assert headers["traceparent"].endswith("-01")  # never 03, which Dynamo 1.6.1 refuses


async def test_a_trace_that_is_not_sampled_is_handed_on_and_not_recorded(recorded: Recorded, traced: World) -> None:
    await traced.call("x", headers={"traceparent": f"00-{TRACE}-{SPAN}-00"})
    headers = traced.contexts[0].trace_headers()
    assert headers is not None
    assert headers["traceparent"][:35] == f"00-{TRACE}"
    assert headers["traceparent"].endswith("-00")
    assert recorded.spans == []


@pytest.mark.parametrize(
    ("request_", "outcome", "error"),
    [("bad", "rejected", "backend_invalid_argument"), ("fails", "error", "backend_unknown")],
)
async def test_a_handler_that_raises(
    recorded: Recorded, traced: World, request_: str, outcome: str, error: str
) -> None:
    with pytest.raises(DynamoError):
        await traced.call(request_)
    found = await ended(recorded, 2)
    (call,), (request,) = named(found, "router.route_request"), named(found, "handle_payload")
    assert (call.attributes["request.outcome"], call.attributes["error.type"]) == (outcome, error)
    assert call.error == error
    assert call.events == ["route request failed"]
    assert request.error is None  # as in Dynamo


@pytest.mark.parametrize("signal", ["stop", "kill", "stream_drop"])
async def test_an_answer_that_is_given_up(recorded: Recorded, traced: World, signal: str) -> None:
    context = Context()
    stream = await traced.router.generate("waits", context)
    await stream.__anext__()
    if signal == "stream_drop":
        stream.close()
    else:
        {"stop": context.stop_generating, "kill": context.kill}[signal]()
        async for _ in stream:
            pass
    del stream
    (call,) = named(await ended(recorded, 2), "router.route_request")
    assert call.attributes["request.outcome"] == "cancelled"
    assert call.attributes["cancellation.signal"] == signal
    assert call.events == ["route request cancelled"]
    assert call.error is None


async def test_a_call_that_is_cancelled_before_its_answer(recorded: Recorded, traced: World) -> None:
    calling = asyncio.ensure_future(traced.router.generate("x"))
    await asyncio.sleep(0)
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
    await until(lambda: named(recorded.spans, "router.route_request"))
    (call,) = named(recorded.spans, "router.route_request")
    assert call.attributes["cancellation.signal"] == "stream_drop"


async def test_a_worker_that_cannot_be_reached(recorded: Recorded, traced: World) -> None:
    await traced.worker.server.close()
    with pytest.raises(DynamoError):
        await traced.call("x")
    (call,) = named(recorded.spans, "router.route_request")
    assert (call.attributes["request.outcome"], call.error) == ("connection_failed", "cannot_connect")


async def test_a_request_that_cannot_be_encoded(recorded: Recorded, traced: World) -> None:
    with pytest.raises(DynamoError):
        await traced.call(object())
    (call,) = recorded.spans
    assert (call.attributes["request.outcome"], call.error) == ("rejected", "invalid_argument")


async def test_the_handler_runs_in_its_span(recorded: Recorded, traced: World) -> None:
    await traced.call("x")
    (request,) = named(await ended(recorded, 2), "handle_payload")
    assert traced.current == [request.span_id]
    assert traced.fields[0]["span_id"] == request.span_id
    assert traced.fields[0]["trace_id"] == request.trace_id


async def test_the_handlers_own_spans(recorded: Recorded, traced: World) -> None:
    """`current_span` and `start_span` of the drop-in's context."""
    context = spans.endpoint_tracer(traced.served.endpoint, 7)
    assert context is not None
    request = context.accept("a", None, {})
    with DropInContext.of(request).start_span("decode", {"tokens": 3, "kind": object}) as span:
        span.add_event("half", {"n": 1})
        span.set_status("error", "no more")
        with DropInContext.of(request).start_span("inner"):
            pass
    DropInContext.of(request).current_span().set_attribute("model", "tiny")
    DropInContext.of(request).current_span().close()  # the worker ends it
    assert [each.name for each in recorded.spans] == ["inner", "decode"]
    request.span.end()
    inner, decode, whole = recorded.spans
    assert inner.parent_id == decode.parent_id == whole.span_id
    assert dict(decode.attributes) == {"tokens": 3, "kind": "<class 'object'>"}
    assert (decode.events, decode.error) == (["half"], "no more")
    assert whole.attributes["model"] == "tiny"


async def test_an_attempt_at_another_worker_is_a_span_of_its_own(recorded: Recorded, traced: World) -> None:
    other = await Worker.start(FileDiscovery())
    await other.serve(traced.handle, ENDPOINT)
    await until(lambda: len(traced.router.instance_ids()) == 2)
    await traced.worker.server.close()
    traced.router.retries = 1
    for _ in range(2):  # one of them begins at the worker that is gone
        await traced.call("x")
    attempts = named(recorded.spans, "router.route_request")
    again = [each for each in attempts if each.attributes["migration.is_retry"]]
    assert [each.attributes["request.attempt"] for each in again] == ["1"]
    assert again[0].attributes["worker_id"] == str(other.discovery.connection_id)
    await other.close()


async def test_without_a_provider_there_are_ids_if_the_variables_ask_for_them(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DYN_LOGGING_JSONL", "1")
    with caplog.at_level(logging.INFO, "dynamo_fast.egress.traced_call"):
        async with World() as world:
            await world.call("on")
            inner, outer = world.contexts[1], world.contexts[0]
            assert isinstance(inner, TracedContext)
            assert isinstance(outer, TracedContext)
            assert inner.span.fields()["trace_id"] == outer.span.fields()["trace_id"]
            assert inner.parent_span_id is not None
            assert world.fields[0] == outer.span.fields()
            assert DropInContext.of(outer).start_span("nothing").__enter__() is not None
            DropInContext.of(outer).current_span().set_status("ok")
    first, second = [each for each in caplog.records if each.message == "route request completed"]
    assert getattr(first, "request_id") == getattr(second, "request_id") == outer.id()  # noqa: B009
    assert getattr(first, "request.outcome") == "success"


async def test_without_a_provider_and_without_the_variables_nothing_is_made(world: World) -> None:
    assert spans.tracer() is None
    assert world.served.handler.tracer is None
    call = world.router.prepare(world.router.mode, "x")
    assert type(call) is Call
    assert not isinstance(call, TracedCall)
    await world.call("x")
    assert type(world.contexts[0]) is Context
    assert world.contexts[0].trace_headers() is None
    assert world.fields == [{"request_id": world.contexts[0].id()}]


class Forgetful:
    """A sink that wants to be called only."""

    def begin(self, delivery: Any) -> None: ...

    def item(self, item: Any) -> None: ...

    def end(self, error: BaseException | None) -> None: ...


@pytest.mark.parametrize("form", ["stream", "sink", "drop-in", "drop-in, sink"])
@pytest.mark.parametrize("ended", [True, False])
async def test_each_form_of_a_call_tells_whether_its_answer_ended(
    recorded: Recorded, traced: World, form: str, ended: bool
) -> None:
    request = "end" if ended else "waits"
    runtime = DistributedRuntime(asyncio.get_running_loop(), "file", "tcp")
    client = await runtime.endpoint(ENDPOINT).client()
    await client.wait_for_instances()
    if form == "stream":
        stream = await traced.router.generate(request)
        await anext(stream)
        if ended:
            assert [item async for item in stream] == []
        stream.close()
    elif form == "drop-in":
        answer = await client.round_robin(request)
        await anext(answer)
        if ended:
            assert [item async for item in answer] == []
        del answer
    else:
        caller: Any = traced.router.generate if form == "sink" else client.round_robin
        delivery = await caller(request, sink=Forgetful())
        if not ended:
            delivery.close()
        await delivery.wait_ended()
    await until(lambda: len(named(recorded.spans, "router.route_request")) == 1)
    (call,) = named(recorded.spans, "router.route_request")
    assert call.attributes["request.outcome"] == ("success" if ended else "cancelled")
    runtime.shutdown()
    await runtime.ended()
