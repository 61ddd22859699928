"""The questions and their answers: the captured frames of `vectors/` three ways, and the edges of each format.

Nothing here uses the codec: `vectors/index.json` says where the parts of each frame are, and the edges are written by hand.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.resources import files
from struct import pack
from typing import Any, NamedTuple

__all__ = ["PARTS", "Case", "Vector", "cases", "vectors"]

#: The names of the parts of a message, by format, as they follow each other in a frame.
PARTS = {
    "two_part": ("header", "data"),
    "tcp_request": ("endpoint_path", "headers", "payload"),
    "tcp_response": ("data",),
}
_LENGTHS = {"two_part": (24, 0), "tcp_request": (2, 2, 4), "tcp_response": (4,)}
"""Bytes before each part."""

Parts = tuple[bytes, ...]
Json = dict[str, Any]


class Vector(NamedTuple):
    """A captured piece of a connection; `facts` is its entry of the index."""

    name: str
    kind: str
    plane: str
    data: bytes
    facts: Json


class Case(NamedTuple):
    """One question without its id, and what the answer to it must say."""

    name: str
    question: Json
    expected: Json


def vectors() -> list[Vector]:
    """Everything that was captured.

    Vectors whose `facts["emitter"]` is `synthetic` were not written by Dynamo; Dynamo accepted them.
    """
    folder = files(__package__) / "vectors"
    index = json.loads((folder / "index.json").read_text(encoding="utf-8"))["vectors"]
    return [
        Vector(entry["file"], entry["kind"], entry["plane"], (folder / entry["file"]).read_bytes(), entry)
        for entry in index
    ]


def cases() -> list[Case]:
    """Every case. The names are unique."""
    captured = [vector for vector in vectors() if "frames" in vector.facts]
    return [case for vector in captured for case in _of_vector(vector)] + [*_two_part(), *_requests(), *_responses()]


# Captured frames -------------------------------------------------------------------------------------------------------


def _of_vector(vector: Vector) -> Iterator[Case]:
    """Decoded whole, byte by byte, and followed by the beginning of a next frame; encoded, if it is one frame."""
    name, form, data = vector.name.removesuffix(".bin"), vector.facts["format"], vector.data
    messages = list(_cut(form, data, vector.facts["frames"]))
    yield _decode(f"{name}/whole", form, [data], messages)
    yield _decode(f"{name}/byte-by-byte", form, [data[at : at + 1] for at in range(len(data))], messages)
    yield _decode(f"{name}/with-a-tail", form, [data + b"\0"], messages, pending=1)
    if len(messages) == 1:
        yield _encode(f"{name}/encode", form, messages[0], data)


def _cut(form: str, data: bytes, frames: list[list[int]]) -> Iterator[Parts]:
    at = 0
    for sizes in frames:
        parts = []
        for before, size in zip(_LENGTHS[form], sizes, strict=True):
            at += before + size
            parts.append(data[at - size : at])
        yield tuple(parts)


# The edges of the formats ----------------------------------------------------------------------------------------------


def _two_part() -> Iterator[Case]:
    yield from _types()
    yield from _lengths()
    yield from _limits("two_part", (b"header", b"the data"), pack(">QQQ", 6, 8, 0) + b"headerthe data", lengths=24)
    yield from _checksums()


def _types() -> Iterator[Case]:
    types = {"empty": (b"", b""), "header-only": (b"h", b""), "data-only": (b"", b"d"), "both": (b"h", b"d")}
    for name, (header, data) in types.items():
        frame = pack(">QQQ", len(header), len(data), 0) + header + data
        yield _decode(f"two_part/{name}/decode", "two_part", [frame], [(header, data)])
        yield _encode(f"two_part/{name}/encode", "two_part", (header, data), frame)
    yield _decode("two_part/nothing", "two_part", [b""], [])
    yield _decode("two_part/short-prefix", "two_part", [bytes(23)], [], pending=23)


def _lengths() -> Iterator[Case]:
    """A sum that does not fit in 64 bits is refused on the prefix; the decoder waits for any that fits."""
    top = 2**64 - 1
    for header, data in ((top, top), (top, 0), (0, top), (2**63, 2**63), (2**64 - 24, 0), (1, top), (top, 25)):
        prefix = pack(">QQQ", header, data, 0)
        yield _decode(f"two_part/wraps/{header:#x}+{data:#x}", "two_part", [prefix], [], error="message_too_large")
    for header, data in ((0, 2**31), (2**32, 0), (0, 2**40)):
        prefix = pack(">QQQ", header, data, 0)
        yield _decode(f"two_part/waits/{header:#x}+{data:#x}", "two_part", [prefix + b"x"], [], pending=25)
    good = pack(">QQQ", 0, 4, 0) + b"good"
    yield _decode(
        "two_part/good-before-bad",
        "two_part",
        [good * 2 + b"\xff" * 24],
        [(b"", b"good")] * 2,
        error="message_too_large",
    )


def _limits(form: str, parts: Parts, frame: bytes, lengths: int) -> Iterator[Case]:
    """The limit is for a whole frame; a larger one is refused once its first `lengths` bytes have arrived."""
    size, refused = len(frame), "message_too_large"
    yield _decode(f"{form}/limit/exact", form, [frame], [parts], limit=size)
    yield _decode(f"{form}/limit/one-less", form, [frame[:lengths]], [], error=refused, limit=size - 1)
    yield _decode(
        f"{form}/limit/lengths-but-one", form, [frame[: lengths - 1]], [], pending=lengths - 1, limit=size - 1
    )
    yield _decode(f"{form}/limit/second-frame", form, [frame + frame[:lengths]], [parts], pending=lengths, limit=size)
    yield _encode(f"{form}/limit/encode-exact", form, parts, frame, limit=size)
    yield _encode(f"{form}/limit/encode-one-less", form, parts, error=refused, limit=size - 1)


def _checksums() -> Iterator[Case]:
    # xxh3-64 of b"headdata", by the reference implementation of xxHash.
    right = 0x0BAD6F8CE4567E07
    for name, checksum in (("right", right), ("wrong", right ^ 1), ("none", 0)):
        frame = pack(">QQQ", 4, 4, checksum) + b"headdata"
        yield _decode(f"two_part/checksum/{name}/not-looked-at", "two_part", [frame], [(b"head", b"data")])
        if name == "wrong":
            yield _decode("two_part/checksum/wrong", "two_part", [frame], [], error="checksum_mismatch", checksum=True)
        else:
            yield _decode(f"two_part/checksum/{name}", "two_part", [frame], [(b"head", b"data")], checksum=True)
    written = pack(">QQQ", 4, 4, right) + b"headdata"
    yield _encode("two_part/checksum/written", "two_part", (b"head", b"data"), written, checksum=True)


def _requests() -> Iterator[Case]:
    def frame(path: bytes, headers: bytes, payload: bytes) -> bytes:
        head = pack(">H", len(path)) + path + pack(">H", len(headers)) + headers
        return head + pack(">I", len(payload)) + payload

    longest = b"x" * 0xFFFF
    requests = {
        "empty": (b"", b"", b""),
        "no-headers": (b"1f/generate", b"", b"payload"),
        "path-is-not-utf8": (b"\xff\xfe", b"{}", b"payload"),
        "longest-path": (longest, b"{}", b""),
        "longest-headers": (b"path", longest, b""),
    }
    for name, parts in requests.items():
        yield _decode(f"tcp_request/{name}/decode", "tcp_request", [frame(*parts)], [parts])
        yield _encode(f"tcp_request/{name}/encode", "tcp_request", parts, frame(*parts))
    pipelined = frame(b"a", b"", b"1") + frame(b"b", b"{}", b"22")
    yield _decode("tcp_request/pipelined", "tcp_request", [pipelined], [(b"a", b"", b"1"), (b"b", b"{}", b"22")])
    most = b"\0\1p\0\0" + b"\xff" * 4
    yield _decode("tcp_request/waits", "tcp_request", [most + b"x"], [], pending=10)
    too_long = (longest + b"x", b"", b""), (b"", longest + b"x", b"")
    for name, parts in zip(("path", "headers"), too_long, strict=True):
        yield _encode(f"tcp_request/{name}-of-65536-bytes", "tcp_request", parts, error="message_too_large")
    yield from _limits("tcp_request", (b"path", b"{}", b"payload"), frame(b"path", b"{}", b"payload"), lengths=14)


def _responses() -> Iterator[Case]:
    texts = {"accepted": b"", "refused": b"Server overloaded: worker at capacity", "not-utf8": b"\xff\xfe"}
    for name, text in texts.items():
        frame = pack(">I", len(text)) + text
        yield _decode(f"tcp_response/{name}/decode", "tcp_response", [frame], [(text,)])
        yield _encode(f"tcp_response/{name}/encode", "tcp_response", (text,), frame)
    yield _decode("tcp_response/pipelined", "tcp_response", [bytes(12)], [(b"",)] * 3)
    yield _decode("tcp_response/waits", "tcp_response", [b"\xff" * 4 + b"x"], [], pending=5)
    yield from _limits("tcp_response", (b"text",), b"\0\0\0\4text", lengths=4)


# Questions and answers -------------------------------------------------------------------------------------------------


def _decode(
    name: str,
    form: str,
    chunks: list[bytes],
    messages: list[Parts],
    *,
    pending: int = 0,
    error: str | None = None,
    limit: int | None = None,
    checksum: bool = False,
) -> Case:
    question = {"op": "decode", "format": form, "chunks": [chunk.hex() for chunk in chunks]}
    expected: Json = {"messages": [_message(form, parts) for parts in messages], "error": error}
    if error is None:  # after an error, the bytes held are not defined
        expected["pending"] = pending
    return Case(name, question | {"max_message_size": limit, "checksum": checksum}, expected)


def _encode(
    name: str,
    form: str,
    parts: Parts,
    frame: bytes | None = None,
    *,
    error: str | None = None,
    limit: int | None = None,
    checksum: bool = False,
) -> Case:
    question = {"op": "encode", "format": form, "message": _message(form, parts)}
    expected = {"error": error} if frame is None else {"bytes": frame.hex(), "error": None}
    return Case(name, question | {"max_message_size": limit, "checksum": checksum}, expected)


def _message(form: str, parts: Parts) -> dict[str, str]:
    return {name: part.hex() for name, part in zip(PARTS[form], parts, strict=True)}
