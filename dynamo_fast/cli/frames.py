"""What travelled on a connection, frame by frame: the core of `decode` and `tap`.

    conversation = Conversation()
    for frame in conversation.feed(from_dialler=True, data): ...
    for frame in conversation.close(): ...

The router dials the worker on the request plane, and the worker dials the router on the response plane; which plane it is
shows in the dialler's first bytes. `>` is router to worker and `<` is worker to router, on both planes. Nothing is
raised: what cannot be read is a `damage` frame, which says at which byte and why, and ends its direction.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from struct import Struct
from typing import Any

import msgspec

from dynamo_fast.codec import (
    TcpRequestDecoder,
    TcpRequestMessage,
    TcpResponseDecoder,
    TcpResponseMessage,
    TwoPartDecoder,
    TwoPartMessage,
)
from dynamo_fast.errors import CodecError
from dynamo_fast.wire.text import UNREADABLE, reason

__all__ = ["MAX_FRAME_SIZE", "Conversation", "Frame", "Plane", "complete_messages", "plane_of"]

MAX_FRAME_SIZE = 1 << 30
"""Bytes. Dynamo itself has no limit on the response plane; this one keeps a damaged length from filling the memory."""
_PREFIX = Struct(">QQQ")
_PREFIX_SIZE = 24
_MAX_UNDECIDED = 1 << 16
_SHOWN_BYTES = 24
_BYTE = re.compile(r"\(byte (\d+)\)")
_CONTROLS = {"sentinel", "stop", "kill"}


class Plane(str, Enum):
    """Which of the two conversations it is."""

    REQUEST = "request"
    RESPONSE = "response"


@dataclass(slots=True)
class Frame:
    """One frame, or damage.

    `offset` is where it begins in its direction of the connection, `size` counts all its bytes, `lengths` those of its
    parts; `content` is what the parts hold, decoded; `problems` say what in it could not be read, and at which byte.
    """

    direction: str
    kind: str
    offset: int
    size: int
    lengths: dict[str, int] = field(default_factory=dict)
    content: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


class Conversation:
    """Both directions of one connection. Without a `plane`, the dialler's first bytes tell it.

    Of a connection that was joined `midway`, who dialled is a guess, which a request from the other side corrects.
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
            return self._directions[from_dialler].feed(data)
        self._undecided.append((from_dialler, data))
        self._held[from_dialler] += data[:_MAX_UNDECIDED]
        if self._midway and plane_of(self._held[True]) is None and plane_of(self._held[False]) is Plane.REQUEST:
            self._reverse()
        plane = plane_of(self._held[True])
        if plane is None and sum(map(len, self._held.values())) < _MAX_UNDECIDED:
            return []
        return self._decide(plane)

    def gap(self, from_dialler: bool, size: int) -> list[Frame]:
        """`size` bytes of a direction are missing, and what follows them cannot be read."""
        from_dialler ^= self._is_reversed
        undecided = self._decide(None) if self.plane is None else []
        return undecided + self._directions[from_dialler].fail(f"the next {size} bytes are missing from the capture")

    def close(self) -> list[Frame]:
        """What is left, at the end of the connection."""
        frames = self._decide(plane_of(self._held[True], ended=True)) if self.plane is None else []
        return frames + self._directions[True].close() + self._directions[False].close()

    def _reverse(self) -> None:
        self._is_reversed = True
        self._undecided = [(not from_dialler, data) for from_dialler, data in self._undecided]
        self._held = {True: self._held[False], False: self._held[True]}

    def _decide(self, plane: Plane | None) -> list[Frame]:
        self.plane = plane
        self._directions = {
            True: _Direction(*_READERS[plane, True]) if plane else _Direction(">"),
            False: _Direction(*_READERS[plane, False]) if plane else _Direction("<"),
        }
        undecided, self._undecided, self._held = self._undecided, [], {True: b"", False: b""}
        frames = [frame for from_dialler, data in undecided for frame in self._directions[from_dialler].feed(data)]
        if plane is None:
            for from_dialler in {from_dialler for from_dialler, _ in undecided}:
                frames += self._directions[from_dialler].fail("these are the bytes of neither plane")
        return frames


def plane_of(data: bytes, *, ended: bool = False) -> Plane | None:
    """The plane of a connection whose dialler begins with `data`; None if that is no frame, or too little to tell."""
    if _is_two_part(data, ended):
        return Plane.RESPONSE
    return Plane.REQUEST if _is_request(data, ended) else None


def _is_two_part(data: bytes, ended: bool) -> bool:
    if len(data) < _PREFIX_SIZE:
        # No path of a request is so short that its length begins with a whole prefix's zeros.
        return ended and len(data) > 4 and not any(data[:4])
    header_len, data_len, _ = _PREFIX.unpack_from(data)
    is_sane = 0 < header_len + data_len <= MAX_FRAME_SIZE
    header = data[_PREFIX_SIZE : _PREFIX_SIZE + header_len]
    return is_sane and header[:1] in (b"", b"{", b'"')


def _is_request(data: bytes, ended: bool) -> bool:
    if not any(data[:4]):  # no path and no headers: much rather the beginning of a two-part message
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

_Message = TwoPartMessage | TcpRequestMessage | TcpResponseMessage
_Decoder = TwoPartDecoder | TcpRequestDecoder | TcpResponseDecoder


def complete_messages(decoder: _Decoder, data: bytes) -> list[Any]:
    """The messages that `data` completes; whether anything is wrong with what follows them is in `decoder.failed`."""
    try:
        return list(decoder.feed(data))
    except CodecError:
        return []


class _Direction:
    """Cuts the bytes of a direction into frames, and says what each is."""

    def __init__(
        self,
        arrow: str = ">",
        decoder: Callable[[int], _Decoder] | None = None,
        describe: Callable[[Frame, Any], None] | None = None,
    ) -> None:
        self.open = True
        self._arrow = arrow
        self._decoder = None if decoder is None else decoder(MAX_FRAME_SIZE)
        self._describe = describe
        self._offset = 0  # of the next frame
        self._unread = b""
        self._size = 0

    def feed(self, data: bytes) -> list[Frame]:
        if not self.open:
            return []
        self._size += len(data)
        if self._decoder is None or self._describe is None:
            self._unread += data[: _SHOWN_BYTES - len(self._unread)]
            return []
        frames = [self._frame(message) for message in complete_messages(self._decoder, data)]
        self._unread = (self._unread + data)[-_MAX_UNDECIDED:]
        if self._decoder.failed is not None:
            frames += self.fail(str(self._decoder.failed))
        return frames

    def close(self) -> list[Frame]:
        left = self._size - self._offset
        return self.fail(f"the connection ends within a frame, of which there are {left} bytes") if left else []

    def fail(self, reason: str) -> list[Frame]:
        """Damage, and nothing after it."""
        if not self.open:
            return []
        self.open = False
        frame = Frame(self._arrow, "damage", self._offset, self._size - self._offset)
        frame.problems.append(f"byte {self._offset}: {reason}")
        begins = self._unread[-frame.size :][:_SHOWN_BYTES] if frame.size else b""
        frame.content = {"begins": begins} if 0 < frame.size <= len(self._unread) or self._decoder is None else {}
        return [frame]

    def _frame(self, message: _Message) -> Frame:
        assert self._describe is not None
        frame = Frame(self._arrow, "", self._offset, 0)
        self._describe(frame, message)
        self._offset += frame.size
        return frame


# What a frame says -----------------------------------------------------------------------------------------------------


def _describe_request(frame: Frame, message: TcpRequestMessage) -> None:
    path, headers, payload = message.endpoint_path, message.headers, bytes(message.payload)
    frame.kind = "request"
    frame.size = 8 + len(path) + len(headers) + len(payload)
    frame.lengths = {"path": len(path), "headers": len(headers), "payload": len(payload)}
    frame.content["path"] = bytes(path).decode("utf-8", "backslashreplace")
    headers_at = frame.offset + 4 + len(path)
    if headers:
        frame.content["headers"] = _json(frame, "headers", bytes(headers), headers_at)
    _describe_payload(frame, payload, headers_at + len(headers) + 4)


def _describe_payload(frame: Frame, payload: bytes, at: int) -> None:
    """The two-part message in a request; what follows it is ignored by Dynamo, too."""
    decoder = TwoPartDecoder(MAX_FRAME_SIZE)
    messages = complete_messages(decoder, payload)
    if not messages:
        reason = decoder.failed or f"its {len(payload)} bytes are no whole two-part message"
        frame.problems.append(f"payload, byte {at}: {reason}")
        return
    header, data = bytes(messages[0].header), bytes(messages[0].data)
    frame.lengths |= {"control": len(header), "body": len(data)}
    if header:
        frame.content["control"] = _with_info(_json(frame, "control", header, at + _PREFIX_SIZE))
    if data:
        control = frame.content.get("control")
        codec = control.get("payload_codec", "json") if isinstance(control, dict) else None
        frame.content["body"] = _value(frame, "body", data, at + _PREFIX_SIZE + len(header), codec)


def _describe_ack(frame: Frame, message: TcpResponseMessage) -> None:
    data = bytes(message.data)
    frame.kind = "refusal" if data else "ack"
    frame.size = 4 + len(data)
    if data:
        frame.lengths = {"text": len(data)}
        frame.content["text"] = data.decode("utf-8", "backslashreplace")


def _describe_two_part(frame: Frame, message: TwoPartMessage) -> None:
    header, data = bytes(message.header), bytes(message.data)
    frame.size = _PREFIX_SIZE + len(header) + len(data)
    frame.lengths = {name: len(part) for name, part in (("header", header), ("data", data)) if part}
    frame.kind = "empty"
    at = frame.offset + _PREFIX_SIZE
    if header:
        _describe_header(frame, _json(frame, "header", header, at))
    if data:
        value = frame.content["data"] = _value(frame, "data", data, at + len(header))
        if not header:
            frame.kind = _kind_of_item(value)


def _describe_header(frame: Frame, value: Any) -> None:
    frame.kind = "header"
    if isinstance(value, str) and value in _CONTROLS:
        frame.kind = value
        return
    frame.content["header"] = value
    if isinstance(value, dict):
        if "subject" in value:
            frame.kind = "handshake"
        elif "request_type" in value:
            frame.kind = "request payload"
            frame.content["header"] = _with_info(value)
        elif "error" in value:
            frame.kind = "prologue"


def _kind_of_item(value: Any) -> str:
    """What a data frame is. On a request stream of a bidirectional call the values are bare."""
    if not isinstance(value, dict) or not isinstance(value.get("complete_final"), bool):
        return "input"
    inner = value.get("data")
    if inner is None:
        return "final" if value["complete_final"] else "item"
    event = inner.get("event") if isinstance(inner, dict) else None
    if event is None:
        return "item"
    return "error" if event == "error" else "event"


def _with_info(control: Any) -> Any:
    """The control message with the JSON texts within it read, too."""
    if not isinstance(control, dict):
        return control
    read = dict(control)
    for name in ("connection_info", "request_stream_connection_info"):
        outer = read.get(name)
        if isinstance(outer, dict) and isinstance(outer.get("info"), str):
            try:
                read[name] = {**outer, "info": msgspec.json.decode(outer["info"])}
            except UNREADABLE:
                pass  # it stays the text that it is
    return read


def _json(frame: Frame, name: str, data: bytes, at: int) -> Any:
    return _value(frame, name, data, at, "json")


def _value(frame: Frame, name: str, data: bytes, at: int, codec: object = None) -> Any:
    """The value in a part, which begins at byte `at`; what cannot be read is told, and stays bytes."""
    if codec is None:
        codec = _codec_of(data)
    decode = msgspec.msgpack.decode if codec == "msgpack" else msgspec.json.decode
    try:
        return decode(data)
    except UNREADABLE as error:
        found = _BYTE.search(str(error))
        place = at + int(found[1]) if found else at
        frame.problems.append(f"{name}, byte {place}: no {codec}: {reason(error)}")
        return data


def _codec_of(data: bytes) -> str:
    """The format of a part that nothing names: JSON if it is JSON."""
    if data[0] in b'{["-0123456789tfn':
        try:
            msgspec.json.decode(data)
        except UNREADABLE:
            # What only looks like JSON is most likely damaged JSON, if it is text at all.
            return "json" if data.isascii() and data[0] in b'{["' else "msgpack"
        return "json"
    return "msgpack"


_READERS: dict[tuple[Plane, bool], tuple[str, Callable[[int], _Decoder], Callable[[Frame, Any], None]]] = {
    (Plane.REQUEST, True): (">", TcpRequestDecoder, _describe_request),
    (Plane.REQUEST, False): ("<", TcpResponseDecoder, _describe_ack),
    (Plane.RESPONSE, True): ("<", TwoPartDecoder, _describe_two_part),
    (Plane.RESPONSE, False): (">", TwoPartDecoder, _describe_two_part),
}
