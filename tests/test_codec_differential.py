"""Both backends, driven side by side with any input, in any pieces, under any limit: they agree in everything."""

from __future__ import annotations

import struct
import sys
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo_fast.errors import DynamoError
from tests import codecs

pytestmark = codecs.both
BACKENDS = tuple(codecs.BACKENDS.values())
EDGES = (0, 1, 23, 24, 25, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 25, 2**63 - 1, 2**63, 2**64 - 25)
LIMITS = st.one_of(st.none(), st.integers(0, 400), st.sampled_from([*EDGES, 2**64 - 1, 2**64, 2**70]))
SMALL = st.binary(max_size=60)
LENGTHS = st.one_of(st.integers(0, 60), st.sampled_from([*EDGES, 2**64 - 24, 2**64 - 1]))
LARGE = st.integers(16_000, 40_000).map(lambda size: b"x" * size)
BODIES = st.one_of(SMALL, SMALL, SMALL, LARGE)


def two_part(header: bytes, data: bytes, checksum: int) -> bytes:
    return struct.pack(">QQQ", len(header), len(data), checksum) + header + data


def request(path: bytes, headers: bytes, payload: bytes) -> bytes:
    head = struct.pack(">H", len(path)) + path + struct.pack(">H", len(headers)) + headers
    return head + struct.pack(">I", len(payload)) + payload


def mux(stream: int, kind: int, body: bytes) -> bytes:
    return struct.pack(">II", stream, kind << 24 | len(body)) + body


# Few streams, so that several frames belong to one; and mostly items.
STREAMS = st.one_of(st.integers(0, 3), st.sampled_from([2**31, 2**32 - 1]))
KINDS = st.one_of(st.just(3), st.integers(0, 6), st.integers(0, 255))
CHECKSUMS = st.sampled_from([0, 1, 2**64 - 1])
GOOD = {
    "TwoPart": st.builds(two_part, SMALL, BODIES, CHECKSUMS),
    "TcpRequest": st.builds(request, SMALL, SMALL, BODIES),
    "Mux": st.builds(mux, STREAMS, KINDS, BODIES),
    "TcpResponse": BODIES.map(lambda data: struct.pack(">I", len(data)) + data),
}
BAD = {
    "TwoPart": st.builds(lambda a, b, c: struct.pack(">QQQ", a, b, c), LENGTHS, LENGTHS, LENGTHS),
    "TcpRequest": st.builds(
        lambda path, headers, size: request(path, headers, b"")[:-4] + struct.pack(">I", size % 2**32),
        SMALL,
        SMALL,
        LENGTHS,
    ),
    "Mux": st.builds(lambda a, b: struct.pack(">II", a % 2**32, b % 2**32), LENGTHS, LENGTHS),
    "TcpResponse": LENGTHS.map(lambda size: struct.pack(">I", size % 2**32)),
}


def stream_of(kind: str) -> st.SearchStrategy[bytes]:
    """Mostly frames, some of them bad, then whatever."""
    frames = st.lists(st.one_of(GOOD[kind], GOOD[kind], BAD[kind]), max_size=6).map(b"".join)
    return st.one_of(frames, st.tuples(frames, st.binary(max_size=80)).map(b"".join), st.binary(max_size=200))


def shown(message: Any) -> tuple[str, tuple[tuple[str, bytes], ...]]:
    """A message, its parts, and of which types those are."""
    names = [
        name for name in ("body", "header", "data", "endpoint_path", "headers", "payload") if hasattr(message, name)
    ]
    parts = [getattr(message, name) for name in names]
    return repr(message), tuple((type(part).__name__, bytes(part)) for part in parts)


def outcome(call: Any) -> Any:
    """What a call returns, or how it fails."""
    try:
        value = call()
    except (DynamoError, TypeError, ValueError) as error:
        sizes = getattr(error, "size", None), getattr(error, "limit", None)
        return type(error).__name__, str(error), sizes
    return value


def decoded(backend: Any, kind: str, options: dict[str, Any], chunks: list[bytes], feed: str = "feed") -> list[Any]:
    """Everything that can be seen of a decoder while it is fed."""
    made = outcome(lambda: getattr(backend, f"{kind}Decoder")(**options))
    if isinstance(made, tuple):
        return [made]
    trace: list[Any] = []
    for chunk in [*chunks, b""]:
        trace.append(outcome(lambda chunk=chunk: fed(made, feed, chunk)))
        trace.append((made.pending, made.expected, str(made.failed), type(made.failed).__name__))
    return trace


def fed(decoder: Any, feed: str, chunk: bytes) -> list[Any]:
    """What the decoder returns."""
    if feed == "feed":
        return list(map(shown, decoder.feed(chunk)))
    if feed == "feed_items":
        got: list[Any] = []
        sinks = {number: (lambda body, number=number: got.append((number, bytes(body)))) for number in (1, 2)}
        taken, frames = decoder.feed_items(chunk, sinks)
        return [got, list(taken.items()), sorted(sinks), *map(shown, frames)]
    data, messages = decoder.feed_data(chunk)
    return [(type(each).__name__, bytes(each)) for each in data] + list(map(shown, messages))


def announced(kind: str, total: int, size: int) -> bytes:
    """The lengths of a frame of `total` bytes, as far as they can say that; `size` bytes are before its last part."""
    if kind == "TwoPart":
        return struct.pack(">QQQ", size, (total - size - 24) % 2**64, 0)
    if kind == "TcpRequest":
        return request(b"p" * size, b"", b"")[:-4] + struct.pack(">I", (total - size - 8) % 2**32)
    if kind == "Mux":
        return struct.pack(">II", 1, 3 << 24 | (total - 8) % 2**24)
    return struct.pack(">I", (total - 4) % 2**32)


@st.composite
def conversations(draw: st.DrawFn) -> tuple[str, dict[str, Any], list[bytes]]:
    kind = draw(st.sampled_from(sorted(GOOD)))
    data = draw(stream_of(kind))
    limit = draw(LIMITS)
    if draw(st.booleans()):  # a frame at the edge of this very limit
        edge = sys.maxsize if limit is None else limit
        data += announced(kind, edge + draw(st.integers(-1, 1)), draw(st.integers(0, 60))) + draw(SMALL)
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=8)))
    chunks = [data[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    options: dict[str, Any] = {"max_message_size": limit}
    if kind != "Mux":
        options["views"] = draw(st.booleans())
    if kind == "TwoPart":
        options["checksum"] = draw(st.booleans())
    return kind, options, chunks


@settings(max_examples=1500, deadline=None)
@given(conversations())
def test_decoders_agree(conversation: tuple[str, dict[str, Any], list[bytes]]) -> None:
    first, second = (decoded(backend, *conversation) for backend in BACKENDS)
    assert first == second
    if conversation[0] == "TwoPart":
        first, second = (decoded(backend, *conversation, feed="feed_data") for backend in BACKENDS)
        assert first == second
    if conversation[0] == "Mux":
        first, second = (decoded(backend, *conversation, feed="feed_items") for backend in BACKENDS)
        assert first == second


@settings(max_examples=500, deadline=None)
@given(conversations())
def test_decoding_one_message_agrees(conversation: tuple[str, dict[str, Any], list[bytes]]) -> None:
    kind, options, chunks = conversation

    def decode(backend: Any) -> Any:
        result = outcome(lambda: getattr(backend, f"{kind}Codec")(**options).decode_message(b"".join(chunks)))
        return result if isinstance(result, tuple) else shown(result)

    first, second = map(decode, BACKENDS)
    assert first == second


@settings(max_examples=300, deadline=None)
@given(BODIES, BODIES, BODIES, LIMITS, st.booleans())
def test_encoders_agree(first: bytes, second: bytes, third: bytes, limit: int | None, checksum: bool) -> None:
    def encode(backend: Any) -> list[Any]:
        two_part_codec = backend.TwoPartCodec(limit, checksum=checksum)
        return [
            outcome(lambda: two_part_codec.encode_message(backend.TwoPartMessage.from_parts(first, second))),
            outcome(lambda: backend.encode_two_part(first, memoryview(second))),
            outcome(lambda: backend.encode_data_frames([first, memoryview(second), third])),
            outcome(lambda: backend.encode_data_frames([first, memoryview(second)], third, first)),
            outcome(
                lambda: backend.TcpRequestCodec(limit).encode_message(
                    backend.TcpRequestMessage.from_parts(first, bytearray(second), third)
                )
            ),
            outcome(
                lambda: backend.TcpResponseCodec(limit).encode_message(backend.TcpResponseMessage.from_parts(third))
            ),
            outcome(lambda: backend.MuxCodec(limit).encode_message(backend.MuxFrame(1, 3, second))),
            outcome(lambda: backend.encode_mux_frame(2**32 - 1, 255, memoryview(second))),
            outcome(lambda: backend.encode_mux_items(7, [first, memoryview(second), third])),
            outcome(lambda: backend.encode_mux_items(7, [first, memoryview(second)], third, first)),
        ]

    one, other = map(encode, BACKENDS)
    assert one == other
