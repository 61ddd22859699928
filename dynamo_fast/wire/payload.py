"""Request bodies and response items, in JSON and in MessagePack (transport.md 4.5, 7, 8; runtime.md 4.4).

An item travels in two envelopes, the outer one the transport's and the inner one the engine's:

    NetworkStreamWrapper   {"data": <Annotated>, "complete_final": false}
    Annotated              {"data": <what the handler yielded>, "id", "event", "comment", "error"}

`json_text` writes JSON. msgspec reads both formats straight into the two envelopes,
and writes MessagePack.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from enum import Enum
from typing import Any, NamedTuple, TypeVar

import msgspec

from dynamo_fast.errors import DynamoError, PayloadError, SerializationError
from dynamo_fast.wire._plain import ENVELOPE_MARK, UNWRITABLE, encode_plain, is_plain
from dynamo_fast.wire.annotated import Annotated, Data
from dynamo_fast.wire.error import decode_error, encode_error
from dynamo_fast.wire.json_text import Fragment, dumps
from dynamo_fast.wire.text import UNREADABLE, printable, reason, shown

__all__ = ["UNREADABLE", "Annotated", "Bare", "Data", "ItemReader", "NetworkStreamWrapper", "PayloadCodec"]

_ENVELOPE_FIELDS = ("data", "id", "event", "comment", "error")
_T = TypeVar("_T")


class Bare:
    """An item that travels in the outer envelope alone. Dynamo's internal endpoints answer so (model_card.md 7.3)."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


class NetworkStreamWrapper(NamedTuple):
    """What one data frame holds: an item, or the mark that the answer is complete, or (rarely) both."""

    complete_final: bool
    data: Annotated[Any] | None = None


class _Item(msgspec.Struct, frozen=True, gc=False):
    """The fields of `Annotated`, as msgspec reads them."""

    data: Any = None
    id: str | None = None
    event: str | None = None
    comment: list[str] | None = None
    error: Any = None


class _Wrapper(msgspec.Struct, frozen=True, gc=False):
    """The outer envelope around it."""

    complete_final: bool
    data: _Item | None = None


class _RawItem(_Item, frozen=True, gc=False):
    """As `_Item`, the data as it came."""

    data: msgspec.Raw = msgspec.Raw()


class _RawWrapper(msgspec.Struct, frozen=True, gc=False):
    """As `_Wrapper`."""

    complete_final: bool
    data: _RawItem | None = None


class ItemReader(NamedTuple):
    """How the frames of an answer are read: all of them by `decode`, plain items faster by the other two."""

    envelope: tuple[bytes, bytes]
    """What stands before and after the data of an item that has nothing else."""
    read_data: Callable[[bytes], Any] | None
    """That data. Returns None, or raises one of UNREADABLE, if `decode` must look at the frame. None: the bytes are it."""
    scan: bool
    """Whether it must be made sure that those bytes are one value."""
    null: bytes
    """The data that is none."""
    final: bytes
    """The wrapper that says that the answer is complete, as every worker writes it."""
    decode: Callable[[bytes | memoryview], NetworkStreamWrapper]
    """The wrapper in a frame. Raises PayloadError."""


class _Format(NamedTuple):
    """One of the two formats: how values are written and read, and the bytes of the envelopes around an item."""

    write: Callable[[Any], bytes]
    read: Callable[[bytes | memoryview], Any]
    decoder: Callable[[Any], Any]
    null: bytes
    item_head: bytes
    data_head: bytes
    data_tail: bytes
    item_tail: bytes


_FORMATS = {
    "json": _Format(
        write=dumps,
        read=msgspec.json.Decoder().decode,
        decoder=msgspec.json.Decoder,
        null=b"null",
        item_head=b'{"data":',
        data_head=b'{"data":',
        data_tail=b"}",
        item_tail=b',"complete_final":false}',
    ),
    "msgpack": _Format(
        write=msgspec.msgpack.Encoder().encode,
        read=msgspec.msgpack.Decoder().decode,
        decoder=msgspec.msgpack.Decoder,
        null=b"\xc0",
        item_head=b"\x82\xa4data",
        data_head=b"\x81\xa4data",
        data_tail=b"",
        item_tail=b"\xaecomplete_final\xc2",
    ),
}


class PayloadCodec(Enum):
    """How the body of a request and the items of its answer are encoded. A worker reads both, whatever it asks for."""

    JSON = "json"
    MSGPACK = "msgpack"

    def __init__(self, name: str) -> None:
        format_ = _FORMATS[name]
        self.write, self._read, self.decoder = format_.write, format_.read, format_.decoder
        self.read_item: Callable[[bytes | memoryview], _Wrapper] = self.decoder(_Wrapper).decode
        self.null = format_.null
        """The bytes of None."""
        self._item_head, self._item_tail = format_.item_head, format_.item_tail
        # `write` writes a plain value; for other values it raises one of UNWRITABLE, or writes what Dynamo does not read.
        self.envelope = format_.item_head + format_.data_head, format_.data_tail + format_.item_tail
        """What stands before and after the data of an item that has nothing else: both envelopes."""
        self.final = format_.write({"complete_final": True})
        """The wrapper that says that the answer is complete."""
        self.items = ItemReader(self.envelope, self._read, False, self.null, self.final, self.decode_item)
        """Reads items as plain values."""

    def reader(self, response_type: Any = None, raw: bool = False) -> ItemReader:
        """Reads items as plain values, as values of `response_type`, or as the bytes of their data.

        Raises TypeError for a type that cannot be decoded, and for both at once.
        """
        if response_type is None:
            return _raw_reader(self) if raw else self.items
        if raw:
            raise TypeError("raw=True yields bytes: response_type cannot be given, too")
        return _typed_reader(self, response_type)

    def encode(self, value: Any) -> bytes:
        """The body of a request. Raises SerializationError, saying what cannot be expressed, and where it stands."""
        return self._dump(value, big_ints=False)

    def decode(self, data: bytes | memoryview) -> Any:
        """The value of a body. Raises PayloadError."""
        return self._load(self._read, data, "body")

    def encode_item(self, value: Any) -> bytes:
        """The wrapped item for what a handler yielded: the body of a data frame. Raises SerializationError.

        A dict with a truthy `_dynamo_annotated`, or an `Annotated`, is the inner envelope itself; a `Bare` has none;
        anything else is data.
        """
        head, tail = self.envelope
        plain = encode_plain(self.write, value)
        if plain is not None:
            return head + plain + tail
        if type(value) is Annotated or (isinstance(value, dict) and value.get(ENVELOPE_MARK)):
            return self._item_head + self._dump(_envelope(value), big_ints=True) + self._item_tail
        if type(value) is Bare:
            return self._item_head + self._dump(value.value, big_ints=True) + self._item_tail
        return head + self._dump(value, big_ints=True) + tail

    def encode_error_item(self, error: DynamoError) -> bytes:
        """The wrapped item for an error of the handler."""
        inner = {"event": "error", "error": encode_error(error)}
        return self._item_head + self._dump(inner, big_ints=True) + self._item_tail

    def decode_item(self, data: bytes | memoryview) -> NetworkStreamWrapper:
        """The wrapper in a data frame. Raises PayloadError."""
        try:
            wrapper = self.read_item(data)
        except UNREADABLE:
            wrapper = self._load(self.read_item, data, "item")
        item = wrapper.data
        if item is None:
            return NetworkStreamWrapper(wrapper.complete_final)
        annotated: Annotated[Any] = Annotated(item.data, item.id, item.event, item.comment, item.error)
        return NetworkStreamWrapper(wrapper.complete_final, annotated)

    def _dump(self, value: Any, *, big_ints: bool) -> bytes:
        if is_plain(value):
            try:
                return self.write(value)
            except UNWRITABLE:
                pass
        # Whatever the fast writers do not take is looked at piece by piece: it may have another form, and if it has
        # none, the error says where it stands.
        plain = _Plain(self, big_ints).convert(value)
        try:
            return self.write(plain)
        except UNWRITABLE as error:
            raise SerializationError(f"cannot be written as {self.value}: {error}") from None

    def _load(self, read: Callable[[bytes | memoryview], _T], data: bytes | memoryview, what: str) -> _T:
        try:
            try:
                return read(data)
            except msgspec.DecodeError as error:
                end = _TRAILING.search(str(error))
                if end is None or self is PayloadCodec.JSON:
                    raise
                # Dynamo reads one MessagePack value, and does not look at what follows it.
                return read(data[: int(end[1])])
        except UNREADABLE as error:
            why = reason(error).replace("Object missing required field", "missing field")
            raise PayloadError(f"{why} (in the {len(data)} bytes of this {self.value} {what})") from None


# Raw items and typed items ---------------------------------------------------------------------------------------------


@functools.cache
def _raw_reader(codec: PayloadCodec) -> ItemReader:
    read = codec.decoder(_RawWrapper).decode

    def decode(frame: bytes | memoryview) -> NetworkStreamWrapper:
        wrapper: _RawWrapper = codec._load(read, frame, "item")
        item = wrapper.data
        if item is None:
            return NetworkStreamWrapper(wrapper.complete_final)
        data: bytes | None = bytes(item.data)
        if not data or data.strip() == codec.null:
            data = None
        return NetworkStreamWrapper(
            wrapper.complete_final, Annotated(data, item.id, item.event, item.comment, item.error)
        )

    # MessagePack says how many fields the inner envelope has, so what stands between the two texts is its one value.
    return ItemReader(codec.envelope, None, codec is PayloadCodec.JSON, codec.null, codec.final, decode)


@functools.lru_cache(maxsize=256)
def _typed_reader(codec: PayloadCodec, kind: Any) -> ItemReader:
    name = getattr(kind, "__name__", None) or str(kind)
    validate = getattr(kind, "model_validate", None)
    if validate is not None:
        plain = codec._read

        def read_data(data: bytes) -> Any:
            try:
                return validate(plain(data))
            except Exception as error:  # of a validator, too; `decode` says what is wrong
                raise ValueError from error

        convert = validate
    else:
        try:
            read_data = codec.decoder(kind).decode
        except TypeError as error:
            raise TypeError(f"response_type={name} cannot be decoded: {error}") from None

        def convert(value: Any) -> Any:
            return msgspec.convert(value, kind, str_keys=codec is PayloadCodec.JSON)

    def decode(frame: bytes | memoryview) -> NetworkStreamWrapper:
        wrapper = codec.decode_item(frame)
        item = wrapper.data
        if item is None or item._data is None or item.is_error():
            return wrapper
        try:
            data = convert(item._data)
        except Exception as error:  # a validator is other people's code
            raise PayloadError(f"{_misfit(error)} (in an item that is to be {name})") from error
        typed = Annotated(data, item._id, item._event, item._comment, item._error)
        return NetworkStreamWrapper(wrapper.complete_final, typed)

    return ItemReader(codec.envelope, read_data, False, codec.null, codec.final, decode)


def _misfit(error: Exception) -> str:
    """Why a value does not fit its type, and where in it: `$` is the item's data."""
    problems = getattr(error, "errors", None)
    if callable(problems) and (first := problems()):  # pydantic
        return printable(f"{first[0]['msg']} - at `{'.'.join(('$', *map(str, first[0]['loc'])))}`")
    return reason(error)


_TRAILING = re.compile(r"trailing characters \(byte (\d+)\)")


def _envelope(value: Any) -> dict[str, Any]:
    if type(value) is Annotated:
        values = (value._data, value._id, value._event, value._comment, value._error)
    else:
        values = tuple(map(value.get, _ENVELOPE_FIELDS))
    envelope = {name: each for name, each in zip(_ENVELOPE_FIELDS, values, strict=True) if each is not None}
    for name in ("id", "event"):
        if not isinstance(envelope.get(name, ""), str):
            raise SerializationError(f"the {name} of an annotated item is a str, not {type(envelope[name]).__name__}")
    comment = envelope.get("comment", [])
    if not isinstance(comment, (list, tuple)) or not all(isinstance(each, str) for each in comment):
        raise SerializationError(f"the comment of an annotated item is a list of str, not {shown(comment)}")
    if "error" in envelope:
        error = envelope["error"]
        envelope["error"] = encode_error(error if isinstance(error, DynamoError) else decode_error(error))
    return envelope


# What the fast writers do not take -----------------------------------------------------------------------------------


class _Plain:
    """Turns a value into one that the fast writers take, by the rules of Dynamo 1.6 (runtime.md 4.4)."""

    def __init__(self, codec: PayloadCodec, big_ints: bool) -> None:
        self._json = codec is PayloadCodec.JSON
        self._big_ints = big_ints

    def convert(self, value: Any) -> Any:
        """The plain form of `value`. Raises SerializationError, which says where in the value (`$`) the culprit stands."""
        try:
            return self._convert(value, "$")
        except RecursionError:
            raise SerializationError("the value is nested too deeply, or contains itself") from None

    def _convert(self, value: Any, path: str) -> Any:  # noqa: PLR0911  # one type a line
        if value is None or value is True or value is False:
            return value
        if isinstance(value, str):
            return self._text(value, path)
        if isinstance(value, int):
            return self._integer(int(value), path)
        if isinstance(value, float):
            return float(value)
        if isinstance(value, dict):
            return self._map(value, path)
        if isinstance(value, (bytes, memoryview)):
            return value if type(value) is bytes and not self._json else list(value)
        if isinstance(value, (list, tuple, set, frozenset, range)):
            return [self._convert(each, f"{path}[{index}]") for index, each in enumerate(value)]
        if isinstance(value, bytearray):  # which Dynamo's binding takes for bytes that it cannot borrow
            raise SerializationError(
                "unexpected type: 'bytearray' object cannot be converted to 'PyBytes'", path=path, by_type=True
            )
        raise SerializationError(f"unsupported type {type(value).__qualname__}", path=path, by_type=True)

    def _text(self, value: str, path: str) -> str:
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise SerializationError(f"UnicodeEncodeError: {error}", path=path) from error
        return str.__str__(value)

    def _integer(self, value: int, path: str) -> Any:
        if -(1 << 63) <= value < 1 << 64:
            return value
        if self._big_ints and self._json:
            return Fragment(_digits(value, path))
        if self._big_ints and -(1 << 127) <= value < 1 << 128:
            return value.to_bytes(16, "big", signed=value < 0)
        kind = "i128" if value < 0 else "u128"
        raise SerializationError(
            f"invalid type: integer `{_shortened(value)}` as {kind}, expected any valid "
            f"{'JSON' if self._json else 'MessagePack'} value",
            path=path,
        )

    def _map(self, value: dict[Any, Any], path: str) -> dict[Any, Any]:
        return {(name := self._key(key, path)): self._convert(each, f"{path}.{name}") for key, each in value.items()}

    def _key(self, key: Any, path: str) -> Any:
        if isinstance(key, str):
            return self._text(key, path)
        if not self._json:
            return _hashable(self._convert(key, path))
        if isinstance(key, bool):
            return "true" if key else "false"
        if isinstance(key, int):
            return _digits(int(key), path)
        if isinstance(key, float) and math.isfinite(key):
            return dumps(float(key)).decode()
        raise SerializationError(f"key must be a string, not {type(key).__name__}", path=path)


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def _digits(value: int, path: str) -> str:
    try:
        return str(value)
    except ValueError as error:  # Python converts 4300 digits by default
        raise SerializationError(str(error), path=path) from None


def _shortened(value: int) -> str:
    return str(value) if value.bit_length() <= 256 else f"an integer of {value.bit_length()} bits"
