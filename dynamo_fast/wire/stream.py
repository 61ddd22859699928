# cython: freethreading_compatible=True, annotation_typing=False
"""The response stream as a state machine: what each end may receive, when, and what it must do about it.

Theory of operation
-------------------

A response stream is one TCP connection. The worker dials; from then on the two ends play different roles:

    worker                                   requester (the router)
      | handshake: which request this answers   |
      | prologue: whether the handler started   |
      | data frames: items, and the final one   |
      | sentinel: nothing more will come        |
      |          stop: finish early, or kill: now|   at any time, at most one of each
      | <- end of file, both ways ->            |

Two rules carry the rest:

1.  *The end is explicit.* The sentinel ends the transport's stream, and the final marker inside the last data frame
    ends the answer. End of file without them is a loss, whatever was received.
2.  *Only a known message is obeyed.* Anything else is a violation. The requester answers it with `kill` and the worker
    by killing its context. Neither end searches for the next frame.

The requester's states (`REQUESTER`):

    HANDSHAKE    the worker has dialled; the handshake, which names its request, is waited for
    PROLOGUE     the request is known; the prologue is waited for
    STREAMING    items may come
    STOPPED      `stop` was sent; items that still come are delivered
    CLOSED       nothing is read or written any more

The worker's states (`WORKER`):

    PROLOGUE     the handshake is written; the handler was not called yet
    STREAMING    the prologue is written; items may be written
    DRAINING     the end is written; the requester's end of file is waited for
    CLOSED       as above

What the worker does (the actions of `WORKER`; "the request is cut short" tells it that its items go nowhere):

    WRITE         put the prologue before the first items; items are written from now on, and are no events
    WRITE_END     write what is corked and the end: the final data frame, or the prologue with the error, then the sentinel
    CUT           write what is corked, then an end of file without a sentinel; the request is cut short
    FINISH        close after everything is written
    CLOSE         close now and drop what is not written; a request that was not started is cut short
    STOP_CONTEXT  as CLOSE; the handler's context is stopped and the request is cut short
    KILL_CONTEXT  as CLOSE; the handler's context is killed and the request is cut short

An end of file from the requester is not a cancellation: the requester has finished writing, which it may do at any time.
If it came before WRITE_END or CUT, the worker closes after that write instead of waiting in DRAINING. A reset is a
cancellation. After the sentinel both are the normal end.

A handler that stops or kills its own context ends its answer: the items that it yielded before are written, then an end
of file without a sentinel. The caller gets those items, then an error: the answer is not complete.

Each table gives, for every state and every event, the next state and the one action that the protocol class carries out
(`EXECUTORS` beside the class). The tables are total: no input raises an exception.

One thing goes past the table, because there may be a million of it: in STREAMING and STOPPED a data frame is delivered and
changes no state (`DATA` has the action DELIVER and the same state). In these two states the requester appends the bodies
of data frames to the receiver's queue in bulk. A message that arrives in any other way goes through the table, and so do
data frames in all other states.
(Source: transport.md 4.3 to 4.9.)

Where there is a compiler, Cython translates this file, with the types in `stream.pxd`.
"""

from __future__ import annotations

from enum import Enum, auto

from dynamo_fast.codec import TwoPartMessage
from dynamo_fast.errors import ControlError
from dynamo_fast.wire.control import ControlMessage

__all__ = ["REQUESTER", "WORKER", "Action", "Event", "State", "StreamMachine", "classify", "requester", "worker"]


class _Key(Enum):
    """An enumeration that is looked up for every message: its members are hashed by identity."""

    __hash__ = object.__hash__


class State(_Key):
    """Where one end of a response stream is."""

    HANDSHAKE = auto()
    PROLOGUE = auto()
    STREAMING = auto()
    STOPPED = auto()
    DRAINING = auto()
    CLOSED = auto()


class Event(_Key):
    """What may happen to one end of a response stream."""

    # A message from the peer
    HANDSHAKE = auto()  #: a handshake for a request that waits for it
    PROLOGUE_OK = auto()  #: the handler was started (worker: by us)
    PROLOGUE_ERROR = auto()  #: it was not (worker: by us)
    DATA = auto()
    EMPTY = auto()
    SENTINEL = auto()
    STOP = auto()
    KILL = auto()
    VIOLATION = auto()  #: any other message, or bytes that are none
    # The connection
    EOF = auto()  #: the peer has finished writing
    LOST = auto()  #: the connection is gone: reset, or closed by either end
    TIMEOUT = auto()  #: what this state waits for did not come in time
    # Our own side
    CONTEXT_STOPPED = auto()
    CONTEXT_KILLED = auto()
    DROPPED = auto()  #: the consumer of the answer is gone
    FINISHED = auto()  #: the handler has no more items


class Action(_Key):
    """What the protocol class does about an event."""

    IGNORE = auto()
    RESET = auto()  #: close with a reset
    CLOSE = auto()  #: close; what was not written yet is dropped
    # The requester
    ACCEPT = auto()  #: tell the waiting request that its worker has dialled
    ESTABLISH = auto()  #: hand the stream to the caller
    REFUSE = auto()  #: the call fails, and the connection is reset
    DELIVER = auto()  #: hand the item to the caller
    FINISH = auto()  #: the stream has ended as it should: close after what was written (worker: the same)
    SEND_STOP = auto()  #: write `stop`, and go on reading
    STOP_AND_FINISH = auto()  #: write `stop` and our end of file; the caller gets a stream without items
    SEND_KILL = auto()  #: write `kill` and our end of file, and read no more
    END = auto()  #: the stream is over; nothing can be written to the worker
    # The worker
    WRITE = auto()  #: write the prologue; items may follow
    WRITE_END = auto()  #: write what belongs to the end, then wait for the requester's end of file
    CUT = auto()  #: write what is corked and our end of file, no sentinel; then as WRITE_END
    STOP_CONTEXT = auto()  #: stop the handler's context, and close
    KILL_CONTEXT = auto()  #: kill the handler's context, and close


Transition = tuple[State, Action]
Table = dict[State, dict[Event, Transition]]


def _row(default: Transition, **entries: Transition) -> dict[Event, Transition]:
    """One state: `default` for every event that has no entry of its own."""
    named = {Event[name]: transition for name, transition in entries.items()}
    return {event: named.get(event, default) for event in Event}


_S, _A = State, Action
_CLOSED = _row((_S.CLOSED, _A.IGNORE))


def _requester_streaming(state: State, on_stop: Transition) -> dict[Event, Transition]:
    return _row(
        (_S.CLOSED, _A.SEND_KILL),
        DATA=(state, _A.DELIVER),
        EMPTY=(state, _A.IGNORE),
        SENTINEL=(_S.CLOSED, _A.FINISH),
        EOF=(_S.CLOSED, _A.END),
        LOST=(_S.CLOSED, _A.END),
        CONTEXT_STOPPED=on_stop,
    )


#: The requester's end.
REQUESTER: Table = {
    _S.HANDSHAKE: _row((_S.CLOSED, _A.RESET), HANDSHAKE=(_S.PROLOGUE, _A.ACCEPT), LOST=(_S.CLOSED, _A.IGNORE)),
    _S.PROLOGUE: _row(
        (_S.CLOSED, _A.REFUSE),
        PROLOGUE_OK=(_S.STREAMING, _A.ESTABLISH),
        CONTEXT_STOPPED=(_S.CLOSED, _A.STOP_AND_FINISH),
        CONTEXT_KILLED=(_S.CLOSED, _A.SEND_KILL),
        DROPPED=(_S.CLOSED, _A.SEND_KILL),
    ),
    _S.STREAMING: _requester_streaming(_S.STREAMING, on_stop=(_S.STOPPED, _A.SEND_STOP)),
    _S.STOPPED: _requester_streaming(_S.STOPPED, on_stop=(_S.STOPPED, _A.IGNORE)),
    _S.DRAINING: _CLOSED,  # a state of the worker's only
    _S.CLOSED: _CLOSED,
}


def _worker_open(state: State, **entries: Transition) -> dict[Event, Transition]:
    closed = (_S.CLOSED, _A.CLOSE)
    own = {"CONTEXT_STOPPED": closed, "CONTEXT_KILLED": closed, **entries}
    return _row((_S.CLOSED, _A.KILL_CONTEXT), EOF=(state, _A.IGNORE), STOP=(_S.CLOSED, _A.STOP_CONTEXT), **own)


#: The worker's end.
WORKER: Table = {
    _S.HANDSHAKE: _CLOSED,  # a state of the requester's only
    _S.PROLOGUE: _worker_open(
        _S.PROLOGUE, PROLOGUE_OK=(_S.STREAMING, _A.WRITE), PROLOGUE_ERROR=(_S.DRAINING, _A.WRITE_END)
    ),
    _S.STREAMING: _worker_open(
        _S.STREAMING,
        FINISHED=(_S.DRAINING, _A.WRITE_END),
        CONTEXT_STOPPED=(_S.DRAINING, _A.CUT),
        CONTEXT_KILLED=(_S.DRAINING, _A.CUT),
    ),
    _S.STOPPED: _CLOSED,  # a state of the requester's only
    _S.DRAINING: _row(
        (_S.CLOSED, _A.CLOSE),
        EMPTY=(_S.DRAINING, _A.IGNORE),
        EOF=(_S.CLOSED, _A.FINISH),
        CONTEXT_STOPPED=(_S.DRAINING, _A.IGNORE),
        CONTEXT_KILLED=(_S.DRAINING, _A.IGNORE),
        DROPPED=(_S.DRAINING, _A.IGNORE),
        FINISHED=(_S.DRAINING, _A.IGNORE),
    ),
    _S.CLOSED: _CLOSED,
}


# What every stream needs is looked up once: on Python 3.11 a member of an enumeration costs as much as a call.
_HANDSHAKE, _PROLOGUE = State.HANDSHAKE, State.PROLOGUE
_DATA, _EMPTY, _VIOLATION = Event.DATA, Event.EMPTY, Event.VIOLATION


class StreamMachine:
    """One end of one response stream: its table, and the state it is in."""

    __slots__ = ("_table", "state")

    def __init__(self, table: Table, state: State) -> None:
        self._table = table
        self.state = state

    def step(self, event: Event) -> Action:
        """Go to the next state; returns what to do. Never raises."""
        row: dict[Event, Transition] = self._table[self.state]
        transition: Transition = row[event]
        self.state = transition[0]
        return transition[1]


def requester() -> StreamMachine:
    """The requester's end of a connection that a worker has just dialled."""
    return StreamMachine(REQUESTER, _HANDSHAKE)


def worker() -> StreamMachine:
    """The worker's end of a connection whose handshake was just written."""
    return StreamMachine(WORKER, _PROLOGUE)


_CONTROL_EVENTS = {
    ControlMessage.STOP: Event.STOP,
    ControlMessage.KILL: Event.KILL,
    ControlMessage.SENTINEL: Event.SENTINEL,
}
_USUAL_EVENTS: dict[bytes | memoryview, Event] = {each.encode(): event for each, event in _CONTROL_EVENTS.items()}


def classify(message: TwoPartMessage) -> Event:
    """The event that a message is, after the prologue. A message that the protocol does not know is a VIOLATION."""
    if not message.header:
        return _DATA if message.data else _EMPTY
    if message.data:
        return _VIOLATION
    try:
        return _USUAL_EVENTS.get(message.header) or _CONTROL_EVENTS[ControlMessage.decode(message.header)]
    except ControlError:
        return _VIOLATION
