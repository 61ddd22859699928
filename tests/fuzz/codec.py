"""Fuzz one backend of the codec, with the other one beside it.

    python -m tests.fuzz.codec cython|python [options of libFuzzer, such as -max_total_time=60]

The first bytes of an input choose the format, the limit, the checksum and the sizes of the chunks; the rest is the stream.
For every input, and whatever the backend:

- only a CodecError comes out of it;
- the messages, the bytes pending and the error do not depend on how the stream is cut into chunks;
- what was read is written again as it was;
- the other backend sees the same.

atheris counts the branches of Python code: those of the Python backend lead the search for both. The corpus starts with the
captured frames of Dynamo; it and what breaks are kept in build/fuzz/.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import atheris

NAMES = ("cython", "python")
BACKEND = sys.argv[1] if len(sys.argv) > 1 else ""
if BACKEND not in NAMES:
    sys.exit(f"{BACKEND!r} is no backend: expected one of {', '.join(NAMES)}")
os.environ["DYNAMO_FAST_BACKEND"] = BACKEND  # read when the package is imported, and never again

with atheris.instrument_imports(include=["dynamo_fast"]):
    from dynamo_fast import _codec, _codec_py, codec
    from dynamo_fast.errors import CodecError
    from tests.captured import captured

FOLDER = Path("build/fuzz")
FORMATS = ("TwoPart", "TcpRequest", "TcpResponse")
LIMITS = (None, 0, 24, 100, 1000, 1 << 20, 1 << 31, (1 << 64) - 1)
CHOICES = 4
"""Bytes of an input before the stream."""


class Input(NamedTuple):
    """What an input of the fuzzer says."""

    kind: str
    options: dict[str, Any]
    chunk: int
    stream: bytes

    @classmethod
    def read(cls, data: bytes) -> Input:
        choices, stream = data[:CHOICES].ljust(CHOICES, b"\0"), data[CHOICES:]
        kind = FORMATS[choices[0] % len(FORMATS)]
        options: dict[str, Any] = {
            "max_message_size": LIMITS[choices[1] % len(LIMITS)],
            "views": bool(choices[2] & 2),
        }
        if kind == "TwoPart":
            options["checksum"] = bool(choices[2] & 1)
        return cls(kind, options, 1 + choices[3], stream)


class Outcome(NamedTuple):
    """What a stream came to."""

    parts: list[tuple[bytes, ...]]
    pending: int
    error: str
    written: bytes


def parts_of(message: Any) -> tuple[bytes, ...]:
    names = [name for name in ("header", "data", "endpoint_path", "headers", "payload") if hasattr(message, name)]
    return tuple(bytes(getattr(message, name)) for name in names)


def outcome(backend: ModuleType, given: Input, chunk: int) -> Outcome:
    """Feed the stream in chunks of that size."""
    decoder = getattr(backend, f"{given.kind}Decoder")(**given.options)
    codec = getattr(backend, f"{given.kind}Codec")(given.options["max_message_size"])
    messages: list[Any] = []
    try:
        for at in range(0, len(given.stream), chunk):
            messages += decoder.feed(given.stream[at : at + chunk])
    except CodecError as error:
        if error is not decoder.failed:
            raise AssertionError("the error is not the one that the decoder keeps") from error
    failed = decoder.failed
    check_items(backend, given, chunk, messages)
    written = b"".join(map(codec.encode_message, messages))
    return Outcome(list(map(parts_of, messages)), decoder.pending, f"{type(failed).__name__}: {failed}", written)


def check_items(backend: ModuleType, given: Input, chunk: int, messages: list[Any]) -> None:
    """Fed as a stream of items, it must come to the same messages."""
    if given.kind != "TwoPart":
        return
    decoder = backend.TwoPartDecoder(**given.options)
    parts: list[tuple[bytes, ...]] = []
    try:
        for at in range(0, len(given.stream), chunk):
            data, others = decoder.feed_data(given.stream[at : at + chunk])
            parts += [(b"", bytes(each)) for each in data]
            parts += map(parts_of, others)
    except CodecError as error:
        if error is not decoder.failed:
            raise AssertionError("the error is not the one that the decoder keeps") from error
    assert parts == list(map(parts_of, messages)), "other messages as a stream of items"


def check_writing(given: Input, seen: Outcome) -> None:
    """What was read must be what is written, checksums of two-part messages aside."""
    read = given.stream[: len(seen.written)]
    if given.kind == "TwoPart":
        at, plain = 0, bytearray(read)
        for header, data in seen.parts:
            plain[at + 16 : at + 24] = bytes(8)
            at += 24 + len(header) + len(data)
        read = bytes(plain)
    assert seen.written == read, "not written as it was read"
    if seen.error.startswith("NoneType"):
        assert len(seen.written) + seen.pending == len(given.stream), "bytes were lost"
    else:
        assert seen.pending == 0, "bytes are held for a broken stream"


def check_one_message(backend: ModuleType, given: Input, seen: Outcome) -> None:
    """`decode_message` takes the stream if, and only if, it is one message."""
    codec = getattr(backend, f"{given.kind}Codec")(**given.options)
    try:
        message = codec.decode_message(given.stream)
    except CodecError:
        assert (len(seen.parts), len(seen.written)) != (1, len(given.stream)), "one message was refused"
    else:
        assert seen.parts == [parts_of(message)], "not the message of the stream"


def check(backend: ModuleType, twin: ModuleType, data: bytes) -> None:
    given = Input.read(data)
    whole = outcome(backend, given, max(1, len(given.stream)))
    check_writing(given, whole)
    check_one_message(backend, given, whole)
    assert outcome(backend, given, given.chunk) == whole, f"chunks of {given.chunk} bytes change the outcome"
    assert outcome(twin, given, given.chunk) == whole, f"{twin.__name__} disagrees"


def seed(folder: Path) -> None:
    """The captured frames, each in a few settings."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, vector in enumerate(captured()):
        kind = 0 if vector.plane == "response" else 2 if vector.kind.startswith("ack") else 1
        choices = bytes((kind, number % len(LIMITS), number % 2, number % 50))
        (folder / f"seed{number}").write_bytes(choices + vector.data)


def chosen() -> tuple[ModuleType, ModuleType]:
    """The backend that was asked for, made sure of, and the other one."""
    backend, twin = (_codec, _codec_py) if BACKEND == "cython" else (_codec_py, _codec)
    assert BACKEND == codec.BACKEND
    assert codec.TwoPartDecoder is backend.TwoPartDecoder is not twin.TwoPartDecoder
    assert str(backend.__file__).endswith(".py") == (BACKEND == "python"), backend.__file__
    print(f"fuzzing the {codec.BACKEND} backend: {backend.__file__}", flush=True)
    return backend, twin


def main() -> None:
    backend, twin = chosen()
    folder = FOLDER / BACKEND
    seed(folder)
    limits = ["-timeout=10", "-rss_limit_mb=2048", f"-artifact_prefix={FOLDER}/{BACKEND}-"]
    atheris.Setup([sys.argv[0], *limits, *sys.argv[2:], str(folder)], lambda data: check(backend, twin, data))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
