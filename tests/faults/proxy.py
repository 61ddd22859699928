"""A proxy between a router and a worker that knows frames, and does one harm at one place of their conversation.

It packs and unpacks every frame by hand, and it runs on the event loop of the test: what triggers a fault is a frame and a
byte in it, never a time.

    request plane    the router dials the worker: requests to the worker, acknowledgements to the router
    response plane   the worker dials the router: handshake, prologue, items and their end to the router,
                     stop and kill to the worker
    input            the worker dials the router: its handshake to the router, the items of the caller to the worker
    session          a response connection whose first message asks for it: mux frames of all answers, both ways
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from tests.faults.frames import LAYOUTS, SESSION_HANDSHAKE, Layout, Part, Plane, Side

SETTLE = 0.01
"""Seconds between the last bytes before a fault and the end that follows them, so that they are read first."""
JUNK = b"\xffGET / HTTP/1.1\r\n"
_RESET = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Place:
    """Where a fault strikes: the frame number `frame` (from 0, counted from `arm`) to `to`, and which byte of it."""

    plane: Plane
    to: Side
    frame: int
    part: Part


# Faults ---------------------------------------------------------------------------------------------------------------

Fault = Callable[["Pipe", bytes, int], None]
"""Called in place of the frame: the direction in which it goes, the frame, and the byte of it that is meant."""


def cut(pipe: Pipe, frame: bytes, at: int) -> None:
    """The connection is reset, at both ends."""
    pipe.write(frame[:at])
    pipe.link.end_with(pipe.link.reset)


def finish(pipe: Pipe, frame: bytes, at: int) -> None:
    """The connection is closed in order, at both ends."""
    pipe.write(frame[:at])
    pipe.link.end_with(pipe.link.close)


def end_forward(pipe: Pipe, frame: bytes, at: int) -> None:
    """The receiver gets an end of file, and what comes after is lost. The other direction goes on."""
    pipe.write(frame[:at])
    pipe.muted = True
    pipe.link.later(pipe.end)


def end_back(pipe: Pipe, frame: bytes, at: int) -> None:
    """The sender gets an end of file, and what is sent to it is lost. This direction goes on."""
    pipe.write(frame[:at])
    pipe.reverse.end()
    pipe.write(frame[at:])


def stall(pipe: Pipe, frame: bytes, at: int) -> None:
    """Nothing flows any more, either way; neither end is told."""
    pipe.write(frame[:at])
    pipe.link.stall()


def dribble(pipe: Pipe, frame: bytes, at: int) -> None:
    """This frame and all that follow come byte by byte."""
    pipe.write(frame[:at])
    pipe.dribbles = True
    pipe.write(frame[at:])


def garbage(pipe: Pipe, frame: bytes, at: int) -> None:
    """Bytes that are no frame come in between."""
    pipe.write(frame[:at] + JUNK + frame[at:])


def flip(pipe: Pipe, frame: bytes, at: int) -> None:
    """One bit of one byte is the other one."""
    at = min(at, len(frame) - 1)
    pipe.write(frame[:at] + bytes([frame[at] ^ 1]) + frame[at + 1 :])


def duplicate(pipe: Pipe, frame: bytes, at: int) -> None:
    """The frame comes twice."""
    pipe.write(frame + frame)


def drop(pipe: Pipe, frame: bytes, at: int) -> None:
    """The frame does not come."""


def huge(pipe: Pipe, frame: bytes, at: int) -> None:
    """One of its lengths is the largest that can be written."""
    pipe.write(pipe.layout.with_length(frame, huge=True))


def small(pipe: Pipe, frame: bytes, at: int) -> None:
    """One of its lengths is one too small."""
    pipe.write(pipe.layout.with_length(frame, huge=False))


def swap(pipe: Pipe, frame: bytes, at: int) -> None:
    """It comes after the next frame; where there is no next one, before the end of file."""
    pipe.held = frame


def extra(pipe: Pipe, frame: bytes, at: int) -> None:
    """A well-formed frame that nothing calls for comes after it."""
    pipe.write(frame + pipe.layout.unexpected(frame))


# Connections ----------------------------------------------------------------------------------------------------------


class End(asyncio.Protocol):
    """One of the two connections of a link."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.transport: asyncio.Transport | None = None
        self.outgoing: Pipe
        """What comes from here goes there."""
        self.peer_ended = False
        """Whether the router or the worker has ended its side of this connection."""
        self.early = b""
        """What came before the other connection was there."""
        self.ended_early = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        if self is self.link.dialler:
            self.transport.pause_reading()  # until the other connection is there; some asyncio do not heed it yet

    def data_received(self, data: bytes) -> None:
        if self.link.is_connected:
            self.outgoing.feed(data)
        else:
            self.early += data

    def eof_received(self) -> bool:
        self.peer_ended = True
        if self.link.is_connected:
            self.outgoing.source_ended()
        else:
            self.ended_early = True
        return True  # the other direction may go on

    def connected(self) -> None:
        """The other connection is there: hand over what came before."""
        early, self.early = self.early, b""
        if early:
            self.outgoing.feed(early)
        if self.ended_early:
            self.outgoing.source_ended()

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        self.peer_ended = True
        self.link.lost(self, error)

    def reset(self) -> None:
        if self.transport is not None:
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.transport.abort()


class Pipe:
    """One direction of a link: bytes to frames, frames to bytes."""

    def __init__(self, link: Link, side: Side, target: End) -> None:
        self.link = link
        self.side = side
        self.target = target
        self.reverse: Pipe
        self.layout: Layout = LAYOUTS[link.plane, side]
        self.frames = 0
        self.held: bytes | None = None
        self.dribbles = False
        self.muted = False
        """Whether what comes from now on is lost."""
        self.ended = False
        self._source = b""
        self._waiting = b""  # for the next turns of a dribble
        self._end_is_due = False

    def feed(self, data: bytes) -> None:
        self._source += data
        while (size := self.layout.size(self._source)) is not None and len(self._source) >= size:
            frame, self._source = self._source[:size], self._source[size:]
            if self.link.plane is Plane.RESPONSE and SESSION_HANDSHAKE in frame:
                self.link.plane = Plane.SESSION
            self._pass(self.link.proxy.rewrite(frame))
            for pipe in self.link.pipes:  # a session's handshake has the layout of the others
                pipe.layout = LAYOUTS[self.link.plane, pipe.side]

    def _pass(self, frame: bytes) -> None:
        if self.link.plane is Plane.SESSION and self.layout.is_timed(frame):
            self.write(frame)  # it comes by the clock: the places of the others do not depend on it
            return
        number, self.frames = self.frames, self.frames + 1
        if self.held is not None:
            held, self.held = self.held, None
            self.write(frame + held)
        elif (fault := self.link.proxy.strikes(self, number)) is not None:
            place = self.link.proxy.place
            assert place is not None
            fault(self, frame, self.layout.offset(frame, place.part))
        else:
            self.write(frame)

    def write(self, data: bytes) -> None:
        if self.link.stalled or self.muted or self.ended:
            return
        if self.dribbles:
            starts = not self._waiting
            self._waiting += data
            if starts:
                self._trickle()
        elif self.target.transport is not None:
            self.target.transport.write(data)

    def source_ended(self) -> None:
        if self.link.stalled:
            return
        if self.held is not None:
            held, self.held = self.held, None
            self.write(held)
        if self._waiting:
            self._end_is_due = True
        else:
            self.end()

    def end(self) -> None:
        """The target gets an end of file."""
        if self.target.transport is not None and not self.ended:
            self.ended = True
            self.target.transport.write_eof()
            if self.reverse.ended:
                self.link.close()

    def _trickle(self) -> None:
        if self.link.stalled or self.target.transport is None:
            return
        self.target.transport.write(self._waiting[:1])
        self._waiting = self._waiting[1:]
        if self._waiting:
            # Two turns: the target's own loop is this one, and reads in between.
            self.link.loop.call_soon(self.link.loop.call_soon, self._trickle)
        elif self._end_is_due:
            self.end()


class Link:
    """A connection through the proxy."""

    def __init__(self, proxy: Proxy, plane: Plane) -> None:
        self.proxy = proxy
        self.plane = plane
        self.loop = proxy.loop
        self.stalled = False
        self.is_connected = False
        """Whether both connections are there."""
        self.dialler, self.listener = End(self), End(self)
        forth = Pipe(self, proxy.listens, self.listener)
        back = Pipe(self, proxy.dials, self.dialler)
        forth.reverse, back.reverse = back, forth
        self.dialler.outgoing, self.listener.outgoing = forth, back
        self.pipes = (forth, back)

    def later(self, action: Callable[[], None]) -> None:
        self.loop.call_later(SETTLE, action)

    def end_with(self, action: Callable[[], None]) -> None:
        """Pass on nothing any more, then do `action`, which ends both connections."""
        self.stalled = True
        self.later(action)

    def reset(self) -> None:
        self.stalled = False
        self.dialler.reset()
        self.listener.reset()

    def close(self) -> None:
        self.stalled = False
        for end in (self.dialler, self.listener):
            if end.transport is not None:
                end.transport.close()

    def stall(self) -> None:
        self.stalled = True

    def lost(self, end: End, error: Exception | None) -> None:
        other = self.listener if end is self.dialler else self.dialler
        if self.dialler.transport is None and self.listener.transport is None:
            self.proxy.links.discard(self)
        elif not self.stalled and isinstance(error, OSError):
            other.reset()
        elif not self.stalled and other.transport is not None:
            other.transport.close()


class Proxy:
    """Listens in place of one side. `async with Proxy(Side.WORKER, port) as proxy`: what is dialled is `proxy.port`."""

    def __init__(self, listens: Side, port: int) -> None:
        self.listens = listens
        self.dials = Side.ROUTER if listens is Side.WORKER else Side.WORKER
        self.loop = asyncio.get_running_loop()
        self.links: set[Link] = set()
        self.rewrite: Callable[[bytes], bytes] = lambda frame: frame
        """What is done to every frame."""
        self.place: Place | None = None
        self.struck_at: float | None = None
        """When the fault struck, by the clock of the loop."""
        self.new_planes: list[Plane] = []
        """What the next connections are, in their order; then request or response."""
        self._new_links: list[Link] = []  # since `mark`
        self._fault: Fault | None = None
        self._target = port
        self._tasks: set[asyncio.Task[None]] = set()

    def arm(self, place: Place, fault: Fault) -> None:
        """Strike once, at `place`. Frames are counted from now on."""
        self.place, self._fault, self.struck_at = place, fault, None
        for link in self.links:
            for pipe in link.pipes:
                pipe.frames = 0

    def strikes(self, pipe: Pipe, number: int) -> Fault | None:
        place, fault = self.place, self._fault
        if fault is None or place is None:
            return None
        if (pipe.link.plane, pipe.side, number) != (place.plane, place.to, place.frame):
            return None
        self._fault, self.struck_at = None, self.loop.time()
        return fault

    def mark(self) -> None:
        """`still_open` looks at the connections that are made from now on."""
        self._new_links.clear()

    def still_open(self) -> list[str]:
        """The connections since `mark` that a router or a worker has not ended; but sessions, which are kept."""
        return [
            f"the {side.value}'s connection for the {link.plane.value}"
            for link in self._new_links
            if link.plane is not Plane.SESSION
            for side, end in ((self.dials, link.dialler), (self.listens, link.listener))
            if not end.peer_ended
        ]

    def disarm(self) -> None:
        """End the harm: what is stalled or half closed is reset."""
        self._fault = None
        for link in list(self.links):
            if link.stalled or any(pipe.ended or pipe.dribbles for pipe in link.pipes):
                link.reset()

    def reset(self) -> None:
        """Reset all connections."""
        for link in list(self.links):
            link.reset()

    async def __aenter__(self) -> Proxy:
        self._server = await self.loop.create_server(self._accepted, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.reset()
        await asyncio.gather(*self._tasks)
        while self.links:
            await asyncio.sleep(SETTLE)

    def _accepted(self) -> End:
        usual = Plane.REQUEST if self.listens is Side.WORKER else Plane.RESPONSE
        link = Link(self, self.new_planes.pop(0) if self.new_planes else usual)
        self.links.add(link)
        self._new_links.append(link)
        task = self.loop.create_task(self._connect(link))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return link.dialler

    async def _connect(self, link: Link) -> None:
        try:
            await self.loop.create_connection(lambda: link.listener, "127.0.0.1", self._target)
        except OSError:
            link.reset()
        if link.dialler.transport is None:
            link.reset()  # it was lost meanwhile
            return
        link.is_connected = True
        link.dialler.connected()
        link.listener.connected()
        if link.dialler.transport is not None:
            link.dialler.transport.resume_reading()
