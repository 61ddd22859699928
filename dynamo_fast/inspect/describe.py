"""`describe`: what a message says, decoded, with the place of each byte that cannot be read."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from struct import Struct
from typing import Any

import msgspec

from dynamo_fast.codec import (
    MUX_PREFIX_SIZE,
    MuxDecoder,
    MuxFrame,
    TcpRequestDecoder,
    TcpRequestMessage,
    TcpResponseDecoder,
    TcpResponseMessage,
    TwoPartDecoder,
    TwoPartMessage,
)
from dynamo_fast.errors import CodecError
from dynamo_fast.wire.mux import CLOSE, CREDIT, DATA, HELLO, KILL, OPEN, PROLOGUE, SEEN, STOP, kind_name
from dynamo_fast.wire.text import UNREADABLE, reason

__all__ = ["MAX_FRAME_SIZE", "PREFIX", "AnswerDecoder", "Decoder", "Frame", "Message", "complete_messages", "describe"]

MAX_FRAME_SIZE = 1 << 30
"""Bytes. Dynamo itself has no limit on the response plane; this one keeps a damaged length from filling the memory."""
PREFIX = Struct(">QQQ")
"""What a two-part message begins with: the lengths of its header and its data, and a checksum."""
_BYTE = re.compile(r"\(byte (\d+)\)")
_CONTROLS = {"sentinel", "stop", "kill"}
_FROM_ROUTER = {"stop", "kill", "input"}

_SESSION = b'{"mux":'
"""How the handshake of a session begins (mux.md 3)."""
_MUX_FROM_ROUTER = {HELLO, STOP, KILL, CREDIT, SEEN}

Message = TwoPartMessage | TcpRequestMessage | TcpResponseMessage | MuxFrame


class AnswerDecoder:
    """What a worker writes on a connection that it has dialled: two-part messages, or one of them and then mux frames.

    As a decoder of `dynamo_fast.codec`. A direction of a conversation owns it.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._decoder: TwoPartDecoder | MuxDecoder = TwoPartDecoder(limit)
        self._begins = b""  # until it is known what follows the first message
        self._is_known = False
        self.is_session = False
        """Whether mux frames follow the handshake."""

    @property
    def failed(self) -> CodecError | None:
        return self._decoder.failed

    @property
    def pending(self) -> int:
        return self._decoder.pending

    def feed(self, data: bytes) -> list[Any]:
        """See `TwoPartDecoder.feed`."""
        if self._is_known:
            return list(self._decoder.feed(data))
        self._begins += data
        header_len = PREFIX.unpack_from(self._begins)[0] if len(self._begins) >= PREFIX.size else 0
        header = self._begins[PREFIX.size :][:header_len]
        may_be_session = len(header) < len(_SESSION) <= header_len and _SESSION.startswith(header)
        if may_be_session or (header.startswith(_SESSION) and len(header) < header_len <= self._limit):
            return []
        self._is_known = True
        begins, self._begins = self._begins, b""
        if not header.startswith(_SESSION):
            return list(self._decoder.feed(begins))
        size = PREFIX.size + header_len
        messages: list[Any] = list(self._decoder.feed(begins[:size]))
        self._decoder, self.is_session = MuxDecoder(self._limit), True
        return messages + complete_messages(self._decoder, begins[size:])


Decoder = TwoPartDecoder | TcpRequestDecoder | TcpResponseDecoder | MuxDecoder | AnswerDecoder


@dataclass(slots=True)
class Frame:
    """One frame, or damage.

    `direction` is ">" from router to worker and "<" from worker to router, on both planes. `kind` is

    - on the request plane "request", "ack" or "refusal";
    - on the response plane "handshake", "prologue", "item", "event", "error", "final", "sentinel", "stop", "kill",
      "input" (an item of a bidirectional call), "request payload", "header" (of an unknown form) or "empty";
    - on a session also "session" (its handshake), "open", "part" (of an item or a prologue), "end", "cut", "hello",
      "credit", "ping", "pong" and "close" (mux.md 4);
    - "damage" for bytes that cannot be read, which end their direction.

    `offset` is where the frame begins in its direction of the connection, `size` counts all its bytes, `lengths` the
    bytes of its parts. `content` holds the parts by name, decoded. `problems` say what in them could not be read, and at
    which byte of the direction; such a part is the bytes themselves.
    """

    direction: str
    kind: str
    offset: int
    size: int
    lengths: dict[str, int] = field(default_factory=dict)
    content: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def describe(message: Message, *, direction: str | None = None, offset: int = 0, before: bytes = b"") -> Frame:
    """What a message of one of the decoders says. `offset` is where its frame begins, `before` the parts of an item before.

    Without `direction`, it follows from the message; a "sentinel" is then taken for the worker's. Content that cannot be
    read is told in `problems`. Raises TypeError for what is not a message of `dynamo_fast.codec`.
    """
    frame = Frame("<", "", offset, 0)
    if isinstance(message, TcpRequestMessage):
        _describe_request(frame, message)
        frame.direction = ">"
    elif isinstance(message, TcpResponseMessage):
        _describe_ack(frame, message)
    elif isinstance(message, TwoPartMessage):
        _describe_two_part(frame, message)
        frame.direction = ">" if frame.kind in _FROM_ROUTER else "<"
    elif isinstance(message, MuxFrame):
        _describe_mux(frame, message, before)
        frame.direction = ">" if message.kind in _MUX_FROM_ROUTER else "<"
    else:
        raise TypeError(f"{type(message).__name__} is not a message of dynamo_fast.codec, such as a TwoPartMessage")
    frame.direction = direction or frame.direction
    return frame


def complete_messages(decoder: Decoder, data: bytes) -> list[Any]:
    """The messages that `data` completes; an error in the bytes after them is in `decoder.failed`."""
    try:
        return list(decoder.feed(data))
    except CodecError:
        return []


# The three kinds of messages -------------------------------------------------------------------------------------------


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
    """The two-part message in a request. Dynamo ignores what follows it."""
    decoder = TwoPartDecoder(MAX_FRAME_SIZE)
    messages = complete_messages(decoder, payload)
    if not messages:
        reason = decoder.failed or f"its {len(payload)} bytes are no whole two-part message"
        frame.problems.append(f"payload, byte {at}: {reason}")
        return
    header, data = bytes(messages[0].header), bytes(messages[0].data)
    frame.lengths |= {"control": len(header), "body": len(data)}
    if header:
        frame.content["control"] = _with_info(_json(frame, "control", header, at + PREFIX.size))
    if data:
        control = frame.content.get("control")
        codec = control.get("payload_codec", "json") if isinstance(control, dict) else None
        frame.content["body"] = _value(frame, "body", data, at + PREFIX.size + len(header), codec)


def _describe_ack(frame: Frame, message: TcpResponseMessage) -> None:
    data = bytes(message.data)
    frame.kind = "refusal" if data else "ack"
    frame.size = 4 + len(data)
    if data:
        frame.lengths = {"text": len(data)}
        frame.content["text"] = data.decode("utf-8", "backslashreplace")


def _describe_two_part(frame: Frame, message: TwoPartMessage) -> None:
    header, data = bytes(message.header), bytes(message.data)
    frame.size = PREFIX.size + len(header) + len(data)
    frame.lengths = {name: len(part) for name, part in (("header", header), ("data", data)) if part}
    frame.kind = "empty"
    at = frame.offset + PREFIX.size
    if header:
        _describe_header(frame, _json(frame, "header", header, at))
    if data:
        value = frame.content["data"] = _value(frame, "data", data, at + len(header))
        if not header:
            frame.kind = _kind_of_item(value)


def _describe_mux(frame: Frame, message: MuxFrame, before: bytes) -> None:
    body, kind, at = before + bytes(message.body), message.kind, frame.offset + MUX_PREFIX_SIZE
    frame.size = MUX_PREFIX_SIZE + len(message.body)
    frame.lengths = {"body": len(message.body)} if message.body else {}
    frame.kind = kind_name(kind).lower()
    frame.content = {"stream": message.stream}
    if kind == DATA:
        frame.kind = "empty"
        if body:
            value = frame.content["data"] = _value(frame, "data", body, at - len(before))
            frame.kind = _kind_of_item(value)
    elif kind == PROLOGUE:
        frame.content["header"] = _json(frame, "header", body, at - len(before)) if body else {"error": None}
    elif kind == HELLO and len(body) == 12:
        numbers = (int.from_bytes(body[place : place + 4], "big") for place in (0, 4, 8))
        frame.content |= zip(("version", "stream_window", "connection_window"), numbers, strict=True)
    elif kind == CREDIT and len(body) == 4:
        frame.content["bytes"] = int.from_bytes(body, "big")
    elif kind == SEEN and len(body) == 4:
        frame.content["last"] = int.from_bytes(body, "big")
    elif kind in (OPEN, CLOSE):
        frame.content["subject" if kind == OPEN else "reason"] = body.decode("utf-8", "backslashreplace")
    elif body:
        frame.content["body"] = body


def _describe_header(frame: Frame, value: Any) -> None:
    frame.kind = "header"
    if isinstance(value, str) and value in _CONTROLS:
        frame.kind = value
        return
    frame.content["header"] = value
    if isinstance(value, dict):
        if "subject" in value:
            frame.kind = "handshake"
        elif "mux" in value:
            frame.kind = "session"
        elif "request_type" in value:
            frame.kind = "request payload"
            frame.content["header"] = _with_info(value)
        elif "error" in value:
            frame.kind = "prologue"


def _kind_of_item(value: Any) -> str:
    """What a data frame is. On the request stream of a bidirectional call the values have no envelope."""
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
    """The control message, with the JSON texts inside it decoded."""
    if not isinstance(control, dict):
        return control
    read = dict(control)
    for name in ("connection_info", "request_stream_connection_info"):
        outer = read.get(name)
        if isinstance(outer, dict) and isinstance(outer.get("info"), str):
            try:
                read[name] = {**outer, "info": msgspec.json.decode(outer["info"])}
            except UNREADABLE:
                pass  # it stays a text
    return read


def _json(frame: Frame, name: str, data: bytes, at: int) -> Any:
    return _value(frame, name, data, at, "json")


def _value(frame: Frame, name: str, data: bytes, at: int, codec: object = None) -> Any:
    """The value in a part that begins at byte `at`. If it cannot be read, that is a problem, and the value is its bytes."""
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
    """The format of a part if no field names it: JSON if it parses as JSON."""
    if data[0] in b'{["-0123456789tfn':
        try:
            msgspec.json.decode(data)
        except UNREADABLE:
            # Text that begins like JSON is most likely damaged JSON.
            return "json" if data.isascii() and data[0] in b'{["' else "msgpack"
        return "json"
    return "msgpack"
