# cython: freethreading_compatible=True, annotation_typing=False
"""The control messages: small JSON texts around the payload (transport.md 3, 4.3, 4.4, 4.6).

    RequestControlMessage     router -> worker   header of the request: who asks, and where the answer goes
    CallHomeHandshake         worker -> router   first frame of a response (or request) stream: what it belongs to
    ResponseStreamPrologue    worker -> router   second frame: whether the handler could be started
    ControlMessage            both ways          stop, kill, sentinel

Always JSON, whatever the payload codec, with the keys in Dynamo's order. Each `decode` raises ControlError.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, Literal, TypeVar

import msgspec

from dynamo_fast.errors import ControlError, InvalidAddress, RemoteError, SerializationError
from dynamo_fast.wire.address import split_host_port
from dynamo_fast.wire.error import decode_error, encodable, encode_error
from dynamo_fast.wire.json_text import dumps
from dynamo_fast.wire.mux import MuxOffer
from dynamo_fast.wire.payload import PayloadCodec
from dynamo_fast.wire.text import UNREADABLE, needs_no_escape, reason, shown

__all__ = [
    "MAX_CONTROL_MESSAGE_SIZE",
    "CallHomeHandshake",
    "ConnectionInfo",
    "ControlMessage",
    "RequestControlMessage",
    "RequestType",
    "ResponseStreamPrologue",
    "ResponseType",
    "StreamType",
    "TcpStreamConnectionInfo",
    "encode_plain_single_in",
    "encode_single_in",
    "usual_subject",
]

MAX_CONTROL_MESSAGE_SIZE = 131_072
"""Bytes of a request's control message, checked by the router that sends it (transport.md 3.2)."""

_TCP_SERVER = "tcp_server"
_T = TypeVar("_T")


class StreamType(str, Enum):
    """What a worker's connection to the router carries."""

    REQUEST = "request"
    RESPONSE = "response"


class RequestType(str, Enum):
    """One request body, or a stream of them (bidirectional endpoints)."""

    SINGLE_IN = "single_in"
    MANY_IN = "many_in"


class ResponseType(str, Enum):
    """Always a stream on the wire; workers read `single_out` as the same."""

    SINGLE_OUT = "single_out"
    MANY_OUT = "many_out"


class ConnectionInfo(msgspec.Struct, frozen=True, gc=False):
    """Where an answer goes, as it stands in the control message: `info` is JSON within JSON."""

    transport: str
    info: str


class TcpStreamConnectionInfo(msgspec.Struct, frozen=True, gc=False):
    """Where a worker dials: `address` is `host:port`, `subject` names the stream, `context` is the request's id."""

    address: str
    subject: str
    context: str
    stream_type: StreamType = StreamType.RESPONSE

    def to_connection_info(self) -> ConnectionInfo:
        """As the control message carries it. Raises SerializationError for an id that is not Unicode."""
        return ConnectionInfo(_TCP_SERVER, _encode(_encode_tcp_stream_info, self).decode())

    @classmethod
    def from_connection_info(cls, connection_info: ConnectionInfo) -> TcpStreamConnectionInfo:
        """Read it. Raises ControlError, also for an address that cannot be dialled."""
        if connection_info.transport != _TCP_SERVER:
            raise ControlError(
                f"response transport {shown(connection_info.transport)} is not offered, only {_TCP_SERVER!r}"
            )
        info = _decode(_tcp_stream_info, connection_info.info.encode("utf-8", "surrogatepass"), "connection info")
        try:
            split_host_port(info.address)
        except InvalidAddress as error:
            raise ControlError(f"malformed connection info: {error}") from None
        return info


class RequestControlMessage(msgspec.Struct, frozen=True, gc=False):
    """The header part of a request's two-part message."""

    id: str
    connection_info: ConnectionInfo
    request_type: RequestType = RequestType.SINGLE_IN
    response_type: ResponseType = ResponseType.MANY_OUT
    payload_codec: PayloadCodec = PayloadCodec.JSON
    metadata: Mapping[str, str] = {}  # msgspec copies the default for each object
    frontend_send_ts_ns: int | None = None
    request_stream_connection_info: ConnectionInfo | None = None
    mux: MuxOffer | None = None
    """Whether the answer may come on a session (mux.md 2). The key is ours; Dynamo ignores it."""

    def encode(self) -> bytes:
        """The JSON text, the same for Dynamo 1.3 and 1.6; keys without a value are left out, metadata is sorted.

        Raises SerializationError for a text that is not Unicode.
        """
        return _encode(
            _encode_request_control,
            _RawRequestControl(
                id=self.id,
                request_type=self.request_type,
                response_type=self.response_type,
                payload_codec=self.payload_codec.value,
                connection_info=self.connection_info,
                metadata=dict(sorted(self.metadata.items())) if self.metadata else {},
                frontend_send_ts_ns=self.frontend_send_ts_ns,
                request_stream_connection_info=self.request_stream_connection_info,
                mux=self.mux,
            ),
        )

    @classmethod
    def decode(cls, data: bytes | memoryview) -> RequestControlMessage:
        """Read it; unknown keys are ignored, an absent codec means JSON. Raises ControlError."""
        raw = _decode(_request_control, data, "control message")
        return cls(
            id=raw.id,
            connection_info=raw.connection_info,
            request_type=raw.request_type,
            response_type=raw.response_type,
            payload_codec=_MSGPACK if raw.payload_codec == "msgpack" else _JSON,
            metadata=raw.metadata,
            frontend_send_ts_ns=raw.frontend_send_ts_ns,
            request_stream_connection_info=raw.request_stream_connection_info,
            mux=None if raw.mux is None else MuxOffer.of(raw.mux),
        )


def encode_single_in(id: str, address: str, subject: str, codec: PayloadCodec, metadata: Mapping[str, str]) -> bytes:
    """The control message of a request with one body, whose answer goes to `subject` at `address`.

    What `RequestControlMessage.encode` writes, at a third of the cost for nearly every request. Raises
    SerializationError for a text that is not Unicode.
    """
    if metadata or not needs_no_escape(id):
        return _single_in(id, address, subject, codec, metadata)
    return encode_plain_single_in(id, address, subject, codec)


def encode_plain_single_in(id: str, address: str, subject: str, codec: PayloadCodec) -> bytes:
    """The same for an id that is known to need no escape, and without metadata."""
    to_id, to_address, to_subject, to_context, end = _SINGLE_IN_MSGPACK if codec is _MSGPACK else _SINGLE_IN_JSON
    return f"{to_id}{id}{to_address}{address}{to_subject}{subject}{to_context}{id}{end}".encode()


def _single_in(id: str, address: str, subject: str, codec: PayloadCodec, metadata: Mapping[str, str]) -> bytes:
    info = TcpStreamConnectionInfo(address, subject, id).to_connection_info()
    return RequestControlMessage(id=id, connection_info=info, payload_codec=codec, metadata=metadata).encode()


class CallHomeHandshake(msgspec.Struct, frozen=True, gc=False):
    """The first frame on a connection that a worker has dialled."""

    subject: str
    stream_type: StreamType = StreamType.RESPONSE

    def encode(self) -> bytes:
        """The JSON text."""
        subject = self.subject
        if self.stream_type is _RESPONSE and needs_no_escape(subject):
            return f'{{"subject":"{subject}","stream_type":"response"}}'.encode()
        return dumps({"subject": subject, "stream_type": self.stream_type})

    @classmethod
    def decode(cls, data: bytes | memoryview) -> CallHomeHandshake:
        """Read it. Raises ControlError."""
        return _decode(_handshake, data, "handshake")


def usual_subject(handshake: bytes | memoryview) -> str | None:
    """What stands for the subject in the text that every worker writes for a response; None if it is another text.

    It is the subject if it needs no escape, as those that a registry gives out.
    """
    if type(handshake) is not bytes:
        return None
    text: bytes = handshake
    if not (text.startswith(_TO_SUBJECT) and text.endswith(_TO_END)):
        return None
    return text[len(_TO_SUBJECT) : -len(_TO_END)].decode("latin-1")


class ResponseStreamPrologue(msgspec.Struct, frozen=True):
    """The second frame of a response stream. `error` is None if the handler was started, else the reason as a text.

    `typed_error` says the same in a form that a program can read; Dynamo writes it since 1.6.
    """

    error: str | None = None
    typed_error: RemoteError | None = None

    def encode(self) -> bytes:
        """The JSON text."""
        prologue: dict[str, object] = {"error": None if self.error is None else encodable(self.error)}
        if self.error is not None and self.typed_error is not None:
            prologue["typed_error"] = encode_error(self.typed_error)
        return dumps(prologue)

    @classmethod
    def decode(cls, data: bytes | memoryview) -> ResponseStreamPrologue:
        """Read it; without `error` there is none. Raises ControlError."""
        raw = _decode(_prologue, data, "prologue")
        if raw.error is None or raw.typed_error is None:
            return cls(raw.error)
        return cls(raw.error, decode_error(raw.typed_error))


class ControlMessage(Enum):
    """What may be said about a stream while it runs."""

    STOP = "stop"
    KILL = "kill"
    SENTINEL = "sentinel"

    def encode(self) -> bytes:
        """The JSON text: the word in quotes."""
        return _CONTROL_TEXTS[self]

    @classmethod
    def decode(cls, data: bytes | memoryview) -> ControlMessage:
        """Read it. Raises ControlError."""
        return _CONTROL_MESSAGES.get(data) or cls(_decode(_control, data, "control message"))


# What nearly every stream has is known by its usual text, and needs no parser.
_CONTROL_TEXTS = {message: dumps(message.value) for message in ControlMessage}
_CONTROL_MESSAGES: dict[bytes | memoryview, ControlMessage] = {text: each for each, text in _CONTROL_TEXTS.items()}


# The fields stand in the order in which Dynamo writes them, and what is at its default is left out, as it does. The codec
# is always written, and may be absent when it is read.
class _RawRequestControl(msgspec.Struct, kw_only=True, omit_defaults=True, gc=False):
    id: str
    request_type: RequestType
    response_type: ResponseType
    payload_codec: Literal["json", "msgpack"] | msgspec.UnsetType = msgspec.UNSET
    connection_info: ConnectionInfo
    metadata: dict[str, str] = {}  # as above
    frontend_send_ts_ns: int | None = None
    request_stream_connection_info: ConnectionInfo | None = None
    mux: Any = msgspec.field(default=None, name="dynamo_fast_mux")


class _RawPrologue(msgspec.Struct):
    error: str | None = None
    typed_error: Any = None


def _encode(encode: Callable[[object], bytes], message: object) -> bytes:
    try:
        return encode(message)
    except UnicodeEncodeError as error:
        raise SerializationError(f"the id or the metadata of the request cannot be written: {error}") from None


_request_control = msgspec.json.Decoder(_RawRequestControl)
_encode_request_control = msgspec.json.Encoder().encode
_encode_tcp_stream_info = msgspec.json.Encoder().encode
_JSON, _MSGPACK = PayloadCodec.JSON, PayloadCodec.MSGPACK
_RESPONSE = StreamType.RESPONSE
_SINGLE_IN_JSON, _SINGLE_IN_MSGPACK = (
    _single_in("?", "?", "?", codec, {}).decode().split("?") for codec in PayloadCodec
)
_TO_SUBJECT, _TO_END = CallHomeHandshake("?").encode().split(b"?")
_tcp_stream_info = msgspec.json.Decoder(TcpStreamConnectionInfo)
_handshake = msgspec.json.Decoder(CallHomeHandshake)
_prologue = msgspec.json.Decoder(_RawPrologue)
_control: msgspec.json.Decoder[str] = msgspec.json.Decoder(Literal["stop", "kill", "sentinel"])


def _decode(decoder: msgspec.json.Decoder[_T], data: bytes | memoryview, what: str) -> _T:
    try:
        return decoder.decode(data)
    except UNREADABLE as error:
        raise ControlError(f"malformed {what}: {reason(error)} (in {shown(data)})") from None
