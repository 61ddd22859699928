"""One request, from its frame to the end of its answer, as a requester of plain sockets sees it."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Iterator
from itertools import chain
from types import ModuleType
from typing import Any, cast

import pytest

from dynamo_fast.context import Context
from dynamo_fast.ingress import dialler, response_connection
from dynamo_fast.ingress.answer import Batch
from dynamo_fast.ingress.worker import Worker
from dynamo_fast.net.sockets import keep_alive
from tests.garbage import no_garbage
from tests.ingress.conftest import Start, address_of
from tests.ingress.requester import PATIENCE, Answer, Requester, control_frame, two_part


async def data_of(answer: Answer) -> list[Any]:
    """The data of the items; the final marker must be the last, and only there."""
    *items, final = await answer.items()
    assert final == {"complete_final": True}
    assert all(item["complete_final"] is False for item in items)
    return [item["data"].get("data") for item in items]


async def refused(answer: Answer) -> dict[str, Any]:
    """The error prologue; the sentinel must follow."""
    prologue = await answer.read()
    assert prologue is not None
    sentinel = await answer.read()
    assert sentinel is not None
    assert sentinel.header == "sentinel"
    answer.writer.write_eof()
    assert isinstance(prologue.header, dict)
    assert prologue.header["error"]
    return prologue.header


def kept_alive(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> asyncio.Future[bool]:
    """Whether the kernel keeps the connection alive that `module` asks it to."""
    alive: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def look(endpoint: socket.socket, user_timeout: float | None = None) -> None:
        keep_alive(endpoint, user_timeout)
        alive.set_result(bool(endpoint.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)))

    monkeypatch.setattr(module, "keep_alive", look)
    return alive


async def begun(requester: Requester, body: Any, **changes: Any) -> Answer:
    """An answer whose prologue was good."""
    answer = await requester.call(body, **changes)
    prologue = await answer.read()
    assert prologue is not None
    assert prologue.header == {"error": None}
    return answer


async def test_an_answer(worker: Worker) -> None:
    async with Requester(address_of(worker)) as requester:
        answer = await begun(requester, [1, None, {"a": "ö"}])
        assert answer.handshake.header == {"subject": requester.subject, "stream_type": "response"}
        assert await data_of(answer) == [1, None, {"a": "ö"}]
        assert await answer.rest() == b""


async def test_an_answer_leaves_nothing_for_the_garbage_collector(worker: Worker) -> None:
    async with Requester(address_of(worker)) as requester:
        with no_garbage():
            answer = await begun(requester, [1])
            assert await data_of(answer) == [1]
            assert await answer.rest() == b""
            del answer


async def test_a_cancelled_answer_leaves_nothing_for_the_garbage_collector(start: Start) -> None:
    async def handler(request: Any) -> AsyncIterator[Any]:
        yield 1
        await asyncio.Event().wait()

    worker = await start(handler)
    (served,) = worker.endpoints.values()
    async with Requester(address_of(worker)) as requester:
        with no_garbage():
            answer = await begun(requester, None)
            assert await answer.read() is not None
            answer.reset()
            await asyncio.wait_for(served.handler.drained(), PATIENCE)
            del answer


async def test_a_connection_that_lasts_is_kept_alive(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    async def handler(request: Any) -> AsyncIterator[Any]:
        yield 1
        await asyncio.Event().wait()

    monkeypatch.setattr(dialler, "_LASTING_SECONDS", 0.05)
    alive = kept_alive(response_connection, monkeypatch)
    async with Requester(address_of(await start(handler))) as requester:
        answer = await begun(requester, None)
        assert await asyncio.wait_for(alive, PATIENCE)
        answer.send(control_frame("kill"))


async def test_items_of_one_turn_leave_in_one_piece_and_the_first_is_not_held_back(start: Start) -> None:
    gate = asyncio.Event()

    async def handler(request: Any) -> AsyncIterator[Any]:
        yield 0
        await gate.wait()
        yield Batch(range(1, 6))
        for number in range(6, 11):
            yield number

    async with Requester(address_of(await start(handler))) as requester:
        answer = await begun(requester, None)
        first = await answer.read()
        assert first is not None
        assert first.item["data"] == {"data": 0}
        gate.set()
        assert await data_of(answer) == list(range(1, 11))


async def test_a_batch_is_read_no_further_once_its_answer_is_stopped(start: Start) -> None:
    read: list[int] = []
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def handler(request: Any, context: Context) -> AsyncIterator[Any]:
        def items() -> Iterator[int]:
            for number in range(100):
                read.append(number)
                if number == 3:
                    context.stop_generating()
                yield number

        try:
            yield Batch(items())
        finally:
            ended.set_result(None)

    async with Requester(address_of(await start(handler))) as requester:
        await requester.call(None)
        await asyncio.wait_for(ended, PATIENCE)
    assert read == [0, 1, 2, 3]


async def test_items_of_every_kind_keep_their_order(start: Start) -> None:
    """Some get their envelope when they are encoded, the others when they are written."""
    annotated = {"_dynamo_annotated": True, "data": "annotated", "event": "an event"}

    async def handler(request: Any) -> AsyncIterator[Any]:
        for number in range(3):
            yield number
            yield annotated
            yield Batch([-number, annotated, "last"])

    async with Requester(address_of(await start(handler))) as requester:
        answer = await begun(requester, None)
        expected = [[number, "annotated", -number, "annotated", "last"] for number in range(3)]
        assert await data_of(answer) == list(chain.from_iterable(expected))


@pytest.mark.parametrize("awaited", [b"stream_type", b"first"])
async def test_a_handler_that_blocks_the_loop_holds_nothing_back(start: Start, awaited: bytes) -> None:
    """Neither the handshake nor an item that took a while."""
    received = threading.Event()

    async def handler(request: Any) -> AsyncIterator[Any]:
        if awaited == b"first":
            time.sleep(0.005)  # noqa: ASYNC251  # an engine that computes on the event loop's own thread
            yield "first"
        yield received.wait(PATIENCE)

    def receive() -> bytes:
        connection, _ = listener.accept()
        data = b""
        with connection:
            while not data.endswith(b'"sentinel"'):
                data += connection.recv(65536)
                if awaited in data:
                    received.set()
        return data

    listener = socket.create_server(("127.0.0.1", 0))
    with listener:
        answer = asyncio.get_running_loop().run_in_executor(None, receive)
        async with Requester(address_of(await start(handler))) as requester:
            address = f"127.0.0.1:{listener.getsockname()[1]}"
            info = requester.connection_info("a request", address=address)
            requester.send(requester.control("a request", connection_info=info), b"null")
            assert await requester.ack() == ""
            assert b'{"data":{"data":true}' in await asyncio.wait_for(answer, 2 * PATIENCE)


@pytest.mark.parametrize("wrap", [lambda item: item, lambda item: Batch([item])], ids=["items", "batches"])
async def test_a_handler_that_never_pauses_hears_that_its_caller_is_gone(start: Start, wrap: Any) -> None:
    ended_by = asyncio.get_running_loop().create_future()

    async def handler(request: Any, context: Context) -> AsyncIterator[Any]:
        began = time.monotonic()
        while not context.is_stopped() and time.monotonic() < began + PATIENCE:
            time.sleep(0.0002)  # noqa: ASYNC251  # as above
            yield wrap(1)
        ended_by.set_result("its caller" if context.is_stopped() else "nobody")

    async with Requester(address_of(await start(handler))) as requester:
        answer = await begun(requester, None)
        assert await answer.read() is not None
        answer.reset()
        assert await ended_by == "its caller"


async def test_a_handler_gets_the_context_only_if_it_names_it(start: Start) -> None:
    class Engine:
        async def __call__(self, request: Any, *, context: Context) -> AsyncIterator[Any]:
            yield [context.id(), context.metadata]

    async with Requester(address_of(await start(Engine()))) as requester:
        answer = await begun(requester, None, request_id="the id", metadata={"k": "v"})
        assert await data_of(answer) == [["the id", {"k": "v"}]]


@pytest.mark.parametrize("how", ["returns nothing", "coroutine", "generator", "raises", "wants more"])
async def test_a_handler_that_cannot_be_called(start: Start, how: str) -> None:
    async def coroutine(request: Any) -> None: ...

    def raises(request: Any) -> None:
        raise ValueError("no\nway")

    handlers: dict[str, tuple[Any, str]] = {
        "returns nothing": (lambda request: None, "AttributeError: 'NoneType' object has no attribute '__anext__'"),
        "coroutine": (coroutine, "AttributeError: 'coroutine' object has no attribute '__anext__'"),
        "generator": (lambda request: iter([1]), "AttributeError: 'list_iterator' object has no attribute '__anext__'"),
        "raises": (raises, "ValueError: no\nway"),
        "wants more": (lambda request, more: None, "TypeError: "),
    }
    handler, text = handlers[how]
    async with Requester(address_of(await start(handler, adapt=False))) as requester:
        prologue = await refused(await requester.call({}))
        assert prologue["error"].startswith(f"Generate Error: {text}")
        assert prologue["typed_error"]["error_type"] == "Unknown"
        assert (prologue["typed_error"]["class"], prologue["typed_error"]["reason"]) == (
            "Internal",
            "runtime.unclassified",
        )


# What the reference drops without a word


@pytest.mark.parametrize(
    ("changes", "body", "text"),
    [
        ({}, b"not json", "JSON is malformed"),
        ({"payload_codec": "msgpack"}, b"\xc1", "MessagePack data is malformed"),
        ({}, b"", "it has no body"),
    ],
)
async def test_a_body_that_cannot_be_read_is_answered(
    worker: Worker, changes: dict[str, Any], body: bytes, text: str
) -> None:
    async with Requester(address_of(worker)) as requester:
        requester.send(requester.control(**changes), body)
        assert await requester.ack() == ""
        prologue = await refused(await requester.dialled())
        assert text in prologue["error"]
        assert prologue["typed_error"]["class"] == "InvalidRequest"


async def test_an_id_that_is_not_the_streams_is_answered(worker: Worker) -> None:
    async with Requester(address_of(worker)) as requester:
        info = requester.connection_info("another")
        subject = requester.subject
        requester.send(requester.control("one", connection_info=info), b"1")
        assert await requester.ack() == ""
        assert "its id is 'one'" in (await refused(await requester.dialled(subject)))["error"]


@pytest.mark.parametrize(
    "header",
    [
        b"not json",
        b"{}",
        b'{"id":"1","request_type":"single_in","response_type":"many_out"}',
        b'{"id":"1","request_type":"single_in","response_type":"many_out","connection_info":{"transport":"x","info":"{}"}}',
        b'{"id":"1","request_type":"no","response_type":"many_out","connection_info":{"transport":"tcp_server","info":""}}',
    ],
)
async def test_whoever_cannot_be_answered_is_refused(worker: Worker, header: bytes) -> None:
    async with Requester(address_of(worker)) as requester:
        requester.send(header)
        assert (await requester.ack()).startswith("Server unavailable: unreadable request: ")
        assert await data_of(await begun(requester, [1])) == [1]  # and the connection goes on


@pytest.mark.parametrize(
    "payload",
    [b"", b"short", b"\xff" * 24, struct.pack(">QQQ", 10, 10, 0), struct.pack(">QQQ", 2**40, 0, 0)],
)
async def test_a_payload_that_is_no_message_is_refused(worker: Worker, payload: bytes) -> None:
    from tests.ingress.requester import request_frame

    async with Requester(address_of(worker)) as requester:
        requester.writer.write(request_frame(requester.path, payload))
        assert (await requester.ack()).startswith("Server unavailable: unreadable request: ")
        assert await data_of(await begun(requester, [1])) == [1]


# The address to dial back


@pytest.mark.parametrize("address", ["nowhere", "host:80", "[::1", "", "127.0.0.1:65536"])
async def test_what_is_no_address_is_refused(worker: Worker, address: str) -> None:
    async with Requester(address_of(worker)) as requester:
        control = requester.control("x", connection_info=requester.connection_info("x", address=address))
        requester.send(control, b"1")
        assert "malformed connection info: Invalid TCP address" in await requester.ack()
        assert await data_of(await begun(requester, [1])) == [1]


async def test_an_address_that_cannot_be_dialled_costs_one_line(
    worker: Worker, caplog: pytest.LogCaptureFixture
) -> None:
    async with Requester(address_of(worker)) as requester:
        control = requester.control("x", connection_info=requester.connection_info("x", address="127.0.0.1:1"))
        requester.send(control, b"1")
        assert await requester.ack() == ""
        assert await data_of(await begun(requester, [1])) == [1]
    (served,) = worker.endpoints.values()
    await asyncio.wait_for(served.handler.drained(), PATIENCE)
    assert served.metrics.errors == {"response_stream": 1}
    assert len([record for record in caplog.records if "request x " in record.message]) == 1


async def test_an_address_that_hangs(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    worker = await start(connect_timeout=0.1)
    # A listener whose backlog is full takes no further connection, and does not say so.
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        async with Requester(address_of(worker)) as requester:
            info = requester.connection_info("x", address=f"127.0.0.1:{port}")
            requester.send(requester.control("x", connection_info=info), b"1")
            assert await requester.ack() == ""
        (served,) = worker.endpoints.values()
        await asyncio.wait_for(served.handler.drained(), PATIENCE)
        for filler in fillers:
            filler.close()
    assert f"127.0.0.1:{port} took no connection within 0.1 s" in caplog.text


# Cancellation


class Patient:
    """A handler that ignores its context, and says how it ended."""

    def __init__(self) -> None:
        self.ended: asyncio.Future[tuple[bool, bool]] = asyncio.get_running_loop().create_future()

    async def __call__(self, request: Any, context: Context) -> AsyncIterator[Any]:
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            self.ended.set_result((context.is_stopped(), context.is_killed()))


@pytest.mark.parametrize(
    ("words", "flags"),
    [
        ([control_frame("stop")], (True, False)),
        ([control_frame("kill")], (True, True)),
        ([control_frame("sentinel")], (True, True)),
        ([control_frame("other")], (True, True)),
        ([two_part(b"", b"data")], (True, True)),
        ([two_part(b'"stop"', b"data")], (True, True)),
        ([b"\xff" * 24], (True, True)),
        ([struct.pack(">QQQ", 2**30, 0, 0)], (True, True)),
    ],
    ids=["stop", "kill", "sentinel", "unknown", "data", "both", "garbage", "large"],
)
async def test_what_the_router_says_reaches_a_handler_that_does_not_look(
    start: Start, words: list[bytes], flags: tuple[bool, bool]
) -> None:
    patient = Patient()
    async with Requester(address_of(await start(patient))) as requester:
        answer = await begun(requester, None)
        await answer.read()
        for word in words:
            answer.send(word)
        try:
            assert await answer.rest() == b""  # neither a final marker nor a sentinel
        except ConnectionResetError:
            pass
        assert await asyncio.wait_for(patient.ended, PATIENCE) == flags


async def test_a_router_that_resets(start: Start) -> None:
    patient = Patient()
    async with Requester(address_of(await start(patient))) as requester:
        answer = await begun(requester, None)
        await answer.read()
        answer.reset()
        assert await asyncio.wait_for(patient.ended, PATIENCE) == (True, True)


async def test_a_half_close_is_no_cancellation(worker: Worker) -> None:
    async with Requester(address_of(worker)) as requester:
        requester.send(requester.control(), b"[1,2]")
        answer = await requester.dialled()
        answer.writer.write_eof()
        prologue = await answer.read()
        assert prologue is not None
        rest = await answer.rest()
        assert rest.endswith(two_part(b'"sentinel"', b""))


async def test_stop_while_the_handler_is_asked_to_wait(start: Start) -> None:
    stopped = asyncio.Event()

    async def handler(request: Any, context: Context) -> AsyncIterator[Any]:
        yield 1
        await context.async_killed_or_stopped()
        stopped.set()

    async with Requester(address_of(await start(handler))) as requester:
        answer = await begun(requester, None)
        answer.send(control_frame("stop"))
        await asyncio.wait_for(stopped.wait(), PATIENCE)


# Back-pressure, and routers that do nothing


async def test_a_router_that_does_not_read_stops_the_handler_and_is_given_up(start: Start) -> None:
    produced = 0

    async def handler(request: Any) -> AsyncIterator[Any]:
        nonlocal produced
        while True:
            produced += 1
            yield "x" * 100_000

    worker = await start(handler, stall_timeout=0.3)
    async with Requester(address_of(worker)) as requester:
        answer = await begun(requester, None)
        cast(asyncio.Transport, answer.writer.transport).pause_reading()
        (served,) = worker.endpoints.values()
        await asyncio.wait_for(served.handler.drained(), PATIENCE)
    assert produced < 1000


async def test_a_router_that_never_closes_is_closed(start: Start) -> None:
    worker = await start(close_timeout=0.1)
    async with Requester(address_of(worker)) as requester:
        answer = await begun(requester, [1])
        for _ in range(3):
            assert await answer.read() is not None
        assert await answer.rest() == b""


async def test_the_same_id_twice_at_once(start: Start) -> None:
    gate = asyncio.Event()

    async def handler(request: Any) -> AsyncIterator[Any]:
        await gate.wait()
        yield request

    async with Requester(address_of(await start(handler))) as requester:
        answers = [await begun(requester, number, request_id="same") for number in range(2)]
        gate.set()
        assert [await data_of(answer) for answer in answers] == [[0], [1]]


async def test_one_line_says_how_a_stream_ended(worker: Worker, caplog: pytest.LogCaptureFixture) -> None:
    async with Requester(address_of(worker)) as requester:
        answer = await begun(requester, [1, 2], request_id="the-id")
        await data_of(answer)
        await answer.rest()
    (line,) = [record.message for record in caplog.records if "the-id" in record.message]
    assert line.startswith("request the-id for a/b/c was finished by the handler in state STREAMING after 2 items, ")


async def test_what_the_metrics_say(worker: Worker) -> None:
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry()
    registry.register(worker.metrics)
    async with Requester(address_of(worker)) as requester:
        await data_of(await begun(requester, [1, 2]))
        requester.send(requester.control(), b"not json")
        await requester.ack()
        await refused(await requester.dialled())
    text = generate_latest(registry).decode()
    labels = (
        f'dynamo_component="b",dynamo_endpoint="c",dynamo_namespace="a",worker_id="{worker.discovery.connection_id:x}"'
    )
    assert f"dynamo_component_requests_total{{{labels}}} 2.0" in text
    assert 'error_type="invalid_message"' in text
    final = len(b'{"complete_final":true}')
    items = 2 * len(b'{"data":{"data":1},"complete_final":false}')
    assert f"dynamo_component_response_bytes_total{{{labels}}} {float(items + final)}" in text
    assert "dynamo_component_request_duration_seconds_bucket" in text
