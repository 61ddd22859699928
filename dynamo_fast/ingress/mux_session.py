# cython: freethreading_compatible=True, annotation_typing=False
"""The worker's end of connections that carry many answers each (mux.md).

    MuxSessions    those of a worker: dials one for each router that offers it
    MuxSession     one connection: opens a stream for each answer, and passes on what the router says

A `ResponseConnection` writes whole frames to its `MuxSender`, and hears of stop, kill and loss as from a connection of its
own. What leaves when is in `mux_sender`.

This runs for every request and item. Where there is a compiler, Cython translates this very file, with the types in
`mux_session.pxd` (see setup.py).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Protocol

from dynamo_fast.codec import MuxDecoder, MuxFrame, encode_mux_frame, encode_two_part
from dynamo_fast.deadlines import Deadlines
from dynamo_fast.errors import CodecError, ControlError, DynamoError
from dynamo_fast.ingress.mux_sender import MuxOutput, MuxSender, SenderOwner
from dynamo_fast.ingress.response_addresses import host_and_port
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
    SEEN,
    STOP,
    VERSION,
    Hello,
    MuxHandshake,
    MuxOffer,
    close_frame,
    closing_reason,
    described,
    read_credit,
    read_seen,
)
from dynamo_fast.wire.stream import Event

__all__ = ["MuxSession", "MuxSessions"]

logger = get_logger(__name__)

_AVOID_SECONDS = 30.0
_MOST_AVOIDED = 4096
_IDLE_SECONDS = 300.0
# What crosses on the way: words for streams that have ended.
_MAY_BE_IGNORED, _MORE_FOR_EACH_STREAM = 65_536, 64
_MAY_BE_UNANSWERED = 64
# Subjects that are kept until the router has seen their streams. It says so every second.
_MOST_UNSEEN = 16_384


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
        "_decoder",
        "_idle_since",
        "_last",
        "_owner",
        "_timer",
        "_unanswered",
        "_unseen",
        "_window",
        "ignored",
        "key",
        "opened",
        "output",
        "ready",
    )

    def __init__(self, owner: SessionOwner, key: tuple[str, str]) -> None:
        self._owner = owner
        self.key = key
        """The address of the router, and its token."""
        self.ready: asyncio.Future[bool] = owner.loop.create_future()
        """Done when streams can be opened (true), or when it cannot be had."""
        self.opened = False
        """Whether the router has said `HELLO`."""
        self.output = MuxOutput(owner.loop)
        """What is written, and the streams that are open."""
        self._decoder = MuxDecoder(ROUTER_FRAME_LIMIT)
        self._last = 0  # the last number that was used
        self._window = 0  # credit of each stream at its beginning
        self.ignored = 0
        """Frames for streams that are gone."""
        self._unanswered = 0
        self._unseen: deque[tuple[int, str]] = deque(maxlen=_MOST_UNSEEN)  # streams that the router may not know yet
        self._idle_since = 0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def over(self) -> bool:
        """Whether nothing is sent any more."""
        return self.output.over

    def open(self, owner: SenderOwner, subject: str) -> MuxSender | None:
        """A new stream, which answers the request of `subject`. None if the session is over, or its numbers are used up."""
        output = self.output
        if output.over or self._last >= MOST_STREAMS:
            return None
        self._last = number = self._last + 1
        sender = MuxSender(output, number, owner, self._window)
        output.senders[number] = sender
        owner.number = number
        self._unseen.append((number, subject))
        sender.write(encode_mux_frame(number, OPEN, subject.encode()))
        return sender

    def give_up(self, subject: str) -> None:
        """Open a stream for the request of `subject`, and cut it: its answer was lost with another session."""
        if self.output.over or self._last >= MOST_STREAMS:
            return
        self._last = number = self._last + 1
        sender = self.output.senders[number] = MuxSender(self.output, number, None, self._window)
        sender.write(encode_mux_frame(number, OPEN, subject.encode()) + encode_mux_frame(number, CUT))
        sender.close()

    def unseen(self) -> list[str]:
        """The subjects of the streams that the router may not know."""
        return [subject for _, subject in self._unseen]

    def close(self, why: str) -> None:
        """End it in order: what can leave leaves, the router is told `why`, and each stream is lost."""
        if self.output.over or self.output.transport is None:
            self._end(ControlError(why))
            return
        self.output.close(close_frame(why) if self.opened else b"")
        self._end(ControlError(f"the session was closed: {why}"))

    def open_sockets(self) -> Iterable[int]:
        """See SocketHolder."""
        return descriptors_of([self.output.transport])

    # Called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.output.transport = transport

    def pause_writing(self) -> None:
        self.output.pause()

    def resume_writing(self) -> None:
        self.output.resume()

    def eof_received(self) -> bool:
        return False  # the transport closes

    def connection_lost(self, error: Exception | None) -> None:
        self._end(error or ControlError("the router closed the connection"))

    def data_received(self, data: bytes) -> None:
        output = self.output
        if output.over:
            return
        try:
            frames = self._decoder.feed(data)
        except CodecError:  # the first frame of this read is bad; `failed` is set
            frames = []
        if frame_log.ENABLED:
            frame_log.log_frames(output.transport, frames)
        try:
            for frame in frames:
                self._receive(frame)
                if output.over:
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
            sender = self.output.senders.get(number)
            if sender is not None:
                self._receive_for(sender, frame)
            else:
                self._ignore(frame)
        elif kind == CREDIT:
            self.output.add_credit(frame.body)
        elif kind == SEEN:
            self._seen_until(read_seen(frame.body))
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
                self.output.queue(sender)
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
        self._window = hello.stream_window
        self.output.begin(hello.connection_window)
        self.opened = True
        self._owner.greeted(self)
        self._look_whether_idle()
        if not self.ready.done():
            self.ready.set_result(True)

    def _seen_until(self, last: int) -> None:
        """The router knows every stream up to the number `last`; above those that there are: it waits for none."""
        unseen = self._unseen
        while unseen and unseen[0][0] <= last:
            unseen.popleft()

    def _closed_by_router(self, frame: MuxFrame) -> None:
        why = closing_reason(frame.body)
        logger.info("the router at %s closes the session: %s", self.key[0], why)
        self.output.transport.close()
        self._end(ControlError(f"the router closed the session: {why}"))

    def _ignore(self, frame: MuxFrame) -> None:
        self.ignored += 1
        if frame.stream > self._last:
            raise ControlError(f"unexpected {described(frame)}, which was never opened")
        if self.ignored > _MAY_BE_IGNORED + _MORE_FOR_EACH_STREAM * self._last:
            raise ControlError(f"{self.ignored} frames for streams that are gone")

    def _answer_ping(self, body: bytes) -> None:
        if self.output.say(encode_mux_frame(0, PONG, body)):
            self._unanswered = 0
            return
        self._unanswered += 1
        if self._unanswered > _MAY_BE_UNANSWERED:
            raise ControlError("it sends pings and does not read their answers")

    # Its end

    def _look_whether_idle(self) -> None:
        """Called every few minutes: close it if no stream was open since the last time."""
        senders = self.output.senders
        if self.output.over:
            return
        if self._timer is not None and not senders and self._idle_since == self._last:
            self.close("it is idle")
            return
        self._idle_since = self._last if not senders else -1
        self._timer = self._owner.loop.call_later(_IDLE_SECONDS, self._look_whether_idle)

    def _end(self, error: Exception) -> None:
        if self.output.over:
            return
        self.output.over = True
        if self._timer is not None:
            self._timer.cancel()
        self._owner.lost(self)
        if not self.ready.done():
            logger.warning(
                "no session with the router at %s; answers to it take single connections: %s", self.key[0], error
            )
            self.ready.set_result(False)
        self.output.end(error)


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
        self._tasks: set[asyncio.Task[None]] = set()
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
            self._spawn(self._dial(session, host, port))
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
        if self._closed:
            return
        if subjects := session.unseen():
            self._spawn(self._give_up(session.key, subjects))
        if not session.opened:
            if len(self._avoided) >= _MOST_AVOIDED:
                del self._avoided[next(iter(self._avoided))]
            self._avoided[session.key] = self.loop.time() + _AVOID_SECONDS

    def close(self, why: str) -> None:
        """End all of them."""
        self._closed = True
        for session in list(self._sessions.values()):
            session.close(why)
        self._greeting.close()
        for task in self._tasks:
            task.cancel()

    def open_sockets(self) -> Iterable[int]:
        """See SocketHolder."""
        for session in self._sessions.values():
            yield from session.open_sockets()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _give_up(self, key: tuple[str, str], subjects: list[str]) -> None:
        """The router may wait for streams of a lost session: it never knew of them. Tell it, once, on the next session."""
        address, token = key
        session = await self.connected(*host_and_port(address), address, MuxOffer(VERSION, token))
        if session is not None:
            for subject in subjects:
                session.give_up(subject)

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
