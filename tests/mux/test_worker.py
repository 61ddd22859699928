"""The worker's end of a session, and routers that do right and wrong on it (mux.md)."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from dynamo_fast.config import TcpServerConfig, WorkerConfig
from dynamo_fast.context import Context
from dynamo_fast.discovery.memory import MemoryDiscovery
from dynamo_fast.ingress.answer import Batch
from dynamo_fast.ingress.mux_session import MuxSession
from dynamo_fast.ingress.worker import Worker
from dynamo_fast.testing import clock
from tests.ingress.conftest import ENDPOINT, address_of
from tests.ingress.requester import Answer
from tests.mux.raw import (
    BODY_LIMIT,
    CLOSE,
    CONNECTION_WINDOW,
    CREDIT,
    CUT,
    DATA,
    END,
    HELLO,
    KILL,
    OPEN,
    PART,
    PING,
    PONG,
    PROLOGUE,
    SEEN,
    STOP,
    STREAM_WINDOW,
    Frame,
    RawFrames,
    SessionRequester,
)
from tests.waiting import happens_after, until

FINAL = b'{"complete_final":true}'
Start = Callable[..., Awaitable[Worker]]


class Handler:
    """Answers with what the request says; notes how it ends."""

    def __init__(self) -> None:
        self.ends: list[str] = []
        self.go_on = asyncio.Event()

    async def __call__(self, request: Any, context: Context) -> AsyncIterator[Any]:
        try:
            for item in request.get("items", ()):
                yield item
            if "batch" in request:
                yield Batch(request["batch"])
            for size in request.get("sizes", ()):
                yield "x" * size
            if request.get("waits"):
                await self.go_on.wait()
                yield "behind"
            if request.get("fails"):
                raise ValueError("boom")
        finally:
            self.ends.append("killed" if context.is_killed() else "stopped" if context.is_stopped() else "ran")


@pytest.fixture
def handler() -> Handler:
    return Handler()


@pytest.fixture
async def start(handler: Handler) -> AsyncIterator[Start]:
    workers: list[Worker] = []

    async def begin(**settings: Any) -> Worker:
        config = WorkerConfig(**{"leave_delay": 0.0, "cancel_grace": 0.05, "mux": "auto", **settings})
        worker = await Worker.start(MemoryDiscovery(), config, TcpServerConfig(host="127.0.0.1"))
        workers.append(worker)
        await worker.serve(handler, ENDPOINT)
        return worker

    yield begin
    for worker in workers:
        await asyncio.wait_for(worker.close(), 20)
        assert worker.admission.running == 0
        assert worker.admission.promised == 0
        assert not worker.dialler.closing
        assert not worker.dialler.draining


def item(frame: Frame | None) -> Any:
    """The value in a frame, which must be a whole item."""
    assert frame is not None
    assert frame.kind == DATA
    return json.loads(frame.body)["data"]["data"]


async def begun(session: RawFrames, stream: int, subject: str) -> None:
    assert await session.next() == Frame(stream, OPEN, subject.encode())
    assert await session.next() == Frame(stream, PROLOGUE, b"")


async def ended(session: RawFrames, stream: int) -> None:
    assert await session.next() == Frame(stream, DATA, FINAL)
    assert await session.next() == Frame(stream, END, b"")


async def seen(worker: Worker, session: RawFrames, last: int) -> None:
    """The router says that it knows every stream up to `last`, and the worker has read that."""
    left = len(only_session(worker).unseen())
    session.send(0, SEEN, struct.pack(">I", last))
    await until(lambda: len(only_session(worker).unseen()) < left)


def only_session(worker: Worker) -> MuxSession:
    assert worker.dialler.sessions is not None
    (session,) = worker.dialler.sessions._sessions.values()
    return session


# What it should be ----------------------------------------------------------------------------------------------------


async def test_one_connection_carries_all_answers(start: Start) -> None:
    async with SessionRequester(address_of(await start())) as router:
        first = await router.ask({"items": ["a", {"b": 1}]})
        session = await router.session()
        await begun(session, 1, first)
        assert [item(await session.next()) for _ in range(2)] == ["a", {"b": 1}]
        await ended(session, 1)
        second = await router.ask({"batch": [1, 2, 3]})
        await begun(session, 2, second)
        assert [item(await session.next()) for _ in range(3)] == [1, 2, 3]
        await ended(session, 2)
        (handshake,) = router.handshakes
        assert (handshake["mux"], handshake["session"], len(handshake["worker"])) == (1, "token", 36)


async def test_what_the_handlers_of_one_turn_yield_leaves_in_one_write(start: Start, handler: Handler) -> None:
    worker = await start()
    async with SessionRequester(address_of(worker)) as router:
        subjects = [await router.ask({"waits": True}) for _ in range(50)]
        session = await router.session()
        for number, subject in enumerate(subjects, 1):
            await begun(session, number, subject)
        handler.go_on.set()
        first = await asyncio.wait_for(session.reader.read(100_000), 10)
        assert first.count(b"behind") == 50
        assert first.count(FINAL) == 50


async def test_the_error_of_a_handler_is_an_item(start: Start) -> None:
    async with SessionRequester(address_of(await start())) as router:
        subject = await router.ask({"items": ["a"], "fails": True})
        session = await router.session()
        await begun(session, 1, subject)
        assert item(await session.next()) == "a"
        frame = await session.next()
        assert frame is not None
        assert b"boom" in frame.body
        await ended(session, 1)


async def test_a_request_without_a_body_is_refused_in_its_prologue(start: Start) -> None:
    async with SessionRequester(address_of(await start())) as router:
        router.send(router.control(), b"{" + b"x" * 40_000)
        assert await router.ack() == ""
        session = await router.session()
        assert await session.next() == Frame(1, OPEN, router.subject.encode())
        frame = await session.next()
        assert frame is not None
        assert frame.kind == PROLOGUE
        assert "Invalid request" in json.loads(frame.body)["error"]
        assert await session.next() == Frame(1, END, b"")


@pytest.mark.parametrize("size", [BODY_LIMIT, 100_000, 1_000_000])
async def test_a_large_item_is_cut(start: Start, size: int) -> None:
    async with SessionRequester(address_of(await start())) as router:
        subject = await router.ask({"sizes": [size]})
        session = await router.session()
        await begun(session, 1, subject)
        parts, credit = [], STREAM_WINDOW - 100
        while True:
            frame = await session.next()
            assert frame is not None
            assert frame.kind in (PART, DATA)
            assert len(frame.body) <= BODY_LIMIT
            parts.append(frame.body)
            credit -= 8 + len(frame.body)
            assert credit >= 0
            if credit < STREAM_WINDOW // 2:
                session.send(1, CREDIT, struct.pack(">I", STREAM_WINDOW // 2))
                credit += STREAM_WINDOW // 2
            if frame.kind == DATA:
                break
        assert json.loads(b"".join(parts))["data"]["data"] == "x" * size
        await ended(session, 1)


async def test_a_small_answer_overtakes_a_large_one(start: Start) -> None:
    async with SessionRequester(address_of(await start())) as router:
        large = await router.ask({"sizes": [10_000_000]})
        session = await router.session()
        await begun(session, 1, large)
        session.send(1, CREDIT, struct.pack(">I", 20_000_000))
        session.send(0, CREDIT, struct.pack(">I", 20_000_000))
        first = await session.next()
        assert first is not None
        small = await router.ask({"items": ["a"]})
        of_large = 0
        while (frame := await session.next()) is not None and frame.stream == 1:
            of_large += len(frame.body)
        assert of_large < 10_000_000
        assert frame == Frame(2, OPEN, small.encode())


async def todays_answer(answer: Answer) -> None:
    """The worker has dialled for one answer, and it is `a`."""
    prologue = await answer.read()
    assert prologue is not None
    assert prologue.header == {"error": None}
    first, final = await answer.items()
    assert first["data"]["data"] == "a"
    assert final == {"complete_final": True}


# Falling back ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "offer",
    [
        {"version": 2, "session": "token"},
        {"version": 0, "session": "token"},
        {"version": True, "session": "token"},
        {"version": 1, "session": ""},
        {"version": 1, "session": "x" * 129},
        {"version": 1},
        "nonsense",
        [],
        7,
    ],
    ids=str,
)
async def test_an_offer_that_it_does_not_know_is_the_plane_of_today(start: Start, offer: Any) -> None:
    async with SessionRequester(address_of(await start())) as router:
        router.offer = offer
        await todays_answer(await router.call({"items": ["a"]}))
        assert not router.sessions


async def test_a_worker_that_is_switched_off_dials_for_each_answer(start: Start) -> None:
    async with SessionRequester(address_of(await start(mux="off"))) as router:
        await todays_answer(await router.call({"items": ["a"]}))
        assert not router.sessions


async def test_a_router_that_refuses_the_session_is_dialled_for_each_answer(start: Start) -> None:
    async with SessionRequester(address_of(await start())) as router:
        router.hello = None
        router.send(router.control(), b"{}")
        assert await router.ack() == ""
        session = await router.session()
        session.send(0, CLOSE, b"not here")
        await router.dialled()
        await todays_answer(await router.call({"items": ["a"]}))
        assert len(router.sessions) == 1  # it was not tried again


async def test_a_router_that_does_not_say_hello_is_dialled_for_each_answer(start: Start) -> None:
    async with SessionRequester(address_of(await start(connect_timeout=0.1))) as router:
        router.hello = None
        await todays_answer(await router.call({"items": ["a"]}))
        assert len(router.sessions) == 1


@pytest.mark.parametrize(
    "hello",
    [
        b"",
        b"\0" * 12,
        struct.pack(">III", 2, STREAM_WINDOW, CONNECTION_WINDOW),
        struct.pack(">III", 1, 65_535, CONNECTION_WINDOW),
        struct.pack(">III", 1, STREAM_WINDOW, 2**31),
        struct.pack(">III", 1, STREAM_WINDOW, CONNECTION_WINDOW) + b"x",
    ],
    ids=repr,
)
async def test_a_wrong_hello_is_a_refusal(start: Start, hello: bytes) -> None:
    async with SessionRequester(address_of(await start())) as router:
        router.hello = hello
        await todays_answer(await router.call({"items": ["a"]}))
        assert await (await router.session()).read() is None


async def test_a_router_that_is_gone_fails_its_requests_only(start: Start, handler: Handler) -> None:
    worker = await start()
    async with SessionRequester(address_of(worker)) as router:
        router._server.close()
        await router.ask({})
        await until(lambda: worker.metrics.endpoints[0].errors.get("response_stream"))
        assert not handler.ends


async def test_a_session_that_was_lost_is_dialled_again(start: Start, handler: Handler) -> None:
    worker = await start()
    async with SessionRequester(address_of(worker)) as router:
        subject = await router.ask({"waits": True})
        session = await router.session()
        await begun(session, 1, subject)
        router.session_came.clear()
        await seen(worker, session, 1)
        session.abort()
        await until(lambda: handler.ends == ["killed"])
        subject = await router.ask({"items": ["a"]})
        session = await router.session()
        await begun(session, 1, subject)
        assert item(await session.next()) == "a"


async def test_what_a_router_may_not_know_of_a_lost_session_is_opened_again_and_cut(
    start: Start, handler: Handler
) -> None:
    """It had the first stream, and may have missed the second, which was over, and the third. It is told at once, once."""
    worker = await start()
    async with SessionRequester(address_of(worker)) as router:
        subjects = [await router.ask({"waits": True}), await router.ask({}), await router.ask({"waits": True})]
        session = await router.session()
        while (frame := await session.next()) is not None and frame[:2] != (3, PROLOGUE):
            pass
        await seen(worker, session, 1)
        router.session_came.clear()
        session.abort()
        session = await router.session()  # though no request wants it
        for number, subject in enumerate(subjects[1:], 1):
            assert await session.next() == Frame(number, OPEN, subject.encode())
            assert await session.next() == Frame(number, CUT, b"")
            session.send(number, KILL)
        assert not only_session(worker).output.senders
        router.session_came.clear()
        session.abort()
        await until(lambda: not worker.dialler.sessions._sessions)  # type: ignore[union-attr]
        await begun(await begin_again(router), 1, router.subject)


async def begin_again(router: SessionRequester) -> RawFrames:
    await router.ask({"items": ["a"]})
    return await router.session()


async def test_a_router_that_leaves_is_not_dialled_again(start: Start, handler: Handler) -> None:
    worker = await start()
    async with SessionRequester(address_of(worker)) as router:
        subject = await router.ask({"waits": True})
        session = await router.session()
        await begun(session, 1, subject)
        session.send(0, SEEN, b"\xff" * 4)
        session.send(0, CLOSE, b"it leaves")
        await until(lambda: handler.ends == ["killed"])
        assert not worker.dialler.sessions._tasks  # type: ignore[union-attr]
        assert len(router.sessions) == 1


async def test_what_a_router_never_sees_is_bounded(start: Start) -> None:
    worker = await start()
    async with SessionRequester(address_of(worker)) as router:
        await router.ask({})
        await router.session()
        await until(lambda: only_session(worker).opened)
        session = only_session(worker)
        for _ in range(20_000):
            session._unseen.append((1, "subject"))
        assert len(session.unseen()) == 16_384
        session._unseen.clear()


async def test_a_stream_that_ends_before_it_could_be_opened_is_opened_and_cut(start: Start, handler: Handler) -> None:
    """The session takes nothing, and the stall timeout ends the answer: its caller still waits for the stream."""
    worker = await start(stall_timeout=0.1)
    async with SessionRequester(address_of(worker)) as router:
        await begun(await begin_again(router), 1, router.subject)
        session = only_session(worker)
        session.pause_writing()  # as the event loop does when the router does not read
        subject = await router.ask({"sizes": [10_000] * 100})
        await until(lambda: "killed" in handler.ends)
        session.resume_writing()
        frames = router.sessions[-1]
        while (frame := await frames.next()) is not None and frame.stream == 1:
            pass
        assert frame == Frame(2, OPEN, subject.encode())
        assert await frames.next() == Frame(2, CUT, b"")


# Words of the router --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "end"), [(STOP, "stopped"), (KILL, "killed")])
async def test_stop_and_kill(start: Start, handler: Handler, kind: int, end: str) -> None:
    async with SessionRequester(address_of(await start())) as router:
        subject, other = await router.ask({"waits": True}), await router.ask({"waits": True})
        session = await router.session()
        await begun(session, 1, subject)
        await begun(session, 2, other)
        session.send(1, kind)
        session.send(0, PING, b"12345678")
        if kind == STOP:
            frames = {await session.next(), await session.next()}
            assert frames == {Frame(1, CUT, b""), Frame(0, PONG, b"12345678")}
        else:
            assert await session.next() == Frame(0, PONG, b"12345678")
        await until(lambda: handler.ends == [end])
        for word in (STOP, KILL, CREDIT):  # they cross on the way
            session.send(1, word, b"\0\0\0\1" if word == CREDIT else b"")
        handler.go_on.set()
        assert item(await session.next()) == "behind"
        await ended(session, 2)


async def test_a_stream_without_credit_waits_and_others_go_on(start: Start, handler: Handler) -> None:
    worker = await start()
    async with SessionRequester(address_of(worker)) as router:
        subject = await router.ask({"sizes": [10_000] * 100, "items": ["a"]})
        session = await router.session()
        await begun(session, 1, subject)
        other = await router.ask({"items": ["b"]})
        sizes = 0
        while (frame := await session.next()) is not None and frame.stream == 1:
            sizes += 8 + len(frame.body)
        assert STREAM_WINDOW - 20_000 < sizes <= STREAM_WINDOW
        assert frame == Frame(2, OPEN, other.encode())
        assert await session.next() == Frame(2, PROLOGUE, b"")
        assert item(await session.next()) == "b"
        await ended(session, 2)
        await until(lambda: worker.dialler.stalled)
        session.send(1, CREDIT, struct.pack(">I", 2_000_000))
        while (frame := await session.next()) is not None and frame.kind != END:
            assert frame.stream == 1
        assert handler.ends == ["ran", "ran"]


async def test_a_router_that_never_gives_credit_has_the_stall_timeout(start: Start, handler: Handler) -> None:
    async with SessionRequester(address_of(await start(stall_timeout=0.2))) as router:
        subject = await router.ask({"sizes": [10_000] * 100})
        session = await router.session()
        await begun(session, 1, subject)
        while (frame := await session.next()) is not None and frame.kind == DATA:
            pass
        assert frame == Frame(1, CUT, b"")
        await until(lambda: handler.ends == ["killed"])


@pytest.mark.turned_clock
async def test_the_end_of_an_answer_waits_for_a_slow_router_beyond_the_close_timeout(
    start: Start, handler: Handler
) -> None:
    worker = await start(close_timeout=10.0, stall_timeout=300.0)
    async with SessionRequester(address_of(worker)) as router:
        subject = await router.ask({"sizes": [240_000, 40_000]})
        session = await router.session()
        await begun(session, 1, subject)
        await until(lambda: worker.dialler.draining)
        assert handler.ends == ["ran"]
        await clock.advance(200)
        assert worker.dialler.draining
        session.send(1, CREDIT, struct.pack(">I", STREAM_WINDOW))
        while (frame := await session.next()) != Frame(1, END, b""):
            assert frame is not None
        assert not worker.dialler.draining


async def test_a_stream_whose_end_waits_is_gone_when_it_is_killed(start: Start, handler: Handler) -> None:
    worker = await start()
    async with SessionRequester(address_of(worker)) as router:
        subject = await router.ask({"sizes": [240_000, 40_000]})
        session = await router.session()
        await begun(session, 1, subject)
        await until(lambda: worker.dialler.draining)
        session.send(1, KILL)
        await until(lambda: not worker.dialler.draining)
        assert not only_session(worker).output.senders


@pytest.mark.parametrize(
    ("frames", "why"),
    [
        ([(1, CREDIT, struct.pack(">I", 2**31 - 1))], "a credit of 2147483647 bytes"),
        ([(1, CREDIT, b"\0\0\0\0")], "a credit of 0 bytes"),
        ([(1, CREDIT, b"\0\0\0\0\1")], "a credit of 1 bytes (5 bytes long)"),
        ([(0, CREDIT, struct.pack(">I", 2**31 - 1))], "a credit of 2147483647 bytes"),
        ([(1, STOP, b"x")], "unexpected STOP of 1 bytes for stream 1"),
        ([(1, DATA, b"x")], "unexpected DATA of 1 bytes for stream 1"),
        ([(1, 77, b"")], "unexpected kind 77 of 0 bytes for stream 1"),
        ([(0, HELLO, b"")], "unexpected HELLO of 0 bytes for stream 0"),
        ([(0, SEEN, b"\0\0\1")], "malformed SEEN: expected 4 bytes"),
        ([(0, PING, b"short")], "unexpected PING of 5 bytes for stream 0"),
        ([(9, STOP, b"")], "unexpected STOP of 0 bytes for stream 9, which was never opened"),
        ([(0, PONG, b"x" * 1025)], "is too large: prefix 8 + body 1025"),
        ([(1, KILL, b"")] + 65_601 * [(1, STOP, b"")], "65601 frames for streams that are gone"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
async def test_a_router_that_breaks_the_protocol_loses_the_session(
    start: Start, handler: Handler, frames: list[tuple[int, int, bytes]], why: str
) -> None:
    async with SessionRequester(address_of(await start())) as router:
        subject = await router.ask({"waits": True})
        session = await router.session()
        await begun(session, 1, subject)
        for frame in frames:
            session.send(*frame)
        router.session_came.clear()
        assert why in await session.closed()
        await until(lambda: handler.ends == ["killed"])
        session = await router.session()
        assert await session.next() == Frame(1, OPEN, subject.encode())  # the router may not know it
        assert await session.next() == Frame(1, CUT, b"")
        subject = await router.ask({"items": ["a"]})
        await begun(session, 2, subject)


async def test_the_router_may_close(start: Start, handler: Handler) -> None:
    async with SessionRequester(address_of(await start())) as router:
        subject = await router.ask({"waits": True})
        session = await router.session()
        await begun(session, 1, subject)
        session.send(0, CLOSE, b"enough")
        assert await session.read() is None
        await until(lambda: handler.ends == ["killed"])


async def test_a_worker_that_leaves_says_so_after_its_last_answer(start: Start, handler: Handler) -> None:
    worker = await start()
    async with SessionRequester(address_of(worker)) as router:
        subject = await router.ask({"waits": True})
        session = await router.session()
        await begun(session, 1, subject)
        leaving = asyncio.ensure_future(worker.close())
        handler.go_on.set()
        assert item(await session.next()) == "behind"
        await ended(session, 1)
        assert await session.closed() == "the worker leaves"
        await leaving


@pytest.mark.turned_clock
async def test_an_idle_session_is_closed_after_a_while(start: Start, handler: Handler) -> None:
    worker = await start()
    async with SessionRequester(address_of(worker)) as router:
        subject = await router.ask({"waits": True})
        session = await router.session()
        await begun(session, 1, subject)
        session.send(0, SEEN, struct.pack(">I", 1))
        await clock.advance(1000)
        assert only_session(worker).opened
        handler.go_on.set()
        assert item(await session.next()) == "behind"
        await ended(session, 1)
        sessions = worker.dialler.sessions
        assert sessions is not None
        await clock.advance(200)  # 1200 s: it looks, and was in use
        await happens_after(300, lambda: not sessions._sessions)
        assert await session.closed() == "it is idle"
