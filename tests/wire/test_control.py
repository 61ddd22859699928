from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_fast.codec import TcpRequestCodec, TwoPartCodec, TwoPartMessage
from dynamo_fast.errors import ControlError
from dynamo_fast.wire.control import (
    CallHomeHandshake,
    ConnectionInfo,
    ControlMessage,
    RequestControlMessage,
    RequestType,
    ResponseStreamPrologue,
    ResponseType,
    StreamType,
    TcpStreamConnectionInfo,
    encode_single_in,
    usual_subject,
)
from dynamo_fast.wire.payload import PayloadCodec
from tests.captured import Vector, captured, name_of

INFO = TcpStreamConnectionInfo("127.0.0.1:4242", "subject", "id").to_connection_info()
MINIMAL = {
    "id": "id",
    "request_type": "single_in",
    "response_type": "many_out",
    "connection_info": {"transport": INFO.transport, "info": INFO.info},
}


def request_header(vector: Vector) -> bytes:
    frame = TcpRequestCodec().decode_message(vector.data)
    return bytes(TwoPartCodec().decode_message(bytes(frame.payload)).header)


def two_part(vector: Vector) -> TwoPartMessage:
    return TwoPartCodec().decode_message(vector.data)


@pytest.mark.parametrize("vector", captured("req_*"), ids=name_of)
def test_control_messages_of_dynamo_are_written_again_byte_for_byte(vector: Vector) -> None:
    header = request_header(vector)
    control = RequestControlMessage.decode(header)
    if vector.facts["emitter"] == "real":
        assert control.encode() == header
    info = TcpStreamConnectionInfo.from_connection_info(control.connection_info)
    assert info.to_connection_info() == control.connection_info
    assert (info.context, info.stream_type) == (control.id, StreamType.RESPONSE)
    assert control.request_type is (RequestType.MANY_IN if "bidi" in vector.kind else RequestType.SINGLE_IN)
    if control.request_type is RequestType.MANY_IN:
        assert control.request_stream_connection_info is not None
        second = TcpStreamConnectionInfo.from_connection_info(control.request_stream_connection_info)
        assert second.stream_type is StreamType.REQUEST


@pytest.mark.parametrize("vector", captured("handshake_*"), ids=name_of)
def test_handshakes_of_dynamo_are_written_again_byte_for_byte(vector: Vector) -> None:
    header = bytes(two_part(vector).header)
    handshake = CallHomeHandshake.decode(header)
    assert handshake.stream_type.value == vector.kind.removeprefix("handshake_")
    assert handshake.encode() == header
    assert usual_subject(header) == (handshake.subject if handshake.stream_type is StreamType.RESPONSE else None)


@pytest.mark.parametrize(
    ("text", "subject"),
    [
        (b'{"subject":"","stream_type":"response"}', ""),
        (b'{"subject":","stream_type":"response"}', ""),
        (b'{"subject":"\xff\\u0061","stream_type":"response"}', "\xff\\u0061"),
        (b'{"stream_type":"response","subject":"a"}', None),
        (b'{"subject":"a","stream_type":"response"} ', None),
        (b"", None),
        (memoryview(b'{"subject":"a","stream_type":"response"}'), None),
    ],
)
def test_what_stands_for_the_subject_of_a_usual_handshake(text: bytes | memoryview, subject: str | None) -> None:
    assert usual_subject(text) == subject


@pytest.mark.parametrize("vector", captured("prologue_*"), ids=name_of)
def test_prologues_of_dynamo_are_written_again_byte_for_byte(vector: Vector) -> None:
    header = bytes(two_part(vector).header)
    prologue = ResponseStreamPrologue.decode(header)
    assert prologue.encode() == header
    assert (prologue.error is None) == (vector.kind == "prologue_ok")
    assert (prologue.typed_error is None) == ("typed_error" not in json.loads(header))


@pytest.mark.parametrize("vector", captured("sentinel", "stop", "kill"), ids=name_of)
def test_control_words_of_dynamo_are_written_again_byte_for_byte(vector: Vector) -> None:
    header = bytes(two_part(vector).header)
    word = ControlMessage.decode(header)
    assert word.value == vector.kind
    assert word.encode() == header


def test_metadata_is_sorted_and_left_out_when_empty() -> None:
    keys = json.loads(RequestControlMessage("id", INFO, metadata={"b": "2", "a": "1"}).encode())
    assert list(keys) == ["id", "request_type", "response_type", "payload_codec", "connection_info", "metadata"]
    assert list(keys["metadata"]) == ["a", "b"]
    assert "metadata" not in json.loads(RequestControlMessage("id", INFO).encode())


@pytest.mark.parametrize("text", ["plain", "größe 日本 🦕", '" \\ /', "".join(map(chr, range(0x20))), "\x7f\u2028"])
def test_texts_are_escaped_as_dynamo_does(text: str) -> None:
    def dumped(value: object) -> str:
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False)

    info = TcpStreamConnectionInfo("127.0.0.1:1", "s", text).to_connection_info()
    inner = dumped({"address": "127.0.0.1:1", "subject": "s", "context": text, "stream_type": "response"})
    assert info.info == inner
    control = {
        "id": text,
        "request_type": "single_in",
        "response_type": "many_out",
        "payload_codec": "json",
        "connection_info": {"transport": "tcp_server", "info": inner},
        "metadata": {text: text},
    }
    assert RequestControlMessage(text, info, metadata={text: text}).encode().decode() == dumped(control)


IDS = st.text() | st.text(alphabet='a"\\?%{é\x7f\n') | st.uuids().map(str)


@given(IDS, st.sampled_from(PayloadCodec), st.just({}) | st.just({"a": "1"}))
def test_the_short_way_writes_what_the_long_one_does(text: str, codec: PayloadCodec, metadata: dict[str, str]) -> None:
    for address in ("127.0.0.1:1", "[::1]:65535"):
        info = TcpStreamConnectionInfo(address, "s", text).to_connection_info()
        control = RequestControlMessage(text, info, payload_codec=codec, metadata=metadata)
        assert encode_single_in(text, address, "s", codec, metadata) == control.encode()


def test_what_a_sender_may_leave_out_or_add() -> None:
    control = RequestControlMessage.decode(json.dumps({**MINIMAL, "new": 1, "frontend_send_ts_ns": None}).encode())
    assert control.payload_codec is PayloadCodec.JSON
    assert control.metadata == {}
    assert control.frontend_send_ts_ns is None
    single = RequestControlMessage.decode(json.dumps({**MINIMAL, "response_type": "single_out"}).encode())
    assert single.response_type is ResponseType.SINGLE_OUT


@pytest.mark.parametrize(
    "change",
    [
        {"metadata": None},
        {"payload_codec": None},
        {"payload_codec": "cbor"},
        {"request_type": "none_in"},
        {"connection_info": None},
        {"connection_info": {"transport": "tcp_server"}},
        {"metadata": {"a": 1}},
        {"id": 7},
        {"frontend_send_ts_ns": "soon"},
    ],
)
def test_a_control_message_that_dynamo_would_drop_is_an_error(change: dict[str, object]) -> None:
    with pytest.raises(ControlError, match="malformed control message"):
        RequestControlMessage.decode(json.dumps({**MINIMAL, **change}).encode())


@pytest.mark.parametrize("key", sorted(MINIMAL))
def test_a_control_message_without_a_key_names_it(key: str) -> None:
    message = {name: value for name, value in MINIMAL.items() if name != key}
    with pytest.raises(ControlError, match=f"missing required field `{key}`"):
        RequestControlMessage.decode(json.dumps(message).encode())


@pytest.mark.parametrize("data", [b"", b"nonsense", b"[]", b"5", b'"stop', b"\xff\xfe", b'{"subject":1}', b'"stop '])
def test_nothing_but_control_errors_comes_out_of_decoding(data: bytes) -> None:
    for decode in (
        RequestControlMessage.decode,
        CallHomeHandshake.decode,
        ControlMessage.decode,
    ):
        with pytest.raises(ControlError, match="malformed"):
            decode(data)


def test_an_error_shows_the_beginning_of_what_came() -> None:
    with pytest.raises(ControlError, match=r"b'x{80}'\.\.\. of 5000 bytes"):
        ControlMessage.decode(b"x" * 5000)


@pytest.mark.parametrize("data", [b'{"stream_type":"response"}', b'{"subject":"s","stream_type":"both"}'])
def test_a_handshake_needs_a_subject_and_a_known_stream_type(data: bytes) -> None:
    with pytest.raises(ControlError, match="malformed handshake"):
        CallHomeHandshake.decode(data)


@pytest.mark.parametrize("data", [b"{}", b'{"error":null}', b'{"typed_error":{"message":"m"}}', b'{"other":1}'])
def test_a_prologue_without_error_is_good(data: bytes) -> None:
    assert ResponseStreamPrologue.decode(data) == ResponseStreamPrologue()


def test_any_text_is_an_error_in_a_prologue() -> None:
    assert ResponseStreamPrologue.decode(b'{"error":""}').error == ""


def test_connection_info_of_another_transport_is_an_error() -> None:
    with pytest.raises(ControlError, match="'quic-response' is not offered"):
        TcpStreamConnectionInfo.from_connection_info(ConnectionInfo("quic-response", "{}"))


@pytest.mark.parametrize("info", ["", "{}", "\ud800", '{"address":1}'])
def test_connection_info_that_does_not_parse_is_an_error(info: str) -> None:
    with pytest.raises(ControlError, match="malformed connection info"):
        TcpStreamConnectionInfo.from_connection_info(ConnectionInfo("tcp_server", info))
