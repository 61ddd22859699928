# cython: freethreading_compatible=True, annotation_typing=False
"""The worker's end of connections that carry many answers each (mux.md).

    MuxSessions    those of a worker: dials one for each router that offers it
    MuxSession     one connection: gathers what the handlers of one turn of the loop yield, in one write
    MuxSender      one answer on it: what a response connection uses as its transport

A `ResponseConnection` writes whole frames to its sender, and hears of stop, kill and loss as from a connection of its own.

This runs for every request and item. Where there is a compiler, Cython translates this very file, with the types in
`mux_session.pxd` (see setup.py).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from dynamo_fast.codec import MuxDecoder, MuxFrame, encode_mux_frame, encode_two_part, mux_frames_within
from dynamo_fast.deadlines import Deadlines
from dynamo_fast.errors import CodecError, ControlError, DynamoError
from dynamo_fast.logs import get_logger
from dynamo_fast.net import frame_log
from dynamo_fast.net.connector import Connector
from dynamo_fast.net.sockets import descriptors_of
from dynamo_fast.wire.ids import random_uuid
from dynamo_fast.wire.mux import (
    CLOSE,
    CREDIT,
    CUT,
    HELLO,
    KILL,
    MOST_STREAMS,
    OPEN,
    PING,
    PONG,
    ROUTER_FRAME_LIMIT,
    STOP,
    VERSION,
    Hello,
    MuxHandshake,
    MuxOffer,
    close_frame,
    closing_reason,
    described,
    read_credit,
)
from dynamo_fast.wire.stream import Event

__all__ = ["MuxSender", "MuxSession", "MuxSessions"]

logger = get_logger(__name__)

_AVOID_SECONDS = 30.0
_MOST_AVOIDED = 4096
_IDLE_SECONDS = 300.0
# What may wait for the end of a turn, and what one write to the transport may have, in bytes.
_TURN_LIMIT = 256 * 1024
# A stream's share when several wait: one frame of the longest kind.
_QUANTUM = 8 + 16 * 1024
# What crosses on the way: words for streams that have ended.
_MAY_BE_IGNORED, _MORE_FOR_EACH_STREAM = 65_536, 64
_MAY_BE_UNANSWERED = 64


class SenderOwner(Protocol):
    """What a sender asks of the response connection that writes to it."""

    number: int | None
    """Set when the stream is opened."""

    def told(self, event: Event) -> None:
        """The router says stop or kill."""

    def pause_writing(self) -> None: ...

    def resume_writing(self) -> None: ...

    def connection_lost(self, error: Exception | None) -> None: ...


class MuxSender:
    """One answer on a session, as a transport: what it writes leaves when there is credit and room, in order.

    The session makes it with `open`, and owns it until its last frame has left. The response connection owns it, too, and
    ends it with `close` or `abort`. It tells the connection of its end once, in a later turn.
    """

    __slots__ = ("_at", "_backlog", "_closing", "_opened", "_owner", "_session", "_size", "credit", "number", "queued")

    def __init__(self, session: MuxSession, number: int, owner: SenderOwner, credit: int) -> None:
        self._session = session
        self.number = number
        self._owner: SenderOwner | None = owner
        self.credit = credit
        """Bytes that may be written; below 0 when the end was written without."""
        self._backlog: deque[bytes] | None = None  # made when something waits, which for most streams never is
        self._at = 0  # how much of the first one has left
        self._size = 0  # bytes in it that have not left
        self._opened = False  # whether the first bytes have left
        self._closing = False
        self.queued = False
        """Whether the session will ask for the backlog."""

    connected = True
    """As `DirectTransport.connected`."""

    def is_closing(self) -> bool:
        return self._closing

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """What the connection of the session says."""
        return self._session.get_extra_info(name, default)

    def get_write_buffer_size(self) -> int:
        return self._size

    def write(self, data: bytes) -> None:
        """Write whole frames of this stream: at the end of this turn, or when there is room."""
        if self._closing:
            return
        size = len(data)
        if not self._size and size <= self.credit and self._session.push(data):
            self.credit -= size
            self._opened = True
            return
        self._keep(data)
        self._session.queue(self)
        if self._owner is not None:
            self._owner.pause_writing()

    def can_write_eof(self) -> bool:
        """See asyncio.WriteTransport."""
        return True

    def write_eof(self) -> None:
        """The stream ends here, and it is not complete: `CUT` follows what was written."""
        self.write(encode_mux_frame(self.number, CUT))

    def close(self) -> None:
        """The end is written: forget the stream when it has left."""
        self._closing = True
        if not self._size:
            self._session.ended(self)

    def abort(self) -> None:
        """End the stream now: what has not left is dropped, and the router is told."""
        if self._closing and not self._size:
            return
        self._drop()
        self._closing = True
        if self._opened:
            cut = encode_mux_frame(self.number, CUT)
            self.credit = len(cut)
            self._keep(cut)
            self._session.queue(self)
        else:
            self._session.ended(self)
        self._tell_lost_later()

    # For the session

    def take(self, limit: int) -> bytes:
        """The next frames of the backlog: as many as have credit, up to `limit` bytes; empty if none has."""
        assert self._backlog is not None  # there is a size
        data = self._backlog[0]
        end = mux_frames_within(data, self._at, min(limit, self.credit))
        size = end - self._at
        taken = data[self._at : end]
        self._at = end
        if end == len(data):
            self._backlog.popleft()
            self._at = 0
            if not self._backlog:
                self._backlog = None
        if size:
            self.credit -= size
            self._size -= size
            self._opened = True
        return taken

    def has_more(self) -> bool:
        """Whether something waits. If nothing does, the connection may go on, or the stream is gone."""
        if self._size:
            return True
        if self._closing:
            self._session.ended(self)
        elif self._owner is not None:
            self._owner.resume_writing()
        return False

    def told(self, event: Event) -> None:
        """The router says stop or kill."""
        if event is Event.KILL:  # it has forgotten the stream: say nothing more
            self._drop()
            self._opened = False
        if self._owner is not None:
            self._owner.told(event)
        if event is Event.KILL:  # also if only its last frames waited
            self._closing = True
            self._session.ended(self)

    def lost(self, error: Exception | None) -> None:
        """The session is lost, or the stream is gone: tell the connection, once."""
        self._drop()
        self._closing = True
        owner, self._owner = self._owner, None
        if owner is not None:
            owner.connection_lost(error)

    def _keep(self, data: bytes) -> None:
        if self._backlog is None:
            self._backlog = deque()
        self._backlog.append(data)
        self._size += len(data)

    def _drop(self) -> None:
        self._backlog = None
        self._size = self._at = 0

    def _tell_lost_later(self) -> None:
        owner, self._owner = self._owner, None
        if owner is not None:
            self._session.tell_lost(owner)


class SessionOwner(Protocol):
    """What a session asks of the sessions it is one of."""

    loop: asyncio.AbstractEventLoop

    def greeted(self, session: MuxSession) -> None: ...

    def lost(self, session: MuxSession) -> None: ...


class MuxSession:
    """One connection to a router, and the streams on it.

    `MuxSessions` makes it and connects it; requests open streams on it. It ends with `close`, when the router closes it, or
    when the connection is lost: then every stream is lost, too.
    """

    __slots__ = (
        "__weakref__",
        "_blocked",
        "_credit",
        "_decoder",
        "_flush_is_due",
        "_idle_since",
        "_last",
        "_lost",
        "_out",
        "_out_size",
        "_owner",
        "_queue",
        "_timer",
        "_transport",
        "_unanswered",
        "_window",
        "ignored",
        "key",
        "opened",
        "over",
        "ready",
        "senders",
    )

    def __init__(self, owner: SessionOwner, key: tuple[str, str]) -> None:
        self._owner = owner
        self.key = key
        """The address of the router, and its token."""
        self.ready: asyncio.Future[bool] = owner.loop.create_future()
        """Done when streams can be opened (true), or when it cannot be had."""
        self.opened = False
        """Whether the router has said `HELLO`."""
        self.over = False
        """Whether nothing is sent any more."""
        self._transport: Any = None
        self._decoder = MuxDecoder(ROUTER_FRAME_LIMIT)
        self.senders: dict[int, MuxSender] = {}
        """The streams that are open, by their numbers."""
        self._last = 0  # the last number that was used
        self._window = 0  # credit of each stream at its beginning
        self._credit = 0  # of the connection
        self._queue: deque[MuxSender] = deque()  # those whose backlog may have credit
        self._out: list[bytes] = []
        self._out_size = 0
        self._blocked = False  # the transport takes nothing now
        self._flush_is_due = False
        self._lost: list[SenderOwner] = []  # connections that are to be told
        self.ignored = 0
        """Frames for streams that are gone."""
        self._unanswered = 0
        self._idle_since = 0
        self._timer: asyncio.TimerHandle | None = None

    def open(self, owner: SenderOwner, subject: str) -> MuxSender | None:
        """A new stream, which answers the request of `subject`. None if the session is over, or its numbers are used up."""
        if self.over or self._last >= MOST_STREAMS:
            return None
        self._last = number = self._last + 1
        sender = MuxSender(self, number, owner, self._window)
        self.senders[number] = sender
        owner.number = number
        sender.write(encode_mux_frame(number, OPEN, subject.encode()))
        return sender

    def close(self, why: str) -> None:
        """End it in order: what can leave leaves, the router is told `why`, and each stream is lost."""
        if self.over or self._transport is None:
            self._end(ControlError(why))
            return
        self._flush()
        if self.opened:
            self._transport.write(close_frame(why))
        if self._blocked:  # what waits would keep it open
            self._transport.abort()
        else:
            self._transport.close()
        self._end(ControlError(f"the session was closed: {why}"))

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Of the connection."""
        return default if self._transport is None else self._transport.get_extra_info(name, default)

    def open_sockets(self) -> Iterable[int]:
        """See SocketHolder."""
        return descriptors_of([self._transport])

    # Called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def pause_writing(self) -> None:
        self._blocked = True

    def resume_writing(self) -> None:
        self._blocked = False
        self._schedule()

    def eof_received(self) -> bool:
        return False  # the transport closes

    def connection_lost(self, error: Exception | None) -> None:
        self._end(error or ControlError("the router closed the connection"))

    def data_received(self, data: bytes) -> None:
        if self.over:
            return
        try:
            frames = self._decoder.feed(data)
        except CodecError:  # the first frame of this read is bad; `failed` is set
            frames = []
        if frame_log.ENABLED:
            frame_log.log_frames(self._transport, frames)
        try:
            for frame in frames:
                self._receive(frame)
                if self.over:
                    return  # type: ignore[unreachable]  # a frame may end it
            if self._decoder.failed is not None:
                raise self._decoder.failed
        except (CodecError, ControlError) as error:
            self._refuse(error)

    def _refuse(self, error: DynamoError) -> None:
        logger.warning("closing the session with the router at %s: %s", self.key[0], error)
        self.close(str(error))

    # Frames

    def _receive(self, frame: MuxFrame) -> None:
        """Raises ControlError."""
        number, kind = frame.stream, frame.kind
        if not self.opened:
            self._receive_hello(frame)
        elif number:
            sender = self.senders.get(number)
            if sender is not None:
                self._receive_for(sender, frame)
            else:
                self._ignore(frame)
        elif kind == CREDIT:
            self._credit += read_credit(frame.body, self._credit)
            self._schedule()
        elif kind == PING and len(frame.body) == 8:
            self._answer_ping(bytes(frame.body))
        elif kind == CLOSE:
            self._closed_by_router(frame)
        elif kind != PONG:
            raise ControlError(f"unexpected {described(frame)}")

    def _receive_for(self, sender: MuxSender, frame: MuxFrame) -> None:
        kind = frame.kind
        if kind == CREDIT:
            sender.credit += read_credit(frame.body, max(0, sender.credit))
            if sender.get_write_buffer_size():
                self.queue(sender)
        elif kind in (STOP, KILL) and not len(frame.body):
            sender.told(Event.STOP if kind == STOP else Event.KILL)
        else:
            raise ControlError(f"unexpected {described(frame)}")

    def _receive_hello(self, frame: MuxFrame) -> None:
        if frame.kind == CLOSE and not frame.stream:
            self._closed_by_router(frame)
            return
        if frame.kind != HELLO or frame.stream:
            raise ControlError(f"unexpected {described(frame)} in place of HELLO")
        hello = Hello.decode(frame.body)
        if hello.version != VERSION:
            raise ControlError(f"version {hello.version} of the multiplexed response plane: {VERSION} was asked for")
        self._window, self._credit = hello.stream_window, hello.connection_window
        self.opened = True
        self._owner.greeted(self)
        self._look_whether_idle()
        if not self.ready.done():
            self.ready.set_result(True)

    def _closed_by_router(self, frame: MuxFrame) -> None:
        why = closing_reason(frame.body)
        logger.info("the router at %s closes the session: %s", self.key[0], why)
        self._transport.close()
        self._end(ControlError(f"the router closed the session: {why}"))

    def _ignore(self, frame: MuxFrame) -> None:
        self.ignored += 1
        if frame.stream > self._last:
            raise ControlError(f"unexpected {described(frame)}, which was never opened")
        if self.ignored > _MAY_BE_IGNORED + _MORE_FOR_EACH_STREAM * self._last:
            raise ControlError(f"{self.ignored} frames for streams that are gone")

    def _answer_ping(self, body: bytes) -> None:
        if not self._blocked:
            self._unanswered = 0
            pong = encode_mux_frame(0, PONG, body)
            self._out.append(pong)
            self._out_size += len(pong)
            self._schedule()
            return
        self._unanswered += 1
        if self._unanswered > _MAY_BE_UNANSWERED:
            raise ControlError("it sends pings and does not read their answers")

    # For its senders

    def push(self, data: bytes) -> bool:
        """Write `data` at the end of this turn. Returns whether there is room; if not, it is not taken."""
        size = self._out_size + len(data)
        if self._blocked or size > self._credit or size > _TURN_LIMIT or self._queue or self.over:
            return False
        self._out.append(data)
        self._out_size = size
        self._schedule()
        return True

    def queue(self, sender: MuxSender) -> None:
        """A sender has a backlog, and may have credit for it."""
        if not sender.queued and not self.over:
            sender.queued = True
            self._queue.append(sender)
            self._schedule()

    def ended(self, sender: MuxSender) -> None:
        """The last frame of a stream has left, or will at the end of this turn: the stream is gone."""
        self.senders.pop(sender.number, None)
        sender._tell_lost_later()

    def tell_lost(self, owner: SenderOwner) -> None:
        """Tell a connection in a later turn, or later in this one, that its stream is gone."""
        self._lost.append(owner)
        self._schedule()

    def _schedule(self) -> None:
        if not self._flush_is_due:
            self._flush_is_due = True
            self._owner.loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Write what was gathered, then what waits, and tell who is gone."""
        self._flush_is_due = False
        self._write()
        while self._queue and not self._blocked and self._gather():
            self._write()
        lost, self._lost = self._lost, []
        for owner in lost:
            owner.connection_lost(None)

    def _gather(self) -> bool:
        """Take from the backlogs by turns, as much as is written at once. Returns whether there was anything."""
        queue = self._queue
        while queue and self._out_size < _TURN_LIMIT:
            room = min(_QUANTUM, self._credit - self._out_size)
            sender = queue[0]
            taken = sender.take(room) if sender.get_write_buffer_size() else b""
            if not taken and room < _QUANTUM:
                break  # of the connection's credit there is not enough: it keeps its place
            queue.popleft()
            sender.queued = False
            if taken:
                self._out.append(taken)
                self._out_size += len(taken)
                if sender.has_more():
                    sender.queued = True
                    queue.append(sender)
        return bool(self._out)

    def _write(self) -> None:
        out, size = self._out, self._out_size
        if not out:
            return
        self._out, self._out_size = [], 0
        self._credit -= size
        if not self.over:
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))

    # Its end

    def _look_whether_idle(self) -> None:
        """Called every few minutes: close it if no stream was open since the last time."""
        if self.over:
            return
        if self._timer is not None and not self.senders and self._idle_since == self._last:
            self.close("it is idle")
            return
        self._idle_since = self._last if not self.senders else -1
        self._timer = self._owner.loop.call_later(_IDLE_SECONDS, self._look_whether_idle)

    def _end(self, error: Exception) -> None:
        if self.over:
            return
        self.over = True
        if self._timer is not None:
            self._timer.cancel()
        self._owner.lost(self)
        if not self.ready.done():
            logger.warning(
                "no session with the router at %s, answering it on single connections: %s", self.key[0], error
            )
            self.ready.set_result(False)
        senders = list(self.senders.values())
        self.senders.clear()
        self._queue.clear()
        for sender in senders:
            sender.lost(error)
        lost, self._lost = self._lost, []
        for owner in lost:
            owner.connection_lost(None)


class MuxSessions:
    """The sessions of a worker, one for each router process that offers one.

    The dialler owns it, and ends it with `close`. Requests ask it for a session; it dials the first time.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, connector: Connector, seconds: float) -> None:
        """`seconds`: how long it may take to open one."""
        self.loop = loop
        self._connector = connector
        self._name = random_uuid()
        self._sessions: dict[tuple[str, str], MuxSession] = {}
        self._avoided: dict[tuple[str, str], float] = {}
        """Routers where no session could be opened, and until when none is tried."""
        self._greeting: Deadlines[MuxSession] = Deadlines(loop, seconds, _not_greeted)
        self._dialling: set[asyncio.Task[None]] = set()
        self._closed = False

    def find(self, address: str, offer: MuxOffer) -> MuxSession | None:
        """The session with a router, if it is open."""
        session = self._sessions.get((address, offer.session))
        return session if session is not None and session.opened else None

    async def connected(self, host: str, port: int, address: str, offer: MuxOffer) -> MuxSession | None:
        """The session with the router at `address`, dialled if there is none; None if it cannot be had."""
        key = (address, offer.session)
        session = self._sessions.get(key)
        if session is None:
            if self._closed or self._avoids(key):
                return None
            session = self.attach(address, offer)
            task = self.loop.create_task(self._dial(session, host, port))
            self._dialling.add(task)
            task.add_done_callback(self._dialling.discard)
        return session if await asyncio.shield(session.ready) else None

    def attach(self, address: str, offer: MuxOffer) -> MuxSession:
        """A new session with the router at `address`, yet without a connection."""
        session = self._sessions[address, offer.session] = MuxSession(self, (address, offer.session))
        return session

    def greeted(self, session: MuxSession) -> None:
        """The router has said `HELLO`."""
        self._greeting.discard(session)

    def lost(self, session: MuxSession) -> None:
        """`session` is over."""
        self._greeting.discard(session)
        if self._sessions.get(session.key) is session:
            del self._sessions[session.key]
        if not session.opened and not self._closed:
            if len(self._avoided) >= _MOST_AVOIDED:
                del self._avoided[next(iter(self._avoided))]
            self._avoided[session.key] = self.loop.time() + _AVOID_SECONDS

    def close(self, why: str) -> None:
        """End all of them."""
        self._closed = True
        for session in list(self._sessions.values()):
            session.close(why)
        self._greeting.close()
        for task in self._dialling:
            task.cancel()

    def open_sockets(self) -> Iterable[int]:
        """See SocketHolder."""
        for session in self._sessions.values():
            yield from session.open_sockets()

    def _avoids(self, key: tuple[str, str]) -> bool:
        until = self._avoided.get(key)
        if until is None:
            return False
        if self.loop.time() < until:
            return True
        del self._avoided[key]
        return False

    async def _dial(self, session: MuxSession, host: str, port: int) -> None:
        handshake = MuxHandshake(VERSION, session.key[1], self._name).encode()
        try:
            transport, _ = await self._connector.dial(host, port, _same(session))
        except OSError as error:  # ConnectionTimeout is one, too
            session._end(error)
            return
        if not transport.is_closing():
            self._greeting.add(session)
            transport.write(encode_two_part(handshake, b""))


def _same(session: MuxSession) -> Callable[[], Any]:
    return lambda: session


def _not_greeted(session: MuxSession) -> None:
    session._refuse(ControlError("the router did not answer the handshake of the session in time"))
