"""Whatever the bytes are, a decoder of `wire` raises its documented error, whose text is short and harmless."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_fast.errors import ControlError, DynamoError, InvalidAddress, PayloadError, RemoteError
from dynamo_fast.wire.address import EndpointId, TcpAddress, split_host_port
from dynamo_fast.wire.control import (
    CallHomeHandshake,
    ConnectionInfo,
    ControlMessage,
    RequestControlMessage,
    ResponseStreamPrologue,
    TcpStreamConnectionInfo,
)
from dynamo_fast.wire.error import MAX_CAUSES, decode_error, encode_error
from dynamo_fast.wire.headers import decode_headers
from dynamo_fast.wire.instance import Instance
from dynamo_fast.wire.model_card import ModelRecord
from dynamo_fast.wire.payload import PayloadCodec
from tests.captured import captured

MAX_ERROR_TEXT = 1000
"""Characters of the text of any error of a decoder."""


def connection_info(data: bytes) -> TcpStreamConnectionInfo:
    """`info` is JSON inside JSON."""
    return TcpStreamConnectionInfo.from_connection_info(ConnectionInfo("tcp_server", data.decode("utf-8", "replace")))


DECODERS: dict[str, tuple[Callable[[bytes], object], type[DynamoError] | None]] = {
    "control message": (RequestControlMessage.decode, ControlError),
    "connection info": (connection_info, ControlError),
    "handshake": (CallHomeHandshake.decode, ControlError),
    "prologue": (ResponseStreamPrologue.decode, ControlError),
    "control word": (ControlMessage.decode, ControlError),
    "headers": (decode_headers, None),
    "record": (Instance.decode, PayloadError),
    "model": (ModelRecord.decode, PayloadError),
    "JSON body": (PayloadCodec.JSON.decode, PayloadError),
    "JSON item": (PayloadCodec.JSON.decode_item, PayloadError),
    "MessagePack body": (PayloadCodec.MSGPACK.decode, PayloadError),
    "MessagePack item": (PayloadCodec.MSGPACK.decode_item, PayloadError),
}
KEYS = (b"", b"x", b"id", b"info", b"subject", b"error", b"typed_error", b"data", b"metadata", b"frontend_send_ts_ns")
VALUES = {
    "2,000 levels": b"[" * 2000 + b"]" * 2000,
    "100,000 levels": b"[" * 100_000 + b"]" * 100_000,
    "100,000 objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "not closed": b"[" * 100_000,
    "a number of 5,000 digits": b"1" * 5000,
    "a number of 4,301 digits": b"-" + b"9" * 4301,
    "a number without limit": b"1e400",
    "no number": b"NaN",
    "half a character": b'"\\ud800"',
    "no UTF-8": b'"\xff"',
    "NUL": b'"\\u0000"',
    "a long text": b'"' + b"x\\n\\u001b[31m\\u202e" * 100_000 + b'"',
    "the same key twice": b'{"id":"a","id":1,"data":{},"data":[]}',
}
MESSAGEPACK = {
    "2,000 levels": b"\x91" * 2000 + b"\x01",
    "100,000 levels": b"\x81\xa1a" * 100_000 + b"\x01",
    "more entries than there are bytes": b"\xdd\xff\xff\xff\xff",
    "a map of 4 GiB": b"\xdf\xff\xff\xff\xff",
    "bytes of 4 GiB": b"\xc6\xff\xff\xff\xff",
    "no UTF-8": b"\xa2\xff\xff",
    "a key that is a map": b"\x81\x80\x01",
    "a key of 900 levels": b"\x81" + b"\x91" * 900 + b"\x80\x01",
    "an extension as a key": b"\x81\xc7\x04\x05abcd\x01",
    "a moment that is none": b"\xd7\xff" + b"\xff" * 8,
    "a number of 64 bits": b"\xcf" + b"\xff" * 8,
}


def check(name: str, data: bytes) -> None:
    """The decoder takes `data`, or raises its documented error, with a text that is short and safe to print."""
    decode, expected = DECODERS[name]
    try:
        decode(data)
    except DynamoError as error:
        assert expected is not None
        assert type(error) is expected
        assert len(str(error)) <= MAX_ERROR_TEXT
        assert str(error).isprintable()


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("name", DECODERS)
def test_hostile_json_is_refused_with_the_documented_error(name: str, value: str) -> None:
    for key in KEYS:
        check(name, b'{"' + key + b'":' + VALUES[value] + b"}" if key else VALUES[value])


@pytest.mark.parametrize("value", MESSAGEPACK)
def test_hostile_messagepack_is_refused_with_the_documented_error(value: str) -> None:
    for key in ("", "data", "error", "complete_final"):
        head = b"\x81" + msgspec.msgpack.encode(key) if key else b""
        check("MessagePack body", head + MESSAGEPACK[value])
        check("MessagePack item", head + MESSAGEPACK[value])


def at_depth(left: int, call: Callable[[], None]) -> None:
    """Call it where the interpreter's stack has little left, as a callback deep in somebody's program."""
    if left:
        at_depth(left - 1, call)
    else:
        call()


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_on_a_nearly_full_stack_raises_the_documented_error(name: str) -> None:
    data = b'{"typed_error":' + b"[" * 200 + b"]" * 200 + b"}"
    if name.startswith("MessagePack"):
        data = b"\x81\xa4data" + b"\x91" * 200 + b"\x01"
    room, depth = 60, len(list(frames()))
    at_depth(sys.getrecursionlimit() - depth - room, lambda: check(name, data))


def frames() -> Iterator[Any]:
    frame: Any = sys._getframe()
    while frame is not None:
        yield frame
        frame = frame.f_back


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
JSON_TEXTS = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)).map(
    lambda value: json.dumps(value).encode()
)


@given(st.sampled_from(sorted(DECODERS)), st.binary(max_size=200) | JSON_TEXTS)
def test_any_bytes_are_refused_with_the_documented_error(name: str, data: bytes) -> None:
    check(name, data)


SEEDS = sorted({vector.data[24:] for vector in captured() if vector.plane == "response"} | {b'{"id":"a"}'})


@given(st.data())
def test_captured_bytes_with_damage_are_refused_with_the_documented_error(data: st.DataObject) -> None:
    seed = bytearray(data.draw(st.sampled_from(SEEDS)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(seed)))
        seed[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    for name in DECODERS:
        check(name, bytes(seed))


# Addresses --------------------------------------------------------------------------------------------------------------

PORTS = ["1" * 4301, "0" * 5000, "9" * 100_000, "65536", "٣", "+1", "1_0", "-1", " 1"]


@pytest.mark.parametrize("port", PORTS, ids=lambda port: f"{port[:6]} of {len(port)}")
def test_a_port_that_is_none_is_an_invalid_address(port: str) -> None:
    for parse in (TcpAddress.parse, split_host_port):
        with pytest.raises(InvalidAddress) as caught:
            parse(f"127.0.0.1:{port}" + ("/path" if parse == TcpAddress.parse else ""))
        assert len(str(caught.value)) <= MAX_ERROR_TEXT


def test_zeros_in_front_of_a_port_change_nothing() -> None:
    assert split_host_port("127.0.0.1:" + "0" * 10 + "80") == ("127.0.0.1", 80)
    assert split_host_port("127.0.0.1:000") == ("127.0.0.1", 0)


@pytest.mark.parametrize("scope", ["\0", "\n", "a" * 64, "a b", "\x1b[31m", "ü", "%", "/"])
def test_a_scope_that_is_no_interface_is_an_invalid_address(scope: str) -> None:
    for parse in (TcpAddress.parse, split_host_port):
        with pytest.raises(InvalidAddress) as caught:
            parse(f"[fe80::1%{scope}]:80/path" if parse == TcpAddress.parse else f"[fe80::1%{scope}]:80")
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("scope", ["eth0", "3", "br-0a1b2c3d", "veth.100_x"])
def test_a_scope_may_be_an_interface(scope: str) -> None:
    assert split_host_port(f"[fe80::1%{scope}]:80") == (f"fe80::1%{scope}", 80)


@given(st.text())
def test_any_text_is_an_address_or_an_invalid_one(text: str) -> None:
    for parse in (TcpAddress.parse, split_host_port, EndpointId.parse):
        try:
            parse(text)
        except InvalidAddress as error:
            assert str(error).isprintable()


def test_an_error_shows_the_beginning_of_a_long_text() -> None:
    for parse in (TcpAddress.parse, split_host_port, EndpointId.parse):
        with pytest.raises(InvalidAddress) as caught:
            parse("x\n" * 1_000_000)
        assert len(str(caught.value)) <= MAX_ERROR_TEXT


# Errors on the wire -----------------------------------------------------------------------------------------------------


def nested(levels: int) -> dict[str, Any]:
    error: dict[str, Any] = {"message": "the first", "error_type": "Disconnected"}
    for _ in range(levels):
        error = {"message": "another", "caused_by": error}
    return error


def test_causes_are_read_to_a_limit() -> None:
    error = decode_error(nested(900))
    assert len(error.chain()) == MAX_CAUSES
    assert len(decode_error(nested(MAX_CAUSES - 1)).chain()) == MAX_CAUSES
    assert decode_error(nested(MAX_CAUSES - 1)).migratable


def test_causes_are_written_to_a_limit() -> None:
    error = RemoteError("outer")
    last: DynamoError = error
    for _ in range(900):
        last.__cause__ = RemoteError("inner")
        last = last.__cause__
    for codec in PayloadCodec:
        item = codec.decode_item(codec.encode_error_item(error)).data
        assert item is not None
        assert len(item.error().chain()) == MAX_CAUSES  # type: ignore[union-attr]
    assert ResponseStreamPrologue.decode(ResponseStreamPrologue("text", error).encode()).typed_error is not None


DEEP: list[Any] = []
for _ in range(900):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    "public", [{"a": DEEP}, {"a": 1 << 70}, {"a": 10**5000}, {"a": "\ud800"}, {"a": object()}, {1: 2}]
)
def test_what_cannot_be_written_of_an_error_is_left_out(public: dict[Any, Any]) -> None:
    """A handler passes on what it caught: an error for the caller is always written."""
    error = RemoteError("text \ud800", public=public)
    assert "public" not in encode_error(error)
    for codec in PayloadCodec:
        item = codec.decode_item(codec.encode_error_item(error)).data
        assert item is not None
        assert str(item.error()) == "text ?"
    prologue = ResponseStreamPrologue.decode(ResponseStreamPrologue("refused \ud800", error).encode())
    assert prologue.error == "refused ?"
    assert str(prologue.typed_error) == "text ?"


@pytest.mark.parametrize("value", [DEEP, "x" * 100_000, [10**5000], None, 1, {"a": DEEP}])
def test_an_error_that_is_no_text_is_shown_in_short(value: Any) -> None:
    error = decode_error({"message": value, "error_type": value, "class": value, "reason": value, "public": value})
    assert isinstance(value, str) or len(str(error)) <= MAX_ERROR_TEXT
    assert isinstance(decode_error(value), RemoteError)
