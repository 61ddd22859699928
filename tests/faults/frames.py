"""The frames of all planes as the proxy sees them: how long one is, which byte is meant, and how its length can lie.

By hand, so that a mistake of our codec cannot hide itself.
"""

from __future__ import annotations

import struct
from enum import Enum


class Plane(Enum):
    REQUEST = "request"
    RESPONSE = "response"
    INPUT = "input"
    SESSION = "session"
    """A response connection that carries many answers (mux.md)."""


class Side(Enum):
    ROUTER = "router"
    WORKER = "worker"


class Part(Enum):
    """A byte of a frame."""

    BEFORE = "before"
    PREFIX = "prefix"
    HEADERS = "headers"
    BODY = "body"
    AFTER = "after"


class Layout:
    """The lengths of one kind of frame."""

    def size(self, data: bytes) -> int | None:
        """How long the first frame is; None if that cannot be told yet."""
        raise NotImplementedError

    def offset(self, frame: bytes, part: Part) -> int:
        """The number of the byte that `part` means."""
        raise NotImplementedError

    def with_length(self, frame: bytes, *, huge: bool) -> bytes:
        """The frame with a false length: as large as can be written, or one less."""
        raise NotImplementedError

    def unexpected(self, frame: bytes) -> bytes:
        """A well-formed frame that means nothing behind `frame`."""
        raise NotImplementedError

    def is_timed(self, frame: bytes) -> bool:
        """Whether `frame` is sent at intervals, whatever the other end does."""
        return False


class TwoPartLayout(Layout):
    """u64 length of the header, u64 length of the data, u64 checksum; header; data."""

    def size(self, data: bytes) -> int | None:
        if len(data) < 24:
            return None
        header, body, _ = struct.unpack_from(">QQQ", data)
        return int(24 + header + body)

    def offset(self, frame: bytes, part: Part) -> int:
        return {Part.BEFORE: 0, Part.PREFIX: 7, Part.BODY: (24 + len(frame)) // 2, Part.AFTER: len(frame)}[part]

    def with_length(self, frame: bytes, *, huge: bool) -> bytes:
        header, body, checksum = struct.unpack_from(">QQQ", frame)
        if header:
            header = 2**63 if huge else header - 1
        else:
            body = 2**63 if huge else body - 1
        return struct.pack(">QQQ", header, body, checksum) + frame[24:]

    def unexpected(self, frame: bytes) -> bytes:
        return struct.pack(">QQQ", 9, 0, 0) + b'"unknown"'


class RequestLayout(Layout):
    """u16 length of the path; path; u16 length of the headers; headers; u32 length of the payload; payload."""

    def _lengths(self, data: bytes) -> tuple[int, int, int] | None:
        try:
            (path,) = struct.unpack_from(">H", data)
            (headers,) = struct.unpack_from(">H", data, 2 + path)
            (payload,) = struct.unpack_from(">I", data, 4 + path + headers)
        except struct.error:
            return None
        return path, headers, payload

    def size(self, data: bytes) -> int | None:
        lengths = self._lengths(data)
        return None if lengths is None else 8 + sum(lengths)

    def offset(self, frame: bytes, part: Part) -> int:
        lengths = self._lengths(frame)
        assert lengths is not None
        path, headers, payload = lengths
        return {
            Part.BEFORE: 0,
            Part.PREFIX: 1,
            Part.HEADERS: 4 + path + headers // 2,
            Part.BODY: len(frame) - payload // 2,
            Part.AFTER: len(frame),
        }[part]

    def with_length(self, frame: bytes, *, huge: bool) -> bytes:
        lengths = self._lengths(frame)
        assert lengths is not None
        path, headers, payload = lengths
        at = 4 + path + headers
        return frame[:at] + struct.pack(">I", 2**32 - 1 if huge else payload - 1) + frame[at + 4 :]

    def unexpected(self, frame: bytes) -> bytes:
        return struct.pack(">H7sH2sI", 7, b"nowhere", 2, b"{}", 0)


class AckLayout(Layout):
    """u32 length of the text; text."""

    def size(self, data: bytes) -> int | None:
        return None if len(data) < 4 else int(4 + struct.unpack_from(">I", data)[0])

    def offset(self, frame: bytes, part: Part) -> int:
        return {Part.BEFORE: 0, Part.PREFIX: 2, Part.BODY: 4 + (len(frame) - 4) // 2, Part.AFTER: len(frame)}[part]

    def with_length(self, frame: bytes, *, huge: bool) -> bytes:
        # The shortest acknowledgement has no bytes to claim less of: one byte more is claimed.
        length = len(frame) - 4
        return struct.pack(">I", 2**32 - 1 if huge else length - 1 if length else 1) + frame[4:]

    def unexpected(self, frame: bytes) -> bytes:
        return struct.pack(">I", 0)


class MuxLayout(Layout):
    """u32 number of the stream; u8 kind; u24 length of the body; body."""

    def size(self, data: bytes) -> int | None:
        return None if len(data) < 8 else int(8 + (struct.unpack_from(">I", data, 4)[0] & 0xFFFFFF))

    def offset(self, frame: bytes, part: Part) -> int:
        return {Part.BEFORE: 0, Part.PREFIX: 7, Part.BODY: (8 + len(frame)) // 2, Part.AFTER: len(frame)}[part]

    def with_length(self, frame: bytes, *, huge: bool) -> bytes:
        # An empty body has no bytes to claim less of: one byte more is claimed.
        length = len(frame) - 8
        claimed = 2**24 - 1 if huge else length - 1 if length else 1
        return frame[:5] + claimed.to_bytes(3, "big") + frame[8:]

    def unexpected(self, frame: bytes) -> bytes:
        return frame[:4] + struct.pack(">I", 99 << 24)

    def is_timed(self, frame: bytes) -> bool:
        return frame[4] == 20  # SEEN


SESSION_HANDSHAKE = b'{"mux":'
"""How the header of the first message of a session begins; then there are mux frames both ways."""
LAYOUTS: dict[tuple[Plane, Side], Layout] = {
    (Plane.REQUEST, Side.WORKER): RequestLayout(),
    (Plane.REQUEST, Side.ROUTER): AckLayout(),
    **{(plane, side): TwoPartLayout() for plane in (Plane.RESPONSE, Plane.INPUT) for side in Side},
    **{(Plane.SESSION, side): MuxLayout() for side in Side},
}
