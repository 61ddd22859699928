# cython: freethreading_compatible=True, annotation_typing=False
"""`ResponseConnection`: the worker's end of a response stream. It writes the frames of one answer.

What may be received in which state, and what follows from it, is the table `WORKER` of `wire.stream`; `EXECUTORS` carries
out its actions.

Frames are *corked*: the items that a handler yields without a pause leave in one write, with the prologue before or the
end behind them. They are written before the task of the request gives the event loop a turn (see `Uncorking`), or after
`_CORK_SECONDS`, `_CORK_FRAMES` frames, or `_CORK_BYTES` bytes if the handler does not pause (see `room`).

This runs for every request. Where there is a compiler, Cython translates this very file, with the types in
`response_connection.pxd` (see setup.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import cache
from typing import Any, Protocol

from dynamo_fast.codec import (
    MUX_BODY_LIMIT,
    MUX_PREFIX_SIZE,
    TwoPartDecoder,
    TwoPartMessage,
    encode_data_frames,
    encode_mux_frame,
    encode_mux_items,
    encode_two_part,
)
from dynamo_fast.context import Context
from dynamo_fast.deadlines import Deadlines
from dynamo_fast.errors import CodecError
from dynamo_fast.ingress._cork import Cork
from dynamo_fast.ingress.mux_sender import MuxSender
from dynamo_fast.logs import get_logger
from dynamo_fast.net import frame_log
from dynamo_fast.net._direct import DirectTransport
from dynamo_fast.net.sockets import keep_alive
from dynamo_fast.wire.control import ControlMessage, ResponseStreamPrologue
from dynamo_fast.wire.mux import END, PROLOGUE, refused_prologue
from dynamo_fast.wire.payload import PayloadCodec
from dynamo_fast.wire.stream import Action, Event, State, classify, worker

__all__ = ["EXECUTORS", "ConnectionOwner", "ResponseConnection", "Uncorking"]

logger = get_logger(__name__)

# A router writes "stop" or "kill", in 30 bytes. A longer message is a violation; it is refused before it is complete.
_MAX_CONTROL_SIZE = 1024
# What a TLS server answers to plain text. (A message of a router has more.)
_SIZE_OF_AN_ALERT = 7
_CORK_SECONDS = 0.001
_CORK_FRAMES = 128
_CORK_BYTES = 64 * 1024

# What every request needs is looked up once: on Python 3.11 a member of an enumeration costs as much as a call.
_CLOSED, _EOF, _LOST = State.CLOSED, Event.EOF, Event.LOST
_STARTED, _FINISHED = Event.PROLOGUE_OK, Event.FINISHED
_WRITE_END = Action.WRITE_END
_OVER = frozenset({State.DRAINING, State.CLOSED})
_ORDERLY_ENDS = frozenset(
    {
        Event.FINISHED,
        Event.PROLOGUE_ERROR,
        Event.STOP,
        Event.KILL,
        Event.CONTEXT_STOPPED,
        Event.CONTEXT_KILLED,
    }
)

_PROLOGUE_OK = encode_two_part(ResponseStreamPrologue().encode(), b"")
_SENTINEL = encode_two_part(ControlMessage.SENTINEL.encode(), b"")
_FRAME_OVERHEAD = len(encode_two_part(b"", b""))


@cache
def _final_frames(final: bytes) -> bytes:
    return encode_two_part(b"", final) + _SENTINEL


def _final_mux_frames(number: int, final: bytes) -> bytes:
    return encode_mux_items(number, (final,)) + encode_mux_frame(number, END)


class CutShort(Protocol):
    """What a response connection asks of the request that made it."""

    def cut_short(self) -> None:
        """The answer has ended before the request has ended it. Called once."""


class ConnectionOwner(Protocol):
    """What a response connection asks of the dialler that made it."""

    loop: asyncio.AbstractEventLoop
    clock: Callable[[], float]
    """Says how long items were corked, in seconds."""
    closing: Deadlines[ResponseConnection]
    """Connections whose end is written: the router has to close them."""
    stalled: Deadlines[ResponseConnection]
    """Connections that wait for the router to read."""
    draining: Deadlines[ResponseConnection]
    """Streams of sessions whose end waits for the router to read."""
    young: Deadlines[ResponseConnection]
    """Connections that were started a short time ago."""
    started: set[ResponseConnection]
    """Connections on which an answer has begun."""

    def closed(self, connection: ResponseConnection) -> None:
        """`connection` is lost."""


class ResponseConnection:
    """One answer on its way to the router: bytes to frames, frames to events, events to the actions of the table.

    The request makes it and owns it; the dialler connects it and keeps its deadlines. `request` is told if the stream
    ends before the request has ended it. It ends when the machine is closed and the transport is lost.

    The event loop, or its direct transport, calls it as an `asyncio.Protocol`. It does not inherit from `FrameProtocol`: a
    compiled class has no base in Python.
    """

    __slots__ = (
        "__weakref__",
        "_context",
        "_decoder",
        "_dialler",
        "_end",
        "_ended_in",
        "_frames",
        "_head",
        "_machine",
        "_peer_finished",
        "_request",
        "_room",
        "_tail",
        "_transport",
        "abandoned",
        "bytes",
        "corked",
        "items",
        "number",
        "open",
        "orderly",
    )

    def __init__(self, dialler: ConnectionOwner, context: Context, codec: PayloadCodec, request: CutShort) -> None:
        self._decoder: TwoPartDecoder | None = None  # until the router says something, which few do
        self._transport: Any = None  # until the handshake is written
        self._dialler = dialler
        self._context = context
        self._request: CutShort | None = request
        self._machine = worker()
        self._head, self._tail = codec.envelope
        self._frames: list[bytes] | None = None
        self.corked = Cork(codec.write, dialler.clock, _CORK_FRAMES, _CORK_BYTES, _CORK_SECONDS)
        """Plain items that wait behind the frames, without frame and envelope. `add` to it only while this is `open`."""
        self._room: asyncio.Future[None] | None = None
        self._peer_finished = False
        self.number: int | None = None
        """Of its stream on a session (mux.md); None: it has a connection of its own. Set before `dialled`."""
        self.open = True
        """Whether items are still written."""
        self.items = 0
        """Items put into frames."""
        self.bytes = 0
        """Bytes of the bodies of data frames: items, and the final marker."""
        self._end = ""
        self._ended_in: State | None = None
        self.orderly = False
        """Whether it ended as the protocol provides: by the worker, by the handler, or by stop or kill of the router."""
        self.abandoned = False
        """Whether the event loop ended first."""
        context.watch(self)

    # Called by the request

    def dialled(self, transport: asyncio.Transport | DirectTransport | MuxSender) -> None:
        """The handshake is written on `transport`, or the stream is open there; from now on this writes there.

        The input of the request may kill the context while the router is dialled. The connection is closed only now: if
        it ended without a handshake, the router would wait for the call home.
        """
        self._transport = transport
        if self.number is not None:
            self._peer_finished = True  # a stream has no end of file of the router, which it would wait for
            if not self.open:
                self._transport.abort()
        elif not self.open:
            self._finish()

    @property
    def end(self) -> str:
        """Who ended the stream and in which state, for the log."""
        return self._end if self._ended_in is None else f"{self._end} in state {self._ended_in.name}"

    def not_dialled(self, error: Exception) -> None:
        """The router cannot be reached, for the log."""
        self._end, self._ended_in = str(error), None

    def start(self) -> None:
        """The handler was started: write the prologue."""
        self._step(_STARTED, "", _PROLOGUE_OK if self.number is None else encode_mux_frame(self.number, PROLOGUE))

    def refuse(self, prologue: ResponseStreamPrologue) -> None:
        """The handler was not started: write the reason, and end the stream."""
        text = prologue.encode()
        frames = encode_two_part(text, b"") + _SENTINEL if self.number is None else refused_prologue(self.number, text)
        self._step(Event.PROLOGUE_ERROR, "refused by the worker", frames)

    def send(self, item: bytes) -> bool:
        """Write an item in its envelope. Returns whether `room()` must be awaited before the next."""
        self.cork(item)
        return self.corked.is_due(len(self._frames) if self._frames is not None else 0)

    def cork(self, item: bytes) -> None:
        """As `send`, but nothing is written before `uncork`."""
        if self.open:
            if self.corked.data:
                self._keep(self._frame_plain())
            if self.number is None:
                self._keep(encode_data_frames((item,)))
            else:
                self._keep(encode_mux_items(self.number, (item,)))
            self.corked.bytes += len(item)
            self.items += 1
            self.bytes += len(item)

    def uncork(self) -> bool:
        """Write what is corked. Returns whether `room()` must be awaited."""
        self.flush()
        return self.corked.is_due(0)

    @property
    def waiting(self) -> int:
        """Bytes that the kernel has not taken."""
        return self.corked.bytes + (0 if self._transport is None else self._transport.get_write_buffer_size())

    async def room(self) -> None:
        """Write what is corked, give the loop a turn, and wait while the router reads more slowly than this writes."""
        self.flush()
        if not self.corked.paused:
            await asyncio.sleep(0)
        elif self.open:
            self._room = self._dialler.loop.create_future()
            self._dialler.stalled.add(self)
            try:
                await self._room
            finally:
                self._room = None
                self._dialler.stalled.discard(self)

    def has_corked(self) -> bool:
        """Whether something waits to be written."""
        return bool(self.corked.data or self._frames)

    def abandon(self) -> None:
        """The task is garbage collected: its event loop was closed or left, and nothing can be written."""
        self.abandoned = True
        self.open = False
        self._machine.state = _CLOSED
        self._transport = self._frames = None
        self.corked.data.clear()

    def finish(self, final: bytes) -> None:
        """The handler has no more items: write the final data frame, and end the stream."""
        frames = _final_frames(final) if self.number is None else _final_mux_frames(self.number, final)
        if self._step(_FINISHED, "finished by the handler", frames) is _WRITE_END:
            self.bytes += len(final)

    # Called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol. It is connected when its handshake is written: see `dialled`."""

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol, and `FrameProtocol` for what follows from it."""
        if self._decoder is None:
            self._decoder = TwoPartDecoder(_MAX_CONTROL_SIZE)
        try:
            messages = self._decoder.feed(data)
        except CodecError:  # the first frame of this read is bad; `failed` is set
            messages = []
        if frame_log.ENABLED:
            frame_log.log_frames(self._transport, messages)
        for message in messages:
            self.message_received(message)
        if self._decoder.failed is not None:
            self.stream_failed(self._decoder.failed)

    def message_received(self, message: TwoPartMessage) -> None:
        self.told(classify(message))

    def told(self, event: Event) -> None:
        """The router says `event`."""
        self._step(event, f"ended by the router ({event.name.lower()})")

    def stream_failed(self, error: CodecError) -> None:
        self._step(Event.VIOLATION, f"ended by the router's bytes: {error}")

    def eof_received(self) -> bool:
        if self._decoder is not None and self._decoder.pending == _SIZE_OF_AN_ALERT:
            logger.warning("a router answered with %d bytes that are no frame: it may speak TLS", _SIZE_OF_AN_ALERT)
        self._peer_finished = True
        self._step(_EOF, "")
        return self._machine.state is not _CLOSED  # else keep the connection open for writing

    def connection_lost(self, error: Exception | None) -> None:
        self._step(_LOST, f"lost ({error or 'closed'})")
        self._transport = None
        self._dialler.closed(self)

    def pause_writing(self) -> None:
        self.corked.paused = True

    def resume_writing(self) -> None:
        self.corked.paused = False
        self._wake()

    # Deadlines

    def lasts(self) -> None:
        """It has been open for a while: switch keep-alive on, so that a router whose machine has vanished is noticed.

        Not at once: it costs a tenth of a request of one item, and most requests end before the first probe.
        """
        if self._transport is not None and not self._transport.is_closing():
            # A router may leave its window closed for as long as it may stall.
            keep_alive(self._transport.get_extra_info("socket"), self._dialler.stalled.seconds)

    def not_closed(self) -> None:
        """The router did not close a finished stream in time, or did not read its end."""
        self._step(Event.TIMEOUT, "")
        self._abort()  # also if the router has finished writing: then only the bytes that it does not read are left

    def not_read(self) -> None:
        """The router read nothing for too long."""
        self._step(Event.TIMEOUT, f"killed, as the router read nothing for {self._dialler.stalled.seconds:g} s")

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """See Watcher."""
        return self._dialler.loop

    def context_changed(self) -> None:
        """See Watcher."""
        killed = self._context.is_killed()
        self._step(Event.CONTEXT_KILLED if killed else Event.CONTEXT_STOPPED, "stopped by its own handler")

    # What the table says

    def _step(self, event: Event, end: str, frames: bytes = b"") -> Action:
        """Tell the machine of `event`, and carry out the action that it returns.

        `end` says who ended the stream, in case it ends now; `frames` are what the event has to write.
        """
        machine = self._machine
        before = machine.state
        action = machine.step(event)
        if self.open and machine.state in _OVER:
            self.open = False
            self._end, self._ended_in = end, before
            self.orderly = event in _ORDERLY_ENDS
            self._context.unwatch(self)
        EXECUTORS[action](self, frames)
        if not self.open:
            self._request = None  # break the reference cycle with the request
        return action

    def _ignore(self, _: bytes = b"") -> None:
        pass

    def _write(self, frames: bytes) -> None:
        self._keep(frames)
        self._begins()

    def _write_end(self, frames: bytes) -> None:
        self.flush(frames)
        self._ends()
        if self._peer_finished:
            self._finish()

    def _cut(self, _: bytes = b"") -> None:
        self.flush()
        self._ends()
        self._wake()
        if self._transport is not None and self._transport.can_write_eof():  # TLS has no half-close
            self._transport.write_eof()
        if self._peer_finished:
            self._finish()
        self._tell_cut_short()

    def _finish(self, _: bytes = b"") -> None:
        self._wake()
        if self._transport is not None:
            self._transport.close()

    def _close(self, _: bytes = b"") -> None:
        self._abort()
        self._tell_cut_short()

    def _stop_context(self, _: bytes = b"") -> None:
        self._abort()
        self._context.stop_generating()
        self._tell_cut_short()

    def _kill_context(self, _: bytes = b"") -> None:
        self._abort()
        self._context.kill()
        self._tell_cut_short()

    def _tell_cut_short(self) -> None:
        if self._request is not None:
            self._request.cut_short()

    def _begins(self) -> None:
        if self.number is not None:  # it has no connection of its own that should be looked after
            return
        # Not when it is made: uvloop does not tell a connection of its loss if its dial is cancelled just then.
        young = self._dialler.young
        young.add(self)
        self._dialler.started.add(self)

    def _ends(self) -> None:
        if self.number is not None:
            if self._transport.get_write_buffer_size():  # it has left, but for this
                self._dialler.draining.add(self)
            return
        closing = self._dialler.closing
        closing.add(self)

    # Bytes

    def _frame_plain(self) -> bytes:
        """The frames of the plain items that wait, of which there are some."""
        data = self.corked.data
        if self.number is None:
            frames = encode_data_frames(data, self._head, self._tail)
            self.bytes += len(frames) - _FRAME_OVERHEAD * len(data)
        else:
            frames = encode_mux_items(self.number, data, self._head, self._tail)
            self.bytes += len(frames) - MUX_PREFIX_SIZE * self._count_frames(frames, data)
        self.items += len(data)
        data.clear()
        return frames

    def _count_frames(self, frames: bytes, data: list[bytes]) -> int:
        """How many frames of a session carry `data`: large items are cut."""
        if len(frames) <= MUX_BODY_LIMIT:
            return len(data)
        around = len(self._head) + len(self._tail)
        return sum(max(1, -(-(around + len(item)) // MUX_BODY_LIMIT)) for item in data)

    def flush(self, end: bytes = b"") -> None:
        """Write what is corked, and `end`."""
        plain = self._frame_plain() if self.corked.data else b""
        frames, self._frames = self._frames, None
        if frames is not None:
            plain = b"".join((*frames, plain, end))
        elif end:
            plain += end
        if plain and self._transport is not None:
            self._transport.write(plain)
        self.corked.bytes = 0

    def _keep(self, frames: bytes) -> None:
        """Until the next `flush`. Most streams have nothing to write most of the time."""
        if self._frames is None:
            self._frames = [frames]
        else:
            self._frames.append(frames)

    def _wake(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def _abort(self) -> None:
        """Close now; what the kernel has not taken yet is dropped."""
        self._frames = None
        self.corked.data.clear()
        self._wake()
        if self._transport is not None:
            self._transport.abort()


class Uncorking:
    """The coroutine of a request's task: `coroutine`, which sends items on `stream`. What is corked is written before
    `coroutine` gives the event loop a turn.

    The task owns it, and it owns `coroutine`. `request` is for those who find the task and ask what it does.
    """

    __slots__ = ("__weakref__", "_coroutine", "_stream", "request")

    def __init__(self, stream: ResponseConnection, coroutine: Coroutine[Any, Any, None], request: Any) -> None:
        self.request = request
        self._stream = stream
        self._coroutine: Coroutine[Any, Any, None] | None = coroutine

    def __await__(self) -> Uncorking:
        return self

    def __iter__(self) -> Uncorking:
        return self

    def __next__(self) -> Any:
        return self.send(None)

    def send(self, value: Any) -> Any:
        """See `Coroutine`."""
        if self._coroutine is None:
            raise RuntimeError("the task of a request goes on after its end")
        self._stream.corked.restart()
        try:
            waits_for: Any = self._coroutine.send(value)
        except BaseException:
            self._coroutine = None
            raise
        if self._stream.has_corked():
            self._stream.flush()
        return waits_for

    def throw(self, *error: Any) -> Any:
        """See `Coroutine`: a cancellation, which the coroutine handles."""
        if self._coroutine is None:
            raise RuntimeError("the task of a request goes on after its end")
        try:
            waits_for = self._coroutine.throw(*error)
        except BaseException:
            self._coroutine = None
            raise
        finally:
            error = ()  # its traceback refers to this frame
        if self._stream.has_corked():
            self._stream.flush()
        return waits_for

    def close(self) -> None:
        """See `Coroutine`: the task is not run on."""
        coroutine, self._coroutine = self._coroutine, None
        if coroutine is not None:
            self._stream.abandon()
            coroutine.close()

    def __del__(self) -> None:
        self.close()


#: How each action of `WORKER` is carried out, with the frames that the event has to write.
EXECUTORS: dict[Action, Callable[[ResponseConnection, bytes], None]] = {
    Action.IGNORE: ResponseConnection._ignore,
    Action.WRITE: ResponseConnection._write,
    Action.WRITE_END: ResponseConnection._write_end,
    Action.CUT: ResponseConnection._cut,
    Action.FINISH: ResponseConnection._finish,
    Action.CLOSE: ResponseConnection._close,
    Action.STOP_CONTEXT: ResponseConnection._stop_context,
    Action.KILL_CONTEXT: ResponseConnection._kill_context,
}
