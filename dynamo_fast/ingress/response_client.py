"""The worker's end of a response stream: dial the router that waits for an answer, and write the frames.

What may be received when, and what follows from it, is the table of `wire.stream`; here are only the bytes.

Frames are *corked*: those that a handler yields without a pause leave in one write, with the prologue in front or the end
behind. They are written before the request's task gives the event loop a turn (see `uncorking`). For
a handler that runs on and on that is done after `_CORK_SECONDS`, `_CORK_FRAMES` frames, or `_CORK_BYTES` bytes: see `room`.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Callable, Coroutine, Generator, Iterable
from functools import cache
from time import monotonic
from typing import Any

from dynamo_fast.codec import TwoPartDecoder, TwoPartMessage, encode_data_frames, encode_two_part
from dynamo_fast.config import WorkerConfig, refuse_tls
from dynamo_fast.context import Context
from dynamo_fast.deadlines import Deadlines
from dynamo_fast.errors import CannotConnect, CodecError, ConnectionTimeout
from dynamo_fast.ingress.response_addresses import host_and_port
from dynamo_fast.net.connector import Connector
from dynamo_fast.net.frame_protocol import FrameProtocol
from dynamo_fast.net.sockets import close_in_forked_children, descriptors_of, keep_alive
from dynamo_fast.wire.control import (
    CallHomeHandshake,
    ControlMessage,
    ResponseStreamPrologue,
    StreamType,
    TcpStreamConnectionInfo,
)
from dynamo_fast.wire.payload import PayloadCodec
from dynamo_fast.wire.stream import Action, Event, State, StreamMachine, classify

__all__ = ["Dialler", "ResponseConnection"]

# A router writes "stop" or "kill", in 30 bytes. Anything longer is a violation, and need not be held until it is whole.
_MAX_CONTROL_SIZE = 1024
_CORK_SECONDS = 0.001
_CORK_FRAMES = 128
_CORK_BYTES = 64 * 1024
_LASTING_SECONDS = 5.0

# What every request needs is looked up once: on Python 3.11 a member of an enumeration costs as much as a call.
_REQUEST = StreamType.REQUEST
_CLOSED, _EOF, _LOST = State.CLOSED, Event.EOF, Event.LOST
_STARTED, _FINISHED = Event.PROLOGUE_OK, Event.FINISHED
_WRITE, _WRITE_END = Action.WRITE, Action.WRITE_END
_OVER = frozenset({State.DRAINING, State.CLOSED})
_UNFINISHED = frozenset({State.PROLOGUE, State.STREAMING})
_CUT = Action.CUT
_CLOSING = frozenset({Action.CLOSE, Action.CUT, Action.STOP_CONTEXT, Action.KILL_CONTEXT})
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


def _nothing() -> None:
    pass


@cache
def _final_frames(final: bytes) -> bytes:
    return encode_two_part(b"", final) + _SENTINEL


class Dialler:
    """Connects to routers, and keeps the deadlines of all response connections of a worker."""

    def __init__(self, config: WorkerConfig) -> None:
        refuse_tls()
        self.loop = loop = asyncio.get_running_loop()
        self._connector = Connector(config.connect_timeout, retry=True)
        self._closing: Deadlines[ResponseConnection] = Deadlines(
            loop, config.close_timeout, ResponseConnection.not_closed
        )
        self._stalled: Deadlines[ResponseConnection] = Deadlines(
            loop, config.stall_timeout, ResponseConnection.not_read
        )
        self._young: Deadlines[ResponseConnection] = Deadlines(loop, _LASTING_SECONDS, ResponseConnection.lasts)
        self._all_closed: asyncio.Future[None] | None = None
        self._started: set[ResponseConnection] = set()
        close_in_forked_children(self)

    async def dial(self, info: TcpStreamConnectionInfo, protocol: asyncio.Protocol) -> asyncio.Transport:
        """Connect `protocol` to the router at `info.address`, and write the handshake; returns the transport.

        Raises CannotConnect or ConnectionTimeout, both naming the address.
        """
        host, port = host_and_port(info.address)
        # A response connection is kept alive once it has lasted a while: see `lasts`.
        kept_alive = info.stream_type is _REQUEST
        try:
            transport, _ = await self._connector.dial(host, port, lambda: protocol, kept_alive=kept_alive)
        except ConnectionTimeout:
            raise
        except OSError as error:
            raise CannotConnect(f"{info.address} cannot be reached: {error}") from error
        if not transport.is_closing():  # lost, or given up, before this task had its turn: the protocol knows
            # In a write of its own, before the handler runs: it may compute for longer than a router waits for this.
            transport.write(encode_two_part(CallHomeHandshake(info.subject, info.stream_type).encode(), b""))
        return transport

    def open_sockets(self) -> Iterable[int]:
        """See SocketHolder."""
        return descriptors_of(connection._transport for connection in self._started)

    async def all_closed(self) -> None:
        """Wait until every finished connection is closed, which takes no longer than the close timeout."""
        while self._closing:
            self._all_closed = self.loop.create_future()
            await self._all_closed

    def _closed(self, connection: ResponseConnection) -> None:
        self._started.discard(connection)
        self._young.discard(connection)
        self._closing.discard(connection)
        if not self._closing and self._all_closed is not None and not self._all_closed.done():
            self._all_closed.set_result(None)


class ResponseConnection(FrameProtocol[TwoPartMessage]):
    """One response stream. `cut_short` is called once if the stream ends before the push handler has ended it."""

    __slots__ = (
        "_context",
        "_cut_short",
        "_dialler",
        "_frames",
        "_head",
        "_machine",
        "_peer_finished",
        "_room",
        "_tail",
        "abandoned",
        "bytes",
        "end",
        "items",
        "open",
        "orderly",
        "plain",
    )

    def __init__(self, dialler: Dialler, context: Context, codec: PayloadCodec, cut_short: Callable[[], None]) -> None:
        super().__init__(TwoPartDecoder(_MAX_CONTROL_SIZE))
        self._dialler = dialler
        self._context = context
        self._cut_short = cut_short
        self._machine = StreamMachine.worker()
        self._transport = None  # until the handshake is written
        self._head, self._tail = codec.envelope
        self._frames: list[bytes] = []
        self.plain = codec.plain_items(_CORK_FRAMES, _CORK_BYTES)
        """What is corked after the frames, and has no frame and no envelope yet. `add` to it only while this is `open`."""
        self._room: asyncio.Future[None] | None = None
        self._peer_finished = False
        self.open = True
        """Whether the handler's items still go anywhere."""
        self.items = 0
        """Items put into frames."""
        self.bytes = 0
        """Bytes of the bodies of data frames: items, and the final marker."""
        self.end = ""
        """Who ended the stream and in which state, for the log."""
        self.orderly = False
        """Whether it was ended by somebody who may."""
        self.abandoned = False
        """Whether its event loop has ended under it."""
        context.on_cancel(self._context_changed, dialler.loop)

    # What the push handler does

    def dialled(self, transport: asyncio.Transport) -> None:
        """The handshake is written on `transport`, which was not closed before: it says to the router whose end this is.

        (The context may be killed while the router is dialled: by the input of the request, which has a connection of its
        own. A connection that ends without a handshake would leave the caller waiting for a call home.)
        """
        self._transport = transport
        if not self.open:
            self._close()

    def start(self) -> None:
        """The handler was started: write the prologue."""
        if self._step(_STARTED, "") is _WRITE:
            self._frames.append(_PROLOGUE_OK)
            # Not when it is made: uvloop tells a connection whose dial is cancelled just then of nothing any more.
            self._dialler._young.add(self)
            self._dialler._started.add(self)

    def refuse(self, prologue: ResponseStreamPrologue) -> None:
        """The handler was not started: write the reason, and end the stream."""
        if self._step(Event.PROLOGUE_ERROR, "refused by the worker") is _WRITE_END:
            self._write_end(encode_two_part(prologue.encode(), b"") + _SENTINEL)

    def send(self, item: bytes) -> bool:
        """Write an item in its envelope. Returns whether `room()` must be awaited before the next."""
        self.cork(item)
        return self.plain.is_due(len(self._frames))

    def cork(self, item: bytes) -> None:
        """As `send`, but nothing is written before `uncork`."""
        if self.open:
            self._frame_plain()
            self._frames.append(encode_data_frames((item,)))
            self.plain.bytes += len(item)
            self.items += 1
            self.bytes += len(item)

    def uncork(self) -> bool:
        """Write what is corked. Returns whether `room()` must be awaited."""
        self._flush()
        return self.plain.is_due(0)

    async def room(self) -> None:
        """Write what is corked, give the others a turn, and wait for as long as the router reads more slowly."""
        self._flush()
        if not self.plain.paused:
            await asyncio.sleep(0)
        elif self.open:
            self._room = self._dialler.loop.create_future()
            self._dialler._stalled.add(self)
            try:
                await self._room
            finally:
                self._room = None
                self._dialler._stalled.discard(self)

    @types.coroutine
    def uncorking(self, coroutine: Coroutine[Any, Any, None]) -> Generator[Any, Any, None]:
        """Await `coroutine`, which sends here; what is corked is written before it gives the event loop a turn."""
        resume: Callable[[Any], Any] = (send := coroutine.send)
        value: Any = None
        while True:
            try:
                waits_for = resume(value)
            except StopIteration:
                return
            finally:
                value = None  # an error that was thrown in holds this frame by its traceback
            if self.plain.data or self._frames:
                self._flush()
            try:
                value = yield waits_for
                resume = send
            except BaseException as error:  # a cancellation, which is the coroutine's to deal with
                if isinstance(error, GeneratorExit):
                    self._abandon()
                resume, value = coroutine.throw, error
            self.plain.until = monotonic() + _CORK_SECONDS

    def _abandon(self) -> None:
        """The task is collected, not ended: its event loop was closed or left, and nothing can be written any more."""
        self.abandoned = True
        self.open = False
        self._machine.state = _CLOSED
        self._transport = None
        self._frames.clear()
        self.plain.data.clear()

    def finish(self, final: bytes) -> None:
        """The handler has no more items: write the final data frame, and end the stream."""
        if self._step(_FINISHED, "finished by the handler") is _WRITE_END:
            self.bytes += len(final)
            self._write_end(_final_frames(final))

    # What the event loop does

    def message_received(self, message: TwoPartMessage) -> None:
        event = classify(message)
        self._step(event, f"ended by the router ({event.name.lower()})")

    def stream_failed(self, error: CodecError) -> None:
        self._step(Event.VIOLATION, f"ended by the router's bytes: {error}")

    def eof_received(self) -> bool:
        self._peer_finished = True
        self._step(_EOF, "")
        return self._machine.state is not _CLOSED  # what we have to say can still be written

    def connection_lost(self, error: Exception | None) -> None:
        self._step(_LOST, f"lost ({error or 'closed'})")
        self._transport = None
        self._dialler._closed(self)

    def pause_writing(self) -> None:
        self.plain.paused = True

    def resume_writing(self) -> None:
        self.plain.paused = False
        self._wake()

    # Deadlines

    def lasts(self) -> None:
        """It is open for a while: a router's machine that vanished without a word would hold its request for ever.

        (Not asked for at once: it costs a tenth of a request of one item, and most are over before the first probe.)
        """
        if self._transport is not None and not self._transport.is_closing():
            # A slow router may leave its window closed for as long as it may stall, and no longer.
            keep_alive(self._transport.get_extra_info("socket"), self._dialler._stalled.seconds)

    def not_closed(self) -> None:
        """The router did not close a finished stream in time."""
        self._step(Event.TIMEOUT, "")

    def not_read(self) -> None:
        """The router read nothing for too long."""
        self._step(Event.TIMEOUT, f"killed, as the router read nothing for {self._dialler._stalled.seconds:g} s")

    def _context_changed(self) -> None:
        killed = self._context.is_killed()
        self._step(Event.CONTEXT_KILLED if killed else Event.CONTEXT_STOPPED, "stopped by its own handler")

    def _step(self, event: Event, end: str) -> Action:
        before = self._machine.state
        action = self._machine.step(event)
        state = self._machine.state
        if self.open and state in _OVER:
            self.open = False
            self.end = f"{end} in state {before.name}"
            self.orderly = event in _ORDERLY_ENDS
            self._context.off_cancel(self._context_changed)
        if action in _CLOSING:
            if action is _CUT:
                self._write_cut()
            elif event is _EOF:
                self._close()
            else:
                self._abort()
            if action is Action.STOP_CONTEXT:
                self._context.stop_generating()
            elif action is Action.KILL_CONTEXT:
                self._context.kill()
            if before in _UNFINISHED:
                self._cut_short()
        if not self.open:
            self._cut_short = _nothing  # they hold each other: without this only the garbage collector would part them
        return action

    def _frame_plain(self) -> None:
        if data := self.plain.data:
            frames = encode_data_frames(data, self._head, self._tail)
            self._frames.append(frames)
            self.items += len(data)
            self.bytes += len(frames) - _FRAME_OVERHEAD * len(data)
            data.clear()

    def _flush(self, end: bytes = b"") -> None:
        """Write what is corked, and `end`."""
        self._frame_plain()
        frames = self._frames
        if end:
            frames.append(end)
        if frames and self._transport is not None:
            self._transport.write(frames[0] if len(frames) == 1 else b"".join(frames))
        frames.clear()
        self.plain.bytes = 0

    def _write_end(self, end: bytes) -> None:
        self._flush(end)
        self._dialler._closing.add(self)
        if self._peer_finished:
            self._close()

    def _write_cut(self) -> None:
        self._flush()
        self._dialler._closing.add(self)
        self._wake()
        if self._transport is not None:
            self._transport.write_eof()
        if self._peer_finished:
            self._close()

    def _wake(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def _close(self) -> None:
        """Close after what was written."""
        self._wake()
        if self._transport is not None:
            self._transport.close()

    def _abort(self) -> None:
        """Close now; what the kernel has not taken yet is dropped."""
        self._frames.clear()
        self.plain.data.clear()
        self._wake()
        if self._transport is not None:
            self._transport.abort()
