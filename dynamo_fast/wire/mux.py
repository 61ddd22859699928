"""The multiplexed response plane: what the session handshake and the bodies of its frames say (mux.md).

    MuxOffer        router -> worker   in the control message of a request: the worker may answer on a session
    MuxHandshake    worker -> router   the first message on the session's connection
    Hello           router -> worker   the first frame: how much credit the worker begins with

Between two ends of this package only. The frames themselves are in `codec`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from dynamo_fast.codec import MUX_BODY_LIMIT, MUX_DATA, MUX_PART, MUX_PREFIX_SIZE, MuxFrame, encode_mux_frame
from dynamo_fast.errors import ControlError
from dynamo_fast.wire.json_text import dumps
from dynamo_fast.wire.text import UNREADABLE, printable, reason, shown

__all__ = [
    "CLOSE",
    "CREDIT",
    "CUT",
    "DATA",
    "END",
    "HELLO",
    "KILL",
    "MOST_STREAMS",
    "OPEN",
    "PART",
    "PING",
    "PONG",
    "PROLOGUE",
    "ROUTER_FRAME_LIMIT",
    "SEEN",
    "SMALLEST_WINDOW",
    "STOP",
    "VERSION",
    "WINDOW_LIMIT",
    "WORKER_FRAME_LIMIT",
    "Hello",
    "MuxHandshake",
    "MuxOffer",
    "close_frame",
    "closing_reason",
    "credit_frame",
    "described",
    "kind_name",
    "offered_version",
    "read_credit",
    "read_seen",
    "refused_prologue",
    "seen_frame",
]

VERSION = 1
"""The newest version that this package speaks; it speaks every one from 1 on."""

# Numbers, not an enumeration: they are compared for each frame.
OPEN, PROLOGUE, DATA, PART, END, CUT = 1, 2, MUX_DATA, MUX_PART, 5, 6
HELLO, STOP, KILL, CREDIT, SEEN = 16, 17, 18, 19, 20
PING, PONG, CLOSE = 32, 33, 34
_NAMES = {
    OPEN: "OPEN",
    PROLOGUE: "PROLOGUE",
    DATA: "DATA",
    PART: "PART",
    END: "END",
    CUT: "CUT",
    HELLO: "HELLO",
    STOP: "STOP",
    KILL: "KILL",
    CREDIT: "CREDIT",
    SEEN: "SEEN",
    PING: "PING",
    PONG: "PONG",
    CLOSE: "CLOSE",
}

WORKER_FRAME_LIMIT = MUX_PREFIX_SIZE + MUX_BODY_LIMIT
"""Bytes of the longest frame of a worker."""
ROUTER_FRAME_LIMIT = MUX_PREFIX_SIZE + 1024
"""Bytes of the longest frame of a router."""
SMALLEST_WINDOW, WINDOW_LIMIT = 64 * 1024, 2**31 - 1
"""Bytes of the smallest and the largest window."""
MOST_STREAMS = 2**32 - 1
"""The last number of a stream in a session."""
_LONGEST_REASON = 512


def kind_name(kind: int) -> str:
    """The name of a kind of frames, for texts."""
    return _NAMES.get(kind, f"kind {kind}")


def offered_version(value: Any) -> int | None:
    """The version that a record names under its key; None for anything else that may stand there."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


class MuxOffer(msgspec.Struct, frozen=True, gc=False):
    """The router takes the answer on a session of `version`; `session` is its token, which permits to open one."""

    version: int
    session: str

    @classmethod
    def of(cls, value: Any) -> MuxOffer | None:
        """The offer in a control message; None if there is none, or one that this package does not know."""
        if not isinstance(value, dict):
            return None
        version, session = offered_version(value.get("version")), value.get("session")
        if version is None or version > VERSION or not isinstance(session, str) or not 0 < len(session) <= 128:
            return None
        return cls(version, session)

    def added_to(self, control: bytes) -> bytes:
        """The control message with this offer behind its other keys."""
        return b'%s,"dynamo_fast_mux":{"version":%d,"session":"%s"}}' % (
            control[:-1],
            self.version,
            self.session.encode(),
        )


class MuxHandshake(msgspec.Struct, frozen=True, gc=False):
    """`mux`: the version of the session; `session`: the token of the router; `worker`: the name of the worker process."""

    mux: int
    session: str
    worker: str

    def encode(self) -> bytes:
        """The JSON text."""
        return dumps({"mux": self.mux, "session": self.session, "worker": self.worker})

    @classmethod
    def decode(cls, data: bytes | memoryview) -> MuxHandshake:
        """Read it. Raises ControlError."""
        try:
            handshake = _handshake.decode(data)
        except UNREADABLE as error:
            raise ControlError(f"malformed session handshake: {reason(error)} (in {shown(data)})") from None
        if not 0 < len(handshake.worker) <= 128:
            raise ControlError(f"malformed session handshake: a name of {len(handshake.worker)} characters")
        return handshake


_handshake = msgspec.json.Decoder(MuxHandshake)


class Hello(NamedTuple):
    """`stream_window`: credit of each stream at its beginning; `connection_window`: of the session. In bytes."""

    version: int
    stream_window: int
    connection_window: int

    def encode(self) -> bytes:
        """The frame."""
        return encode_mux_frame(0, HELLO, b"".join(value.to_bytes(4, "big") for value in self))

    @classmethod
    def decode(cls, body: bytes | memoryview) -> Hello:
        """Read the body of the frame. Raises ControlError."""
        data = bytes(body)
        hello = cls(*(int.from_bytes(data[at : at + 4], "big") for at in (0, 4, 8)))
        if len(data) != 12 or not all(SMALLEST_WINDOW <= each <= WINDOW_LIMIT for each in hello[1:]):
            raise ControlError(
                f"malformed HELLO: expected 12 bytes with two windows of {SMALLEST_WINDOW} to {WINDOW_LIMIT} bytes "
                f"(in {shown(data)})"
            )
        return hello


def credit_frame(stream: int, size: int) -> bytes:
    """`size` bytes more for a stream, or for the connection (0)."""
    return encode_mux_frame(stream, CREDIT, size.to_bytes(4, "big"))


def read_credit(body: bytes | memoryview, window: int) -> int:
    """The credit in the body of a frame, for a window that has `window` bytes now. Raises ControlError."""
    size = int.from_bytes(body, "big")
    if len(body) != 4 or not 0 < size <= WINDOW_LIMIT - window:
        raise ControlError(f"a credit of {size} bytes ({len(body)} bytes long) for a window of {window}")
    return size


def seen_frame(last: int) -> bytes:
    """The router knows every stream up to the number `last`."""
    return encode_mux_frame(0, SEEN, last.to_bytes(4, "big"))


def read_seen(body: bytes | memoryview) -> int:
    """The number in the body of that frame. Raises ControlError."""
    if len(body) != 4:
        raise ControlError(f"malformed SEEN: expected 4 bytes (in {shown(body)})")
    return int.from_bytes(body, "big")


def close_frame(why: str) -> bytes:
    """The session is over, and `why`."""
    return encode_mux_frame(0, CLOSE, why.encode("utf-8", "replace")[:_LONGEST_REASON])


def closing_reason(body: bytes | memoryview) -> str:
    """What the other end says, for a log line."""
    return printable(bytes(body[:_LONGEST_REASON]).decode("utf-8", "replace"))


def refused_prologue(stream: int, prologue: bytes) -> bytes:
    """The frames of a stream whose handler was not started: the prologue with its error, cut if it is long, and the end."""
    frames = [
        encode_mux_frame(stream, PART, prologue[at : at + MUX_BODY_LIMIT])
        for at in range(0, len(prologue) - MUX_BODY_LIMIT, MUX_BODY_LIMIT)
    ]
    rest = prologue[MUX_BODY_LIMIT * len(frames) :]
    return b"".join((*frames, encode_mux_frame(stream, PROLOGUE, rest), encode_mux_frame(stream, END)))


def described(frame: MuxFrame) -> str:
    """A frame in an error text."""
    return f"{kind_name(frame.kind)} of {len(frame.body)} bytes for stream {frame.stream}"
