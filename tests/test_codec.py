"""Both backends of the codec: the captured frames, the limits, the checksum, the values, and who is chosen."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from xxhash import xxh3_64_intdigest

from dynamo_fast import codec
from dynamo_fast.errors import (
    ChecksumMismatch,
    CodecError,
    IncompleteMessage,
    InvalidConfig,
    MessageTooLarge,
    TrailingBytes,
)
from tests.captured import Vector, captured, name_of
from tests.codecs import BACKENDS, both, cpython

VECTORS = [vector for vector in captured() if vector.kind != "nats_hpub"]
PARTS = ("header", "data", "endpoint_path", "headers", "payload")
TAIL = b"\x00\x00\x00"
"""Too short to be a prefix of any frame."""


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Any:
    return BACKENDS[request.param]


def kind_of(vector: Vector) -> str:
    """Which frames a vector holds."""
    if vector.plane == "response":
        return "TwoPart"
    return "TcpResponse" if vector.kind.startswith("ack") else "TcpRequest"


def decoder_for(backend: Any, vector: Vector) -> Any:
    return getattr(backend, f"{kind_of(vector)}Decoder")()


def codec_for(backend: Any, vector: Vector) -> Any:
    return getattr(backend, f"{kind_of(vector)}Codec")()


def by_hand(vector: Vector) -> Iterator[tuple[bytes, ...]]:
    """The parts of each frame, unpacked by nobody's codec."""
    data, at = vector.data, 0

    def take(size: int) -> bytes:
        nonlocal at
        at += size
        assert at <= len(data)
        return data[at - size : at]

    while at < len(data):
        if kind_of(vector) == "TwoPart":
            header_size, data_size, _ = struct.unpack(">QQQ", take(24))
            yield take(header_size), take(data_size)
        elif kind_of(vector) == "TcpResponse":
            yield (take(struct.unpack(">I", take(4))[0]),)
        else:
            path = take(struct.unpack(">H", take(2))[0])
            headers = take(struct.unpack(">H", take(2))[0])
            yield path, headers, take(struct.unpack(">I", take(4))[0])


def parts_of(message: Any) -> tuple[bytes, ...]:
    if hasattr(message, "parts"):
        return tuple(map(bytes, message.parts()))
    if hasattr(message, "endpoint_path"):
        return bytes(message.endpoint_path), bytes(message.headers), bytes(message.payload)
    return (bytes(message.data),)


# The captured frames, three ways


@pytest.mark.parametrize("vector", VECTORS, ids=name_of)
def test_whole(backend: Any, vector: Vector) -> None:
    decoder = decoder_for(backend, vector)
    messages = decoder.feed(vector.data)
    assert list(map(parts_of, messages)) == list(by_hand(vector))
    assert (decoder.pending, decoder.failed) == (0, None)
    codec_ = codec_for(backend, vector)
    assert b"".join(map(codec_.encode_message, messages)) == vector.data


@pytest.mark.parametrize("vector", VECTORS, ids=name_of)
def test_byte_by_byte(backend: Any, vector: Vector) -> None:
    decoder = decoder_for(backend, vector)
    messages = []
    for at in range(len(vector.data)):
        messages += decoder.feed(vector.data[at : at + 1])
    assert list(map(parts_of, messages)) == list(by_hand(vector))
    assert decoder.pending == 0


@pytest.mark.parametrize("vector", VECTORS, ids=name_of)
def test_with_a_tail(backend: Any, vector: Vector) -> None:
    decoder = decoder_for(backend, vector)
    tail = TAIL[:1] if kind_of(vector) == "TcpRequest" else TAIL
    assert list(map(parts_of, decoder.feed(vector.data + tail))) == list(by_hand(vector))
    assert decoder.pending == len(tail)


# One whole message


def test_exactly_one_message(backend: Any) -> None:
    two_part = backend.TwoPartCodec()
    frame = two_part.encode_message(backend.TwoPartMessage.from_parts(b"head", b"body"))
    assert frame == struct.pack(">QQQ", 4, 4, 0) + b"headbody"
    with pytest.raises(IncompleteMessage, match=r"two-part message is incomplete: 31 bytes of at least 32"):
        two_part.decode_message(frame[:-1])
    with pytest.raises(IncompleteMessage, match=r"0 bytes of at least 24"):
        two_part.decode_message(b"")
    with pytest.raises(TrailingBytes, match=r"ends at byte 32, but 1 more bytes follow"):
        two_part.decode_message(frame + b"x")
    assert two_part.decode_message(bytearray(frame)).parts() == (b"head", b"body")


@pytest.mark.parametrize(
    ("header", "data", "kind"),
    [(b"", b"", "EMPTY"), (b"h", b"", "HEADER_ONLY"), (b"", b"d", "DATA_ONLY"), (b"h", b"d", "HEADER_AND_DATA")],
)
def test_the_lengths_decide_the_type(backend: Any, header: bytes, data: bytes, kind: str) -> None:
    frame = backend.encode_two_part(header, data)
    message = backend.TwoPartCodec().decode_message(frame)
    assert message.message_type is codec.TwoPartMessageType[kind]
    assert backend.TwoPartCodec().encode_message(message) == frame


@pytest.mark.parametrize("bodies", [[], [b""], [b"one", b"", b"three"], [b"x" * 100_000] * 3])
def test_data_frames_are_messages_without_a_header(backend: Any, bodies: list[bytes]) -> None:
    frames = backend.encode_data_frames(iter(bodies))
    assert frames == b"".join(backend.encode_two_part(b"", body) for body in bodies)
    messages = backend.TwoPartDecoder().feed(frames)
    assert [message.parts() for message in messages] == [(b"", body) for body in bodies]
    head, tail = b'{"data":', bytearray(b"}")
    around = [head + body + tail for body in bodies]
    assert backend.encode_data_frames([memoryview(body) for body in bodies], head, tail) == backend.encode_data_frames(
        around
    )


# Limits


@pytest.mark.parametrize("size", [23, 24, 25])
def test_the_limit_of_a_two_part_message_counts_all_of_it(backend: Any, size: int) -> None:
    message = backend.TwoPartMessage.from_parts(b"h" * 10, b"d" * 20)
    assert backend.TwoPartCodec(54).encode_message(message)
    with pytest.raises(
        MessageTooLarge, match=r"prefix 24 \+ header 10 \+ data 20 = 54 bytes \(limit: 53 bytes\)"
    ) as caught:
        backend.TwoPartCodec(53).encode_message(message)
    assert (caught.value.size, caught.value.limit) == (54, 53)
    frame = backend.TwoPartCodec().encode_message(message)
    assert backend.TwoPartDecoder(54).feed(frame) == [message]
    decoder = backend.TwoPartDecoder(53)
    decoder.feed(frame[:23])
    with pytest.raises(MessageTooLarge, match="at byte 0"):  # on the prefix, whatever is still to come
        decoder.feed(frame[23:24])
    assert decoder.pending == 0


@pytest.mark.parametrize(
    ("header_len", "data_len"),
    [
        (2**64 - 1, 2**64 - 1),
        (2**64 - 24, 0),
        (0, 2**64 - 24),
        (2**63, 2**63),
        (2**63, 0),
        (1, 2**64 - 1),
        (2**64 - 1, 1),
    ],
)
def test_lengths_that_would_wrap_are_refused(backend: Any, header_len: int, data_len: int) -> None:
    prefix = struct.pack(">QQQ", header_len, data_len, 0)
    for limit in (None, 2**63, 2**64, 2**70, 100):
        with pytest.raises(MessageTooLarge) as caught:
            backend.TwoPartDecoder(limit).feed(prefix)
        assert caught.value.size == 24 + header_len + data_len


def test_a_huge_length_is_merely_incomplete_and_buffers_nothing(backend: Any) -> None:
    decoder = backend.TwoPartDecoder()
    assert decoder.feed(struct.pack(">QQQ", 0, 2**40, 0) + b"x") == []
    assert decoder.pending == 25


def test_the_whole_request_frame_counts(backend: Any) -> None:
    message = backend.TcpRequestMessage.from_parts(b"path", b"{}", b"p" * 10)
    frame = backend.TcpRequestCodec(24).encode_message(message)
    assert frame == b"\x00\x04path\x00\x02{}\x00\x00\x00\x0a" + b"p" * 10
    assert backend.TcpRequestDecoder(24).feed(frame) == [message]
    with pytest.raises(MessageTooLarge, match=r"= 24 bytes \(limit: 23 bytes\)") as caught:
        backend.TcpRequestDecoder(23).feed(frame[:14])
    assert caught.value.size == 24
    with pytest.raises(MessageTooLarge):
        backend.TcpRequestCodec(23).encode_message(message)


def test_parts_that_do_not_fit_their_length_field(backend: Any) -> None:
    request = backend.TcpRequestCodec()
    longest = b"x" * 65535
    assert request.encode_message(backend.TcpRequestMessage.from_parts(longest, longest, b""))
    with pytest.raises(MessageTooLarge, match=r"endpoint_path is too large: 65536 bytes \(limit: 65535 bytes\)"):
        request.encode_message(backend.TcpRequestMessage.from_parts(longest + b"x", b"", b""))
    with pytest.raises(MessageTooLarge, match=r"headers is too large: 65536 bytes"):
        request.encode_message(backend.TcpRequestMessage.from_parts(b"", longest + b"x", b""))


@pytest.mark.parametrize("limit", [-1, True, 1.5, "5"])
def test_a_bad_limit(backend: Any, limit: object) -> None:
    for name in ("TwoPartCodec", "TwoPartDecoder", "TcpRequestCodec", "TcpResponseDecoder"):
        with pytest.raises(InvalidConfig, match="max_message_size must be a number of bytes from 0 on"):
            getattr(backend, name)(limit)


# A stream that breaks


def test_the_messages_before_a_bad_one_are_not_lost(backend: Any) -> None:
    decoder = backend.TwoPartDecoder(100)
    good = backend.encode_two_part(b"", b"good")
    assert [bytes(each.data) for each in decoder.feed(good * 2 + b"\xff" * 24)] == [b"good"] * 2
    assert isinstance(decoder.failed, MessageTooLarge)
    for _ in range(2):  # and it stays broken
        with pytest.raises(MessageTooLarge, match=f"at byte {2 * len(good)}"):
            decoder.feed(good)


# Checksum


def test_checksum_is_zero_and_not_looked_at_unless_asked_for(backend: Any) -> None:
    frame = struct.pack(">QQQ", 1, 1, 12345) + b"hd"
    message = backend.TwoPartCodec().decode_message(frame)
    assert message.parts() == (b"h", b"d")
    assert backend.TwoPartCodec().encode_message(message)[16:24] == bytes(8)


def test_checksum_is_xxh3_of_both_parts(backend: Any) -> None:
    checked = backend.TwoPartCodec(checksum=True)
    message = backend.TwoPartMessage.from_parts(b"head", b"data")
    frame = checked.encode_message(message)
    assert frame[16:24] == struct.pack(">Q", xxh3_64_intdigest(b"headdata"))
    assert checked.decode_message(frame) == message
    assert backend.TwoPartDecoder(checksum=True).feed(frame) == [message]
    none = frame[:16] + bytes(8) + frame[24:]
    assert checked.decode_message(none) == message  # 0 says that there is none
    with pytest.raises(
        ChecksumMismatch, match=r"two-part message at byte 0 has checksum 0x[0-9a-f]{16}, but its prefix"
    ):
        checked.decode_message(frame[:-1] + b"A")


# Values


def test_messages_are_values(backend: Any) -> None:
    one = backend.TwoPartMessage.from_parts(b"h", b"d")
    same = backend.TwoPartMessage.from_parts(bytearray(b"h"), memoryview(b"d"))
    assert one == same
    assert hash(one) == hash(same)
    assert one != backend.TwoPartMessage.from_header(b"h")
    assert one != (b"h", b"d")
    assert copy.copy(one) == pickle.loads(pickle.dumps(one)) == backend.TwoPartMessage(b"h", b"d") == one
    assert repr(one) == "TwoPartMessage(header=b'h', data=b'd')"
    with pytest.raises(AttributeError):
        one.header = b"x"


def test_a_message_is_made_of_its_parts_and_unpacks_into_them(backend: Any) -> None:
    header, data = backend.TwoPartMessage(b"h", data=b"d")
    assert (header, data) == (b"h", b"d")
    assert backend.TwoPartMessage().parts() == (b"", b"")
    path, headers, payload = backend.TcpRequestMessage(b"p", b"{}", payload=b"x")
    assert (path, headers, payload) == (b"p", b"{}", b"x")
    assert backend.TcpResponseMessage().data == b""
    with pytest.raises(TypeError):
        backend.TcpRequestMessage(b"p")


def test_a_message_is_not_changed_by_a_second_call_of_its_constructor(backend: Any) -> None:
    for message, parts in (
        (backend.TwoPartMessage(b"h", b"d"), (b"x", b"y")),
        (backend.TcpRequestMessage(b"p", b"{}", b"x"), (b"x", b"y", b"z")),
        (backend.TcpResponseMessage(b"d"), (b"x",)),
    ):
        before = repr(message)
        with pytest.raises(TypeError, match=f"a {type(message).__name__} cannot be changed"):
            message.__init__(*parts)
        assert repr(message) == before


@pytest.mark.parametrize("size", [0, 96, 100_000])
def test_one_frame_without_a_codec_object(backend: Any, size: int) -> None:
    body = b"x" * size
    frame = backend.encode_two_part(b"h", body)
    header, data = backend.decode_two_part(frame)
    assert (header, data) == (b"h", body)
    assert type(data) is bytes
    assert backend.decode_two_part(frame, views=True) == backend.TwoPartMessage(b"h", body)
    with pytest.raises(TrailingBytes):
        backend.decode_two_part(frame + b"x")


def test_the_short_names_are_those_of_the_backend() -> None:
    assert codec.encode is codec.encode_two_part
    assert codec.decode is codec.decode_two_part


@pytest.mark.parametrize("size", [10, 16 * 1024, 1_000_000])
def test_every_part_is_bytes_unless_views_are_asked_for(backend: Any, size: int) -> None:
    """What was tried with small messages must not break with large ones."""
    body = b"x" * size
    frames = {
        "TwoPart": backend.encode_two_part(body, body),
        "TcpRequest": backend.TcpRequestCodec().encode_message(backend.TcpRequestMessage(b"p", b"{}", body)),
        "TcpResponse": backend.TcpResponseCodec().encode_message(backend.TcpResponseMessage(body)),
    }
    for kind, frame in frames.items():
        decoder = getattr(backend, f"{kind}Decoder")
        pieces = decoder()
        pieces.feed(frame[:-1])
        for message in (
            getattr(backend, f"{kind}Codec")().decode_message(frame),
            *decoder().feed(memoryview(frame)),
            *pieces.feed(frame[-1:]),
        ):
            names = [name for name in PARTS if hasattr(message, name)]
            assert {type(getattr(message, name)) for name in names} == {bytes}
    data, _ = backend.TwoPartDecoder().feed_data(backend.encode_two_part(b"", body))
    assert data == [body]
    assert type(data[0]) is bytes
    assert {type(part) for part in backend.TwoPartMessage(body, memoryview(body))} == {bytes}


@pytest.mark.parametrize("bad", [None, "text", 5, [1]])
def test_what_is_not_bytes_is_refused(backend: Any, bad: object) -> None:
    for call in (
        lambda: backend.TwoPartMessage.from_parts(bad, b""),
        lambda: backend.TwoPartDecoder().feed(bad),
        lambda: backend.TcpRequestMessage.from_parts(b"", b"", bad),
        lambda: backend.encode_two_part(b"", bad),
        lambda: backend.encode_data_frames([b"", bad]),
        lambda: backend.encode_data_frames([b""], bad),
        lambda: backend.encode_data_frames([], b"", bad),
        lambda: backend.TwoPartCodec().decode_message(bad),
    ):
        with pytest.raises(TypeError, match=f"must be bytes-like, not {type(bad).__name__}"):
            call()  # type: ignore[no-untyped-call]  # lambdas of whatever backend
    with pytest.raises(TypeError, match=f"must be a TwoPartMessage, not {type(bad).__name__}"):
        backend.TwoPartCodec().encode_message(bad)


def test_what_is_fed_may_be_changed_afterwards(backend: Any) -> None:
    size = 100_000
    frame = bytearray(backend.encode_two_part(b"", b"a" * size))
    (message,) = backend.TwoPartDecoder().feed(frame)
    frame[:] = bytes(len(frame))
    assert message.data == b"a" * size


def test_large_parts_are_views_of_what_was_fed_and_small_ones_are_not(backend: Any) -> None:
    small, large = b"s" * 100, b"l" * 1_000_000
    frame = backend.encode_two_part(small, large)
    (message,) = backend.TwoPartDecoder(views=True).feed(frame)
    assert type(message.header) is bytes
    assert type(message.data) is memoryview
    assert message.data.readonly
    assert message.data.obj is frame
    assert message.data == large


def test_nothing_pins_more_than_twice_its_size(backend: Any) -> None:
    frame = backend.encode_two_part(b"", b"x" * 50_000)
    messages = backend.TwoPartDecoder(views=True).feed(frame * 20)
    for message in messages:
        pinned = message.data if type(message.data) is bytes else message.data.obj
        assert len(pinned) <= 2 * 50_000


def test_a_frame_that_dribbles_in_is_one_buffer(backend: Any) -> None:
    body = bytes(range(256)) * 800
    frame = backend.encode_two_part(b"h", body)
    decoder = backend.TwoPartDecoder()
    for at in range(len(frame) - 1):
        assert decoder.feed(frame[at : at + 1]) == []
        assert decoder.pending == at + 1
    (message,) = decoder.feed(frame[-1:])
    assert message.parts() == (b"h", body)


def test_decoders_are_not_copied(backend: Any) -> None:
    with pytest.raises(TypeError, match="cannot be pickled or copied"):
        copy.copy(backend.TwoPartDecoder())


@cpython
def test_no_reference_is_left_behind(backend: Any) -> None:
    body = b"x" * 100_000
    frame = backend.encode_two_part(b"h", body)

    def work() -> None:
        decoder = backend.TwoPartDecoder(200_000)
        for _ in range(3):
            decoder.feed(frame + frame[:50])
            decoder.feed(frame[50:])
        decoder.feed(frame[:70])
        with pytest.raises(CodecError):
            backend.TwoPartDecoder(10).feed(frame)

    work()
    gc.collect()
    before = sys.getrefcount(frame), sys.getrefcount(body), len(gc.get_objects())
    for _ in range(50):
        work()
    gc.collect()
    after = sys.getrefcount(frame), sys.getrefcount(body), len(gc.get_objects())
    assert after[:2] == before[:2]
    assert after[2] - before[2] < 50


def test_threads_with_decoders_of_their_own(backend: Any) -> None:
    frames = backend.encode_two_part(b"h", b"d" * 96) * 500
    counts: list[int] = []

    def work() -> None:
        decoder = backend.TwoPartDecoder()
        counts.append(sum(len(decoder.feed(frames[at : at + 977])) for at in range(0, len(frames), 977)))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == [500] * 8


# The choice


def imported(environment: dict[str, str], program: str) -> subprocess.CompletedProcess[str]:
    settings = {name: value for name, value in os.environ.items() if name != "DYNAMO_FAST_BACKEND"}
    settings.update(environment, PYTHONPATH=os.pathsep.join(sys.path))
    return subprocess.run([sys.executable, "-c", program], env=settings, capture_output=True, text=True, check=False)


SHOW = "from dynamo_fast import codec; print(codec.BACKEND, codec.TwoPartCodec.__module__)"
WITHOUT = "import sys; sys.modules['dynamo_fast._codec'] = None; " + SHOW


@both
@pytest.mark.parametrize(
    ("wanted", "shown"),
    [
        ("", "cython dynamo_fast._codec"),
        ("cython", "cython dynamo_fast._codec"),
        ("python", "python dynamo_fast._codec_py"),
    ],
)
def test_the_backend_is_chosen_by_the_environment(wanted: str, shown: str) -> None:
    done = imported({"DYNAMO_FAST_BACKEND": wanted}, SHOW)
    assert (done.stdout.strip(), done.stderr) == (shown, "")


@cpython
def test_the_fallback_says_so_once() -> None:
    done = imported({}, WITHOUT)
    assert done.stdout.strip() == "python dynamo_fast._codec_py"
    assert done.stderr.count("the compiled codec cannot be imported") == 1
    assert "DYNAMO_FAST_BACKEND=python" in done.stderr
    assert imported({"DYNAMO_FAST_BACKEND": "python"}, WITHOUT).stderr == ""


@pytest.mark.parametrize(
    ("wanted", "program", "text"),
    [
        ("rust", SHOW, "DYNAMO_FAST_BACKEND='rust' is not valid: expected one of 'cython', 'python'"),
        ("Cython", SHOW, "DYNAMO_FAST_BACKEND='Cython' is not valid: expected"),
        ("cython", WITHOUT, "DYNAMO_FAST_BACKEND=cython, but the compiled codec cannot be imported"),
    ],
)
def test_a_choice_that_cannot_be_had_is_an_error(wanted: str, program: str, text: str) -> None:
    done = imported({"DYNAMO_FAST_BACKEND": wanted}, program)
    assert done.returncode == 1
    assert text in done.stderr


def test_each_backend_offers_the_names_of_the_codec(backend: Any) -> None:
    offered = {name for name in codec.__all__ if hasattr(backend, name)}
    assert offered == set(codec.__all__) - {"BACKEND", "decode", "encode"}
