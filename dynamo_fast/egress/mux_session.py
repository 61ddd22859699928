# cython: freethreading_compatible=True, annotation_typing=False
"""`MuxSession`: the router's end of a connection that carries many answers of one worker process (mux.md).

Each answer is a `MuxStream`: a `ResponseConnection` whose messages come in frames of the session, and whose words leave
in such frames. What may be received when, and what follows from it, is the same table of `wire.stream`.

This runs for every request and item. Where there is a compiler, Cython translates this very file, with the types in
`mux_session.pxd` (see setup.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from dynamo_fast.codec import MuxDecoder, MuxFrame, encode_mux_frame
from dynamo_fast.config import ResponseServerConfig
from dynamo_fast.egress.response_connection import EXECUTORS, ConnectionOwner, ResponseConnection, no_prologue
from dynamo_fast.egress.response_receiver import ResponseReceiver
from dynamo_fast.errors import CodecError, ControlError, MessageTooLarge
from dynamo_fast.logs import get_logger
from dynamo_fast.net import frame_log
from dynamo_fast.net.sockets import descriptors_of
from dynamo_fast.wire.control import MAX_CONTROL_MESSAGE_SIZE
from dynamo_fast.wire.mux import (
    CLOSE,
    CUT,
    DATA,
    END,
    KILL,
    MOST_STREAMS,
    OPEN,
    PART,
    PING,
    PONG,
    PROLOGUE,
    SMALLEST_WINDOW,
    STOP,
    VERSION,
    WORKER_FRAME_LIMIT,
    Hello,
    close_frame,
    closing_reason,
    credit_frame,
    described,
    seen_frame,
)
from dynamo_fast.wire.stream import REQUESTER, Action, Event, State, requester

__all__ = ["MuxSession", "MuxStream"]

logger = get_logger(__name__)

_CONNECTION_WINDOW = 4 * 1024 * 1024
_LONGEST_SUBJECT = 128
# What crosses on the way: frames of streams that this end has ended, and opens of calls that were given up.
_MAY_BE_IGNORED, _MORE_FOR_EACH_KILL = 65_536, 4_096
_MAY_BE_UNKNOWN = 1_024
_MAY_BE_UNANSWERED = 64
_SEEN_SECONDS = 1.0

_PREFIX = len(encode_mux_frame(0, DATA))
_OPENED, _STARTED, _DATA, _SENTINEL = Event.HANDSHAKE, Event.PROLOGUE_OK, Event.DATA, Event.SENTINEL
_VIOLATION, _EOF, _LOST, _CLOSED = Event.VIOLATION, Event.EOF, Event.LOST, State.CLOSED
_WAITING = State.PROLOGUE
_DELIVERING = frozenset(state for state, row in REQUESTER.items() if row[_DATA] == (state, Action.DELIVER))


class SessionOwner(ConnectionOwner):
    """What a session asks of the registry that made it, which is a subclass and sets the attributes."""

    sessions: dict[str, MuxSession]
    """The sessions that are open, by their names."""
    multiplexed: int
    """Streams on them."""
    forgotten: int
    """Opens that may come for nothing: of calls that were given up before, and once more of streams of lost sessions."""


class MuxSession:
    """One connection: its decoder, its credit, and its streams by their numbers.

    The registry makes it when a worker's handshake has come; the event loop and its streams call it. It ends with `close`,
    or when the connection is lost; then every stream is lost, too.
    """

    __slots__ = (
        "__weakref__",
        "_answers",
        "_decoder",
        "_flush_is_due",
        "_is_blocked",
        "_last",
        "_may_be_ignored",
        "_out",
        "_over",
        "_owed",
        "_seen",
        "_server",
        "_sinks",
        "_transport",
        "_unanswered",
        "_unknown",
        "ignored",
        "name",
        "stream_window",
        "streams",
    )

    def __init__(self, server: SessionOwner, name: str) -> None:
        self._server = server
        self.name = name
        """Of the worker process."""
        self._transport: Any = None
        self._decoder = MuxDecoder(WORKER_FRAME_LIMIT)
        self.streams: dict[int, MuxStream] = {}
        """Those that are open, by their numbers."""
        self._sinks: dict[int, Callable[[bytes | memoryview], object]] = {}  # of those that take items
        self.stream_window = _window(server.config)
        """Credit of each stream at its beginning, in bytes."""
        self._owed = 0  # what has come since the worker was given credit
        self._last = 0  # the highest number that was used
        self._seen: asyncio.TimerHandle | None = None  # when the worker is told of it
        self._answers = 0  # streams that answered a request
        self.ignored = 0
        """Frames for streams that are gone."""
        self._may_be_ignored = _MAY_BE_IGNORED
        self._unknown = 0
        self._unanswered = 0
        self._is_blocked = False  # the worker does not read
        self._out: list[bytes] = []
        self._flush_is_due = False
        self._over = False

    def begin(self, transport: asyncio.Transport, refusal: str) -> None:
        """Take over the connection, and answer the handshake: with the windows, or with why not."""
        self._transport = transport
        transport.set_protocol(self)  # type: ignore[arg-type]  # a compiled class has no base in Python
        if refusal:
            self._over = True
            transport.write(close_frame(refusal))
            transport.close()
            return
        self._server.sessions[self.name] = self
        transport.write(Hello(VERSION, self.stream_window, _CONNECTION_WINDOW).encode())

    def close(self, why: str, *, cut: bool = False) -> None:
        """End it: the worker is told `why`, and each stream is lost. `cut`: the streams end as if they were dropped."""
        if self._over:
            return
        if cut:
            for stream in list(self.streams.values()):
                stream.step(Event.DROPPED)
        else:
            logger.warning("closing the session of worker %s at %s: %s", self.name, self._peer(), why)
        self.write(seen_frame(MOST_STREAMS if cut else self._last))  # cut: no call waits for an answer any more
        self.write(close_frame(why))
        self._flush()
        if self._is_blocked:  # what waits would keep it open
            self._transport.abort()
        else:
            self._transport.close()
        self._end(ControlError(f"the session was closed: {why}"))

    def open_sockets(self) -> Iterable[int]:
        """See SocketHolder."""
        return descriptors_of([self._transport])

    # Called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol. It takes over a connection that was made: see `begin`."""

    def pause_writing(self) -> None:
        """See asyncio.Protocol. What is written goes on: the worker gets no credit, which bounds what it can ask for."""
        self._is_blocked = True

    def resume_writing(self) -> None:
        self._is_blocked = False
        if self._owed >= _CONNECTION_WINDOW // 2:
            self._return_credit()

    def eof_received(self) -> bool:
        if self._decoder.pending:
            text = f"the worker's session ends inside a frame ({self._decoder.pending} bytes)"
            self._end(ControlError(text))
        return False  # the transport closes

    def connection_lost(self, error: Exception | None) -> None:
        self._end(error)

    def data_received(self, data: bytes) -> None:
        # The hot path: all the items of one read are queued, then each of their consumers is woken once.
        if self._over:
            return
        taken: dict[int, int] = {}
        frames: list[MuxFrame] = []
        decoder = self._decoder
        try:
            if frame_log.ENABLED:
                frames = decoder.feed(data)
                frame_log.log_frames(self._transport, frames)
                self._sinks.clear()  # each frame takes the long way
            else:
                taken, frames = decoder.feed_items(data, self._sinks)
        except CodecError:  # the first frame of this read is bad; `failed` is set
            pass
        streams = self.streams
        for number, size in taken.items():
            stream = streams.get(number)
            if stream is not None:  # else a consumer has ended it just now
                stream.took(size)
        for frame in frames:
            self._receive(frame)
            if self._over:
                return  # type: ignore[unreachable]  # a frame may end it
        if decoder.failed is not None:
            self.close(str(decoder.failed))
            return
        self._give_credit(len(data))

    def _give_credit(self, size: int) -> None:
        """`size` bytes have come: whatever became of them, they are under way no longer."""
        self._owed += size
        if self._owed >= _CONNECTION_WINDOW // 2:
            self._return_credit()

    def _return_credit(self) -> None:
        """Give back what has come; not to a worker that does not read, which may use up what it has and no more."""
        beyond = self._owed - self._decoder.pending - _CONNECTION_WINDOW
        if beyond > 0:
            self.close(f"the worker has written {beyond} bytes more than the credit of the connection")
        elif not self._is_blocked:
            self.write(credit_frame(0, self._owed))
            self._owed = 0

    # Frames

    def _receive(self, frame: MuxFrame) -> None:
        number = frame.stream
        stream = self.streams.get(number)
        if frame.kind == OPEN or number > self._last:
            self._open(frame)
        elif stream is not None:
            stream.receive(frame.kind, frame.body)
        elif not number:
            self._receive_for_session(frame)
        else:
            self.ignored += 1
            if self.ignored > self._may_be_ignored:
                self.close(f"{self.ignored} frames for streams that are gone")

    def _receive_for_session(self, frame: MuxFrame) -> None:
        if frame.kind == PING and len(frame.body) == 8:
            self._answer_ping(bytes(frame.body))
        elif frame.kind == CLOSE:
            logger.info("worker %s at %s closes its session: %s", self.name, self._peer(), closing_reason(frame.body))
            self._transport.close()
            self._end(ControlError(f"the worker closed the session: {closing_reason(frame.body)}"))
        elif frame.kind != PONG:
            self.close(f"unexpected {described(frame)}")

    def _answer_ping(self, body: bytes) -> None:
        if not self._is_blocked:
            self._unanswered = 0
            self.write(encode_mux_frame(0, PONG, body))
            return
        self._unanswered += 1
        if self._unanswered > _MAY_BE_UNANSWERED:
            self.close("it sends pings and does not read their answers")

    def _open(self, frame: MuxFrame) -> None:
        number = frame.stream
        if frame.kind != OPEN or not number or not 0 < len(frame.body) <= _LONGEST_SUBJECT:
            self.close(f"unexpected {described(frame)}, which is not open")
            return
        if number <= self._last:
            self.close(f"stream {number} was opened before")
            return
        self._last = number
        if self._seen is None:
            self._seen = self._server.loop.call_later(_SEEN_SECONDS, self._say_seen)
        receiver = self._server.take(bytes(frame.body).decode("utf-8", "replace"))
        if receiver is None:
            self._refuse(number)
            return
        stream = MuxStream(self, self._server, number, receiver)
        self.streams[number] = stream
        self._answers += 1
        self._server.multiplexed += 1
        stream.step(_OPENED)

    def _say_seen(self) -> None:
        """Tell the worker how far it was heard: what it opened behind that is lost if the session is."""
        self._seen = None
        self.write(seen_frame(self._last))

    def _refuse(self, number: int) -> None:
        """No call waits for this stream: it was given up, or there was none."""
        self._unknown += 1
        if self._unknown > _MAY_BE_UNKNOWN + self._server.forgotten:
            self.close(f"{self._unknown} streams that answer no request")
            return
        self.write_last(number, KILL)

    # For its streams

    def write(self, frame: bytes) -> None:
        """Write `frame` at the end of this turn of the loop."""
        self._out.append(frame)
        if not self._flush_is_due:
            self._flush_is_due = True
            self._server.loop.call_soon(self._flush)

    def write_last(self, number: int, kind: int) -> None:
        """Tell the worker to quit a stream; frames that are under way will be ignored."""
        self.write(encode_mux_frame(number, kind))
        self._may_be_ignored += _MORE_FOR_EACH_KILL

    def set_sink(self, number: int, sink: Callable[[bytes | memoryview], object] | None) -> None:
        """From now on the items of a stream go to `sink`; None: they come to the stream itself."""
        if sink is None:
            self._sinks.pop(number, None)
        else:
            self._sinks[number] = sink

    def forget(self, number: int) -> None:
        """A stream is gone."""
        if self.streams.pop(number, None) is not None:
            self._server.multiplexed -= 1

    # Its end

    def _flush(self) -> None:
        self._flush_is_due = False
        out, self._out = self._out, []
        if out and not self._transport.is_closing():
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))

    def _end(self, error: BaseException | None) -> None:
        if self._over:
            return
        self._over = True
        self._server.forgotten += self._answers  # the worker opens those again of which it was not told
        if self._seen is not None:
            self._seen.cancel()
        if self._server.sessions.get(self.name) is self:
            del self._server.sessions[self.name]
        for stream in list(self.streams.values()):
            stream.step(_LOST, error)
        self._sinks.clear()

    def _peer(self) -> str:
        name = self._transport.get_extra_info("peername")
        return f"{name[0]}:{name[1]}" if name else "?"


class MuxStream(ResponseConnection):
    """One answer on a session. The session owns it until its table is closed; its receiver calls it as a connection."""

    __slots__ = ("_half", "_number", "_owed", "_parts", "_parts_size", "_session", "_window")

    def __init__(self, session: MuxSession, server: SessionOwner, number: int, receiver: ResponseReceiver) -> None:
        self._decoder = None
        self._transport = None
        self._sink = None
        self._server = server
        self._machine = requester()
        self._receiver = receiver
        self._paused = False
        self._session = session
        self._number = number
        self._window = session.stream_window  # what the worker may still write
        self._owed = 0  # what it has written since it was given credit
        self._half = session.stream_window // 2
        self._parts: list[bytes | memoryview] | None = None  # of an item that is cut, until its last one comes
        self._parts_size = 0

    def receive(self, kind: int, body: bytes | memoryview) -> None:
        """A frame for this stream that is not an item, or not an item alone."""
        size = len(body)
        if kind in (DATA, PART):
            self._receive_part(kind, body)
        elif kind == PROLOGUE and self._machine.state is _WAITING:
            if size or self._parts is not None:
                self.read_prologue(self._whole(body))
            else:
                self.step(_STARTED)
        elif kind == END and not size:
            self.step(_SENTINEL)
        elif kind == CUT and not size:
            self.step(_EOF)
        else:
            self.step(_VIOLATION, ControlError(f"unexpected frame of kind {kind} with {size} bytes"))

    def _receive_part(self, kind: int, body: bytes | memoryview) -> None:
        size = len(body)
        limit = self._server.config.max_message_size
        if self._machine.state is _WAITING:
            limit = min(limit, MAX_CONTROL_MESSAGE_SIZE)
        total = self._parts_size + size
        if not size:
            self.step(_VIOLATION, ControlError("an item without bytes"))
        elif total > limit:
            text = f"an item is too large: {total} bytes until now (limit: {limit} bytes)"
            self.step(_VIOLATION, MessageTooLarge(text, size=total, limit=limit))
        elif kind == PART:
            if self._parts is None:
                self._parts = []
                self._session.set_sink(self._number, None)  # the prologue may have come in the same read
            self._parts.append(body)
            self._parts_size = total
            self.took(_PREFIX + size)
        elif self._machine.state is _WAITING:
            self.step(_VIOLATION, no_prologue())
        else:
            self.step(_DATA, self._whole(body))
            self.took(_PREFIX + size)

    def _whole(self, body: bytes | memoryview) -> bytes | memoryview:
        """An item, or a prologue, whose last part is `body`."""
        parts, self._parts, self._parts_size = self._parts, None, 0
        return body if parts is None else b"".join((*parts, body))

    def took(self, size: int) -> None:
        """Frames of `size` bytes have come: wake the consumer if there are items for it, else give credit."""
        self._window -= size
        self._owed += size
        receiver = self._receiver
        if self._window < 0:
            self.step(_VIOLATION, ControlError(f"the worker has written {-self._window} bytes more than its credit"))
            return
        if receiver is None:
            return
        if not receiver.frames:  # a part of a large item
            self.resume_reading()
        elif self._parts is None:
            # As `_wake` of a connection, but for its limits: there is no credit while something waits.
            receiver.arrived(size)
            receiver.wake()

    def resume_reading(self) -> None:
        """All frames were taken: give credit, if half of the window was used."""
        if self._owed >= self._half and self._machine.state is not _CLOSED:
            self._session.write(credit_frame(self._number, self._owed))
            self._window += self._owed
            self._owed = 0

    # What the table says

    def step(self, event: Event, detail: Any = None) -> None:
        """As `ResponseConnection.step`."""
        machine, session, receiver = self._machine, self._session, self._receiver
        action = machine.step(event)
        takes_items = receiver is not None and self._parts is None and machine.state in _DELIVERING
        session.set_sink(self._number, receiver.frames.append if takes_items else None)  # type: ignore[union-attr]
        _EXECUTORS[action](self, detail)
        if machine.state is _CLOSED:
            session.forget(self._number)
            self._receiver = None

    def _finish(self, error: BaseException | None) -> None:
        assert self._receiver is not None
        self._receiver.end(error)

    def _say_stop(self, _: BaseException | None) -> None:
        self._session.write(encode_mux_frame(self._number, STOP))

    def _stop_and_end(self, _: BaseException | None) -> None:
        self._session.write_last(self._number, STOP)
        self._finish(None)

    def _say_kill(self, error: BaseException | None) -> None:
        self._session.write_last(self._number, KILL)
        self._finish(error)

    def _fail(self, error: BaseException | None) -> None:
        self._session.write_last(self._number, KILL)
        self._refuse(error)

    def _reset(self, _: BaseException | None) -> None:
        """It is told with a frame."""


#: How each action of `REQUESTER` is carried out, as `response_connection.EXECUTORS`.
_EXECUTORS: dict[Action, Callable[[Any, Any], None]] = {
    **EXECUTORS,
    Action.REFUSE: MuxStream._fail,
    Action.FINISH: MuxStream._finish,
    Action.SEND_STOP: MuxStream._say_stop,
    Action.STOP_AND_FINISH: MuxStream._stop_and_end,
    Action.SEND_KILL: MuxStream._say_kill,
    Action.END: MuxStream._finish,
}


def _window(config: ResponseServerConfig) -> int:
    """Credit of a stream: what may wait for a slow consumer, within the bounds of the protocol."""
    return min(max(config.max_buffered_bytes, SMALLEST_WINDOW), _CONNECTION_WINDOW)
