"""The requester's end of a response stream: the table is what runs, also where data frames go past it."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from dynamo_fast.context import Context
from dynamo_fast.egress.response_connection import EXECUTORS, ResponseConnection
from dynamo_fast.egress.response_server import TcpStreamServer
from dynamo_fast.errors import CannotConnect
from dynamo_fast.net.frame_protocol import FrameProtocol
from dynamo_fast.wire.stream import REQUESTER, Action, Event, State
from tests.egress.conftest import SERVER
from tests.egress.raw_worker import OK_PROLOGUE, SENTINEL, two_part


def test_every_action_of_the_table_has_an_executor() -> None:
    assert {action for row in REQUESTER.values() for _, action in row.values()} == set(EXECUTORS)


def test_a_data_frame_goes_past_the_table_only_where_it_changes_nothing() -> None:
    bulk = {State.STREAMING, State.STOPPED}
    for state, row in REQUESTER.items():
        assert (row[Event.DATA][1] is Action.DELIVER) == (state in bulk)
        assert state not in bulk or row[Event.DATA] == (state, Action.DELIVER)


class Written(asyncio.Transport):
    """What a connection does to its transport. It has no socket; the end comes with `connection_lost`."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Any] = []
        self._closing = False

    def write(self, data: Any) -> None:
        self.calls.append(bytes(data))

    def close(self) -> None:
        self._closing = True
        self.calls.append("close")

    def abort(self) -> None:
        self._closing = True
        self.calls.append("abort")

    def is_closing(self) -> bool:
        return self._closing

    def pause_reading(self) -> None:
        self.calls.append("pause")

    def resume_reading(self) -> None:
        self.calls.append("resume")

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self

    def setsockopt(self, *option: Any) -> None:
        """As of a socket."""


class ByTheTable(ResponseConnection):
    """Every message is an event of its own: nothing goes past the table."""

    data_received = FrameProtocol.data_received


def message(rng: random.Random) -> bytes:
    kind = rng.choices(
        ["data", "large", "empty", "sentinel", "stop", "unknown", "both", "garbage"], [60, 5, 4, 3, 1, 1, 1, 1]
    )[0]
    if kind == "data":
        return two_part(b"", b"%d" % rng.randrange(1000))
    if kind == "large":
        return two_part(b"", bytes(rng.randrange(5000, 50000)))
    if kind == "empty":
        return two_part()
    if kind == "both":
        return two_part(SENTINEL, b"data")
    if kind == "garbage":
        return b"\xff" * 24
    return two_part({"sentinel": SENTINEL, "stop": b'"stop"', "unknown": b'"?"'}[kind])


@pytest.mark.parametrize("seed", range(60))
async def test_the_fast_path_equals_the_table(seed: int) -> None:
    rng = random.Random(seed)
    frames = [two_part(OK_PROLOGUE), *(message(rng) for _ in range(rng.randrange(60)))]
    if rng.random() < 0.1:
        frames.insert(0, two_part(b"", b"too early"))
    data = b"".join(frames)
    cuts = sorted(rng.sample(range(1, len(data)), min(len(data) - 1, rng.randrange(8))))
    reads = [data[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    stop_before = rng.randrange(2 * len(reads))
    seen = []
    for kind in (ResponseConnection, ByTheTable):
        server = await TcpStreamServer.create(SERVER)
        context = Context()
        receiver = server.register(context)
        connection, transport = kind(server), Written()
        connection.connection_made(transport)
        handshake = f'{{"subject":"{receiver.subject}","stream_type":"response"}}'.encode()
        connection.data_received(two_part(handshake))
        states = []
        for number, read in enumerate(reads):
            if number == stop_before:
                context.stop_generating()
            connection.data_received(read)
            states.append((connection._machine.state, len(receiver.frames), receiver.unread))
        connection.connection_lost(None)
        if receiver.established.done():
            receiver.established.exception()  # retrieved, so that asyncio does not complain
        error = receiver.error
        seen.append(([bytes(each) for each in receiver.frames], states, receiver.ended, repr(error), transport.calls))
        await server.close()
    assert seen[0] == seen[1]
    assert seen[0][2]


@pytest.mark.parametrize(
    "words",
    [
        '{{"subject":"{}","stream_type":"response"}}',
        '{{"stream_type":"response","subject":"{}"}}',
        ' {{ "subject" : "{}", "stream_type" : "response" }} ',
        '{{"subject":"{}","stream_type":"response","more":1}}',
    ],
)
@pytest.mark.parametrize("escaped", [False, True])
async def test_a_handshake_takes_its_stream_in_whatever_words(words: str, escaped: bool) -> None:
    server = await TcpStreamServer.create(SERVER)
    receiver = server.register(Context())
    connection = ResponseConnection(server)
    connection.connection_made(Written())
    subject = receiver.subject
    handshake = words.format(f"\\u{ord(subject[0]):04x}{subject[1:]}" if escaped else subject).encode()
    connection.data_received(two_part(handshake) + two_part(OK_PROLOGUE) + two_part(b"", b"item") + two_part(SENTINEL))
    assert [bytes(each) for each in receiver.frames] == [b"item"]
    assert receiver.ended
    connection.connection_lost(None)
    await server.close()


@pytest.mark.parametrize("prologue", [two_part(OK_PROLOGUE, b"data"), two_part(b'{"error":"no"}'), two_part(b"{")])
async def test_another_prologue_than_the_usual_one_is_looked_at(prologue: bytes) -> None:
    server = await TcpStreamServer.create(SERVER)
    receiver = server.register(Context())
    connection, transport = ResponseConnection(server), Written()
    connection.connection_made(transport)
    connection.data_received(two_part(f'{{"subject":"{receiver.subject}","stream_type":"response"}}'.encode()))
    assert transport.calls == []
    connection.data_received(prologue)
    assert isinstance(receiver.established.exception(), CannotConnect)
    assert transport.calls[-1] == "abort"
    connection.connection_lost(None)
    await server.close()
