"""Request bodies and response items, in JSON and in MessagePack (transport.md 4.5, 7, 8; runtime.md 4.4).

An item travels in two envelopes, the outer one the transport's and the inner one the engine's:

    NetworkStreamWrapper   {"data": <Annotated>, "complete_final": false}
    Annotated              {"data": <what the handler yielded>, "id", "event", "comment", "error"}

orjson writes JSON: its floats are Dynamo's to the letter. msgspec reads both formats straight into the two envelopes,
and writes MessagePack.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any

import msgspec
import orjson

from dynamo_fast.errors import DynamoError, PayloadError, SerializationError
from dynamo_fast.wire.error import decode_error, encode_error

__all__ = ["Annotated", "NetworkStreamWrapper", "PayloadCodec"]

_ENVELOPE_MARK = "_dynamo_annotated"


class Annotated(
    msgspec.Struct,
    frozen=True,
    gc=False,
    rename={"_data": "data", "_id": "id", "_event": "event", "_comment": "comment", "_error": "error"},
):
    """One item of an answer: the data, and what the worker may have put beside it."""

    _data: Any = None
    _id: str | None = None
    _event: str | None = None
    _comment: list[str] | None = None
    _error: Any = None

    def data(self) -> Any:
        """What the handler yielded; None for an item that has none (an event, a comment)."""
        return self._data

    def id(self) -> str | None:
        """The item's id, if it was given one."""
        return self._id

    def event(self) -> str | None:
        """The kind of event that the item is, if any; `error` for errors."""
        return self._event

    def comments(self) -> list[str]:
        """The comments, often none."""
        return self._comment or []

    def is_error(self) -> bool:
        """Whether the item is an error: its event says so, and nothing else does."""
        return self._event == "error"

    def error(self) -> DynamoError | None:
        """The error that the item is; None if it is none."""
        if self._event != "error":
            return None
        if self._error is not None:
            return decode_error(self._error)
        return decode_error({"message": ", ".join(self.comments()) or "unknown error"})

    def __repr__(self) -> str:
        return f"Annotated(data={self._data!r}, event={self._event!r}, comment={self.comments()!r}, id={self._id!r})"


class NetworkStreamWrapper(msgspec.Struct, frozen=True, gc=False):
    """What one data frame holds: an item, or the mark that the answer is complete, or (rarely) both."""

    complete_final: bool
    data: Annotated | None = None


class PayloadCodec(Enum):
    """How the body of a request and the items of its answer are encoded. A worker reads both, whatever it asks for."""

    JSON = "json"
    MSGPACK = "msgpack"

    _dumps: Callable[[Any], bytes]
    _items: msgspec.json.Decoder[NetworkStreamWrapper] | msgspec.msgpack.Decoder[NetworkStreamWrapper]
    _values: msgspec.json.Decoder[Any] | msgspec.msgpack.Decoder[Any]
    final: bytes
    """The wrapper that says that the answer is complete."""

    def encode(self, value: Any) -> bytes:
        """The body of a request. Raises SerializationError, saying what cannot be expressed, and where it stands."""
        return self._encode(value, lambda plain: plain, big_ints=False)

    def decode(self, data: bytes | memoryview) -> Any:
        """The value of a body. Raises PayloadError."""
        try:
            return self._values.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, TypeError, RecursionError) as error:
            raise PayloadError(f"the body is no {self.value}: {error}") from None

    def encode_item(self, value: Any) -> bytes:
        """The wrapped item for what a handler yielded: the body of a data frame. Raises SerializationError.

        A dict with a truthy `_dynamo_annotated`, or an `Annotated`, is the inner envelope itself; anything else is data.
        """
        kind = type(value)
        is_envelope = (kind is dict and value.get(_ENVELOPE_MARK)) or kind is Annotated
        inner = _envelope(value) if is_envelope else {"data": value}
        return self._encode(inner, _wrapped, big_ints=True)

    def encode_error_item(self, error: DynamoError) -> bytes:
        """The wrapped item for an error of the handler."""
        inner = {"event": "error", "error": encode_error(error)}
        return self._encode(inner, _wrapped, big_ints=True)

    def decode_item(self, data: bytes | memoryview) -> NetworkStreamWrapper:
        """The wrapper in a data frame. Raises PayloadError."""
        try:
            return self._items.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, TypeError, RecursionError) as error:
            raise PayloadError(f"the frame is no item in {self.value}: {error}") from None

    def _encode(self, value: Any, wrap: Callable[[Any], Any], *, big_ints: bool) -> bytes:
        try:
            return self._dumps(wrap(value))
        except (TypeError, ValueError, OverflowError, RecursionError):
            # Whatever the fast writers do not take is looked at piece by piece: it may have another form, and if it
            # has none, the error says where it stands.
            plain = _Plain(self, big_ints).convert(value, "$")
        return self._dumps(wrap(plain))


def _wrapped(inner: dict[str, Any]) -> dict[str, Any]:
    return {"data": inner, "complete_final": False}


def _envelope(value: Any) -> dict[str, Any]:
    if type(value) is Annotated:
        fields = {
            "data": value._data,
            "id": value._id,
            "event": value._event,
            "comment": value._comment,
            "error": value._error,
        }
    else:
        fields = {name: value.get(name) for name in ("data", "id", "event", "comment", "error")}
    envelope = {name: field for name, field in fields.items() if field is not None}
    comment = envelope.get("comment")
    if comment is not None and not isinstance(comment, list):
        raise SerializationError(f"the comment of an annotated item is a list of str, not {type(comment).__name__}")
    if "error" in envelope:
        error = envelope["error"]
        envelope["error"] = encode_error(error if isinstance(error, DynamoError) else decode_error(error))
    return envelope


# What a fast writer may be given -------------------------------------------------------------------------------------

_JSON_OPTIONS = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME
_MSGPACK_SCALARS = frozenset({str, int, float, bool, type(None), bytes})
_STR_KEYS = frozenset({str})
_msgpack = msgspec.msgpack.Encoder()


def _dumps_json(value: Any) -> bytes:
    return orjson.dumps(value, option=_JSON_OPTIONS)


def _dumps_msgpack(value: Any) -> bytes:
    # msgspec would also write dates, decimals and the like, in forms that Dynamo cannot read.
    if not _is_plain(value):
        raise TypeError
    return _msgpack.encode(value)


def _is_plain(value: Any) -> bool:
    """Whether MessagePack has exactly this value. Looks at the types of a whole container at once, for speed."""
    kind = type(value)
    if kind is dict:
        return {*map(type, value)} <= _STR_KEYS and _are_plain(value.values())
    if kind is list or kind is tuple:
        return _are_plain(value)
    return kind in _MSGPACK_SCALARS or kind is _RawMap


def _are_plain(values: Any) -> bool:
    if {*map(type, values)} <= _MSGPACK_SCALARS:
        return True
    return all(map(_is_plain, values))


class _RawMap(dict[Any, Any]):
    """A map whose keys are no texts, checked already: MessagePack has it."""


class _Plain:
    """Turns a value into one that the fast writers take, by the rules of Dynamo 1.6 (runtime.md 4.4)."""

    def __init__(self, codec: PayloadCodec, big_ints: bool) -> None:
        self._json = codec is PayloadCodec.JSON
        self._big_ints = big_ints

    def convert(self, value: Any, path: str) -> Any:
        """The plain form of `value`, which stands at `path`. Raises SerializationError."""
        try:
            return self._convert(value, path)
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
        raise SerializationError(f"unsupported type {type(value).__name__} (at {path})")

    def _text(self, value: str, path: str) -> str:
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise SerializationError(f"{error} (at {path})") from None
        return str.__str__(value)

    def _integer(self, value: int, path: str) -> Any:
        if -(1 << 63) <= value < 1 << 64:
            return value
        if self._big_ints and self._json:
            return orjson.Fragment(str(value))
        if self._big_ints and -(1 << 127) <= value < 1 << 128:
            return value.to_bytes(16, "big", signed=value < 0)
        raise SerializationError(f"number out of range: {_shortened(value)} has more than 64 bits (at {path})")

    def _map(self, value: dict[Any, Any], path: str) -> dict[Any, Any]:
        pairs = {self._key(key, path): self._convert(each, f"{path}.{key}") for key, each in value.items()}
        return pairs if self._json else _RawMap(pairs)

    def _key(self, key: Any, path: str) -> Any:
        if isinstance(key, str):
            return self._text(key, path)
        if not self._json and (key is None or isinstance(key, (bool, int, float))):
            return key
        if isinstance(key, bool):
            return "true" if key else "false"
        if isinstance(key, int):
            return str(int(key))
        raise SerializationError(f"key must be a string, not {type(key).__name__} (at {path})")


def _shortened(value: int) -> str:
    return str(value) if value.bit_length() <= 256 else f"an integer of {value.bit_length()} bits"


PayloadCodec.JSON._dumps = staticmethod(_dumps_json)
PayloadCodec.JSON._values = msgspec.json.Decoder()
PayloadCodec.JSON._items = msgspec.json.Decoder(NetworkStreamWrapper)
PayloadCodec.MSGPACK._dumps = staticmethod(_dumps_msgpack)
PayloadCodec.MSGPACK._values = msgspec.msgpack.Decoder()
PayloadCodec.MSGPACK._items = msgspec.msgpack.Decoder(NetworkStreamWrapper)
for _codec in PayloadCodec:
    _codec.final = _codec._dumps({"complete_final": True})
