"""The router's end of a session, and workers that do right and wrong on it (mux.md)."""

from __future__ import annotations

import asyncio
import contextlib
import struct
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

from dynamo_fast.config import ResponseServerConfig
from dynamo_fast.context import Context
from dynamo_fast.egress.mux_session import MuxSession
from dynamo_fast.egress.response_stream import ResponseStream
from dynamo_fast.egress.router import AddressedPushRouter, AddressedRequest
from dynamo_fast.errors import CannotConnect, ControlError, Disconnected, MessageTooLarge, RemoteError
from dynamo_fast.testing import clock
from tests.egress.conftest import make_router
from tests.egress.raw_worker import LIMIT, RawRequest, RawWorker, item
from tests.mux.raw import (
    BODY_LIMIT,
    CLOSE,
    CONNECTION_WINDOW,
    CREDIT,
    CUT,
    DATA,
    END,
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
    RawSession,
)
from tests.waiting import until

if sys.platform != "win32":
    import fcntl
    import termios

SERVER = ResponseServerConfig(host="127.0.0.1", mux="auto", max_message_size=100_000)


@pytest.fixture
async def router() -> AsyncIterator[AddressedPushRouter]:
    async with await make_router(SERVER) as router:
        yield router
        assert router.metrics.inflight == 0
        assert router.response_server.pending == 0
        assert router.response_server.multiplexed == 0
    assert not router.response_server.sessions


@pytest.fixture
async def worker() -> AsyncIterator[RawWorker]:
    async with RawWorker() as worker:
        yield worker


class Asked:
    """A call that was made, and its request at the worker."""

    def __init__(self, call: asyncio.Task[ResponseStream[Any]], request: RawRequest) -> None:
        self.call = call
        self.request = request

    async def stream(self) -> ResponseStream[Any]:
        return await asyncio.wait_for(self.call, LIMIT)

    async def items(self) -> list[Any]:
        return [each.data() async for each in await self.stream()]


async def ask(router: AddressedPushRouter, worker: RawWorker, context: Context | None = None) -> Asked:
    request = AddressedRequest({}, worker.address, mux=1)
    call = asyncio.get_running_loop().create_task(router.generate(request, context))
    raw = await worker.request()
    raw.acknowledge()
    return Asked(call, raw)


def unread(session: MuxSession) -> int:
    """Bytes that wait at the router's socket."""
    waiting = bytearray(4)
    fcntl.ioctl(session._transport.get_extra_info("socket").fileno(), termios.FIONREAD, waiting)
    return int.from_bytes(waiting, sys.byteorder)


def only_session(router: AddressedPushRouter) -> MuxSession:
    (session,) = router.response_server.sessions.values()
    return session


async def lost(asked: Asked, cause: str = "") -> None:
    """The call or its stream ends with Disconnected, which may be tried again."""
    with pytest.raises(Disconnected) as error:
        await asyncio.wait_for(asked.items(), LIMIT)
    assert error.value.migratable
    assert cause in str(error.value.__cause__)


# What it should be ----------------------------------------------------------------------------------------------------


async def test_many_answers_come_on_one_connection(router: AddressedPushRouter, worker: RawWorker) -> None:
    first = await ask(router, worker)
    assert first.request.control["dynamo_fast_mux"]["version"] == 1
    session = await RawSession.open(first.request)
    second = await ask(router, worker)
    session.begin(1, first.request)
    session.begin(2, second.request)
    session.items(1, "a")
    session.items(2, "b", "c")
    session.items(1, "d")
    session.end(2)
    session.end(1)
    assert await first.items() == ["a", "d"]
    assert await second.items() == ["b", "c"]
    assert not router.response_server.connections


async def test_a_worker_may_dial_for_an_answer_all_the_same(router: AddressedPushRouter, worker: RawWorker) -> None:
    first, second = await ask(router, worker), await ask(router, worker)
    session = await RawSession.open(first.request)
    session.begin(1, first.request)
    stream = await second.request.dial()
    stream.items(1, 2)
    stream.end()
    assert await second.items() == [1, 2]
    session.end(1)
    assert await first.items() == []


async def test_a_router_that_is_switched_off_asks_for_nothing_and_takes_no_session(worker: RawWorker) -> None:
    async with await make_router(ResponseServerConfig(host="127.0.0.1", mux="off")) as router:
        asked = await ask(router, worker)
        assert "dynamo_fast_mux" not in asked.request.control
        asked.request.control["dynamo_fast_mux"] = {"session": "guessed"}
        session = await RawSession.dial(asked.request)
        assert await session.read() is None
        (await asked.request.dial()).end()
        assert await asked.items() == []


async def test_the_parts_of_an_item_may_begin_in_the_read_of_the_prologue(
    router: AddressedPushRouter, worker: RawWorker
) -> None:
    asked = await ask(router, worker)
    session = await RawSession.open(asked.request)
    text = item("x" * 20_000)
    session.begin(1, asked.request)
    session.send(1, PART, text[:BODY_LIMIT])
    stream = await asked.stream()
    (receiver,) = (each._receiver for each in only_session(router).streams.values())
    assert receiver is not None
    await until(lambda: only_session(router).streams[1]._parts)
    session.send(1, DATA, text[BODY_LIMIT:])
    session.end(1)
    assert [each.data() async for each in stream] == ["x" * 20_000]


async def test_an_item_that_was_cut_comes_whole(router: AddressedPushRouter, worker: RawWorker) -> None:
    asked = await ask(router, worker)
    session = await RawSession.open(asked.request)
    session.begin(1, asked.request)
    text = item("x" * 50_000)
    session.items(1, "before")
    for at in range(0, len(text), BODY_LIMIT):
        part = text[at : at + BODY_LIMIT]
        session.send(1, DATA if at + BODY_LIMIT >= len(text) else PART, part)
    session.items(1, "behind")
    session.end(1)
    assert await asked.items() == ["before", "x" * 50_000, "behind"]


async def test_the_error_of_a_handler_that_was_not_started(router: AddressedPushRouter, worker: RawWorker) -> None:
    asked = await ask(router, worker)
    session = await RawSession.open(asked.request)
    session.send(1, OPEN, asked.request.info["subject"].encode())
    text = b'{"error":"%s"}' % (b"x" * 20_000)
    session.send(1, PART, text[:BODY_LIMIT])
    session.send(1, PROLOGUE, text[BODY_LIMIT:])
    session.send(1, END)
    with pytest.raises(CannotConnect, match="Worker generate\\(\\) failed before response stream: x{20000}"):
        await asked.stream()


async def test_an_error_item_is_raised(router: AddressedPushRouter, worker: RawWorker) -> None:
    asked = await ask(router, worker)
    session = await RawSession.open(asked.request)
    session.begin(1, asked.request)
    session.send(1, DATA, b'{"data":{"event":"error","comment":["boom"]},"complete_final":false}')
    session.end(1)
    with pytest.raises(RemoteError, match="boom"):
        await asked.items()


@pytest.mark.parametrize("word", ["stop", "kill"])
async def test_a_context_is_passed_on(router: AddressedPushRouter, worker: RawWorker, word: str) -> None:
    context = Context()
    asked = await ask(router, worker, context)
    session = await RawSession.open(asked.request)
    session.begin(1, asked.request)
    session.items(1, "a")
    stream = await asked.stream()
    assert (await anext(stream)).data() == "a"
    (context.stop_generating if word == "stop" else context.kill)()
    assert await session.next() == Frame(1, STOP if word == "stop" else KILL, b"")
    session.items(1, "b")
    session.send(1, CUT)
    assert [each.data() async for each in stream] == (["b"] if word == "stop" else [])


async def test_a_context_that_was_stopped_before_the_worker_opened(
    router: AddressedPushRouter, worker: RawWorker
) -> None:
    context = Context()
    asked = await ask(router, worker, context)
    session = await RawSession.open(asked.request)
    context.stop_generating()
    session.send(1, OPEN, asked.request.info["subject"].encode())
    assert await session.next() == Frame(1, STOP, b"")
    assert await asked.items() == []


async def test_a_stream_that_is_dropped_kills_the_handler_and_what_still_comes_is_ignored(
    router: AddressedPushRouter, worker: RawWorker
) -> None:
    asked, other = await ask(router, worker), await ask(router, worker)
    session = await RawSession.open(asked.request)
    session.begin(1, asked.request)
    session.begin(2, other.request)
    (await asked.stream()).close()
    assert await session.next() == Frame(1, KILL, b"")
    session.items(1, "a", "b")
    session.end(1)
    session.end(2)
    assert await other.items() == []
    assert only_session(router).ignored == 4


async def test_a_ping_is_answered(router: AddressedPushRouter, worker: RawWorker) -> None:
    asked = await ask(router, worker)
    session = await RawSession.open(asked.request)
    session.send(0, PING, b"12345678")
    assert await session.next() == Frame(0, PONG, b"12345678")
    (await asked.request.dial()).end()
    assert await asked.items() == []


# Back-pressure --------------------------------------------------------------------------------------------------------


def frames_of(size: int, count: int) -> list[bytes]:
    """Bodies of items of `size` bytes."""
    return [item("x" * (size - len(item("")))) for _ in range(count)]


async def test_a_caller_that_does_not_read_stalls_its_own_stream_only(
    router: AddressedPushRouter, worker: RawWorker
) -> None:
    slow, quick = await ask(router, worker), await ask(router, worker)
    session = await RawSession.open(slow.request)
    session.begin(1, slow.request)
    session.begin(2, quick.request)
    stream = await slow.stream()
    frames = STREAM_WINDOW // 16_384
    for body in frames_of(16_384 - 8, frames):
        session.send(1, DATA, body)  # all its credit
    session.items(2, "a")
    session.end(2)
    assert await quick.items() == ["a"]
    (receiver,) = (each._receiver for each in only_session(router).streams.values())
    assert receiver is not None
    await until(lambda: len(receiver.frames) == frames)
    for _ in range(frames):
        await anext(stream)
    task = asyncio.ensure_future(anext(stream))  # it waits: all were taken
    assert await session.next() == Frame(1, CREDIT, STREAM_WINDOW.to_bytes(4, "big"))
    session.items(1, "end")
    session.end(1)
    assert (await task).data() == "end"


async def test_more_than_the_credit_of_a_stream_ends_that_stream(
    router: AddressedPushRouter, worker: RawWorker
) -> None:
    greedy, other = await ask(router, worker), await ask(router, worker)
    session = await RawSession.open(greedy.request)
    session.begin(1, greedy.request)
    session.begin(2, other.request)
    for body in frames_of(16_384 - 8, 2 * STREAM_WINDOW // 16_384 + 1):
        session.send(1, DATA, body)
    while (frame := await session.next()) != Frame(1, KILL, b""):
        assert frame is not None
    session.items(2, "a")
    session.end(2)
    assert await other.items() == ["a"]
    await lost(greedy, "bytes more than its credit")


async def test_what_comes_gives_the_connection_its_credit_back(router: AddressedPushRouter, worker: RawWorker) -> None:
    asked = await ask(router, worker)
    session = await RawSession.open(asked.request)
    session.begin(1, asked.request)
    stream = await asked.stream()
    body = frames_of(16_384 - 8, 1)[0]
    task = asyncio.ensure_future(_count(stream))
    credit, sent = STREAM_WINDOW, 0
    while sent < 600:
        while credit >= 16_384:
            session.send(1, DATA, body)
            credit -= 16_384
            sent += 1
        frame = await session.next()
        assert frame is not None
        assert frame[:2] == (1, CREDIT)
        credit += int.from_bytes(frame.body, "big")
    session.end(1)
    assert await asyncio.wait_for(task, LIMIT) == sent
    given = sum(int.from_bytes(frame.body, "big") for frame in session.silent if frame.kind == CREDIT)
    assert given >= sent * 16_384 - 4 * 1024 * 1024


async def _count(stream: ResponseStream[Any]) -> int:
    return len([each async for each in stream])


@pytest.mark.skipif(sys.platform == "win32", reason="it cannot ask how many bytes wait")
async def test_a_worker_that_sends_without_end_and_does_not_read_is_closed(
    router: AddressedPushRouter, worker: RawWorker
) -> None:
    """It gets no credit: what it sends beyond that it had ends the session."""
    asked = await ask(router, worker)
    session = await RawSession.open(asked.request)
    session.begin(1, asked.request)
    await asked.stream()
    ours = only_session(router)
    session.reader._transport.pause_reading()  # type: ignore[attr-defined]
    for _ in range(1000):  # pings, whose answers fill the buffers on the way until the router can write no more
        session.writer.write(struct.pack(">IIQ", 0, PING << 24 | 8, 0) * 1000)
        await session.writer.drain()
        await until(lambda: not unread(ours))  # a ping that is read behind the full buffers counts as unanswered
        if ours._is_blocked:
            break
    session.send(2, OPEN, b"unknown")
    sent = 0
    with contextlib.suppress(ConnectionError):
        while router.response_server.sessions:
            session.send(2, DATA, b"x" * BODY_LIMIT)  # of a stream that is gone, so that only the connection counts
            sent += BODY_LIMIT
            assert sent < 64 * 1024 * 1024
            await session.writer.drain()
            await asyncio.sleep(0)
    await lost(asked, "bytes more than the credit of the connection")


@pytest.mark.parametrize("over", [False, True])
async def test_the_credit_of_the_connection_is_exact(
    router: AddressedPushRouter, worker: RawWorker, over: bool
) -> None:
    asked, other = await ask(router, worker), await ask(router, worker)
    session = await RawSession.open(asked.request)
    session.begin(1, asked.request)
    session.begin(2, other.request)
    await other.stream()
    ours = only_session(router)
    ours.pause_writing()  # as the event loop does when the worker does not read
    session.send(1, CUT)
    left = CONNECTION_WINDOW - ours._owed - 8
    while left:
        body = min(left, BODY_LIMIT) - 8
        session.send(1, DATA, b"x" * body)  # of a stream that is gone, so that only the connection counts
        left -= 8 + body
    if over:
        session.send(1, END)
        await lost(other, "8 bytes more than the credit of the connection")
    else:
        await until(lambda: ours._owed == CONNECTION_WINDOW)
        ours.resume_writing()
        credit = await session.read()
        assert credit == Frame(0, CREDIT, CONNECTION_WINDOW.to_bytes(4, "big"))
        session.end(2)
        assert await other.items() == []
    await lost(asked)


# Wrong handshakes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes", [{"session": "guessed"}, {"worker": ""}, {"worker": 5}, {"mux": "1"}, {"worker": "x" * 200}], ids=str
)
async def test_a_wrong_handshake_is_reset_and_the_call_goes_on(
    router: AddressedPushRouter, worker: RawWorker, changes: dict[str, Any]
) -> None:
    asked = await ask(router, worker)
    session = await RawSession.dial(asked.request, **changes)
    assert await session.read() is None
    assert router.response_server.strangers_reset == 1
    (await asked.request.dial()).end()
    assert await asked.items() == []


async def test_a_later_version_is_told_so_and_the_call_goes_on(router: AddressedPushRouter, worker: RawWorker) -> None:
    asked = await ask(router, worker)
    session = await RawSession.dial(asked.request, mux=2)
    assert await session.closed() == "version 2 of the multiplexed response plane is not spoken here: expected 1"
    assert not router.response_server.sessions
    (await asked.request.dial()).end()
    assert await asked.items() == []


async def test_bytes_behind_the_handshake_are_refused(router: AddressedPushRouter, worker: RawWorker) -> None:
    asked = await ask(router, worker)
    session = await RawSession.dial(asked.request)
    session.send(1, OPEN, asked.request.info["subject"].encode())  # in the same write
    assert await session.read() is None
    (await asked.request.dial()).end()
    assert await asked.items() == []


async def test_half_a_handshake_ends_with_its_time(worker: RawWorker) -> None:
    config = ResponseServerConfig(host="127.0.0.1", mux="auto", handshake_timeout=0.05)
    async with await make_router(config) as router:
        asked = await ask(router, worker)
        stream = await asked.request.connect()
        stream.writer.write(b"\0" * 7 + b"\x40" + b"\0" * 16 + b'{"mux":1')
        assert await stream.received() in ([b""], [b"reset"])
        (await asked.request.dial()).end()
        assert await asked.items() == []


async def test_a_second_session_of_the_same_name_ends_the_first(router: AddressedPushRouter, worker: RawWorker) -> None:
    first, second = await ask(router, worker), await ask(router, worker)
    before = await RawSession.open(first.request)
    before.begin(1, first.request)
    await first.stream()
    after = await RawSession.open(second.request)
    assert await before.closed() == "the worker has opened another session"
    await lost(first, "the worker has opened another session")
    after.begin(1, second.request)
    after.items(1, "a")
    after.end(1)
    assert await second.items() == ["a"]
    assert len(router.response_server.sessions) == 1


async def test_two_workers_have_two_sessions(router: AddressedPushRouter, worker: RawWorker) -> None:
    first, second = await ask(router, worker), await ask(router, worker)
    one, other = await RawSession.open(first.request), await RawSession.open(second.request, worker="other")
    one.begin(1, first.request)
    other.begin(1, second.request)
    one.abort()
    await lost(first)
    other.items(1, "a")
    other.end(1)
    assert await second.items() == ["a"]


# A session that is lost with what was opened on it ---------------------------------------------------------------------


@pytest.mark.turned_clock
async def test_a_worker_is_told_now_and_then_which_streams_are_known(
    router: AddressedPushRouter, worker: RawWorker
) -> None:
    asked = [await ask(router, worker) for _ in range(3)]
    session = await RawSession.open(asked[0].request)
    session.begin(1, asked[0].request)
    session.begin(2, asked[1].request)
    await asked[1].stream()
    await clock.advance(1)
    assert await session.read() == Frame(0, SEEN, b"\0\0\0\2")
    await clock.advance(10)  # nothing was opened since: nothing is said
    session.begin(3, asked[2].request)
    await asked[2].stream()
    await clock.advance(1)
    assert await session.read() == Frame(0, SEEN, b"\0\0\0\3")
    session.abort()
    for each in asked:
        await lost(each)


async def test_a_stream_that_was_lost_with_its_session_is_opened_again_and_cut(
    router: AddressedPushRouter, worker: RawWorker
) -> None:
    known, unknown = await ask(router, worker), await ask(router, worker)
    session = await RawSession.open(known.request)
    session.begin(1, known.request)
    await known.stream()
    session.abort()  # the worker has opened the other one, too, and cannot know what came
    await lost(known)
    assert not unknown.call.done()
    session = await RawSession.open(known.request)
    for number, each in enumerate((known, unknown), 1):
        session.send(number, OPEN, each.request.info["subject"].encode())
        session.send(number, CUT)
    await lost(unknown)
    assert {await session.next(), await session.next()} >= {Frame(1, KILL, b"")}


async def test_the_streams_of_lost_sessions_may_be_opened_once_more(
    router: AddressedPushRouter, worker: RawWorker
) -> None:
    """Two thousand answers on a session that was lost are no attack, when the worker asks for all of them again."""
    asked = await ask(router, worker)
    session = await RawSession.open(asked.request)
    subjects = [router.response_server.register(Context()).subject for _ in range(2000)]
    for number, subject in enumerate(subjects, 1):
        session.send(number, OPEN, subject.encode())
        session.send(number, CUT)
    await until(lambda: router.response_server.pending == 1)
    session = await RawSession.open(asked.request)
    for number, subject in enumerate(subjects, 1):
        session.send(number, OPEN, subject.encode())
        session.send(number, CUT)
    session.begin(2001, asked.request)
    session.end(2001)
    assert await asked.items() == []


# Wrong frames ---------------------------------------------------------------------------------------------------------


async def test_a_session_that_is_lost_ends_all_its_streams(router: AddressedPushRouter, worker: RawWorker) -> None:
    begun = [await ask(router, worker) for _ in range(3)]
    opened = await ask(router, worker)
    session = await RawSession.open(begun[0].request)
    for number, each in enumerate(begun, 1):
        session.begin(number, each.request)
        await each.stream()
    session.send(4, OPEN, opened.request.info["subject"].encode())
    await until(lambda: router.response_server.multiplexed == 4)
    session.abort()
    for each in (*begun, opened):
        await lost(each)


@pytest.mark.parametrize(
    ("frames", "why"),
    [
        ([(1, OPEN, b"again")], "stream 1 was opened before"),
        ([(0, OPEN, b"a")], "unexpected OPEN of 1 bytes for stream 0, which is not open"),
        ([(0, CREDIT, b"1234")], "unexpected CREDIT of 4 bytes for stream 0"),
        ([(0, 99, b"")], "unexpected kind 99 of 0 bytes for stream 0"),
        ([(7, DATA, b"a")], "unexpected DATA of 1 bytes for stream 7, which is not open"),
        ([(7, OPEN, b"")], "unexpected OPEN of 0 bytes for stream 7, which is not open"),
        ([(7, OPEN, b"x" * 129)], "unexpected OPEN of 129 bytes for stream 7, which is not open"),
        ([(1, DATA, b"x" * (BODY_LIMIT + 1))], "is too large: prefix 8 + body 16385"),
        ([(2, OPEN, b"unknown"), (2, OPEN, b"unknown")], "stream 2 was opened before"),
        ([(number, OPEN, b"unknown") for number in range(2, 1027)], "1025 streams that answer no request"),
        ([(1, CUT, b"")] + 65_537 * [(1, END, b"")], "65537 frames for streams that are gone"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
async def test_a_session_that_breaks_the_protocol_is_closed_with_a_reason(
    router: AddressedPushRouter, worker: RawWorker, frames: list[tuple[int, int, bytes]], why: str
) -> None:
    asked = await ask(router, worker)
    session = await RawSession.open(asked.request)
    session.begin(1, asked.request)
    await asked.stream()
    for frame in frames:
        session.send(*frame)
    assert why in await session.closed()
    with pytest.raises(Disconnected):
        await asked.items()
    afterwards = await ask(router, worker)
    again = await RawSession.open(afterwards.request)
    again.begin(1, afterwards.request)
    again.end(1)
    assert await afterwards.items() == []


@pytest.mark.parametrize(
    ("kind", "body", "cause"),
    [
        (DATA, b"", ControlError),
        (PART, b"", ControlError),
        (PROLOGUE, b"", ControlError),
        (END, b"x", ControlError),
        (CUT, b"x", ControlError),
        (99, b"", ControlError),
        (STOP, b"", ControlError),
        (CREDIT, b"1234", ControlError),
    ],
)
async def test_a_stream_that_breaks_the_protocol_is_killed_and_others_go_on(
    router: AddressedPushRouter, worker: RawWorker, kind: int, body: bytes, cause: type[Exception]
) -> None:
    wrong, right = await ask(router, worker), await ask(router, worker)
    session = await RawSession.open(wrong.request)
    session.begin(1, wrong.request)
    session.begin(2, right.request)
    stream = await wrong.stream()
    session.items(1, "a")
    session.send(1, kind, body)
    session.items(2, "b")
    session.end(2)
    assert await session.next() == Frame(1, KILL, b"")
    assert await right.items() == ["b"]
    assert (await anext(stream)).data() == "a"
    with pytest.raises(Disconnected) as error:
        await anext(stream)
    assert isinstance(error.value.__cause__, cause)


async def test_an_item_that_is_too_large_ends_its_stream(router: AddressedPushRouter, worker: RawWorker) -> None:
    asked = await ask(router, worker)
    session = await RawSession.open(asked.request)
    session.begin(1, asked.request)
    for _ in range(7):
        session.send(1, PART, b"x" * BODY_LIMIT)
    while (frame := await session.next()) != Frame(1, KILL, b""):
        assert frame is not None
        assert frame.kind == CREDIT
    with pytest.raises(Disconnected) as error:
        await asked.items()
    assert isinstance(error.value.__cause__, MessageTooLarge)
    assert error.value.__cause__.limit == 100_000


@pytest.mark.parametrize(
    ("kind", "body", "error"),
    [
        (DATA, b"x", "malformed prologue: expected HeaderOnly ControlMessage"),
        (PROLOGUE, b"nonsense", "malformed prologue"),
        (END, b"", "Worker disconnected before response stream was established"),
        (CUT, b"", "Worker disconnected before response stream was established"),
        (99, b"", "Worker disconnected before response stream was established"),
    ],
)
async def test_what_comes_in_place_of_the_prologue_fails_the_call(
    router: AddressedPushRouter, worker: RawWorker, kind: int, body: bytes, error: str
) -> None:
    asked = await ask(router, worker)
    session = await RawSession.open(asked.request)
    session.send(1, OPEN, asked.request.info["subject"].encode())
    session.send(1, kind, body)
    with pytest.raises((CannotConnect, Disconnected), match=error):
        await asked.stream()
    assert await session.next() == Frame(1, KILL, b"")


async def test_a_stream_for_an_unknown_request_is_killed(router: AddressedPushRouter, worker: RawWorker) -> None:
    asked = await ask(router, worker)
    session = await RawSession.open(asked.request)
    session.send(1, OPEN, b"unknown")
    assert await session.next() == Frame(1, KILL, b"")
    session.begin(2, asked.request)
    session.end(2)
    assert await asked.items() == []


async def test_calls_that_were_given_up_may_still_be_opened(router: AddressedPushRouter, worker: RawWorker) -> None:
    """A thousand callers that lose patience at once are no attack."""
    last = await ask(router, worker)
    session = await RawSession.open(last.request)
    for number in range(1, 2000):
        receiver = router.response_server.register(Context())
        session.send(number, OPEN, receiver.subject.encode())
        receiver.drop()
    session.begin(2000, last.request)
    session.end(2000)
    assert await last.items() == []


async def test_a_flood_of_pings_that_is_not_read_is_bounded(router: AddressedPushRouter, worker: RawWorker) -> None:
    asked = await ask(router, worker)
    session = await RawSession.open(asked.request)
    session.begin(1, asked.request)
    await asked.stream()
    only_session(router).pause_writing()  # as the event loop does when the worker does not read
    for _ in range(65):
        session.send(0, PING, b"12345678")
    await lost(asked, "it sends pings and does not read their answers")


async def test_the_worker_may_close(router: AddressedPushRouter, worker: RawWorker) -> None:
    asked = await ask(router, worker)
    session = await RawSession.open(asked.request)
    session.begin(1, asked.request)
    await asked.stream()
    session.send(0, CLOSE, b"it leaves")
    assert await session.read() is None
    await lost(asked, "the worker closed the session: it leaves")


async def test_a_router_that_closes_tells_its_workers(worker: RawWorker) -> None:
    router = await make_router(SERVER)
    asked = await ask(router, worker)
    session = await RawSession.open(asked.request)
    session.begin(1, asked.request)
    stream = await asked.stream()
    await router.close()
    assert await session.next() == Frame(1, KILL, b"")
    assert await session.closed() == "the response server was closed"
    assert session.silent[-1] == Frame(0, SEEN, b"\xff" * 4)  # it waits for no answer
    with pytest.raises(Disconnected):
        await anext(stream)
