"""The frames of Dynamo's TCP planes in Python: the fallback backend, and the readable reference of the format.

Use `dynamo_fast.codec`, which chooses between this module and its compiled twin `_codec`; the two agree in every result,
error and message. All integers are big-endian. Frames follow each other back to back, without magic, version or padding.

    two-part message    u64 header_len  u64 data_len  u64 checksum  header  data        (either end of a response stream)
    TCP request frame   u16 path_len  path  u16 headers_len  headers  u32 payload_len  payload       (router to worker)
    TCP response frame  u32 data_len  data                                  (the acknowledgement: worker to router)
    mux frame           u32 stream  u8 kind  u24 length  body            (between ends of this package only: mux.md 4)

The payload of a request is itself one two-part message. The checksum is xxh3-64 of header and data; 0 means "none".

Lengths are hostile: a frame is refused as soon as its lengths have been read, before its body is buffered. Buffering
goes by the bytes that came, never by the bytes that were announced.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from io import BytesIO
from struct import Struct
from typing import Generic, NoReturn, TypeVar, cast

from dynamo_fast.errors import (
    ChecksumMismatch,
    CodecError,
    IncompleteMessage,
    InvalidConfig,
    MessageTooLarge,
    TrailingBytes,
)

__all__ = [
    "MUX_BODY_LIMIT",
    "MUX_DATA",
    "MUX_PART",
    "MUX_PREFIX_SIZE",
    "VIEW_THRESHOLD",
    "MuxCodec",
    "MuxDecoder",
    "MuxFrame",
    "TcpRequestCodec",
    "TcpRequestDecoder",
    "TcpRequestMessage",
    "TcpResponseCodec",
    "TcpResponseDecoder",
    "TcpResponseMessage",
    "TwoPartCodec",
    "TwoPartDecoder",
    "TwoPartMessage",
    "TwoPartMessageType",
    "decode_two_part",
    "encode_data_frames",
    "encode_mux_frame",
    "encode_mux_items",
    "encode_two_part",
    "mux_frames_within",
]

BytesLike = bytes | bytearray | memoryview
Body = bytes | memoryview

VIEW_THRESHOLD = 16 * 1024
"""Bytes of a part from which on `views=True` makes it a view. A view costs what a copy of 8 KiB does, and pins memory: from
twice that on it is worth it (docs/performance.md).
"""

MUX_PREFIX_SIZE = 8
MUX_BODY_LIMIT = 16 * 1024
"""Bytes of the longest body that is written; a longer item is cut (mux.md 4)."""
MUX_DATA, MUX_PART = 3, 4
"""The kinds of frames that carry an item: all of it or its last part; a part that is not the last one."""

_TWO_PART_PREFIX = Struct(">QQQ")
_TWO_PART_LENGTHS = Struct(">QQ")
_TWO_PART_PREFIX_SIZE = 24
_U16 = Struct(">H")
_U32 = Struct(">I")
_TWO_U32 = Struct(">II")
_U8_MAX = 0xFF
_U16_MAX = 0xFFFF
_U24_MAX = 0xFF_FFFF
_U32_MAX = 0xFFFF_FFFF

_SHOWN = 64


class TwoPartMessageType(Enum):
    """What a two-part message holds, decided by its two lengths alone (transport.md 1.2)."""

    EMPTY = "empty"
    HEADER_ONLY = "header_only"
    DATA_ONLY = "data_only"
    HEADER_AND_DATA = "header_and_data"


# -- messages -------------------------------------------------------------------------------------------------------


class _Message:
    """What the messages share: they are values, equal when their parts are."""

    __slots__ = ()

    def _parts(self) -> tuple[bytes, ...]:
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._parts() == other._parts()

    def __hash__(self) -> int:
        # By way of bytes: a view may lie over memory that does not hash.
        return hash(tuple(bytes(part) for part in self._parts()))

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), tuple(bytes(part) for part in self._parts())


class TwoPartMessage(_Message):
    """A header and data, either of which may be empty. Immutable, hashable, picklable: `header, data = message`.

    `header` and `data` are bytes; anything else that is bytes-like is copied. Raises TypeError for the rest. Only a decoder
    that was made with `views=True` puts memoryviews into its messages. They compare equal to the same bytes; the types say
    bytes, so that those who do not ask for views need no casts.
    """

    __slots__ = ("_data", "_header")
    _header: bytes
    _data: bytes

    def __init__(self, header: BytesLike = b"", data: BytesLike = b"") -> None:
        if hasattr(self, "_header"):
            raise unchangeable(self)
        self._header = copied("header", header)
        self._data = copied("data", data)

    @classmethod
    def from_parts(cls, header: BytesLike, data: BytesLike) -> TwoPartMessage:
        """The same as the constructor: Dynamo's name for it."""
        return cls(header, data)

    @classmethod
    def from_header(cls, header: BytesLike) -> TwoPartMessage:
        """A message without data: the control messages of a response stream."""
        return cls.from_parts(header, b"")

    @classmethod
    def from_data(cls, data: BytesLike) -> TwoPartMessage:
        """A message without header: the items of a response stream."""
        return cls.from_parts(b"", data)

    @property
    def header(self) -> bytes:
        return self._header

    @property
    def data(self) -> bytes:
        return self._data

    @property
    def message_type(self) -> TwoPartMessageType:
        if self._header:
            return TwoPartMessageType.HEADER_AND_DATA if self._data else TwoPartMessageType.HEADER_ONLY
        return TwoPartMessageType.DATA_ONLY if self._data else TwoPartMessageType.EMPTY

    def parts(self) -> tuple[bytes, bytes]:
        """`(header, data)`"""
        return self._header, self._data

    _parts = parts

    def __iter__(self) -> Iterator[bytes]:
        return iter((self._header, self._data))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(header={elided(self._header)}, data={elided(self._data)})"


class TcpRequestMessage(_Message):
    """A request on its way to a worker: the endpoint's path, the headers (JSON text, raw) and the payload (raw).

    Its parts are as those of a TwoPartMessage: `path, headers, payload = message`.
    """

    __slots__ = ("_endpoint_path", "_headers", "_payload")
    _endpoint_path: bytes
    _headers: bytes
    _payload: bytes

    def __init__(self, endpoint_path: BytesLike, headers: BytesLike, payload: BytesLike) -> None:
        if hasattr(self, "_endpoint_path"):
            raise unchangeable(self)
        self._endpoint_path = copied("endpoint_path", endpoint_path)
        self._headers = copied("headers", headers)
        self._payload = copied("payload", payload)

    @classmethod
    def from_parts(cls, endpoint_path: BytesLike, headers: BytesLike, payload: BytesLike) -> TcpRequestMessage:
        """The same as the constructor."""
        return cls(endpoint_path, headers, payload)

    @property
    def endpoint_path(self) -> bytes:
        return self._endpoint_path

    @property
    def headers(self) -> bytes:
        return self._headers

    @property
    def payload(self) -> bytes:
        return self._payload

    def _parts(self) -> tuple[bytes, ...]:
        return self._endpoint_path, self._headers, self._payload

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._parts())

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(endpoint_path={elided(self._endpoint_path)}, "
            f"headers={elided(self._headers)}, payload={elided(self._payload)})"
        )


class TcpResponseMessage(_Message):
    """The acknowledgement of a request: empty data means "accepted", anything else is the text of a refusal."""

    __slots__ = ("_data",)
    _data: bytes

    def __init__(self, data: BytesLike = b"") -> None:
        if hasattr(self, "_data"):
            raise unchangeable(self)
        self._data = copied("data", data)

    @classmethod
    def from_parts(cls, data: BytesLike) -> TcpResponseMessage:
        """The same as the constructor."""
        return cls(data)

    @property
    def data(self) -> bytes:
        return self._data

    def _parts(self) -> tuple[bytes, ...]:
        return (self._data,)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(data={elided(self._data)})"


class MuxFrame(_Message):
    """One frame of the multiplexed response plane: number of a stream, kind (see `wire.mux`), and body.

    A body that is bytes-like is copied. Raises TypeError for another one, and ValueError for a number that does not fit
    its field.
    """

    __slots__ = ("_body", "_kind", "_stream")
    _stream: int
    _kind: int
    _body: bytes

    def __init__(self, stream: int, kind: int, body: BytesLike = b"") -> None:
        if hasattr(self, "_body"):
            raise unchangeable(self)
        self._stream = field_of("stream", stream, _U32_MAX)
        self._kind = field_of("kind", kind, _U8_MAX)
        self._body = copied("body", body)

    @property
    def stream(self) -> int:
        return self._stream

    @property
    def kind(self) -> int:
        return self._kind

    @property
    def body(self) -> bytes:
        return self._body

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return (self._stream, self._kind, self._body) == (other._stream, other._kind, other._body)

    def __hash__(self) -> int:
        return hash((self._stream, self._kind, self._body))

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self._stream, self._kind, self._body)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(stream={self._stream}, kind={self._kind}, body={elided(self._body)})"


# -- what both backends use off the hot path: arguments and errors --------------------------------------------------

M = TypeVar("M", bound=_Message)


def message_limit(max_message_size: int | None) -> int:
    """The largest frame in bytes: `max_message_size`, or what this machine can address. Raises InvalidConfig."""
    if max_message_size is None:
        return sys.maxsize
    if isinstance(max_message_size, bool) or not isinstance(max_message_size, int) or max_message_size < 0:
        raise InvalidConfig(f"max_message_size must be a number of bytes from 0 on, or None, not {max_message_size!r}")
    return min(max_message_size, sys.maxsize)


def view_threshold(views: bool) -> int:
    """From how many bytes on a part is a view."""
    return VIEW_THRESHOLD if views else sys.maxsize


def xxh3_64() -> Callable[[BytesLike], int]:
    """The checksum function. xxhash is imported only when checksums are asked for."""
    try:
        from xxhash import xxh3_64_intdigest
    except ImportError as error:
        raise InvalidConfig("checksum=True needs the xxhash package: pip install xxhash") from error
    return xxh3_64_intdigest


def unchangeable(message: object) -> TypeError:
    """What a second call of `__init__` raises: a message is a value."""
    return TypeError(f"a {type(message).__name__} cannot be changed")


def copied(name: str, value: BytesLike) -> bytes:
    """A part of a message: bytes. Raises TypeError."""
    return value if type(value) is bytes else _view_of(name, value).tobytes()


def owned(name: str, value: BytesLike) -> Body:
    """Memory to decode that does not change: bytes, or (large only) a flat view of bytes. Raises TypeError."""
    if type(value) is bytes:
        return value
    view = _view_of(name, value)
    return view if type(view.obj) is bytes and _is_flat(view) and len(view) >= VIEW_THRESHOLD else view.tobytes()


def borrowed(name: str, value: BytesLike) -> Body:
    """Memory to copy from at once: whatever is flat as it is. Raises TypeError."""
    if type(value) is bytes:
        return value
    view = _view_of(name, value)
    return view if _is_flat(view) else view.tobytes()


def _view_of(name: str, value: BytesLike) -> memoryview:
    try:
        return memoryview(value)
    except TypeError:
        raise TypeError(f"{name} must be bytes-like, not {type(value).__name__}") from None


def _is_flat(view: memoryview) -> bool:
    """Whether the view's items are its bytes, one after the other."""
    return view.ndim == 1 and view.format == "B" and view.c_contiguous


def expect(message: object, kind: type[M]) -> M:
    """`message`, if it is of that kind. Raises TypeError."""
    if not isinstance(message, kind):
        raise TypeError(f"message must be a {kind.__name__}, not {type(message).__name__}")
    return message


def elided(part: Body) -> str:
    """The start of a part, for a repr."""
    text = repr(bytes(part[:_SHOWN]))
    return text if len(part) <= _SHOWN else f"{text}... ({len(part)} bytes)"


def two_part_too_large(at: int | None, header_len: int, data_len: int, limit: int) -> MessageTooLarge:
    """The frame at byte `at` of the stream (None: about to be encoded) announces too much."""
    lengths = f"prefix {_TWO_PART_PREFIX_SIZE} + header {header_len} + data {data_len}"
    return _too_large("two-part message", at, lengths, _TWO_PART_PREFIX_SIZE + header_len + data_len, limit)


def request_too_large(at: int | None, path_len: int, headers_len: int, payload_len: int, limit: int) -> MessageTooLarge:
    lengths = f"lengths 8 + path {path_len} + headers {headers_len} + payload {payload_len}"
    return _too_large("TCP request frame", at, lengths, 8 + path_len + headers_len + payload_len, limit)


def response_too_large(at: int | None, data_len: int, limit: int) -> MessageTooLarge:
    return _too_large("TCP response frame", at, f"length 4 + data {data_len}", 4 + data_len, limit)


def _too_large(name: str, at: int | None, lengths: str, size: int, limit: int) -> MessageTooLarge:
    place = "" if at is None else f" at byte {at}"
    return MessageTooLarge(
        f"{name}{place} is too large: {lengths} = {size} bytes (limit: {limit} bytes)", size=size, limit=limit
    )


def part_too_large(name: str, size: int, limit: int) -> MessageTooLarge:
    """A part of a request that does not fit its length field."""
    return MessageTooLarge(f"{name} is too large: {size} bytes (limit: {limit} bytes)", size=size, limit=limit)


def mux_too_large(at: int | None, stream: int, kind: int, size: int, limit: int) -> MessageTooLarge:
    """A mux frame that is too long, with what else its prefix says."""
    name = f"mux frame (stream {stream}, kind {kind})"
    return _too_large(name, at, f"prefix {MUX_PREFIX_SIZE} + body {size}", MUX_PREFIX_SIZE + size, limit)


def field_of(name: str, value: int, limit: int) -> int:
    """A number for a field of a mux frame. Raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= limit:
        raise ValueError(f"{name} must be a whole number from 0 to {limit}, not {value!r}")
    return value


def checksum_mismatch(at: int, expected: int, actual: int) -> ChecksumMismatch:
    return ChecksumMismatch(
        f"two-part message at byte {at} has checksum {actual:#018x}, but its prefix says {expected:#018x}"
    )


def incomplete(name: str, available: int, required: int) -> IncompleteMessage:
    return IncompleteMessage(f"{name} is incomplete: {available} bytes of at least {required}")


def interrupted(offset: int) -> CodecError:
    """A decoder that was stopped half-way (KeyboardInterrupt, MemoryError) no longer knows where it is."""
    return CodecError(f"decoding was interrupted near byte {offset} and cannot go on")


def trailing(name: str, size: int, available: int) -> TrailingBytes:
    return TrailingBytes(f"{name} ends at byte {size}, but {available - size} more bytes follow")


# -- codecs: one whole frame ----------------------------------------------------------------------------------------


class _Codec(Generic[M]):
    """One frame at a time."""

    _name: str

    def __init__(self, max_message_size: int | None = None, *, views: bool = False) -> None:
        self._limit = message_limit(max_message_size)
        self._threshold = view_threshold(views)
        self._small = min(self._limit, self._threshold)  # bytes of a frame up to which no part is a view, or too large

    def decode_message(self, frame: BytesLike) -> M:
        """The one message that `frame` holds.

        Raises IncompleteMessage or TrailingBytes if it holds less or more than one, and MessageTooLarge.
        """
        source = frame if type(frame) is bytes else owned("frame", frame)
        available = len(source)
        size = self._required(source, 0, available, 0)
        if size > available:
            raise incomplete(self._name, available, size)
        if size < available:
            raise trailing(self._name, size, available)
        return self._parse(source, 0, size, 0)

    def _required(self, source: Body, at: int, available: int, offset: int) -> int:
        """How many bytes the frame at `at` needs: all of it if its lengths are there, else up to its next length.

        The answer is larger than `available` as long as the frame is incomplete. `offset` is the frame's place in the
        stream, for the error. Raises MessageTooLarge.
        """
        raise NotImplementedError

    def _parse(self, source: Body, at: int, size: int, offset: int) -> M:
        """The message of the complete frame of `size` bytes at `at`."""
        raise NotImplementedError


class TwoPartCodec(_Codec["TwoPartMessage"]):
    """Two-part messages of at most `max_message_size` bytes, prefix included (None: no limit of its own).

    With `checksum` it writes the xxh3-64 of header and data, and verifies one that is not 0; else it writes 0 and does
    not look, as released Dynamos do. Raises InvalidConfig for a bad limit, or if xxhash is missing.

    With `views`, a large part of a message is a read-only memoryview of the received memory (see VIEW_THRESHOLD): it costs
    no copy, and keeps that memory as long as it lives. Without, every part is bytes.
    """

    _name = "two-part message"

    def __init__(self, max_message_size: int | None = None, *, checksum: bool = False, views: bool = False) -> None:
        super().__init__(max_message_size, views=views)
        self._digest = xxh3_64() if checksum else None

    def encode_message(self, message: TwoPartMessage) -> bytes:
        """The frame of `message`. Raises MessageTooLarge."""
        header, data = expect(message, TwoPartMessage)._parts()
        if _TWO_PART_PREFIX_SIZE + len(header) + len(data) > self._limit:
            raise two_part_too_large(None, len(header), len(data), self._limit)
        checksum = self._digest(b"".join((header, data))) if self._digest else 0
        return b"".join((_TWO_PART_PREFIX.pack(len(header), len(data), checksum), header, data))

    def decode_message(self, frame: BytesLike) -> TwoPartMessage:
        # A small message that is all there, and not to be verified, needs but one look.
        if type(frame) is bytes and len(frame) >= 24 and self._digest is None:
            header_len, data_len = _TWO_PART_LENGTHS.unpack_from(frame)
            if 24 + header_len + data_len == len(frame) <= self._small:
                message = _new_two_part(TwoPartMessage)
                message._header = frame[24 : 24 + header_len]
                message._data = frame[24 + header_len :]
                return message
        return super().decode_message(frame)

    decode_message.__doc__ = _Codec.decode_message.__doc__

    def _required(self, source: Body, at: int, available: int, offset: int) -> int:
        if available < _TWO_PART_PREFIX_SIZE:
            return _TWO_PART_PREFIX_SIZE
        header_len, data_len, _ = _TWO_PART_PREFIX.unpack_from(source, at)
        size: int = _TWO_PART_PREFIX_SIZE + header_len + data_len
        if size > self._limit:
            raise two_part_too_large(offset, header_len, data_len, self._limit)
        return size

    def _parse(self, source: Body, at: int, size: int, offset: int) -> TwoPartMessage:
        header_len, _, checksum = _TWO_PART_PREFIX.unpack_from(source, at)
        start = at + _TWO_PART_PREFIX_SIZE
        stop = at + size
        if checksum and self._digest:
            actual = self._digest(memoryview(source)[start:stop])
            if actual != checksum:
                raise checksum_mismatch(offset, checksum, actual)
        message = _new_two_part(TwoPartMessage)
        message._header = _cut(source, start, start + header_len, self._threshold)
        message._data = _cut(source, start + header_len, stop, self._threshold)
        return message


class TcpRequestCodec(_Codec["TcpRequestMessage"]):
    """TCP request frames of at most `max_message_size` bytes; the whole frame counts (None: no limit of its own).

    `views` is that of TwoPartCodec.
    """

    _name = "TCP request frame"

    def encode_message(self, message: TcpRequestMessage) -> bytes:
        """The frame of `message`. Raises MessageTooLarge, also for a part that does not fit its length field."""
        path, headers, payload = expect(message, TcpRequestMessage)._parts()
        if len(path) > _U16_MAX:
            raise part_too_large("endpoint_path", len(path), _U16_MAX)
        if len(headers) > _U16_MAX:
            raise part_too_large("headers", len(headers), _U16_MAX)
        if len(payload) > _U32_MAX:
            raise part_too_large("payload", len(payload), _U32_MAX)
        if 8 + len(path) + len(headers) + len(payload) > self._limit:
            raise request_too_large(None, len(path), len(headers), len(payload), self._limit)
        return b"".join(
            (_U16.pack(len(path)), path, _U16.pack(len(headers)), headers, _U32.pack(len(payload)), payload)
        )

    def _required(self, source: Body, at: int, available: int, offset: int) -> int:
        if available < 2:
            return 2
        path_len: int = _U16.unpack_from(source, at)[0]
        if available < path_len + 4:
            return path_len + 4
        headers_len: int = _U16.unpack_from(source, at + 2 + path_len)[0]
        lengths_end = path_len + headers_len + 8
        if available < lengths_end:
            return lengths_end
        payload_len: int = _U32.unpack_from(source, at + lengths_end - 4)[0]
        if lengths_end + payload_len > self._limit:
            raise request_too_large(offset, path_len, headers_len, payload_len, self._limit)
        return lengths_end + payload_len

    def _parse(self, source: Body, at: int, size: int, offset: int) -> TcpRequestMessage:
        path_end = at + 2 + _U16.unpack_from(source, at)[0]
        headers_end = path_end + 2 + _U16.unpack_from(source, path_end)[0]
        message = _new_request(TcpRequestMessage)
        message._endpoint_path = _cut(source, at + 2, path_end, self._threshold)
        message._headers = _cut(source, path_end + 2, headers_end, self._threshold)
        message._payload = _cut(source, headers_end + 4, at + size, self._threshold)
        return message


class TcpResponseCodec(_Codec["TcpResponseMessage"]):
    """TCP response frames of at most `max_message_size` bytes; the whole frame counts (None: no limit of its own).

    `views` is that of TwoPartCodec.
    """

    _name = "TCP response frame"

    def encode_message(self, message: TcpResponseMessage) -> bytes:
        """The frame of `message`. Raises MessageTooLarge, also for data that does not fit its length field."""
        (data,) = expect(message, TcpResponseMessage)._parts()
        if len(data) > _U32_MAX:
            raise part_too_large("data", len(data), _U32_MAX)
        if 4 + len(data) > self._limit:
            raise response_too_large(None, len(data), self._limit)
        return b"".join((_U32.pack(len(data)), data))

    def _required(self, source: Body, at: int, available: int, offset: int) -> int:
        if available < 4:
            return 4
        data_len: int = _U32.unpack_from(source, at)[0]
        if 4 + data_len > self._limit:
            raise response_too_large(offset, data_len, self._limit)
        return 4 + data_len

    def _parse(self, source: Body, at: int, size: int, offset: int) -> TcpResponseMessage:
        message = _new_response(TcpResponseMessage)
        message._data = _cut(source, at + 4, at + size, self._threshold)
        return message


class MuxCodec(_Codec["MuxFrame"]):
    """Mux frames of at most `max_message_size` bytes; the whole frame counts (None: no limit of its own)."""

    _name = "mux frame"

    def __init__(self, max_message_size: int | None = None) -> None:
        super().__init__(max_message_size)

    def encode_message(self, message: MuxFrame) -> bytes:
        """The frame of `message`. Raises MessageTooLarge, also for a body that does not fit its length field."""
        frame = expect(message, MuxFrame)
        size = len(frame._body)
        if size > _U24_MAX:
            raise part_too_large("body", size, _U24_MAX)
        if MUX_PREFIX_SIZE + size > self._limit:
            raise mux_too_large(None, frame._stream, frame._kind, size, self._limit)
        return b"".join((_TWO_U32.pack(frame._stream, frame._kind << 24 | size), frame._body))

    def _required(self, source: Body, at: int, available: int, offset: int) -> int:
        if available < MUX_PREFIX_SIZE:
            return MUX_PREFIX_SIZE
        stream, word = _TWO_U32.unpack_from(source, at)
        size: int = word & _U24_MAX
        if MUX_PREFIX_SIZE + size > self._limit:
            raise mux_too_large(offset, stream, word >> 24, size, self._limit)
        return MUX_PREFIX_SIZE + size

    def _parse(self, source: Body, at: int, size: int, offset: int) -> MuxFrame:
        stream, word = _TWO_U32.unpack_from(source, at)
        frame = _new_mux(MuxFrame)
        frame._stream = stream
        frame._kind = word >> 24
        frame._body = bytes(source[at + MUX_PREFIX_SIZE : at + size])
        return frame


def encode_mux_frame(stream: int, kind: int, body: BytesLike = b"") -> bytes:
    """One mux frame, without an object. Raises what `MuxFrame` and `MuxCodec` raise."""
    field_of("stream", stream, _U32_MAX)
    field_of("kind", kind, _U8_MAX)
    part = borrowed("body", body)
    if len(part) > _U24_MAX:
        raise part_too_large("body", len(part), _U24_MAX)
    return b"".join((_TWO_U32.pack(stream, kind << 24 | len(part)), part))


def encode_mux_items(stream: int, bodies: Iterable[BytesLike], head: BytesLike = b"", tail: BytesLike = b"") -> bytes:
    """The frames of items of one stream, one after the other.

    An item is `head`, one of the bodies, and `tail`, as in `encode_data_frames`. One that is longer than `MUX_BODY_LIMIT`
    is cut. Raises TypeError if a part is not bytes-like, ValueError for a number that is none of a stream; MemoryError or
    OverflowError if there are more than memory can hold.
    """
    field_of("stream", stream, _U32_MAX)
    before, after = borrowed("head", head), borrowed("tail", tail)
    pack, around, limit = _TWO_U32.pack, len(before) + len(after), MUX_BODY_LIMIT
    pieces: list[Body] = []
    for body in bodies:
        part = body if type(body) is bytes else borrowed("data", body)
        size = around + len(part)
        if size <= limit:
            pieces += (pack(stream, MUX_DATA << 24 | size), before, part, after)
            continue
        item = memoryview(b"".join((before, part, after)))
        for at in range(0, size, limit):
            rest = size - at
            kind, length = (MUX_DATA, rest) if rest <= limit else (MUX_PART, limit)
            pieces += (pack(stream, kind << 24 | length), item[at : at + length])
    return b"".join(pieces)


def mux_frames_within(frames: bytes, at: int, limit: int) -> int:
    """Where the last whole frame ends, of those from `at` on that have at most `limit` bytes together; `at` if none.

    `frames` are whole mux frames, one after the other, that this package has written. Raises TypeError and ValueError.
    """
    if type(frames) is not bytes:
        raise TypeError(f"frames must be bytes, not {type(frames).__name__}")
    size = len(frames)
    if not 0 <= at <= size:
        raise ValueError(f"there is no byte {at} in {size} bytes")
    limit = max(0, min(limit, size - at))
    if limit == size - at:
        return size
    end = stop = at
    while stop - at <= limit:
        end = stop
        if end + MUX_PREFIX_SIZE > size:
            break
        stop = end + MUX_PREFIX_SIZE + (_U32.unpack_from(frames, end + 4)[0] & _U24_MAX)
    return end


def encode_two_part(header: BytesLike, data: BytesLike) -> bytes:
    """The frame of a two-part message, without a message object: no limit, checksum 0. Raises TypeError."""
    if type(header) is bytes and type(data) is bytes:
        return _TWO_PART_PREFIX.pack(len(header), len(data), 0) + header + data
    header = borrowed("header", header)
    data = borrowed("data", data)
    return b"".join((_TWO_PART_PREFIX.pack(len(header), len(data), 0), header, data))


def decode_two_part(frame: BytesLike, *, views: bool = False) -> TwoPartMessage:
    """The message of a frame: what `TwoPartCodec(views=views).decode_message` returns and raises."""
    return (_VIEWING if views else _COPYING).decode_message(frame)


def encode_data_frames(bodies: Iterable[BytesLike], head: BytesLike = b"", tail: BytesLike = b"") -> bytes:
    """The frames of messages without a header, one after the other, as a response stream carries its items.

    The data of each is `head`, one of the bodies, and `tail`: what all of them have in common need not be put around
    each of them first. No limit, checksum 0. Raises TypeError if one of them is not bytes-like; MemoryError or
    OverflowError if there are more than memory can hold.
    """
    before, after = borrowed("head", head), borrowed("tail", tail)
    pack, around = _TWO_PART_PREFIX.pack, len(before) + len(after)
    pieces: list[Body] = []
    for body in bodies:
        part = body if type(body) is bytes else borrowed("data", body)
        pieces += (pack(0, around + len(part), 0), before, part, after)
    return b"".join(pieces)


def _cut(source: Body, start: int, stop: int, threshold: int) -> bytes:
    """The part from `start` to `stop`: a copy if it is small, or much smaller than the memory that a view would pin."""
    size = stop - start
    if size < threshold:
        part = source[start:stop]
        return part if type(part) is bytes else bytes(part)
    view = memoryview(source)[start:stop]
    return cast(bytes, view) if 2 * size >= len(view.obj) else view.tobytes()  # type: ignore[arg-type]


_COPYING, _VIEWING = TwoPartCodec(), TwoPartCodec(views=True)


_new_two_part = TwoPartMessage.__new__
_new_request = TcpRequestMessage.__new__
_new_response = TcpResponseMessage.__new__
_new_mux = MuxFrame.__new__


# -- decoders: a stream of frames, in chunks of any size ------------------------------------------------------------


class _Decoder(Generic[M]):
    """Finds the messages in a stream that comes in chunks.

    Complete frames are parsed where they lie. What is left of a chunk is copied to `_held`, a single buffer that holds
    one incomplete message and grows with the bytes that came.
    """

    def __init__(self, codec: _Codec[M]) -> None:
        self._codec = codec
        self._held = BytesIO()
        self._pending = 0
        self._offset = 0  # of the first byte that is neither decoded nor held
        self._failed: CodecError | None = None

    @property
    def pending(self) -> int:
        """Bytes held for an incomplete message; 0 once the stream has failed."""
        return self._pending

    @property
    def expected(self) -> int:
        """Bytes of the incomplete message, as far as its lengths have come; 0 if none is pending."""
        if not self._pending:
            return 0
        with self._held.getbuffer() as held:
            return self._codec._required(held, 0, self._pending, 0)

    @property
    def failed(self) -> CodecError | None:
        """The error that broke this stream, if one did."""
        return self._failed

    def feed(self, chunk: BytesLike) -> list[M]:
        """The messages that `chunk` completes, in order.

        A bad frame breaks the stream for good: the messages before it are returned, `failed` is set, and the error is
        raised by this call if there were none, and by every later call. Raises MessageTooLarge or ChecksumMismatch,
        and TypeError if `chunk` is not bytes-like.
        """
        if self._failed is not None:
            # Without the traceback of the last time, or it would grow with every call.
            raise self._failed.with_traceback(None)
        source = chunk if type(chunk) is bytes else owned("chunk", chunk)
        messages: list[M] = []
        try:
            at = self._resume(source, messages) if self._pending else 0
            at = self._run(source, at, messages)
        except CodecError as error:
            self._fail(error)
            if not messages:
                raise
            return messages
        except BaseException:
            self._fail(interrupted(self._offset))
            raise
        if at < len(source):
            self._hold(source, at, len(source))
        return messages

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} cannot be pickled or copied: it is a place in a stream")

    def _run(self, source: Body, at: int, messages: list[M]) -> int:
        """Parse the complete frames from `at` on; return where the first incomplete one starts."""
        codec = self._codec
        end = len(source)
        while True:
            size = codec._required(source, at, end - at, self._offset)
            if size > end - at:
                return at
            messages.append(codec._parse(source, at, size, self._offset))
            at += size
            self._offset += size

    def _resume(self, source: Body, messages: list[M]) -> int:
        """Complete the held frame; return how much of `source` that took (all of it if the frame wants more)."""
        at = 0
        start = self._offset - self._pending
        while True:
            with self._held.getbuffer() as held:
                size = self._codec._required(held, 0, self._pending, start)
            if size <= self._pending:
                messages.append(self._codec._parse(self._release(), 0, size, start))
                return at
            if at == len(source):
                return at
            at = self._hold(source, at, min(len(source), at + size - self._pending))

    def _hold(self, source: Body, at: int, stop: int) -> int:
        self._held.write(source[at:stop])
        self._pending += stop - at
        self._offset += stop - at
        return stop

    def _release(self) -> bytes:
        """The held bytes, without a copy: a BytesIO that is as long as what it holds gives its own memory away."""
        held, self._held, self._pending = self._held.getvalue(), BytesIO(), 0
        return held

    def _fail(self, error: CodecError) -> None:
        # Its traceback would keep the chunk, the messages and this decoder for as long as the error is kept.
        self._failed = error.with_traceback(None)
        self._release()


class TwoPartDecoder(_Decoder["TwoPartMessage"]):
    """A stream of two-part messages; the arguments are those of TwoPartCodec."""

    def __init__(self, max_message_size: int | None = None, *, checksum: bool = False, views: bool = False) -> None:
        self._two_part = TwoPartCodec(max_message_size, checksum=checksum, views=views)
        super().__init__(self._two_part)

    def feed_data(self, chunk: BytesLike) -> tuple[list[Body], list[TwoPartMessage]]:
        """As `feed`, for a stream of items: `(data, messages)`.

        `data` is that of the messages up to the first one that has a header, or nothing; `messages` are that one and those
        after it. The error is raised by this call if both are empty.
        """
        messages = self.feed(chunk)
        count = 0
        for message in messages:
            if message._header or not message._data:
                break
            count += 1
        return [message._data for message in messages[:count]], messages[count:]

    def _run(self, source: Body, at: int, messages: list[TwoPartMessage]) -> int:
        # The loop that a fallback spends its life in: small frames out of bytes are taken apart here and now. Whatever
        # is not that simple (a large frame, a bad one, a checksum, the end) is left to the general loop.
        if type(source) is not bytes or self._two_part._digest is not None:
            return super()._run(source, at, messages)
        unpack, append, new, kind = _TWO_PART_LENGTHS.unpack_from, messages.append, _new_two_part, TwoPartMessage
        largest = self._two_part._small - _TWO_PART_PREFIX_SIZE
        first, end = at, len(source)
        last_prefix = end - _TWO_PART_PREFIX_SIZE
        while at <= last_prefix:
            header_len, data_len = unpack(source, at)
            size = header_len + data_len
            if size > largest:
                break
            start = at + 24
            stop = start + size
            if stop > end:
                break
            message = new(kind)
            if header_len:
                message._header = source[start : start + header_len]
                message._data = source[start + header_len : stop]
            else:
                message._header = b""
                message._data = source[start:stop]
            append(message)
            at = stop
        self._offset += at - first
        return super()._run(source, at, messages)


class TcpRequestDecoder(_Decoder["TcpRequestMessage"]):
    """A stream of TCP request frames; the arguments are those of TcpRequestCodec."""

    def __init__(self, max_message_size: int | None = None, *, views: bool = False) -> None:
        super().__init__(TcpRequestCodec(max_message_size, views=views))

    def _run(self, source: Body, at: int, messages: list[TcpRequestMessage]) -> int:
        # As in TwoPartDecoder: small frames here and now, the rest as it is for all formats.
        if type(source) is not bytes:
            return super()._run(source, at, messages)
        u16, u32 = _U16.unpack_from, _U32.unpack_from
        largest = self._codec._small
        first, end = at, len(source)
        while at <= end - 8:
            path = at + 2
            headers = path + u16(source, at)[0] + 2
            if headers > end:
                break
            payload = headers + u16(source, headers - 2)[0] + 4
            if payload > end:
                break
            stop = payload + u32(source, payload - 4)[0]
            if stop > end or stop - at > largest:
                break
            message = _new_request(TcpRequestMessage)
            message._endpoint_path = source[path : headers - 2]
            message._headers = source[headers : payload - 4]
            message._payload = source[payload:stop]
            messages.append(message)
            at = stop
        self._offset += at - first
        return super()._run(source, at, messages)


class TcpResponseDecoder(_Decoder["TcpResponseMessage"]):
    """A stream of acknowledgements; the arguments are those of TcpResponseCodec."""

    def __init__(self, max_message_size: int | None = None, *, views: bool = False) -> None:
        super().__init__(TcpResponseCodec(max_message_size, views=views))


class MuxDecoder(_Decoder["MuxFrame"]):
    """A stream of mux frames; the argument is that of MuxCodec."""

    def __init__(self, max_message_size: int | None = None) -> None:
        super().__init__(MuxCodec(max_message_size))

    def feed_items(
        self, chunk: BytesLike, sinks: dict[int, Callable[[Body], object]]
    ) -> tuple[dict[int, int], list[MuxFrame]]:
        """As `feed`, for streams of items: `(taken, frames)`.

        The body of a DATA frame goes to the function that `sinks` has for its stream, if it is not empty; `taken` says how
        many bytes of such frames each stream had. `frames` are the others. The order within a stream is kept: a frame of
        another kind removes its stream from `sinks`. The error is raised by this call if both are empty.
        """
        taken: dict[int, int] = {}
        frames: list[MuxFrame] = []
        for frame in self.feed(chunk):
            sink = sinks.get(frame._stream)
            if sink is None:
                frames.append(frame)
            elif frame._kind == MUX_DATA and frame._body:
                sink(frame._body)
                taken[frame._stream] = taken.get(frame._stream, 0) + MUX_PREFIX_SIZE + len(frame._body)
            else:
                del sinks[frame._stream]
                frames.append(frame)
        return taken, frames
