"""A worker that costs almost nothing, for timing callers: it speaks the plain wire, from bytes made beforehand.

    python -m benchmarks.replay_worker        registers `bench.replay.generate` in the file store, and serves

A request says what to answer: `{"items": 100, "size": 100, "pace": 0}`. Items go out in bursts of `BURST`, or, with a
pace, one by one with that many microseconds between them, each in a packet of its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any, cast

import msgspec
import uvloop

BURST, BURST_BYTES = 64, 1 << 18
ENDPOINT = ("bench", "replay", "generate")
INSTANCE = 0xBE7C4
RECORD_NAME = "bench%2Freplay%2Fgenerate%2Fbe7c4"


def two_part(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">QQQ", len(header), len(data), 0) + header + data


def request_frame(work: dict[str, int], port: int, codec: str = "msgpack") -> bytes:
    """A request to this worker, to be answered on that port of this machine."""
    info = {"address": f"127.0.0.1:{port}", "subject": "s", "context": "c", "stream_type": "response"}
    control = {
        "id": "c",
        "request_type": "single_in",
        "response_type": "many_out",
        "payload_codec": codec,
        "connection_info": {"transport": "tcp_server", "info": json.dumps(info)},
    }
    body = json.dumps(work).encode() if codec == "json" else msgspec.msgpack.encode(work)
    payload = two_part(json.dumps(control).encode(), body)
    path = b"/".join([b"%x" % INSTANCE, *(name.encode() for name in ENDPOINT)])
    return struct.pack(">H", len(path)) + path + b"\0\0" + struct.pack(">I", len(payload)) + payload


PROLOGUE = two_part(b'{"error":null}')
SENTINEL = two_part(b'"sentinel"')


@cache
def item(codec: str, size: int) -> bytes:
    """The frame of an item whose wrapper has about `size` bytes."""
    text = ""
    while True:
        wrapper = {"data": {"data": {"token": 12345, "text": text}}, "complete_final": False}
        body = (
            json.dumps(wrapper, separators=(",", ":")).encode() if codec == "json" else msgspec.msgpack.encode(wrapper)
        )
        if len(body) >= size:
            return two_part(b"", body)
        text += "x" * (size - len(body))


@cache
def end(codec: str) -> bytes:
    final = {"complete_final": True}
    body = json.dumps(final, separators=(",", ":")).encode() if codec == "json" else msgspec.msgpack.encode(final)
    return two_part(b"", body) + SENTINEL


def burst_of(size: int) -> int:
    """How many items of that size go out together."""
    return max(1, min(BURST, BURST_BYTES // size))


@cache
def burst(codec: str, size: int) -> bytes:
    return item(codec, size) * burst_of(size)


class Requests(asyncio.Protocol):
    """A caller's connection: acknowledge each request frame, then answer it."""

    def __init__(self, answer: bool = True) -> None:
        self._data = b""
        self._answer = answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._data += data
        while (request := self._take()) is not None:
            self._transport.write(bytes(4))
            tasks.add(task := asyncio.ensure_future(answer(*request)))
            task.add_done_callback(tasks.discard)

    def _take(self) -> tuple[dict[str, Any], Any] | None:
        data = self._data
        if len(data) < 4:
            return None
        (path_size,) = struct.unpack_from(">H", data)
        at = 2 + path_size
        if len(data) < at + 2:
            return None
        (headers_size,) = struct.unpack_from(">H", data, at)
        at += 2 + headers_size
        if len(data) < at + 4:
            return None
        (payload_size,) = struct.unpack_from(">I", data, at)
        at += 4
        if len(data) < at + payload_size:
            return None
        header_size, body_size, _ = struct.unpack_from(">QQQ", data, at)
        control = json.loads(data[at + 24 : at + 24 + header_size])
        body = data[at + 24 + header_size : at + 24 + header_size + body_size]
        self._data = data[at + payload_size :]
        return control, json.loads(body) if control["payload_codec"] == "json" else msgspec.msgpack.decode(body)


tasks: set[asyncio.Future[None]] = set()


class Answer(asyncio.Protocol):
    """A response connection: whatever the caller says, it is over when it closes."""

    def __init__(self) -> None:
        self.closed = asyncio.get_running_loop().create_future()
        self.room = asyncio.Event()
        self.room.set()

    def pause_writing(self) -> None:
        self.room.clear()

    def resume_writing(self) -> None:
        self.room.set()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self.room.set()
        self.closed.set_result(None)


async def answer(control: dict[str, Any], work: dict[str, int]) -> None:
    info = json.loads(control["connection_info"]["info"])
    codec = control["payload_codec"]
    host, _, port = info["address"].rpartition(":")
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_connection(Answer, host.strip("[]"), int(port))
    handshake = two_part(json.dumps({"subject": info["subject"], "stream_type": "response"}).encode())
    items, size, pace = work["items"], work["size"], work.get("pace", 0)
    if pace:
        transport.write(handshake + PROLOGUE)
        await loop.run_in_executor(None, write_paced, transport.get_extra_info("socket").fileno(), codec, work)
        transport.write(end(codec))
    elif items <= burst_of(size):
        transport.write(handshake + PROLOGUE + item(codec, size) * items + end(codec))
    else:
        transport.write(handshake + PROLOGUE)
        for _ in range(items // burst_of(size)):
            transport.write(burst(codec, size))
            await protocol.room.wait()
        transport.write(item(codec, size) * (items % burst_of(size)) + end(codec))
    await protocol.closed


def write_paced(descriptor: int, codec: str, work: dict[str, int]) -> None:
    """One packet an item. (The event loop's timers are too coarse for this.)"""
    frame, pause = item(codec, work["size"]), work["pace"] / 1e6
    stream = socket.socket(fileno=os.dup(descriptor))
    stream.setblocking(True)
    with stream:
        due = time.perf_counter()
        for _ in range(work["items"]):
            stream.sendall(frame)
            due += pause
            while (left := due - time.perf_counter()) > 0:
                time.sleep(left)
        stream.setblocking(False)  # the flag is the connection's, not the copy's


async def main(codec: str) -> None:
    server = await asyncio.get_running_loop().create_server(Requests, "127.0.0.1", 0, backlog=4096)
    port = server.sockets[0].getsockname()[1]
    namespace, component, endpoint = ENDPOINT
    record = {
        "type": "Endpoint",
        "component": component,
        "endpoint": endpoint,
        "namespace": namespace,
        "instance_id": INSTANCE,
        "transport": {"tcp": f"127.0.0.1:{port}/{INSTANCE:x}/{'/'.join(ENDPOINT)}"},
        "device_type": "cuda",
        "request_plane_codec": codec,
    }
    folder = Path(os.environ["DYN_FILE_KV"]) / "v1" / "instances"
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / ".tmp_replay"
    temporary.write_text(json.dumps(record, separators=(",", ":")))
    temporary.replace(folder / RECORD_NAME)
    print("ready", flush=True)
    while True:  # its heartbeat
        await asyncio.sleep(2)
        os.utime(folder / RECORD_NAME)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1] if len(sys.argv) > 1 else "msgpack"))
