"""Every time limit of a worker, with its default value, on a turned clock.

Each fires at its time and not before, is lifted when what it waits for has come, and leaves its table.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from dynamo_fast.config import TcpServerConfig, WorkerConfig
from dynamo_fast.context import Context
from dynamo_fast.discovery.memory import MemoryDiscovery
from dynamo_fast.ingress.worker import Worker
from dynamo_fast.testing import clock
from tests.faults.tables import tables
from tests.faults.test_idle import unanswered
from tests.ingress.conftest import ENDPOINT, address_of, echo
from tests.ingress.requester import Answer, Requester, control_frame, request_frame
from tests.waiting import happens_after

pytestmark = pytest.mark.turned_clock

HOUR = 3600.0
Begin = Callable[..., Awaitable[Worker]]


@pytest.fixture
async def begin() -> AsyncIterator[Begin]:
    """Starts workers with the default limits. File discovery has a thread, whose clock is not turned."""
    workers: list[Worker] = []
    handlers: list[Any] = []

    async def start(handler: Any = echo, **settings: Any) -> Worker:
        server = TcpServerConfig(host="127.0.0.1")
        worker = await Worker.start(MemoryDiscovery(), WorkerConfig(**settings), server)
        workers.append(worker)
        handlers.append(handler)
        await worker.serve(handler, ENDPOINT)
        return worker

    yield start
    for handler in handlers:
        if isinstance(handler, Patient):
            handler.swallows = 0  # or one that a broken worker does not cancel would outlive the loop
    for worker in workers:
        await asyncio.wait_for(worker.close(), HOUR)


def waiting(worker: Worker) -> dict[str, int]:
    """What the worker keeps of connections and requests."""
    return {path: size for path, size in tables(worker=worker).items() if size}


def in_flight(worker: Worker) -> int:
    (served,) = worker.endpoints.values()
    return served.metrics.inflight


async def raw(worker: Worker, first: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A request connection."""
    host, port = worker.server.transport("").address.rstrip("/").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(first)
    await clock.settle()
    return reader, writer


async def answered(requester: Requester, body: Any = None) -> Answer:
    """An answer whose prologue has come."""
    answer = await requester.call(body)
    prologue = await answer.read()
    assert prologue is not None
    assert prologue.header == {"error": None}
    return answer


async def whole(requester: Requester) -> None:
    """One request with its whole answer."""
    await (await answered(requester, [1])).items()
    await clock.settle()


class Patient:
    """A handler that looks at no context, and notes its cancellations; it swallows so many of them."""

    def __init__(self, swallows: int = 0) -> None:
        self.cancelled_at: list[float] = []
        self.swallows = swallows

    async def __call__(self, request: Any) -> AsyncIterator[Any]:
        yield 1
        while True:
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                self.cancelled_at.append(clock.now())
                if len(self.cancelled_at) > self.swallows:
                    raise


# A request connection has DYNAMO_FAST_IDLE_TIMEOUT, 900 s, between two requests


async def test_a_connection_without_a_request_is_closed_after_15_minutes(
    begin: Begin, caplog: pytest.LogCaptureFixture
) -> None:
    worker = await begin()
    before = waiting(worker)
    async with Requester(address_of(worker)) as requester:
        await whole(requester)
        await clock.advance(899)
        await whole(requester)
        await happens_after(900, requester.reader.at_eof)
        assert "no request came for 900 s" in caplog.text
        assert waiting(worker) == before


# The first request has DYNAMO_FAST_FIRST_REQUEST_TIMEOUT, 30 s


async def test_a_connection_has_30_seconds_for_its_first_request(
    begin: Begin, caplog: pytest.LogCaptureFixture
) -> None:
    worker = await begin()
    before = waiting(worker)
    reader, writer = await raw(worker)
    await happens_after(30, reader.at_eof)
    assert "it has sent no request within 30 s" in caplog.text
    assert waiting(worker) == before
    writer.close()


async def test_the_first_request_lifts_its_limit(begin: Begin) -> None:
    worker = await begin()
    async with Requester(address_of(worker)) as requester:
        await clock.advance(29.9)
        await whole(requester)
        await clock.advance(899)
        assert not requester.reader.at_eof()


async def test_a_refusal_does_not_lift_the_limit_of_the_first_request(begin: Begin) -> None:
    worker = await begin()
    reader, writer = await raw(worker, request_frame("nowhere", b""))
    await clock.advance(29)
    assert await reader.read(1000)
    await happens_after(1, reader.at_eof)
    writer.close()


# A frame has DYNAMO_FAST_FRAME_TIMEOUT, 60 s, from its first byte


@pytest.mark.parametrize("is_new", [False, True])
async def test_a_frame_has_a_minute(begin: Begin, is_new: bool, caplog: pytest.LogCaptureFixture) -> None:
    worker = await begin()
    before = waiting(worker)
    async with Requester(address_of(worker)) as requester:
        if not is_new:
            await whole(requester)
        await clock.advance(29)
        frame = request_frame(requester.path, bytes(100))
        requester.writer.write(frame[:50])
        await clock.advance(59)
        requester.writer.write(frame[50:60])  # which is not the end
        await happens_after(1, requester.reader.at_eof)
        assert "60 bytes of a request frame came, but not the rest within 60 s" in caplog.text
        assert waiting(worker) == before


async def test_the_next_frame_has_a_minute_of_its_own(begin: Begin) -> None:
    worker = await begin()
    async with Requester(address_of(worker)) as requester:
        frame = request_frame("nowhere", bytes(100))
        requester.writer.write(frame[:50])
        await clock.advance(59)
        await whole_frame_and_half(requester, frame)
        await clock.advance(59)
        assert not requester.reader.at_eof()
        requester.writer.write(frame[50:])
        assert "unknown endpoint" in await requester.ack()
        await whole(requester)
        await clock.advance(899)
        assert not requester.reader.at_eof()


async def whole_frame_and_half(requester: Requester, frame: bytes) -> None:
    """The rest of a frame and half of the next, in one piece."""
    requester.writer.write(frame[50:] + frame[:50])
    assert "unknown endpoint" in await requester.ack()


# A connection that was closed has 10 s to read its acknowledgements


async def test_acknowledgements_of_a_closed_connection_have_10_seconds(begin: Begin) -> None:
    worker = await begin()
    before = waiting(worker)
    reader, writer = await raw(worker)
    reader._transport.pause_reading()  # type: ignore[attr-defined]  # the stream has no method for it
    writer.write(request_frame(b"x" * 60_000, b"") * 200)  # each is echoed in its refusal
    await clock.settle()
    await worker.server.close()
    await happens_after(10, lambda: "worker.server._closing" not in waiting(worker))
    assert waiting(worker) == before
    writer.transport.abort()


# The router has DYN_TCP_CONNECT_TIMEOUT, 5 s, to take the worker's connection


async def test_a_dial_has_5_seconds(begin: Begin, caplog: pytest.LogCaptureFixture) -> None:
    worker = await begin()
    listener, others = unanswered()
    port = listener.getsockname()[1]
    async with Requester(address_of(worker)) as requester:
        info = requester.connection_info("x", address=f"127.0.0.1:{port}")
        requester.send(requester.control("x", connection_info=info), b"1")
        assert await requester.ack() == ""
        await happens_after(5, lambda: not in_flight(worker))
        assert f"127.0.0.1:{port} took no connection within 5 s" in caplog.text
        assert "worker.dialler._connecting" not in waiting(worker)
    for each in (listener, *others):
        each.close()


async def test_an_answer_that_has_begun_has_no_limit(begin: Begin) -> None:
    handler = Patient()
    worker = await begin(handler)
    async with Requester(address_of(worker)) as requester:
        answer = await answered(requester)
        await clock.advance(24 * HOUR)
        assert in_flight(worker) == 1
        assert not handler.cancelled_at
        answer.send(control_frame("kill"))
        await clock.advance(10)
        assert not in_flight(worker)


# A connection that has lasted for 5 s is kept alive


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="the system has no TCP_USER_TIMEOUT")
async def test_a_connection_that_lasts_5_seconds_is_kept_alive(begin: Begin) -> None:
    worker = await begin(Patient())

    def option(level: int, name: int) -> int:
        (descriptor,) = worker.dialler.open_sockets()
        with socket.socket(fileno=descriptor) as endpoint:
            value = endpoint.getsockopt(level, name)
            endpoint.detach()
        return value

    async with Requester(address_of(worker)) as requester:
        answer = await answered(requester)
        await happens_after(5, lambda: option(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
        assert option(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 300_000  # as long as a router may stall
        answer.send(control_frame("kill"))
        await clock.advance(10)
        assert not in_flight(worker)


async def test_a_connection_that_does_not_last_leaves_no_timer(begin: Begin) -> None:
    worker = await begin()
    async with Requester(address_of(worker)) as requester:
        await clock.settle()
        before = waiting(worker)
        await whole(requester)
        after = waiting(worker)
        after.pop("worker.metrics.endpoints[0].requests", None)
        assert after == {path: size for path, size in before.items() if path != "worker.server._new"}


# A finished answer has DYNAMO_FAST_RESPONSE_CLOSE_TIMEOUT, 10 s, to be closed by the router


async def test_a_router_that_does_not_close_has_10_seconds(begin: Begin) -> None:
    worker = await begin()
    async with Requester(address_of(worker)) as requester:
        answer = await answered(requester, [1])
        frames = [await answer.read() for _ in range(3)]
        assert frames[-1] is not None
        assert frames[-1].header == "sentinel"
        await happens_after(10, answer.reader.at_eof)
        assert not [path for path in waiting(worker) if path.startswith("worker.dialler")]


async def test_a_router_that_closes_lifts_the_limit(begin: Begin) -> None:
    worker = await begin()
    async with Requester(address_of(worker)) as requester:
        answer = await answered(requester, [1])
        await clock.advance(9.9)
        assert waiting(worker)["worker.dialler.closing"] == 1
        await answer.items()  # which closes
        await clock.settle()
        assert not [path for path in waiting(worker) if path.startswith("worker.dialler")]


async def test_a_router_that_neither_reads_the_end_nor_writes_has_10_seconds(begin: Begin) -> None:
    """It has finished writing, so the worker closes after its last byte, which is never taken."""

    async def large(request: Any) -> AsyncIterator[Any]:
        yield "x" * 30_000_000

    worker = await begin(large, shutdown_timeout=1)
    async with Requester(address_of(worker)) as requester:
        answer = await requester.call(None)
        answer.reader._transport.pause_reading()  # type: ignore[attr-defined]  # the stream has no method for it
        closing = asyncio.ensure_future(worker.close())
        await clock.advance(4)
        answer.writer.write_eof()
        await clock.advance(11)
        assert closing.done()
        assert not worker.dialler.started


# A router may read nothing for DYNAMO_FAST_STALL_TIMEOUT, 300 s


async def test_a_router_that_reads_nothing_has_5_minutes(begin: Begin) -> None:
    async def endless(request: Any) -> AsyncIterator[Any]:
        while True:
            yield "x" * 1_000_000

    worker = await begin(endless)
    async with Requester(address_of(worker)) as requester:
        answer = await answered(requester)  # its reader takes 32 MB, and no more
        await clock.advance(299)
        await answer.reader.readexactly(20_000_000)
        await clock.settle()
        await happens_after(300, lambda: not in_flight(worker))
        assert not [path for path in waiting(worker) if path.startswith("worker.dialler")]


async def test_reading_lifts_the_limit(begin: Begin) -> None:
    async def long(request: Any) -> AsyncIterator[Any]:
        for _ in range(60):
            yield "x" * 1_000_000
        await asyncio.get_running_loop().create_future()

    worker = await begin(long)
    async with Requester(address_of(worker)) as requester:
        answer = await answered(requester)
        await clock.advance(299)
        await answer.reader.readexactly(60_000_000)
        await clock.advance(24 * HOUR)
        assert in_flight(worker) == 1
        answer.send(control_frame("kill"))
        await clock.advance(1)
        assert not in_flight(worker)


# Items that a handler yields within a millisecond leave together: on the clock of the processor, which is not turned


class Pieces(asyncio.Protocol):
    """The reads of a router."""

    def __init__(self) -> None:
        self.count = 0

    def data_received(self, data: bytes) -> None:
        self.count += 1


async def test_each_burst_of_items_has_a_millisecond_of_its_own(begin: Begin) -> None:
    bursts: asyncio.Queue[None] = asyncio.Queue()

    async def handler(request: Any) -> AsyncIterator[Any]:
        yield 0
        while True:
            await bursts.get()
            for number in range(10):
                yield number

    async with Requester(address_of(await begin(handler))) as requester:
        answer = await answered(requester)
        assert await answer.read() is not None
        pieces, counts = Pieces(), []
        answer.writer.transport.set_protocol(pieces)
        for _ in range(50):
            pieces.count = 0
            bursts.put_nowait(None)
            await clock.settle()
            counts.append(pieces.count)
        assert 1 in counts  # not each time: the machine may be busy for a millisecond
        answer.send(control_frame("kill"))
        await clock.advance(2)


# A handler has DYNAMO_FAST_CANCEL_GRACE, 1 s, to notice that its context was stopped


@pytest.mark.parametrize("word", ["stop", "kill"])
async def test_a_handler_that_does_not_look_is_cancelled_every_second(begin: Begin, word: str) -> None:
    handler = Patient(swallows=2)
    worker = await begin(handler)
    async with Requester(address_of(worker)) as requester:
        answer = await answered(requester)
        await clock.settle()
        stopped_at = clock.now()
        answer.send(control_frame(word))
        await clock.settle()
        await happens_after(3, lambda: not in_flight(worker))
        assert handler.cancelled_at == [stopped_at + 1, stopped_at + 2, stopped_at + 3]
        await clock.advance(HOUR / 60)
        assert len(handler.cancelled_at) == 3


async def test_a_router_that_has_finished_writing_cancels_nothing(begin: Begin) -> None:
    gate = asyncio.Event()

    async def slow(request: Any) -> AsyncIterator[Any]:
        yield 1
        await gate.wait()
        yield 2

    worker = await begin(slow)
    async with Requester(address_of(worker)) as requester:
        answer = await answered(requester)
        answer.writer.write_eof()
        await clock.advance(24 * HOUR)
        gate.set()
        *items, final = await answer.items()
        assert [each["data"]["data"] for each in items] == [1, 2]
        assert final == {"complete_final": True}
        await clock.settle()
        assert not in_flight(worker)


async def test_a_handler_that_leaves_in_time_is_not_cancelled(begin: Begin) -> None:
    ended: list[str] = []

    async def handler(request: Any, context: Context) -> AsyncIterator[Any]:
        yield 1
        try:
            while not context.is_stopped():
                await asyncio.sleep(0.9)
            ended.append("by itself")
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    errors: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    worker = await begin(handler)
    async with Requester(address_of(worker)) as requester:
        answer = await answered(requester)
        answer.send(control_frame("stop"))
        await clock.advance(HOUR / 60)
        assert not in_flight(worker)
    assert (ended, errors) == (["by itself"], [])


# A worker that leaves takes requests for DYNAMO_FAST_LEAVE_DELAY, 0.2 s


async def test_requests_are_taken_for_a_moment_after_leaving(begin: Begin) -> None:
    worker = await begin()
    async with Requester(address_of(worker)) as requester:
        closing = asyncio.ensure_future(worker.close())
        await clock.settle()
        assert await worker.discovery.list() == []
        await clock.advance(0.198)
        await whole(requester)
        assert not closing.done()
        await clock.advance(0.004)
        assert requester.reader.at_eof()
    await closing


async def test_an_endpoint_that_has_left_refuses(begin: Begin) -> None:
    worker = await begin()
    (served,) = worker.endpoints.values()
    async with Requester(address_of(worker)) as requester:
        closing = asyncio.ensure_future(served.close())
        await clock.advance(0.198)
        await whole(requester)
        await clock.advance(0.004)
        assert closing.done()
        requester.send(requester.control(), b"1")
        assert "unknown endpoint" in await requester.ack()


# Requests in flight have DYN_RUNTIME_GRACEFUL_SHUTDOWN_TIMEOUT_SECS, if it is set, and then 1 + 5 s to take their leave


async def test_a_shutdown_without_a_limit_waits_for_every_answer(begin: Begin) -> None:
    gate = asyncio.Event()

    async def slow(request: Any) -> AsyncIterator[Any]:
        yield 1
        await gate.wait()

    worker = await begin(slow)
    async with Requester(address_of(worker)) as requester:
        answer = await answered(requester)
        closing = asyncio.ensure_future(worker.close())
        await clock.advance(24 * HOUR)
        assert not closing.done()
        gate.set()
        await answer.items()
        await closing


async def test_a_shutdown_cancels_what_is_left_after_its_time(begin: Begin, caplog: pytest.LogCaptureFixture) -> None:
    handler = Patient()
    worker = await begin(handler, shutdown_timeout=30)
    async with Requester(address_of(worker)) as requester:
        answer = await answered(requester)
        closing = asyncio.ensure_future(worker.close())
        await clock.advance(0.2)
        await happens_after(30, lambda: handler.cancelled_at)
        await answer.items()
        await closing
        assert "1 requests for a/b/c did not end in time" in caplog.text


async def test_a_shutdown_gives_up_a_handler_that_goes_on(begin: Begin, caplog: pytest.LogCaptureFixture) -> None:
    handler = Patient(swallows=1)
    worker = await begin(handler, shutdown_timeout=30)
    async with Requester(address_of(worker)) as requester:
        answer = await answered(requester)
        closing = asyncio.ensure_future(worker.close())
        await clock.advance(30.2)
        await happens_after(6, closing.done)
        assert "1 requests for a/b/c go on though cancelled" in caplog.text
        answer.send(control_frame("kill"))
        await clock.advance(1)
        assert len(handler.cancelled_at) == 2


# A silent endpoint is asked after DYN_CANARY_WAIT_TIME, 10 s, and has DYN_HEALTH_CHECK_REQUEST_TIMEOUT, 3 s, to answer


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYN_HEALTH_CHECK_ENABLED", "true")


@pytest.mark.usefixtures("checked")
async def test_a_silent_endpoint_is_asked_every_10_seconds(begin: Begin, caplog: pytest.LogCaptureFixture) -> None:
    asked: list[float] = []
    hangs = asyncio.Event()

    async def engine(request: Any) -> AsyncIterator[Any]:
        asked.append(clock.now())
        if hangs.is_set():
            await asyncio.get_running_loop().create_future()
        yield 1

    worker = await begin()
    served = await worker.serve(engine, "x.y.z", health_check_payload={})
    began = clock.now()
    assert not served.ready
    await happens_after(10, lambda: served.ready)
    hangs.set()
    await happens_after(10 + 3 - 0.002, lambda: not served.ready)
    assert "the health check found no answer within 3 s" in caplog.text
    hangs.clear()
    await happens_after(10 - 0.002, lambda: served.ready)
    assert asked == [began + 10, began + 20, began + 33]


@pytest.mark.usefixtures("checked")
async def test_items_for_requests_put_the_canary_off(begin: Begin) -> None:
    asked: list[Any] = []

    async def engine(request: Any) -> AsyncIterator[Any]:
        asked.append(request)
        yield 1

    worker = await begin()
    served = await worker.serve(engine, "x.y.z", health_check_payload={"canary": True})
    async with Requester(served.address) as requester:
        for _ in range(5):
            await clock.advance(9)
            await (await answered(requester, "real")).items()
            await clock.advance(1)
            assert served.ready
    assert asked == ["real"] * 5
    await happens_after(10, lambda: len(asked) > 5)
    assert asked[5:] == [{"canary": True}]
