"""The frames of the multiplexed response plane, in both backends (mux.md 4): what is written, read, cut and refused."""

from __future__ import annotations

import pickle
import random
import re
from pathlib import Path
from typing import Any

import pytest

from dynamo_fast.errors import MessageTooLarge
from tests.codecs import BACKENDS

SPEC = Path(__file__).parents[1] / "docs" / "spec" / "mux.md"
LIMIT = 16 * 1024
DATA, PART, END = 3, 4, 5


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Any:
    return BACKENDS[request.param]


def vectors() -> list[tuple[int, int, bytes]]:
    """Stream, kind and body of each vector of the specification, and its bytes."""
    rows = re.findall(r"^\| `[A-Z]+`.*\| `([0-9a-f ]+)` \|$", SPEC.read_text(encoding="utf-8"), re.MULTILINE)
    fields = [row.split(" ") for row in rows]
    for stream, kind, length, *rest in fields:
        assert (len(stream), len(kind), len(length)) == (8, 2, 6)
        assert int(length, 16) == len(bytes.fromhex("".join(rest)))
    return [(int(stream, 16), int(kind, 16), bytes.fromhex("".join(rest))) for stream, kind, _, *rest in fields]


def frame(stream: int, kind: int, body: bytes) -> bytes:
    return stream.to_bytes(4, "big") + bytes([kind]) + len(body).to_bytes(3, "big") + body


def test_the_specification_has_vectors() -> None:
    assert len(vectors()) >= 8


@pytest.mark.parametrize("vector", vectors(), ids=str)
def test_a_vector_is_written_and_read(backend: Any, vector: tuple[int, int, bytes]) -> None:
    written = backend.encode_mux_frame(*vector)
    message = backend.MuxFrame(*vector)
    assert written == frame(*vector) == backend.MuxCodec().encode_message(message)
    assert backend.MuxCodec().decode_message(written) == message
    decoder = backend.MuxDecoder()
    byte_by_byte = [each for at in range(len(written)) for each in decoder.feed(written[at : at + 1])]
    assert byte_by_byte == [message]
    assert (byte_by_byte[0].stream, byte_by_byte[0].kind, bytes(byte_by_byte[0].body)) == vector


@pytest.mark.parametrize("size", [0, 1, LIMIT - 1, LIMIT, LIMIT + 1, 3 * LIMIT, 10 * LIMIT + 5])
def test_an_item_is_cut_so_that_no_frame_is_longer_than_the_limit(backend: Any, size: int) -> None:
    item = random.Random(size).randbytes(size)
    head, tail = item[: size // 5], item[size - size // 7 :]
    frames = backend.MuxDecoder().feed(
        backend.encode_mux_items(9, [item, item[len(head) : size - len(tail)]], b"", b"")
    )
    around = backend.encode_mux_items(9, [item[len(head) : size - len(tail)]], head, tail)
    assert around == backend.encode_mux_items(9, [item])
    first = frames[: max(1, -(-size // LIMIT))]
    assert b"".join(each.body for each in first) == item
    assert [each.kind for each in first] == [PART] * (len(first) - 1) + [DATA]
    assert {each.stream for each in frames} == {9}
    assert max(len(each.body) for each in frames) <= LIMIT


def test_frames_are_counted_up_to_a_limit(backend: Any) -> None:
    frames = backend.encode_mux_items(1, [b"abc", b"", b"x" * 20])
    ends = [0, 11, 19, 47]
    for at in ends:
        for limit in range(-1, 60):
            expected = max(end for end in ends if at <= end <= at + max(limit, 0))
            assert backend.mux_frames_within(frames, at, limit) == expected
    with pytest.raises(ValueError, match="no byte 48 in 47"):
        backend.mux_frames_within(frames, 48, 1)
    with pytest.raises(TypeError, match="frames must be bytes, not bytearray"):
        backend.mux_frames_within(bytearray(frames), 0, 1)


def test_a_long_frame_is_refused_when_its_length_has_come(backend: Any) -> None:
    decoder = backend.MuxDecoder(LIMIT + 8)
    assert decoder.feed(frame(1, DATA, b"x" * LIMIT)) == [backend.MuxFrame(1, DATA, b"x" * LIMIT)]
    with pytest.raises(MessageTooLarge) as refusal:
        decoder.feed(frame(7, PART, b"x" * (LIMIT + 1))[:8])
    assert str(refusal.value) == (
        "mux frame (stream 7, kind 4) at byte 16392 is too large: prefix 8 + body 16385 = 16393 bytes (limit: 16392 bytes)"
    )


@pytest.mark.parametrize(("stream", "kind"), [(-1, 1), (2**32, 1), (1, 256), (1, -1), (True, 1), ("1", 1), (1, None)])
def test_a_number_that_does_not_fit_its_field(backend: Any, stream: Any, kind: Any) -> None:
    for write in (backend.MuxFrame, backend.encode_mux_frame):
        with pytest.raises(ValueError, match="must be a whole number from 0 to"):
            write(stream, kind, b"")
    if kind == 1:
        with pytest.raises(ValueError, match="stream must be a whole number from 0 to 4294967295"):
            backend.encode_mux_items(stream, [b"a"])


def test_what_does_not_fit_its_length_field(backend: Any) -> None:
    body = bytes(1 << 24)
    with pytest.raises(MessageTooLarge, match="body is too large: 16777216 bytes"):
        backend.encode_mux_frame(1, DATA, body)
    with pytest.raises(MessageTooLarge, match="body is too large: 16777216 bytes"):
        backend.MuxCodec().encode_message(backend.MuxFrame(1, DATA, body))


def test_frames_are_values(backend: Any) -> None:
    one, same, other = (backend.MuxFrame(1, DATA, body) for body in (b"a", bytearray(b"a"), b"b"))
    assert one == same
    assert hash(one) == hash(same)
    assert one not in (other, (1, DATA, b"a"))
    assert pickle.loads(pickle.dumps(one)) == one
    assert repr(one) == "MuxFrame(stream=1, kind=3, body=b'a')"
    with pytest.raises(TypeError):
        one.__init__(1, DATA)


def test_items_go_to_their_streams_and_the_order_within_a_stream_is_kept(backend: Any) -> None:
    items: dict[int, list[bytes]] = {1: [], 2: []}
    sinks = {1: items[1].append, 2: items[2].append}
    stream = b"".join(
        (
            frame(1, DATA, b"a"),
            frame(2, DATA, b"bb"),
            frame(3, DATA, b"none"),
            frame(1, PART, b"c"),
            frame(1, DATA, b"d"),  # behind a part: not an item by itself
            frame(2, DATA, b"ee"),
            frame(2, DATA, b""),
            frame(2, DATA, b"f"),
        )
    )
    decoder = backend.MuxDecoder()
    assert decoder.feed_items(stream[:5], sinks) == ({}, [])
    taken, frames = decoder.feed_items(stream[5:], sinks)
    assert items == {1: [b"a"], 2: [b"bb", b"ee"]}
    assert taken == {1: 9, 2: 20}
    assert [(each.stream, each.kind, each.body) for each in frames] == [
        (3, DATA, b"none"),
        (1, PART, b"c"),
        (1, DATA, b"d"),
        (2, DATA, b""),
        (2, DATA, b"f"),
    ]
    assert sinks == {}


def test_the_items_before_a_bad_frame_are_not_lost(backend: Any) -> None:
    items: list[bytes] = []
    decoder = backend.MuxDecoder(100)
    bad = frame(1, DATA, b"x" * 93)
    taken, frames = decoder.feed_items(frame(1, DATA, b"a") + bad, {1: items.append})
    assert (items, taken, frames) == ([b"a"], {1: 9}, [])
    assert isinstance(decoder.failed, MessageTooLarge)
    with pytest.raises(MessageTooLarge):
        decoder.feed_items(b"", {})


def test_a_sink_that_raises_breaks_the_stream(backend: Any) -> None:
    def sink(body: Any) -> None:
        raise KeyError(body)

    decoder = backend.MuxDecoder()
    with pytest.raises(KeyError):
        decoder.feed_items(frame(1, DATA, b"a"), {1: sink})
