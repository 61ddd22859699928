# cython: freethreading_compatible=True, annotation_typing=False
"""What a worker writes to a session: gathered by turns of the loop, within its credit, in a fair order (mux.md 6).

    MuxSender    one answer: what a response connection uses as its transport
    MuxOutput    the connection: what all answers yield in one turn of the loop leaves in one write

What has credit and room leaves at the end of the turn. The rest waits at its sender, and the senders take turns.

This runs for every request and item. Where there is a compiler, Cython translates this very file, with the types in
`mux_sender.pxd` (see setup.py).
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Protocol

from dynamo_fast.codec import encode_mux_frame, mux_frames_within
from dynamo_fast.wire.mux import CUT, read_credit
from dynamo_fast.wire.stream import Event

__all__ = ["MuxOutput", "MuxSender", "SenderOwner"]

# What may wait for the end of a turn, and what one write to the transport may have, in bytes.
_TURN_LIMIT = 256 * 1024
# A stream's share when several wait: one frame of the longest kind.
_QUANTUM = 8 + 16 * 1024


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

    __slots__ = ("_at", "_backlog", "_closing", "_opened", "_output", "_owner", "_size", "credit", "number", "queued")

    def __init__(self, output: MuxOutput, number: int, owner: SenderOwner | None, credit: int) -> None:
        self._output = output
        self.number = number
        self._owner = owner
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
        return self._output.get_extra_info(name, default)

    def get_write_buffer_size(self) -> int:
        return self._size

    def write(self, data: bytes) -> None:
        """Write whole frames of this stream: at the end of this turn, or when there is room."""
        if self._closing:
            return
        size = len(data)
        if not self._size and size <= self.credit and self._output.push(data):
            self.credit -= size
            self._opened = True
            return
        self._keep(data)
        self._output.queue(self)
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
            self._output.ended(self)

    def abort(self) -> None:
        """End the stream now: what has not left is dropped, and the router is told."""
        if self._closing and not self._size:
            return
        opening = self._backlog[0] if self._backlog and not self._opened else b""
        self._drop()
        self._closing = True
        if self._opened or opening:  # the router waits for a stream that it does not know yet
            last = opening + encode_mux_frame(self.number, CUT)
            self.credit = len(last)
            self._keep(last)
            self._output.queue(self)
        else:
            self._output.ended(self)
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
            self._output.ended(self)
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
            self._output.ended(self)

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
            self._output.tell_lost(owner)


class MuxOutput:
    """The frames that leave at the end of this turn of the loop, and the senders whose backlogs wait.

    The session makes it, tells it what the transport and the router say, and ends it with `end`. Its senders write to it.
    """

    __slots__ = (
        "_blocked",
        "_credit",
        "_flush_is_due",
        "_frames",
        "_loop",
        "_lost",
        "_queue",
        "_size",
        "over",
        "senders",
        "transport",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.transport: Any = None
        """Of the session; None before it is connected."""
        self.senders: dict[int, MuxSender] = {}
        """The streams that are open, by their numbers."""
        self.over = False
        """Whether nothing is sent any more."""
        self._credit = 0  # of the connection
        self._queue: deque[MuxSender] = deque()  # those whose backlog may have credit
        self._frames: list[bytes] = []
        self._size = 0  # bytes in them
        self._blocked = False  # the transport takes nothing now
        self._flush_is_due = False
        self._lost: list[SenderOwner] = []  # connections that are to be told

    # For the session

    def begin(self, credit: int) -> None:
        """The router says `HELLO`: so many bytes may be sent on the connection."""
        self._credit = credit

    def add_credit(self, body: bytes | memoryview) -> None:
        """The router gives credit to the connection. Raises ControlError."""
        self._credit += read_credit(body, self._credit)
        self._schedule()

    def pause(self) -> None:
        """The transport takes nothing now."""
        self._blocked = True

    def resume(self) -> None:
        """The transport takes more."""
        self._blocked = False
        self._schedule()

    def say(self, frame: bytes) -> bool:
        """Write a frame of the session itself at the end of this turn. Returns whether there is room; if not, drop it."""
        size = self._size + len(frame)
        if self._blocked or size > self._credit or self.over:
            return False
        self._frames.append(frame)
        self._size = size
        self._schedule()
        return True

    def close(self, last: bytes) -> None:
        """Write what can leave, then `last`, and close the connection."""
        self._flush()
        if last:
            self.transport.write(last)
        if self._blocked:  # what waits would keep it open
            self.transport.abort()
        else:
            self.transport.close()

    def end(self, error: Exception) -> None:
        """The session is over: every stream is lost."""
        self.over = True
        senders = list(self.senders.values())
        self.senders.clear()
        self._queue.clear()
        for sender in senders:
            sender.lost(error)
        self._tell_the_lost()

    # For its senders

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Of the connection."""
        return default if self.transport is None else self.transport.get_extra_info(name, default)

    def push(self, data: bytes) -> bool:
        """Write `data` at the end of this turn. Returns whether there is room; if not, it is not taken."""
        size = self._size + len(data)
        if self._blocked or size > self._credit or size > _TURN_LIMIT or self._queue or self.over:
            return False
        self._frames.append(data)
        self._size = size
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

    # The end of a turn

    def _schedule(self) -> None:
        if not self._flush_is_due:
            self._flush_is_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Write what was gathered, then what waits, and tell who is gone."""
        self._flush_is_due = False
        self._write()
        while self._queue and not self._blocked and self._gather():
            self._write()
        self._tell_the_lost()

    def _gather(self) -> bool:
        """Take from the backlogs by turns, as much as is written at once. Returns whether there was anything."""
        queue = self._queue
        while queue and self._size < _TURN_LIMIT:
            room = min(_QUANTUM, self._credit - self._size)
            sender = queue[0]
            taken = sender.take(room) if sender.get_write_buffer_size() else b""
            if not taken and room < _QUANTUM:
                break  # of the connection's credit there is not enough: it keeps its place
            queue.popleft()
            sender.queued = False
            if taken:
                self._frames.append(taken)
                self._size += len(taken)
                if sender.has_more():
                    sender.queued = True
                    queue.append(sender)
        return bool(self._frames)

    def _write(self) -> None:
        frames, size = self._frames, self._size
        if not frames:
            return
        self._frames, self._size = [], 0
        self._credit -= size
        if not self.over:
            self.transport.write(frames[0] if len(frames) == 1 else b"".join(frames))

    def _tell_the_lost(self) -> None:
        lost, self._lost = self._lost, []
        for owner in lost:
            owner.connection_lost(None)
