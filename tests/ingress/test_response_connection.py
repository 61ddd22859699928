"""The actions of the table `WORKER`, carried out on a socket: each does what the theory in `wire.stream` says."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import AsyncIterator
from typing import NamedTuple, cast

import pytest

from dynamo_fast.codec import encode_data_frames, encode_two_part
from dynamo_fast.config import WorkerConfig
from dynamo_fast.context import Context
from dynamo_fast.ingress.dialler import Dialler
from dynamo_fast.ingress.response_connection import EXECUTORS, ResponseConnection
from dynamo_fast.wire import stream
from dynamo_fast.wire.payload import PayloadCodec
from dynamo_fast.wire.stream import WORKER, Action, Event, State
from tests.ingress.requester import PATIENCE

JSON = PayloadCodec.JSON
PROLOGUE = encode_two_part(b'{"error":null}', b"")
ITEM = encode_data_frames((b'{"data":{"data":1},"complete_final":false}',))
END = encode_two_part(b"", b'{"complete_final":true}') + encode_two_part(b'"sentinel"', b"")
REACHED = (State.PROLOGUE, State.STREAMING, State.DRAINING, State.CLOSED)


def test_every_action_of_the_table_has_an_executor_and_no_other_has() -> None:
    assert set(EXECUTORS) == {action for row in WORKER.values() for _, action in row.values()}


def test_the_theory_above_the_table_names_every_action() -> None:
    assert stream.__doc__ is not None
    _, _, theory = stream.__doc__.partition("What the worker does")
    told = {line.split()[0] for line in theory.splitlines() if line.startswith("    ")}
    assert told == {action.name for action in EXECUTORS} - {"IGNORE"}


class Outcome(NamedTuple):
    """What one event did."""

    written: bytes
    """What the router gets, of the item that was corked and of the frames of the event."""
    eof: bool = False
    """Whether the router gets an end of file."""
    closed: bool = False
    """Whether our end is closed: nothing is read any more."""
    context: str = "untouched"
    cut_short: bool = False


class Stream:
    """A response connection over a pair of sockets. `corked` is an item that waits to be written."""

    def __init__(self) -> None:
        self.dialler = Dialler(WorkerConfig())
        self.context = Context()
        self.cuts = 0
        self.connection = ResponseConnection(self.dialler, self.context, JSON, self)

    async def connect(self) -> None:
        ours, self.router = socket.socketpair()
        self.router.setblocking(False)
        loop = asyncio.get_running_loop()
        self.transport, _ = await loop.create_unix_connection(
            lambda: cast(asyncio.Protocol, self.connection), sock=ours
        )
        self.connection.dialled(self.transport)

    async def reach(self, state: State) -> bytes:
        """Bring it into `state`; returns what the router has got by then. In STREAMING an item is corked."""
        if state is State.PROLOGUE:
            return b""
        self.connection.start()
        self.connection.uncork()
        if state is State.STREAMING:
            self.connection.corked.restart()
            self.connection.corked.add(1)
            return PROLOGUE
        if state is State.CLOSED:
            self.connection._step(Event.LOST, "lost")
            self.cuts = 0
            self.context = Context()
            return PROLOGUE
        self.connection.finish(JSON.final)
        return PROLOGUE + END

    async def read(self) -> bytes:
        """Everything up to the end of file."""
        received = b""
        while data := await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self.router, 4096), PATIENCE):
            received += data
        return received

    def cut_short(self) -> None:
        self.cuts += 1


@pytest.fixture
async def connected() -> AsyncIterator[Stream]:
    made = Stream()
    await made.connect()
    yield made
    if made.connection._transport is not None:
        made.transport.abort()
    made.router.close()
    await asyncio.sleep(0)


def expected(state: State, action: Action) -> Outcome:
    """The theory."""
    corked = ITEM if state is State.STREAMING else b""
    outcomes = {
        Action.IGNORE: Outcome(corked),
        Action.WRITE: Outcome(b"frames"),
        Action.WRITE_END: Outcome(corked + b"frames"),
        Action.CUT: Outcome(corked, eof=True, cut_short=True),
        Action.FINISH: Outcome(b"", eof=True, closed=True),
        Action.CLOSE: Outcome(b"", eof=True, closed=True, cut_short=state is State.PROLOGUE),
        Action.STOP_CONTEXT: Outcome(b"", eof=True, closed=True, context="stopped", cut_short=True),
        Action.KILL_CONTEXT: Outcome(b"", eof=True, closed=True, context="killed", cut_short=True),
    }
    return Outcome(b"", eof=True, closed=True) if state is State.CLOSED else outcomes[action]


@pytest.mark.parametrize(("state", "event"), list(itertools.product(REACHED, Event)), ids=lambda each: each.name)
async def test_what_an_event_does(connected: Stream, state: State, event: Event) -> None:
    before = await connected.reach(state)
    _, action = WORKER[state][event]
    told = expected(state, action)
    connection, context = connected.connection, connected.context
    connection._step(event, "by the test", b"frames")
    closed = connected.transport.is_closing()
    cancelled = "killed" if context.is_killed() else "stopped" if context.is_stopped() else "untouched"
    cuts = connected.cuts
    is_finishing = connection in connected.dialler.closing
    if not told.eof:  # it would wait for ever: write what waits, and end it
        connection.uncork()
        connected.transport.close()
    written = await connected.read()
    assert Outcome(written.removeprefix(before), told.eof, closed, cancelled, cuts == 1) == told
    assert cuts <= 1
    if action in (Action.WRITE_END, Action.CUT):
        assert is_finishing


@pytest.mark.parametrize("event", [Event.FINISHED, Event.CONTEXT_STOPPED])
async def test_a_router_that_has_finished_before_is_not_waited_for(connected: Stream, event: Event) -> None:
    before = await connected.reach(State.STREAMING)
    assert connected.connection.eof_received()
    connected.connection._step(event, "by the test", b"frames")
    assert connected.transport.is_closing()
    assert await connected.read() == before + ITEM + (b"frames" if event is Event.FINISHED else b"")


@pytest.mark.parametrize(
    ("is_finished", "event", "is_whole"),
    [(True, Event.EOF, True), (True, Event.TIMEOUT, False), (False, Event.STOP, False), (False, Event.LOST, False)],
    ids=lambda each: getattr(each, "name", str(each)),
)
async def test_only_an_orderly_end_keeps_what_the_socket_has_not_taken(
    connected: Stream, is_finished: bool, event: Event, is_whole: bool
) -> None:
    await connected.reach(State.STREAMING)
    large = bytes(4 << 20)  # more than the socket takes
    connected.connection.send(large)
    connected.connection.uncork()
    if is_finished:
        connected.connection.finish(JSON.final)
    connected.connection._step(event, "by the test")
    received = await connected.read()
    assert (len(received) > len(large)) == is_whole
    assert received.endswith(END) == is_whole
