from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_fast.codec import TwoPartCodec, TwoPartDecoder, TwoPartMessage
from dynamo_fast.wire.control import ControlMessage
from dynamo_fast.wire.stream import (
    REQUESTER,
    WORKER,
    Action,
    Event,
    State,
    StreamMachine,
    Table,
    classify,
    requester,
    worker,
)
from tests.captured import Vector, captured, name_of

TABLES = pytest.mark.parametrize("table", [REQUESTER, WORKER], ids=["requester", "worker"])
ENDS = {
    Action.RESET,
    Action.CLOSE,
    Action.REFUSE,
    Action.FINISH,
    Action.STOP_AND_FINISH,
    Action.SEND_KILL,
    Action.END,
    Action.STOP_CONTEXT,
    Action.KILL_CONTEXT,
}


@TABLES
def test_every_state_has_an_entry_for_every_event(table: Table) -> None:
    for state, event in itertools.product(State, Event):
        next_state, action = table[state][event]
        assert isinstance(next_state, State)
        assert isinstance(action, Action)


@TABLES
def test_nothing_leaves_the_closed_state_and_nothing_happens_there(table: Table) -> None:
    assert set(table[State.CLOSED].values()) == {(State.CLOSED, Action.IGNORE)}


@TABLES
def test_a_lost_connection_closes_every_state(table: Table) -> None:
    assert {row[Event.LOST][0] for row in table.values()} == {State.CLOSED}


@TABLES
def test_a_violation_closes_every_state(table: Table) -> None:
    assert {row[Event.VIOLATION][0] for row in table.values()} == {State.CLOSED}


@given(st.lists(st.sampled_from(list(Event))), st.sampled_from([requester, worker]))
def test_a_stream_ends_once(events: list[Event], role: Callable[[], StreamMachine]) -> None:
    machine = role()
    ends = 0
    for event in events:
        was_closed = machine.state is State.CLOSED
        action = machine.step(event)
        ends += action in ENDS
        assert not (was_closed and action is not Action.IGNORE)
        assert not (action in ENDS and machine.state is not State.CLOSED)
    assert ends <= 1


def run(machine: StreamMachine, *events: Event) -> list[Action]:
    return [machine.step(event) for event in events]


def test_the_requester_of_an_answer_that_ends_well() -> None:
    machine = requester()
    actions = run(machine, Event.HANDSHAKE, Event.PROLOGUE_OK, Event.DATA, Event.EMPTY, Event.SENTINEL, Event.EOF)
    assert actions == [
        Action.ACCEPT,
        Action.ESTABLISH,
        Action.DELIVER,
        Action.IGNORE,
        Action.FINISH,
        Action.IGNORE,
    ]


def test_stop_is_sent_once_and_what_still_comes_is_delivered() -> None:
    machine = requester()
    run(machine, Event.HANDSHAKE, Event.PROLOGUE_OK)
    actions = run(machine, Event.CONTEXT_STOPPED, Event.CONTEXT_STOPPED, Event.DATA, Event.SENTINEL)
    assert actions == [Action.SEND_STOP, Action.IGNORE, Action.DELIVER, Action.FINISH]


def test_stop_before_the_prologue_is_an_answer_without_items() -> None:
    machine = requester()
    assert run(machine, Event.HANDSHAKE, Event.CONTEXT_STOPPED) == [Action.ACCEPT, Action.STOP_AND_FINISH]


@pytest.mark.parametrize("event", [Event.CONTEXT_KILLED, Event.DROPPED])
@pytest.mark.parametrize("before", [[], [Event.PROLOGUE_OK], [Event.PROLOGUE_OK, Event.CONTEXT_STOPPED]])
def test_the_worker_is_killed_at_any_time(event: Event, before: list[Event]) -> None:
    machine = requester()
    run(machine, Event.HANDSHAKE, *before)
    assert run(machine, event, event) == [Action.SEND_KILL, Action.IGNORE]


@pytest.mark.parametrize("event", [Event.STOP, Event.KILL, Event.VIOLATION])
def test_a_worker_that_says_what_only_a_requester_may_is_killed(event: Event) -> None:
    machine = requester()
    run(machine, Event.HANDSHAKE, Event.PROLOGUE_OK)
    assert run(machine, event) == [Action.SEND_KILL]


def test_the_worker_of_an_answer_that_ends_well_outlives_a_half_close() -> None:
    machine = worker()
    actions = run(machine, Event.EOF, Event.PROLOGUE_OK, Event.EOF, Event.FINISHED, Event.EOF)
    assert actions == [Action.IGNORE, Action.WRITE, Action.IGNORE, Action.WRITE_END, Action.FINISH]


@pytest.mark.parametrize("event", [Event.SENTINEL, Event.DATA, Event.VIOLATION, Event.KILL, Event.LOST])
def test_the_worker_kills_its_handler(event: Event) -> None:
    for before in ([], [Event.PROLOGUE_OK]):
        machine = worker()
        run(machine, *before)
        assert run(machine, event) == [Action.KILL_CONTEXT]


def test_a_reset_after_the_sentinel_is_a_normal_end() -> None:
    machine = worker()
    run(machine, Event.PROLOGUE_OK, Event.FINISHED)
    assert run(machine, Event.LOST) == [Action.CLOSE]


@pytest.mark.parametrize("vector", captured("conv_*_worker_side"), ids=name_of)
def test_what_dynamo_workers_write_is_what_the_requester_expects(vector: Vector) -> None:
    messages = TwoPartDecoder().feed(vector.data)
    events = [Event.HANDSHAKE, Event.PROLOGUE_OK, *map(classify, messages[2:])]
    actions = run(requester(), *events)
    finishes = vector.kind == "conv_ok_metadata_worker_side"
    assert actions[:2] == [Action.ACCEPT, Action.ESTABLISH]
    assert set(actions[2:]) <= {Action.DELIVER, Action.FINISH}
    assert (actions[-1] is Action.FINISH) == finishes


@pytest.mark.parametrize("vector", captured("conv_*_requester_side"), ids=name_of)
def test_what_dynamo_requesters_write_is_what_the_worker_expects(vector: Vector) -> None:
    events = list(map(classify, TwoPartDecoder().feed(vector.data)))
    machine = worker()
    machine.step(Event.PROLOGUE_OK)
    expected = Action.STOP_CONTEXT if "stopped" in vector.kind else Action.KILL_CONTEXT
    assert run(machine, *events)[0] is expected


@pytest.mark.parametrize(
    ("header", "data", "event"),
    [
        (b"", b"", Event.EMPTY),
        (b"", b"x", Event.DATA),
        (ControlMessage.SENTINEL.encode(), b"", Event.SENTINEL),
        (ControlMessage.STOP.encode(), b"", Event.STOP),
        (ControlMessage.KILL.encode(), b"", Event.KILL),
        (ControlMessage.SENTINEL.encode(), b"x", Event.VIOLATION),
        (b'"start"', b"", Event.VIOLATION),
        (b"stop", b"", Event.VIOLATION),
        (b"\xff", b"", Event.VIOLATION),
    ],
)
def test_messages_as_events(header: bytes, data: bytes, event: Event) -> None:
    frame = TwoPartCodec().encode_message(TwoPartMessage.from_parts(header, data))
    assert classify(TwoPartCodec().decode_message(frame)) is event
