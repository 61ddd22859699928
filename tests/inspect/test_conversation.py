from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_fast.codec import TcpRequestCodec, TcpRequestMessage, encode_two_part
from dynamo_fast.inspect import Conversation, Frame, Plane, frames, plane_of
from dynamo_fast.inspect.describe import MAX_FRAME_SIZE
from tests.captured import Vector, captured, name_of

# The kinds of frames that a vector of a kind holds, and which way they went.
KINDS: dict[str, tuple[str, list[str]]] = {
    "ack_ok": ("<", ["ack"]),
    "acks_pipelined": ("<", ["ack", "refusal", "ack"]),
    "handshake_response": ("<", ["handshake"]),
    "handshake_request": ("<", ["handshake"]),
    "prologue_ok": ("<", ["prologue"]),
    "prologue_error": ("<", ["prologue"]),
    "data_json": ("<", ["item"]),
    "data_msgpack": ("<", ["item"]),
    "event_item_json": ("<", ["event"]),
    "event_item_msgpack": ("<", ["event"]),
    "error_item_json": ("<", ["error"]),
    "error_item_msgpack": ("<", ["error"]),
    "final_json": ("<", ["final"]),
    "final_msgpack": ("<", ["final"]),
    "stop": (">", ["stop"]),
    "kill": (">", ["kill"]),
    "bidi_data": (">", ["input"]),
    "bidi_ctl_stop": (">", ["stop"]),
    "bidi_ctl_kill": (">", ["kill"]),
    "conv_stopped_requester_side": (">", ["stop"]),
    "conv_killed_requester_side": (">", ["kill"]),
}
REQUEST = TcpRequestCodec()
HANDSHAKE = encode_two_part(b'{"subject":"s","stream_type":"response"}', b"")
PROLOGUE = encode_two_part(b'{"error":null}', b"")
ITEM = encode_two_part(b"", b'{"data":{"data":1},"complete_final":false}')
SENTINEL = encode_two_part(b'"sentinel"', b"")


def request_frame(control: Any = None, body: bytes = b"{}", path: bytes = b"1/a", headers: bytes = b"{}") -> bytes:
    header = json.dumps({"id": "i", "request_type": "single_in"} if control is None else control).encode()
    return REQUEST.encode_message(TcpRequestMessage.from_parts(path, headers, encode_two_part(header, body)))


def only(found: list[Frame]) -> Frame:
    (frame,) = found
    return frame


@pytest.mark.parametrize("vector", captured(), ids=name_of)
def test_every_captured_piece_is_recognised(vector: Vector) -> None:
    found = frames(vector.data)
    if vector.kind == "nats_hpub":
        assert only(found).kind == "damage"
        return
    assert not [frame.problems for frame in found if frame.problems]
    assert sum(frame.size for frame in found) == len(vector.data)
    kinds = [frame.kind for frame in found]
    if vector.kind.startswith("req_"):
        assert kinds == ["request"]
        assert found[0].direction == ">"
        decoded = vector.facts["decoded"]
        assert found[0].content["path"] == decoded["path"]
        assert found[0].content["headers"] == decoded["headers"]
    elif vector.kind.endswith("worker_side"):
        assert kinds[:3] == ["handshake", "prologue", "item"]
        assert set(kinds[3:]) <= {"item", "final", "sentinel"}
    elif vector.kind.startswith("ack_") and vector.kind != "ack_ok":
        assert kinds == ["refusal"]
        assert only(found).content["text"].isprintable()
    elif vector.kind in KINDS:
        assert ({frame.direction for frame in found}, kinds) == ({KINDS[vector.kind][0]}, KINDS[vector.kind][1])
    else:
        assert kinds == ["sentinel"]


def test_a_request_says_where_each_part_is() -> None:
    info = {"address": "127.0.0.1:1", "subject": "s", "context": "i", "stream_type": "response"}
    control = {
        "id": "i",
        "request_type": "single_in",
        "payload_codec": "msgpack",
        "connection_info": {"transport": "tcp_server", "info": json.dumps(info)},
    }
    frame = only(frames(request_frame(control, b"\x81\xa1a\xc4\x01b")))
    assert frame.lengths == {
        "path": 3,
        "headers": 2,
        "payload": 24 + len(json.dumps(control)) + 6,
        "control": len(json.dumps(control)),
        "body": 6,
    }
    assert frame.size == 8 + sum(frame.lengths[name] for name in ("path", "headers", "payload"))
    assert frame.content["control"]["connection_info"]["info"] == info
    assert frame.content["body"] == {"a": b"b"}


@given(st.lists(st.integers(1, 400)), st.booleans())
def test_frames_are_the_same_however_the_bytes_are_cut(cuts: list[int], of_request_plane: bool) -> None:
    if of_request_plane:
        sides = {True: request_frame() * 2, False: bytes(4) + b"\0\0\0\x02no"}
        expected = ["request", "request"], ["ack", "refusal"]
    else:
        sides = {True: HANDSHAKE + PROLOGUE + ITEM + SENTINEL, False: encode_two_part(b'"stop"', b"")}
        expected = ["handshake", "prologue", "item", "sentinel"], ["stop"]
    conversation = Conversation()
    found: list[Frame] = []
    at = {True: 0, False: 0}
    for number, cut in enumerate([*cuts, 1 << 20, 1 << 20]):
        from_dialler = number % 2 == 0 if number < len(cuts) else number == len(cuts)
        found += conversation.feed(from_dialler, sides[from_dialler][at[from_dialler] :][:cut])
        at[from_dialler] += cut
    found += conversation.close()
    assert conversation.plane is (Plane.REQUEST if of_request_plane else Plane.RESPONSE)
    arrow = ">" if of_request_plane else "<"
    assert [frame.kind for frame in found if frame.direction == arrow] == expected[0]
    assert [frame.kind for frame in found if frame.direction != arrow] == expected[1]


def test_a_named_plane_is_believed() -> None:
    conversation = Conversation(Plane.RESPONSE)
    assert only(conversation.feed(False, encode_two_part(b'"kill"', b""))).direction == ">"
    assert only(conversation.feed(True, encode_two_part(b"", b""))).kind == "empty"


@pytest.mark.parametrize(
    ("data", "offset", "size", "reason"),
    [
        (ITEM + ITEM[:30], 66, 30, "byte 66: the connection ends within a frame, of which there are 30 bytes"),
        (ITEM + b"\xff" * 24, 66, 24, "byte 66: two-part message at byte 66 is too large: prefix 24 + header 18446744"),
        (
            ITEM + (MAX_FRAME_SIZE).to_bytes(8, "big") + bytes(16),
            66,
            24,
            f"header {MAX_FRAME_SIZE} + data 0 = {MAX_FRAME_SIZE + 24} bytes (limit: {MAX_FRAME_SIZE} bytes)",
        ),
        (b"GET / HTTP/1.1\r\n\r\n" * 10, 0, 180, "byte 0: these are the bytes of neither plane"),
    ],
)
def test_damage_is_told_with_its_place_and_its_reason(data: bytes, offset: int, size: int, reason: str) -> None:
    frame = frames(data)[-1]
    assert (frame.kind, frame.offset, frame.size) == ("damage", offset, size)
    assert reason in only_problem(frame)
    assert frame.content["begins"] == data[offset:][:24]


def only_problem(frame: Frame) -> str:
    (problem,) = frame.problems
    return problem


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (encode_two_part(b'{"error":x}', b""), "header, byte 33: no json: JSON is malformed: invalid character"),
        (encode_two_part(b"", b'{"data":{"data":1]}'), "data, byte 41: no json: JSON is malformed"),
        (encode_two_part(b"", b"\x82\xa4data\xc1"), "data, byte 30: no msgpack: MessagePack data is malformed"),
        (request_frame(headers=b"{x"), "headers, byte 8: no json: "),
        (request_frame(body=b"[1,}"), "body, byte 80: no json: "),
        (
            REQUEST.encode_message(TcpRequestMessage.from_parts(b"1/a", b"{}", b"short")),
            "payload, byte 13: its 5 bytes are no whole two-part message",
        ),
        (
            REQUEST.encode_message(TcpRequestMessage.from_parts(b"1/a", b"{}", b"\xff" * 24)),
            "payload, byte 13: two-part message at byte 0 is too large",
        ),
    ],
)
def test_a_whole_frame_with_bad_contents_is_shown_and_the_next_is_read(data: bytes, problem: str) -> None:
    good = request_frame() if b"1/a" in data else ITEM
    plane = Plane.REQUEST if b"1/a" in data else Plane.RESPONSE
    bad, after = frames(data + good, plane)
    assert problem in only_problem(bad)
    place = int(bad.problems[0].partition("byte ")[2].partition(":")[0])
    assert place < len(data)
    assert (after.offset, after.problems) == (len(data), [])


def test_nothing_follows_damage() -> None:
    conversation = Conversation()
    assert [frame.kind for frame in conversation.feed(True, HANDSHAKE + b"\xff" * 24)] == ["handshake", "damage"]
    assert conversation.feed(True, ITEM) == []
    assert only(conversation.feed(False, encode_two_part(b'"kill"', b""))).kind == "kill"  # the other way is whole
    assert conversation.close() == []


def test_a_gap() -> None:
    conversation = Conversation()
    conversation.feed(True, HANDSHAKE)
    frame = only(conversation.gap(True, 7))
    assert (frame.kind, frame.offset, frame.size) == ("damage", len(HANDSHAKE), 0)
    assert only_problem(frame) == f"byte {len(HANDSHAKE)}: the next 7 bytes are missing from the capture"
    assert [frame.kind for frame in Conversation().gap(True, 7)] == ["damage"]


def test_a_connection_that_was_joined_midway_on_the_wrong_foot() -> None:
    """The first bytes were an acknowledgement, so that the worker was taken for the dialler."""
    conversation = Conversation(midway=True)
    assert conversation.feed(True, bytes(4)) == []
    found = conversation.feed(False, request_frame()) + conversation.feed(True, bytes(4))
    assert [(frame.direction, frame.kind) for frame in found] == [("<", "ack"), (">", "request"), ("<", "ack")]
    assert only(conversation.gap(False, 3)).direction == ">"
    conversation = Conversation(midway=True)
    found = conversation.feed(True, HANDSHAKE) + conversation.feed(False, encode_two_part(b'"stop"', b""))
    assert [(frame.direction, frame.kind) for frame in found] == [("<", "handshake"), (">", "stop")]


def test_what_is_held_to_tell_the_plane_is_bounded() -> None:
    conversation = Conversation()
    assert conversation.feed(False, bytes(4)) == []  # the listener's bytes tell nothing
    assert conversation.feed(True, b"\x00\x03a/b\xff\xff{" + b"x" * 1000) == [Frame("<", "ack", 0, 4)]
    assert conversation.plane is Plane.REQUEST
    conversation = Conversation()
    assert conversation.feed(False, b"x" * (1 << 15)) == []
    assert only(conversation.feed(False, b"x" * (1 << 15))).kind == "damage"


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything(data: bytes) -> None:
    for plane in (None, *Plane):
        found = frames(data, plane)
        assert sum(frame.size for frame in found) == len(data)


def test_plane_of() -> None:
    assert plane_of(b"") is None
    assert plane_of(b"", ended=True) is None
    assert plane_of(HANDSHAKE[:23]) is None
    assert plane_of(HANDSHAKE[:24]) is Plane.RESPONSE
    assert plane_of(request_frame()[:8]) is Plane.REQUEST
