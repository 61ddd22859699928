"""Messages of the decoders, described one at a time."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest

from dynamo_fast.codec import TcpRequestCodec, TcpRequestMessage, TcpResponseMessage, TwoPartMessage, encode_two_part
from dynamo_fast.inspect import Frame, describe, frames
from tests.captured import Vector, captured, name_of

CONTROL = {"id": "i", "request_type": "single_in", "payload_codec": "json"}


def two_part(header: Any = None, data: bytes = b"") -> TwoPartMessage:
    return TwoPartMessage.from_parts(b"" if header is None else json.dumps(header).encode(), data)


def test_a_request() -> None:
    payload = encode_two_part(json.dumps(CONTROL).encode(), b'{"prompt":"hi"}')
    frame = describe(TcpRequestMessage.from_parts(b"1/a", b'{"h":"v"}', payload))
    assert (frame.direction, frame.kind, frame.offset, frame.problems) == (">", "request", 0, [])
    assert frame.size == 8 + 3 + 9 + len(payload)
    assert frame.content == {"path": "1/a", "headers": {"h": "v"}, "control": CONTROL, "body": {"prompt": "hi"}}


def test_an_acknowledgement_and_a_refusal() -> None:
    assert describe(TcpResponseMessage.from_parts(b"")) == Frame("<", "ack", 0, 4)
    refusal = describe(TcpResponseMessage.from_parts(b"no\xff"), offset=4)
    assert refusal == Frame("<", "refusal", 4, 7, {"text": 3}, {"text": "no\\xff"})


@pytest.mark.parametrize(
    ("message", "direction", "kind"),
    [
        (two_part({"subject": "s"}), "<", "handshake"),
        (two_part({"error": None}), "<", "prologue"),
        (two_part(data=b'{"data":{"data":1},"complete_final":false}'), "<", "item"),
        (two_part(data=b'{"data":{"event":"error"},"complete_final":false}'), "<", "error"),
        (two_part(data=b'{"data":{"event":"usage"},"complete_final":false}'), "<", "event"),
        (two_part(data=b'{"data":null,"complete_final":true}'), "<", "final"),
        (two_part("sentinel"), "<", "sentinel"),
        (two_part("stop"), ">", "stop"),
        (two_part("kill"), ">", "kill"),
        (two_part("other"), "<", "header"),
        (two_part(data=b'{"bare":"value"}'), ">", "input"),
        (two_part(CONTROL, b"{}"), "<", "request payload"),
        (two_part(), "<", "empty"),
    ],
)
def test_a_two_part_message(message: TwoPartMessage, direction: str, kind: str) -> None:
    frame = describe(message)
    assert (frame.direction, frame.kind, frame.problems) == (direction, kind, [])
    assert frame.size == 24 + len(message.header) + len(message.data)
    assert describe(message, direction=">").direction == ">"
    assert describe(message, direction="<").direction == "<"


def test_a_connection_info_that_is_not_json_stays_a_text() -> None:
    control = {**CONTROL, "connection_info": {"transport": "other", "info": "not {json"}}
    assert describe(two_part(control)).content["header"] == control


def test_problems_count_from_the_offset() -> None:
    (problem,) = describe(two_part(data=b'{"data":1]'), offset=1000).problems
    assert problem.startswith("data, byte 1033: no json: JSON is malformed")


@pytest.mark.parametrize("vector", captured("req_*"), ids=name_of)
def test_a_captured_request_is_described_as_its_frame(vector: Vector) -> None:
    (frame,) = frames(vector.data)
    assert describe(TcpRequestCodec().decode_message(vector.data)) == frame


@pytest.mark.parametrize("value", [b"bytes", None, {"header": b""}])
def test_what_is_not_a_message(value: object) -> None:
    with pytest.raises(TypeError, match="is not a message of dynamo_fast.codec"):
        describe(cast(TwoPartMessage, value))
