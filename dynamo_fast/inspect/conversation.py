"""What is said on one connection, frame by frame.

    conversation = Conversation()
    for frame in conversation.feed(from_dialler=True, data): ...
    for frame in conversation.close(): ...

The router dials the worker on the request plane, and the worker dials the router on the response plane. The dialler's
first bytes tell which plane it is; on the response plane its first message tells whether many answers follow (mux.md).
Nothing is raised: bytes that cannot be read become a `damage` frame, which says at which byte and why, and ends its
direction.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from dynamo_fast.codec import MuxDecoder, MuxFrame, TcpRequestDecoder, TcpResponseDecoder, TwoPartDecoder
from dynamo_fast.inspect.describe import (
    MAX_FRAME_SIZE,
    PREFIX,
    AnswerDecoder,
    Decoder,
    Frame,
    Message,
    complete_messages,
    describe,
)
from dynamo_fast.wire.mux import PART

__all__ = ["Conversation", "Frame", "Plane", "frames", "plane_of"]

_MAX_UNDECIDED = 1 << 16
"""Bytes that are held until the plane is known."""
_HELLO = bytes.fromhex("000000001000000c")
"""What a router writes first on a session: the prefix of a frame."""
_SHOWN_BYTES = 24
"""Bytes of a damage that are kept to be shown."""


class Plane(str, Enum):
    """Requests and their acknowledgements, or answers."""

    REQUEST = "request"
    RESPONSE = "response"


def frames(data: bytes, plane: Plane | None = None) -> list[Frame]:
    """The frames in bytes of one direction of a connection, from its beginning or from any boundary of frames.

    Plane and direction are recognised; `plane` names the plane where the bytes are ambiguous (24 zero bytes are six
    acknowledgements, or one empty two-part message). Raises nothing: what cannot be read is the last frame, `damage`.
    """
    from_dialler = True
    if plane is not Plane.RESPONSE and _are_acks(data):
        plane, from_dialler = Plane.REQUEST, False
    if plane is not Plane.REQUEST and data.startswith(_HELLO):
        return _read_words_of_a_session(data)
    found = _read(data, plane or plane_of(data, ended=True), from_dialler)
    if found and found[0].direction == "<" and found[0].kind in ("stop", "kill", "input"):
        found = _read(data, Plane.RESPONSE, from_dialler=False)
    return found


def _read(data: bytes, plane: Plane | None, from_dialler: bool) -> list[Frame]:
    conversation = Conversation(plane)
    return [*conversation.feed(from_dialler, data), *conversation.close()]


def _read_words_of_a_session(data: bytes) -> list[Frame]:
    direction = _Direction(">", MuxDecoder)
    return [*direction.feed(data), *direction.close()]


def _are_acks(data: bytes) -> bool:
    """Whether these are acknowledgements and nothing else: short texts, most of them empty."""
    decoder = TcpResponseDecoder(1 << 16)
    texts = [bytes(message.data) for message in complete_messages(decoder, data)]
    is_whole = bool(texts) and decoder.failed is None and not decoder.pending
    return is_whole and all(text.isascii() and b"\0" not in text for text in texts)


class Conversation:
    """Both directions of one connection. Without a `plane`, the dialler's first bytes tell it.

    Owned by the code that reads the connection or its capture, which calls `feed` and `gap` in the order of the bytes,
    and `close` at the end. It holds at most 64 KiB until the plane is known, then one incomplete frame a direction.

    If the connection was joined `midway`, the dialler is a guess; a request from the other side corrects it.
    """

    def __init__(self, plane: Plane | None = None, *, midway: bool = False) -> None:
        self.plane = plane
        self._midway = midway
        self._is_reversed = False
        self._directions = {True: _Direction(), False: _Direction()}
        self._undecided: list[tuple[bool, bytes]] = []
        self._held = {True: b"", False: b""}
        if plane is not None:
            self._decide(plane)

    def feed(self, from_dialler: bool, data: bytes) -> list[Frame]:
        """The frames that `data` completes."""
        from_dialler ^= self._is_reversed
        if self.plane is not None or not self._directions[from_dialler].open:
            return self._read(from_dialler, data)
        self._undecided.append((from_dialler, data))
        self._held[from_dialler] += data[:_MAX_UNDECIDED]
        if self._midway and plane_of(self._held[True]) is None and plane_of(self._held[False]) is Plane.REQUEST:
            self._reverse()
        plane = plane_of(self._held[True])
        if plane is None and sum(map(len, self._held.values())) < _MAX_UNDECIDED:
            return []
        return self._decide(plane)

    def gap(self, from_dialler: bool, size: int) -> list[Frame]:
        """`size` bytes of a direction are missing; what follows them cannot be read."""
        from_dialler ^= self._is_reversed
        undecided = self._decide(None) if self.plane is None else []
        return undecided + self._directions[from_dialler].fail(f"the next {size} bytes are missing from the capture")

    def close(self) -> list[Frame]:
        """The end of the connection: damage for each frame that is incomplete."""
        found = self._decide(plane_of(self._held[True], ended=True)) if self.plane is None else []
        return found + self._directions[True].close() + self._directions[False].close()

    def _read(self, from_dialler: bool, data: bytes) -> list[Frame]:
        found = self._directions[from_dialler].feed(data)
        if from_dialler and any(frame.kind == "session" for frame in found):
            self._directions[False] = _Direction(">", MuxDecoder)  # the router speaks after the handshake only
        return found

    def _reverse(self) -> None:
        self._is_reversed = True
        self._undecided = [(not from_dialler, data) for from_dialler, data in self._undecided]
        self._held = {True: self._held[False], False: self._held[True]}

    def _decide(self, plane: Plane | None) -> list[Frame]:
        self.plane = plane
        self._directions = {
            True: _Direction(*_DIRECTIONS[plane, True]) if plane else _Direction(">"),
            False: _Direction(*_DIRECTIONS[plane, False]) if plane else _Direction("<"),
        }
        undecided, self._undecided, self._held = self._undecided, [], {True: b"", False: b""}
        found = [frame for from_dialler, data in undecided for frame in self._read(from_dialler, data)]
        if plane is None:
            for from_dialler in {from_dialler for from_dialler, _ in undecided}:
                found += self._directions[from_dialler].fail("these are the bytes of neither plane")
        return found


def plane_of(data: bytes, *, ended: bool = False) -> Plane | None:
    """The plane of a connection whose dialler begins with `data`; None if that is not a frame, or too little to tell.

    `ended` says that no more bytes follow.
    """
    if _is_two_part(data, ended):
        return Plane.RESPONSE
    return Plane.REQUEST if _is_request(data, ended) else None


def _is_two_part(data: bytes, ended: bool) -> bool:
    if len(data) < PREFIX.size:
        # Four zero bytes begin the length of a header: a request has a path.
        return ended and len(data) > 4 and not any(data[:4])
    header_len, data_len, _ = PREFIX.unpack_from(data)
    is_sane = 0 < header_len + data_len <= MAX_FRAME_SIZE
    header = data[PREFIX.size : PREFIX.size + header_len]
    return is_sane and header[:1] in (b"", b"{", b'"')


def _is_request(data: bytes, ended: bool) -> bool:
    if not any(data[:4]):  # no path and no headers: more likely the beginning of a two-part message
        return False
    headers_at = 2 + int.from_bytes(data[:2], "big")
    if not _is_text(data[2:headers_at]):
        return False
    headers_len = int.from_bytes(data[headers_at : headers_at + 2], "big")
    begins_well = headers_len == 0 or data[headers_at + 2 : headers_at + 3] == b"{"
    return begins_well if len(data) > headers_at + 2 else ended


def _is_text(data: bytes) -> bool:
    """Whether it could be (the beginning of) an endpoint's path."""
    text = data.decode("utf-8", "ignore")
    return text.isprintable() and len(data) - len(text.encode()) < 4


# One direction ---------------------------------------------------------------------------------------------------------


class _Direction:
    """Cuts the bytes of a direction into frames. Owned by a conversation, until damage or the end of the connection."""

    def __init__(self, arrow: str = ">", decoder: Callable[[int], Decoder] | None = None) -> None:
        self.open = True
        self._arrow = arrow
        self._decoder = None if decoder is None else decoder(MAX_FRAME_SIZE)
        self._offset = 0  # of the next frame
        self._unread = b""
        self._size = 0
        self._parts: dict[int, bytes] = {}  # of items of a session, until their last part comes

    def feed(self, data: bytes) -> list[Frame]:
        if not self.open:
            return []
        self._size += len(data)
        if self._decoder is None:
            self._unread += data[: _SHOWN_BYTES - len(self._unread)]
            return []
        found = [self._frame(message) for message in complete_messages(self._decoder, data)]
        self._unread = (self._unread + data)[-_MAX_UNDECIDED:]
        if self._decoder.failed is not None:
            found += self.fail(str(self._decoder.failed))
        return found

    def close(self) -> list[Frame]:
        left = self._size - self._offset
        return self.fail(f"the connection ends within a frame, of which there are {left} bytes") if left else []

    def fail(self, reason: str) -> list[Frame]:
        """Damage, and no frames after it."""
        if not self.open:
            return []
        self.open = False
        frame = Frame(self._arrow, "damage", self._offset, self._size - self._offset)
        frame.problems.append(f"byte {self._offset}: {reason}")
        begins = self._unread[-frame.size :][:_SHOWN_BYTES] if frame.size else b""
        frame.content = {"begins": begins} if 0 < frame.size <= len(self._unread) or self._decoder is None else {}
        return [frame]

    def _frame(self, message: Message) -> Frame:
        before = self._before(message) if isinstance(message, MuxFrame) else b""
        frame = describe(message, direction=self._arrow, offset=self._offset, before=before)
        self._offset += frame.size
        return frame

    def _before(self, frame: MuxFrame) -> bytes:
        """The parts of the item that `frame` ends; if it is a part itself, it is kept."""
        before = self._parts.pop(frame.stream, b"")
        if frame.kind != PART:
            return before
        if len(before) < MAX_FRAME_SIZE:
            self._parts[frame.stream] = before + bytes(frame.body)
        return b""


_DIRECTIONS: dict[tuple[Plane, bool], tuple[str, Callable[[int], Decoder]]] = {
    (Plane.REQUEST, True): (">", TcpRequestDecoder),
    (Plane.REQUEST, False): ("<", TcpResponseDecoder),
    (Plane.RESPONSE, True): ("<", AnswerDecoder),
    (Plane.RESPONSE, False): (">", TwoPartDecoder),
}
"""By plane and whether the dialler speaks: which way that is, and what reads it."""
