"""The codec where it is easiest to get wrong: every cut of the captured bytes, every edge of a limit, foreign memory.

`test_codec.py` shows what the codec does; this shows that it goes on doing so for each format, on both backends.
"""

from __future__ import annotations

import array
import itertools
import mmap
import os
import struct
import subprocess
import sys
import sysconfig
import threading
import traceback
from collections.abc import Iterator
from functools import partial
from inspect import cleandoc, signature
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import xxhash

from dynamo_fast import _codec_py, codec
from dynamo_fast.errors import CodecError, IncompleteMessage, InvalidConfig, MessageTooLarge, TrailingBytes
from tests.captured import Vector, captured, name_of
from tests.codecs import BACKENDS, both, cpython

VIEW = _codec_py.VIEW_THRESHOLD
MAP_NORESERVE = 0x4000  # of <sys/mman.h>; Python 3.10 does not name it


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Any:
    return BACKENDS[request.param]


# -- the formats, written down once more: as the widths of their length fields ----------------------------------------


class Format(NamedTuple):
    """One of the three frames, with an example of its parts."""

    kind: str
    name: str
    parts: tuple[str, ...]
    example: tuple[bytes, ...]

    def codec(self, backend: ModuleType, limit: int | None = None, *, views: bool = False) -> Any:
        return getattr(backend, f"{self.kind}Codec")(limit, views=views)

    def decoder(self, backend: ModuleType, limit: int | None = None, *, views: bool = False) -> Any:
        return getattr(backend, f"{self.kind}Decoder")(limit, views=views)

    def message(self, backend: ModuleType, parts: tuple[Any, ...]) -> Any:
        return getattr(backend, f"{self.kind}Message").from_parts(*parts)

    def parts_of(self, message: Any) -> tuple[Any, ...]:
        return tuple(getattr(message, name) for name in self.parts)

    def with_last(self, last: bytes) -> tuple[bytes, ...]:
        return (*self.example[:-1], last)

    def frame(self, parts: tuple[bytes, ...]) -> bytes:
        if self is TWO_PART:
            return struct.pack(">QQQ", *map(len, parts), 0) + b"".join(parts)
        widths = (2, 2, 4)[-len(parts) :]
        return b"".join(len(part).to_bytes(width, "big") + part for width, part in zip(widths, parts, strict=True))

    def frames(self, stream: bytes) -> list[tuple[bytes, ...]]:
        """The parts of each frame of a complete stream."""
        frames = []
        while stream:
            lengths = (8, 8, 8) if self is TWO_PART else (2, 2, 4)[-len(self.parts) :]
            parts = []
            if self is TWO_PART:
                sizes = struct.unpack(">QQQ", stream[:24])[:2]
                stream = stream[24:]
            for number, _ in enumerate(self.parts):
                if self is not TWO_PART:
                    size, stream = int.from_bytes(stream[: lengths[number]], "big"), stream[lengths[number] :]
                else:
                    size = sizes[number]
                parts.append(stream[:size])
                stream = stream[size:]
            frames.append(tuple(parts))
        return frames


TWO_PART = Format("TwoPart", "two-part message", ("header", "data"), (b"header", b"the data"))
REQUEST = Format(
    "TcpRequest", "TCP request frame", ("endpoint_path", "headers", "payload"), (b"path", b"{}", b"the payload")
)
RESPONSE = Format("TcpResponse", "TCP response frame", ("data",), (b"the data",))
FORMATS = [TWO_PART, REQUEST, RESPONSE]

each_format = pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.kind)


# -- captured bytes, cut everywhere -----------------------------------------------------------------------------------


def stream_of(vector: Vector) -> tuple[Format, bytes]:
    """What a vector holds. An operation of NATS carries one two-part message behind its own lengths."""
    if vector.plane == "response":
        return TWO_PART, vector.data
    if vector.plane == "request-nats":
        command, _, rest = vector.data.partition(b"\r\n")
        headers_len, total = (int(word) for word in command.split()[-2:])
        return TWO_PART, rest[headers_len:total]
    return RESPONSE if vector.kind.startswith("ack") else REQUEST, vector.data


each_vector = pytest.mark.parametrize("vector", captured(), ids=name_of)


def test_the_vectors_cover_each_format_and_both_versions() -> None:
    vectors = captured()
    assert {stream_of(vector)[0] for vector in vectors} == set(FORMATS)
    assert {vector.facts["emitter_version"] for vector in vectors} >= {"1.3.1", "1.6.1"}
    assert max(len(form.frames(stream)) for form, stream in map(stream_of, vectors)) > 3


@each_vector
def test_a_vector_is_read_in_two_chunks_cut_anywhere(backend: ModuleType, vector: Vector) -> None:
    form, stream = stream_of(vector)
    expected = form.frames(stream)
    for at in range(len(stream) + 1):
        decoder = form.decoder(backend)
        messages = decoder.feed(stream[:at])
        read = sum(len(form.frame(form.parts_of(message))) for message in messages)
        assert decoder.pending == at - read
        messages += decoder.feed(stream[at:])
        assert list(map(form.parts_of, messages)) == expected
        assert decoder.pending == 0


@each_vector
def test_the_data_of_a_stream_of_items_comes_apart_from_what_follows_it(backend: ModuleType, vector: Vector) -> None:
    form, stream = stream_of(vector)
    if form is not TWO_PART:
        return
    stream = TWO_PART.frame((b"", b"item")) * 2 + stream
    for at in range(len(stream) + 1):
        by_message, by_item = form.decoder(backend), form.decoder(backend)
        for chunk in (stream[:at], stream[at:]):
            expected = list(map(form.parts_of, by_message.feed(chunk)))
            items = list(itertools.takewhile(lambda parts: not parts[0] and parts[1], expected))
            data, messages = by_item.feed_data(chunk)
            assert [(b"", bytes(each)) for each in data] == items
            assert list(map(form.parts_of, messages)) == expected[len(items) :]
            assert by_item.pending == by_message.pending


@pytest.mark.parametrize("checksum", [False, True])
def test_the_items_before_a_bad_frame_are_not_lost(backend: ModuleType, checksum: bool) -> None:
    good, bad = TWO_PART.frame((b"", b"item")), b"\xff" * 24
    decoder = backend.TwoPartDecoder(1024, checksum=checksum)
    decoder.feed_data(good[:-1])
    assert decoder.feed_data(good[-1:] + good + bad) == ([b"item"] * 2, [])
    with pytest.raises(MessageTooLarge, match=f"at byte {2 * len(good)} is too large"):
        decoder.feed_data(good)
    with pytest.raises(MessageTooLarge):
        backend.TwoPartDecoder(1024).feed_data(bad)


@each_vector
def test_the_next_frame_may_come_along_but_for_its_last_byte(backend: ModuleType, vector: Vector) -> None:
    form, stream = stream_of(vector)
    expected = form.frames(stream)
    decoder = form.decoder(backend)
    messages = decoder.feed(stream + stream[:-1])
    assert list(map(form.parts_of, messages)) == (expected * 2)[:-1]
    assert list(map(form.parts_of, decoder.feed(stream[-1:] + stream))) == [expected[-1], *expected]
    assert (decoder.pending, decoder.failed) == (0, None)


@each_vector
def test_one_frame_is_neither_less_nor_more(backend: ModuleType, vector: Vector) -> None:
    form, stream = stream_of(vector)
    frame = form.frame(form.frames(stream)[0])
    codec = form.codec(backend)
    assert codec.encode_message(codec.decode_message(frame)) == frame
    for size in range(len(frame)):
        with pytest.raises(IncompleteMessage, match=rf"^{form.name} is incomplete: {size} bytes of at least \d+$"):
            codec.decode_message(frame[:size])
    for tail in (b"\0", frame):
        told = f"^{form.name} ends at byte {len(frame)}, but {len(tail)} more bytes follow$"
        with pytest.raises(TrailingBytes, match=told):
            codec.decode_message(frame + tail)


@pytest.mark.parametrize("vector", captured("req_*", "data_*", "final_*", "prologue_*", "handshake_*"), ids=name_of)
def test_the_lengths_are_those_that_the_index_says(backend: ModuleType, vector: Vector) -> None:
    form, stream = stream_of(vector)
    message = form.codec(backend).decode_message(stream)
    said = vector.facts["decoded"]
    if form is REQUEST:
        assert bytes(message.endpoint_path).decode() == said["path"]
        assert len(message.payload) == said["payload_len"]
        assert form.codec(backend).decode_message(stream).payload == stream[-said["payload_len"] :]
    else:
        assert (len(message.header), len(message.data)) == (said["header_len"], said["data_len"])


# -- limits -----------------------------------------------------------------------------------------------------------


@each_format
def test_a_frame_of_exactly_the_limit_passes_and_one_byte_less_refuses_it(backend: ModuleType, form: Format) -> None:
    frame, message = form.frame(form.example), form.message(backend, form.example)
    for limit in (len(frame), len(frame) + 1, None):
        assert form.codec(backend, limit).decode_message(frame) == message
        assert form.codec(backend, limit).encode_message(message) == frame
        assert form.decoder(backend, limit).feed(frame) == [message]
    for limit in (len(frame) - 1, 1, 0):
        codec, decoder = form.codec(backend, limit), form.decoder(backend, limit)
        for refuse in (
            partial(codec.decode_message, frame),
            partial(codec.encode_message, message),
            partial(decoder.feed, frame),
        ):
            with pytest.raises(MessageTooLarge, match=rf"= {len(frame)} bytes \(limit: {limit} bytes\)$") as caught:
                refuse()
            assert (caught.value.size, caught.value.limit) == (len(frame), limit)


@each_format
def test_a_frame_is_refused_with_the_last_byte_of_its_lengths(backend: ModuleType, form: Format) -> None:
    frame = form.frame(form.example)
    lengths = 24 if form is TWO_PART else len(frame) - len(form.example[-1])
    decoder = form.decoder(backend, len(frame) - 1)
    for at in range(lengths - 1):
        assert decoder.feed(frame[at : at + 1]) == []
        assert decoder.pending == at + 1
    with pytest.raises(MessageTooLarge, match="at byte 0 is too large"):
        decoder.feed(frame[lengths - 1 : lengths])
    assert decoder.pending == 0


@pytest.mark.parametrize(
    ("form", "told"),
    [
        (TWO_PART, "two-part message at byte 0 is too large: prefix 24 + header 6 + data 8 = 38 bytes"),
        (REQUEST, "TCP request frame at byte 0 is too large: lengths 8 + path 4 + headers 2 + payload 11 = 25 bytes"),
        (RESPONSE, "TCP response frame at byte 0 is too large: length 4 + data 8 = 12 bytes"),
    ],
    ids=["TwoPart", "TcpRequest", "TcpResponse"],
)
def test_a_refusal_names_every_length(backend: ModuleType, form: Format, told: str) -> None:
    codec = form.codec(backend, 11)
    with pytest.raises(MessageTooLarge) as caught:
        codec.decode_message(form.frame(form.example))
    assert str(caught.value) == f"{told} (limit: 11 bytes)"
    with pytest.raises(MessageTooLarge) as caught:
        codec.encode_message(form.message(backend, form.example))
    assert str(caught.value) == f"{told} (limit: 11 bytes)".replace(" at byte 0", "")


HOSTILE = [0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 25, 2**63 - 24, 2**63 - 1, 2**63, 2**64 - 24, 2**64 - 1]


@pytest.mark.parametrize("limit", [None, 0, 23, 24, 25, 1 << 20, 2**31, 2**63 - 1, 2**63, 2**64, 2**100])
def test_hostile_lengths_are_added_up_without_wrapping(backend: ModuleType, limit: int | None) -> None:
    allowed = sys.maxsize if limit is None else min(limit, sys.maxsize)
    for header_len in HOSTILE:
        for data_len in HOSTILE:
            prefix = struct.pack(">QQQ", header_len, data_len, 0)
            size = 24 + header_len + data_len
            decoder = backend.TwoPartDecoder(limit)
            if size <= allowed:
                assert len(decoder.feed(prefix)) == (size == 24)
                assert decoder.pending == (24 if size > 24 else 0)
            else:
                with pytest.raises(MessageTooLarge) as caught:
                    decoder.feed(prefix)
                assert (caught.value.size, caught.value.limit) == (size, allowed)


# -- a stream that breaks ---------------------------------------------------------------------------------------------


@each_format
def test_the_place_of_a_bad_frame_is_counted_over_all_chunks(backend: ModuleType, form: Format) -> None:
    good, bad = form.frame(form.example), form.frame(form.with_last(b"x" * 100))
    stream = good * 3 + bad
    for step in (1, 2, 7, len(good), len(stream)):
        decoder = form.decoder(backend, len(good))
        messages: list[Any] = []
        try:
            for at in range(0, len(stream), step):
                messages += decoder.feed(stream[at : at + step])
        except MessageTooLarge as error:
            assert error is decoder.failed
        assert list(map(form.parts_of, messages)) == [form.example] * 3
        assert f"at byte {3 * len(good)} is too large" in str(decoder.failed)
        assert decoder.pending == 0


@each_format
def test_the_error_of_a_broken_stream_does_not_grow(backend: ModuleType, form: Format) -> None:
    decoder = form.decoder(backend, 0)
    depths = set()
    for _ in range(5):
        with pytest.raises(MessageTooLarge) as caught:
            decoder.feed(form.frame(form.example))
        assert caught.value is decoder.failed
        depths.add(len(traceback.extract_tb(caught.value.__traceback__)))
    assert len(depths) <= 2, depths  # where it was found, and where it was told again


@each_format
def test_what_is_not_bytes_harms_no_stream(backend: ModuleType, form: Format) -> None:
    frame = form.frame(form.example)
    decoder = form.decoder(backend)
    decoder.feed(frame[:3])
    with pytest.raises(TypeError, match="^chunk must be bytes-like, not str$"):
        decoder.feed("text")
    assert (decoder.pending, decoder.failed) == (3, None)
    assert list(map(form.parts_of, decoder.feed(frame[3:]))) == [form.example]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, MemoryError])
def test_a_decoder_that_was_interrupted_says_so_ever_after(
    backend: ModuleType, interruption: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    def digest(data: object) -> int:
        raise interruption

    monkeypatch.setattr(xxhash, "xxh3_64_intdigest", digest)
    decoder = backend.TwoPartDecoder(checksum=True)
    with pytest.raises(interruption):
        decoder.feed(TWO_PART.frame((b"", b"fine")) + struct.pack(">QQQ", 0, 1, 1) + b"x")
    assert decoder.pending == 0
    for _ in range(2):
        with pytest.raises(CodecError, match="^decoding was interrupted near byte 28 and cannot go on$"):
            decoder.feed(b"")


def test_checksums_without_xxhash_say_what_to_install(backend: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xxhash", None)
    for make in (backend.TwoPartCodec, backend.TwoPartDecoder):
        with pytest.raises(InvalidConfig, match="needs the xxhash package: pip install xxhash"):
            make(checksum=True)
        make()


# -- messages and memory ----------------------------------------------------------------------------------------------


@both
def test_both_backends_say_the_same_of_themselves() -> None:
    _codec = BACKENDS["cython"]
    assert _codec.__all__ == _codec_py.__all__
    assert _codec.VIEW_THRESHOLD == VIEW
    for name in (name for name in _codec.__all__ if name.isupper()):
        assert getattr(_codec, name) == getattr(_codec_py, name)
    for name in (name for name in _codec.__all__ if not name.isupper()):
        ours, theirs = getattr(_codec, name), getattr(_codec_py, name)
        assert cleandoc(ours.__doc__) == cleandoc(theirs.__doc__)
        public = {attribute for attribute in dir(theirs) if not attribute.startswith("_")}
        assert public == {attribute for attribute in dir(ours) if not attribute.startswith("_")}


def callables(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """The functions and classes of a backend, and the methods of the classes."""
    for name in sorted(name for name in module.__all__ if not name.isupper() and name != "TwoPartMessageType"):
        found = getattr(module, name)
        yield name, found
        for attribute in dir(found) if isinstance(found, type) else ():
            if not attribute.startswith("_") and callable(getattr(found, attribute)):
                yield f"{name}.{attribute}", getattr(found, attribute)


@both
def test_both_backends_have_the_same_signatures() -> None:
    """As `help`, editors and `inspect.signature` show them."""

    def shown(module: ModuleType) -> dict[str, list[tuple[str, object, object]]]:
        return {
            name: [
                (each.name, each.default, each.kind)
                for each in signature(found).parameters.values()
                if each.name != "self"
            ]
            for name, found in callables(module)
        }

    assert shown(BACKENDS["cython"]) == shown(_codec_py)
    assert str(signature(BACKENDS["cython"].TwoPartCodec)) == "(max_message_size=None, *, checksum=False, views=False)"


@each_format
def test_a_part_that_is_not_bytes_is_refused_by_name(backend: ModuleType, form: Format) -> None:
    for number, name in enumerate(form.parts):
        parts: list[Any] = list(form.example)
        parts[number] = "text"
        with pytest.raises(TypeError, match=f"^{name} must be bytes-like, not str$"):
            form.message(backend, tuple(parts))


def shapes(data: bytes) -> Iterator[Any]:
    """The same bytes in every shape that a buffer comes in."""
    yield bytearray(data)
    yield memoryview(data)
    yield memoryview(bytearray(data))
    yield memoryview(b"<" + data + b">")[1:-1]
    yield memoryview(bytes(byte for pair in zip(data, data, strict=True) for byte in pair))[::2]
    yield memoryview(data).cast("b")
    if len(data) % 4 == 0:
        yield memoryview(data).cast("B", (len(data) // 4, 4))
        yield memoryview(array.array("I", data))


@each_format
@pytest.mark.parametrize("size", [8, VIEW])
def test_any_buffer_will_do(backend: ModuleType, form: Format, size: int) -> None:
    parts = form.with_last((bytes(range(256)) * size)[:size])
    frame = form.frame(parts)
    for chunk in shapes(frame):
        for views in (False, True):
            assert list(map(form.parts_of, form.decoder(backend, views=views).feed(chunk))) == [parts]
            assert form.parts_of(form.codec(backend, views=views).decode_message(chunk)) == parts
    for last in shapes(parts[-1]):
        assert form.codec(backend).encode_message(form.message(backend, (*parts[:-1], last))) == frame
        if form is TWO_PART:
            assert backend.encode_two_part(parts[0], last) == frame
            assert backend.encode_data_frames([last]) == backend.encode_two_part(b"", parts[-1])


@each_format
@pytest.mark.parametrize("size", [VIEW - 1, VIEW, 2 * VIEW])
def test_a_message_does_not_change_with_the_memory_that_it_came_in(
    backend: ModuleType, form: Format, size: int
) -> None:
    parts = form.with_last(b"x" * size)
    frame = form.frame(parts)
    for wrap in (bytearray, lambda data: memoryview(bytearray(data))):
        chunk: Any = wrap(frame)
        messages = [
            form.codec(backend, views=True).decode_message(chunk),
            *form.decoder(backend, views=True).feed(chunk),
        ]
        last = wrap(parts[-1])
        messages.append(form.message(backend, (*parts[:-1], last)))
        chunk[:], last[:] = b"\xff" * len(chunk), b"\xff" * len(last)
        assert list(map(form.parts_of, messages)) == [parts] * 3


@each_format
def test_a_part_is_a_view_from_the_threshold_on(backend: ModuleType, form: Format) -> None:
    for size, expected in ((VIEW - 1, bytes), (VIEW, memoryview)):
        chunk = form.frame(form.with_last(b"x" * size))
        (message,) = form.decoder(backend, views=True).feed(chunk)
        *small, large = form.parts_of(message)
        assert type(large) is expected
        assert all(type(part) is bytes for part in small)
        assert form.message(backend, form.parts_of(message)) == message
        assert isinstance(large, bytes) or (large.readonly and large.obj is chunk)


@each_format
def test_a_view_that_was_released_is_not_read(backend: ModuleType, form: Format) -> None:
    (message,) = form.decoder(backend, views=True).feed(form.frame(form.with_last(b"x" * (1 << 20))))
    form.parts_of(message)[-1].release()
    with pytest.raises(ValueError, match="operation forbidden on released memoryview object"):
        form.codec(backend).encode_message(message)


@each_format
def test_a_message_that_nobody_made_is_not_read(backend: ModuleType, form: Format) -> None:
    kind = getattr(backend, f"{form.kind}Message")
    with pytest.raises((AttributeError, TypeError)):
        form.codec(backend).encode_message(kind.__new__(kind))


@each_format
def test_memory_goes_by_what_came_and_not_by_what_was_announced(backend: ModuleType, form: Format) -> None:
    announced = struct.pack(">QQQ", 0, 1 << 62, 0) if form is TWO_PART else form.frame(form.with_last(b""))
    if form is not TWO_PART:
        announced = announced[:-4] + b"\xff" * 4
    decoder = form.decoder(backend)
    tracemalloc = pytest.importorskip("tracemalloc", reason="PyPy lacks it")
    tracemalloc.start()
    try:
        assert decoder.feed(announced) == []
        for _ in range(256):
            assert decoder.feed(b"x" * 4096) == []
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert decoder.pending == len(announced) + (1 << 20)
    assert peak < 4 << 20


@each_format
def test_what_is_left_of_a_broken_stream_is_given_back(backend: ModuleType, form: Format) -> None:
    good = form.frame(form.with_last(b"x" * (1 << 20)))
    decoder = form.decoder(backend, len(good))
    bad = form.frame(form.with_last(b"x" * (1 << 20) + b"y"))
    tracemalloc = pytest.importorskip("tracemalloc", reason="PyPy lacks it")
    tracemalloc.start()
    try:
        decoder.feed(good[:-1])
        held, _ = tracemalloc.get_traced_memory()
        assert len(decoder.feed(good[-1:] + bad)) == 1
        left, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held >= 1 << 20
    assert left < 1 << 16
    assert (decoder.pending, type(decoder.failed)) == (0, MessageTooLarge)


def test_one_decoder_in_two_threads_may_lose_its_place_but_not_its_memory(
    backend: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A digest lets other threads run. What one of them leaves in the decoder is not written over, nor past its end."""
    inside, fed = threading.Event(), threading.Event()

    def digest(data: object) -> int:
        inside.set()
        assert fed.wait(10)
        return 1

    def intrude() -> None:
        assert inside.wait(10)
        decoder.feed(struct.pack(">QQQ", 0, 1 << 20, 0) + b"a" * (1 << 19))
        fed.set()

    monkeypatch.setattr(xxhash, "xxh3_64_intdigest", digest)
    decoder = backend.TwoPartDecoder(checksum=True)
    thread = threading.Thread(target=intrude)
    thread.start()
    assert len(decoder.feed(struct.pack(">QQQ", 0, 1, 1) + b"x" + b"b" * 23)) == 1
    thread.join(10)
    assert decoder.pending == 24 + (1 << 19) + 23
    rest = b"c" * ((1 << 19) - 23)
    (message,) = decoder.feed(rest)
    assert message.data == b"a" * (1 << 19) + b"b" * 23 + rest


@both
def test_a_compiled_decoder_takes_whole_frames_from_many_threads() -> None:
    """A call of `feed` without a digest runs to its end before another begins, so that no frame is torn."""
    decoder = BACKENDS["cython"].TwoPartDecoder()
    frames = [TWO_PART.frame((b"h" * (number % 5), bytes([number]) * (number * 37))) for number in range(200)]
    start = threading.Barrier(4)
    seen: list[list[Any]] = []

    def feed() -> None:
        messages: list[Any] = []
        start.wait(10)
        for _ in range(10):
            for at in range(0, len(frames), 3):
                messages += decoder.feed(b"".join(frames[at : at + 3]))
        seen.append([TWO_PART.frame(message.parts()) for message in messages])

    threads = [threading.Thread(target=feed) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [frames * 10] * 4
    assert (decoder.pending, decoder.failed) == (0, None)


def test_a_codec_may_be_used_by_many_threads(backend: ModuleType) -> None:
    """Whole frames only: it keeps nothing between two calls."""
    shared = backend.TwoPartCodec(checksum=True)
    messages = [backend.TwoPartMessage(b"h" * (number % 5), bytes([number]) * number * 37) for number in range(100)]
    start = threading.Barrier(4)
    seen: list[list[Any]] = []

    def work() -> None:
        start.wait(10)
        seen.append([shared.decode_message(shared.encode_message(message)) for message in messages * 10])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [messages * 10] * 4


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this Python has the global lock")
def test_the_compiled_codec_leaves_the_global_lock_off() -> None:
    program = "import sys, dynamo_fast.codec as codec; print(codec.BACKEND, sys._is_gil_enabled())"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHON_GIL"}
    environment.update(PYTHONPATH=os.pathsep.join(sys.path))
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert (done.stdout.split(), done.stderr) == ([codec.BACKEND, "False"], "")


@cpython
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lends out more memory than there is")
def test_frames_longer_than_all_memory_are_refused(backend: ModuleType) -> None:
    try:
        huge = memoryview(mmap.mmap(-1, 1 << 45, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE))
    except OSError as error:
        pytest.skip(f"this machine lends out no more memory than it has: {error}")
    for bodies in ([huge] * (1 << 19), [huge] * (1 << 18)):  # of whose lengths the sum is 0, and less, in 64 bits
        with pytest.raises(OverflowError):
            backend.encode_data_frames(bodies)
    if sysconfig.get_config_var("Py_GIL_DISABLED"):  # its allocator lends out as much, and the frames would be written
        return
    with pytest.raises(MemoryError):
        backend.encode_data_frames([b""], huge, huge)
