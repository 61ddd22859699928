"""Both ends of a session on plain sockets, which do only what a test tells them, right or wrong.

They pack and unpack every frame by hand, so that the package is not tested against its own codec.
"""

from __future__ import annotations

import asyncio
import json
import struct
from typing import Any, NamedTuple

from tests.egress.raw_worker import FINAL, LIMIT, RawRequest, item, two_part
from tests.ingress.requester import Answer, Requester, read_frame

OPEN, PROLOGUE, DATA, PART, END, CUT = 1, 2, 3, 4, 5, 6
HELLO, STOP, KILL, CREDIT, SEEN = 16, 17, 18, 19, 20
PING, PONG, CLOSE = 32, 33, 34
STREAM_WINDOW, CONNECTION_WINDOW = 256 * 1024, 4 * 1024 * 1024
BODY_LIMIT = 16 * 1024


class Frame(NamedTuple):
    """A frame that came."""

    stream: int
    kind: int
    body: bytes


class RawFrames:
    """Frames on one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.silent: list[Frame] = []
        """Credit for the connection, and what the router has seen, which `next` leaves out."""

    def send(self, stream: int, kind: int, body: bytes = b"") -> None:
        self.writer.write(struct.pack(">II", stream, kind << 24 | len(body)) + body)

    async def read(self) -> Frame | None:
        """The next frame; None at the end, in order or by a reset."""
        try:
            stream, word = struct.unpack(">II", await asyncio.wait_for(self.reader.readexactly(8), LIMIT))
            body = await asyncio.wait_for(self.reader.readexactly(word & 0xFF_FFFF), LIMIT)
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        return Frame(stream, word >> 24, body)

    async def next(self) -> Frame | None:
        """The same, but for credit of the connection, and what the router has seen."""
        while (frame := await self.read()) is not None and frame[:2] in ((0, CREDIT), (0, SEEN)):
            self.silent.append(frame)
        return frame

    async def closed(self) -> str:
        """Why the other end closes the session, which it must do next and at once."""
        frame = await self.next()
        while frame is not None and frame.stream:  # words for streams
            frame = await self.next()
        assert frame is not None
        assert (frame.stream, frame.kind) == (0, CLOSE), frame
        assert await self.read() is None
        return frame.body.decode()

    def abort(self) -> None:
        self.writer.transport.abort()


class RawSession(RawFrames):
    """A worker's end, dialled for a request."""

    @classmethod
    async def dial(cls, request: RawRequest, **changes: Any) -> RawSession:
        """Dial the router, and write the handshake; `changes` are other values for its keys."""
        stream = await request.connect()
        token = request.control["dynamo_fast_mux"]["session"]
        handshake = {"mux": 1, "session": token, "worker": "w", **changes}
        stream.writer.write(two_part(json.dumps(handshake).encode()))
        return cls(stream.reader, stream.writer)

    @classmethod
    async def open(cls, request: RawRequest, **changes: Any) -> RawSession:
        """The same, until the router has answered as it should."""
        session = await cls.dial(request, **changes)
        hello = struct.pack(">III", 1, STREAM_WINDOW, CONNECTION_WINDOW)
        assert await session.read() == Frame(0, HELLO, hello)
        return session

    def begin(self, stream: int, request: RawRequest) -> None:
        """Open a stream, and say that the handler was started."""
        self.send(stream, OPEN, request.info["subject"].encode())
        self.send(stream, PROLOGUE)

    def items(self, stream: int, *values: Any) -> None:
        for value in values:
            self.send(stream, DATA, item(value))

    def end(self, stream: int) -> None:
        self.send(stream, DATA, FINAL)
        self.send(stream, END)


class SessionRequester(Requester):
    """A router's end: a requester that offers sessions, and answers their handshakes as the test says."""

    hello: bytes | None = struct.pack(">III", 1, STREAM_WINDOW, CONNECTION_WINDOW)
    """The body of `HELLO`, which answers each handshake; None: nothing does."""

    async def __aenter__(self) -> SessionRequester:
        self.offer: Any = {"version": 1, "session": "token"}  # what stands in the control messages
        self.sessions: list[RawFrames] = []
        self.handshakes: list[Any] = []
        self.session_came = asyncio.Event()
        await super().__aenter__()
        return self

    def control(self, request_id: str | None = None, **changes: Any) -> dict[str, Any]:
        return {**super().control(request_id, **changes), "dynamo_fast_mux": self.offer}

    async def ask(self, body: Any, **changes: Any) -> str:
        """Send a request, whose acknowledgement must be good; its subject."""
        self.send(self.control(**changes), json.dumps(body).encode())
        subject = self.subject
        assert await self.ack() == ""
        return subject

    async def session(self) -> RawFrames:
        """The newest session."""
        await asyncio.wait_for(self.session_came.wait(), LIMIT)
        return self.sessions[-1]

    async def _on_dial(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handshake = await read_frame(reader)
        assert handshake is not None
        self._writers.append(writer)
        if "mux" not in handshake.header:
            self._dialled[handshake.header["subject"]].set_result(Answer(reader, writer, handshake))
            return
        self.handshakes.append(handshake.header)
        session = RawFrames(reader, writer)
        if self.hello is not None:
            session.send(0, HELLO, self.hello)
        self.sessions.append(session)
        self.session_came.set()
