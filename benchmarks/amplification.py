"""How much memory a received value takes for each byte that was received: `python -m benchmarks.amplification`.

A peer chooses the bytes; the decoder makes Python objects of them. Each case below is one MiB of the input that costs
most of its kind. `tracemalloc` counts what Python's allocators hand out while the value is decoded: `kept` is what the
value holds afterwards, `peak` is the most at any moment, both in bytes for each byte of the input. The input itself is
not counted. Nothing is timed, so the figures do not depend on the load of the machine; they do depend on the release of
Python.

docs/threat-model.md shows the table; `tests/test_docs.py` checks it.
"""

from __future__ import annotations

import gc
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from dynamo_fast.wire.control import RequestControlMessage
from dynamo_fast.wire.payload import PayloadCodec

__all__ = ["Amplification", "cases", "measure", "table"]

SIZE = 1 << 20
_DEPTH = 100
_NOT_ASCII = "\U0001f600".encode()


class Amplification(NamedTuple):
    """Bytes of memory for each byte of the input."""

    kept: float
    peak: float


Case = tuple[str, Callable[[bytes], Any], bytes]


def cases() -> Iterator[Case]:
    """Name, decoder and input of each case."""
    json, msgpack = PayloadCodec.JSON.decode, PayloadCodec.MSGPACK.decode
    yield "JSON: text", json, b'"' + b"a" * SIZE + b'"'
    yield "JSON: text with one character that takes four bytes", json, b'"' + b"a" * SIZE + _NOT_ASCII + b'"'
    yield "JSON: list of small numbers", json, _json_list(b"0")
    yield "JSON: list of empty lists", json, _json_list(b"[]")
    yield "JSON: list of empty dicts", json, _json_list(b"{}")
    yield "JSON: dicts in dicts", json, _json_list(b'{"":' * _DEPTH + b"{}" + b"}" * _DEPTH)
    yield "MessagePack: list of nothing", msgpack, _msgpack_list(b"\xc0")
    yield "MessagePack: list of numbers", msgpack, _msgpack_list(b"\xd0\x80")
    yield "MessagePack: list of empty lists", msgpack, _msgpack_list(b"\x90")
    yield "MessagePack: list of empty dicts", msgpack, _msgpack_list(b"\x80")
    yield "MessagePack: dicts in dicts", msgpack, _msgpack_list(b"\x81\x00" * _DEPTH + b"\x80")
    yield "control message: metadata", RequestControlMessage.decode, _control_message()


def measure(decode: Callable[[bytes], Any], data: bytes) -> Amplification:
    """Decode `data` once, and count."""
    gc.collect()
    tracemalloc.start()
    try:
        value = decode(data)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    del value
    return Amplification(kept / len(data), peak / len(data))


def table() -> str:
    """The table of the document."""
    rows = ["| input | kept | peak |", "|---|---:|---:|"]
    for name, decode, data in cases():
        kept, peak = measure(decode, data)
        rows.append(f"| {name} | {kept:.0f} | {peak:.0f} |")
    return "\n".join(rows)


def _json_list(item: bytes) -> bytes:
    return b"[" + b",".join([item] * (SIZE // (len(item) + 1))) + b"]"


def _msgpack_list(item: bytes) -> bytes:
    count = SIZE // len(item)
    return b"\xdd" + count.to_bytes(4, "big") + item * count


def _control_message() -> bytes:
    """Of the largest size that is taken (`MAX_CONTROL_MESSAGE_SIZE`), nearly."""
    metadata = ",".join(f'"{key:x}":""' for key in range(13_000))
    info = r"{\"address\":\"127.0.0.1:1\",\"subject\":\"s\",\"context\":\"i\",\"stream_type\":\"response\"}"
    return (
        f'{{"id":"i","request_type":"single_in","response_type":"many_out","metadata":{{{metadata}}},'
        f'"connection_info":{{"transport":"tcp_server","info":"{info}"}}}}'
    ).encode()


if __name__ == "__main__":
    print(f"Python {sys.version.split()[0]}, bytes of memory for each byte received")
    print(table())
