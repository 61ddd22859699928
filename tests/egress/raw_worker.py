"""A worker of plain sockets, which does only what a test tells it, right or wrong.

It packs and unpacks every frame by hand, so that the router is not tested against its own codec.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from types import TracebackType
from typing import Any

OK_PROLOGUE = b'{"error":null}'
SENTINEL = b'"sentinel"'
FINAL = b'{"complete_final":true}'
LIMIT = 30.0
"""Seconds after which a test that waits for the router fails."""


def two_part(header: bytes = b"", data: bytes = b"") -> bytes:
    return struct.pack(">QQQ", len(header), len(data), 0) + header + data


def item(value: Any, *, final: bool = False) -> bytes:
    """The data of an item, as JSON."""
    return json.dumps({"data": {"data": value}, "complete_final": final}, separators=(",", ":")).encode()


class RawWorker:
    """Listens for request frames: `async with RawWorker() as worker`."""

    def __init__(self) -> None:
        self._requests: asyncio.Queue[RawRequest] = asyncio.Queue()
        self.writers: list[asyncio.StreamWriter] = []
        self.tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> RawWorker:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        self.address = f"127.0.0.1:{self.port}/1f/demo/backend/generate"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop_listening()
        for writer in self.writers:
            writer.transport.abort()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    def stop_listening(self) -> None:
        self._server.close()

    async def request(self) -> RawRequest:
        """The next request that comes."""
        return await asyncio.wait_for(self._requests.get(), LIMIT)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        self.writers.append(writer)
        try:
            while True:
                path = await reader.readexactly(struct.unpack(">H", await reader.readexactly(2))[0])
                headers = await reader.readexactly(struct.unpack(">H", await reader.readexactly(2))[0])
                payload = await reader.readexactly(struct.unpack(">I", await reader.readexactly(4))[0])
                self._requests.put_nowait(RawRequest(self, writer, path, headers, payload))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the router has closed its connection


class RawRequest:
    """One request frame, taken apart."""

    def __init__(
        self, worker: RawWorker, writer: asyncio.StreamWriter, path: bytes, headers: bytes, payload: bytes
    ) -> None:
        self.worker = worker
        self.writer = writer
        self._connection = asyncio.current_task()
        self.path = path.decode()
        self.headers: dict[str, str] = json.loads(headers)
        header_size, body_size, self.checksum = struct.unpack_from(">QQQ", payload)
        self.control_bytes = payload[24 : 24 + header_size]
        self.control: dict[str, Any] = json.loads(self.control_bytes)
        self.body = payload[24 + header_size :]
        assert len(self.body) == body_size
        self.info: dict[str, str] = json.loads(self.control["connection_info"]["info"])

    def acknowledge(self, text: bytes = b"") -> None:
        self.writer.write(struct.pack(">I", len(text)) + text)

    def cut(self) -> None:
        """Reset the connection that carried the request."""
        self.writer.transport.abort()

    async def closed(self) -> None:
        """Wait until the router has closed the connection that carried the request."""
        assert self._connection is not None
        await asyncio.wait_for(asyncio.shield(self._connection), LIMIT)

    async def connect(self) -> RawStream:
        """Dial the router, and say nothing."""
        host, _, port = self.info["address"].rpartition(":")
        reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        self.worker.writers.append(writer)
        return RawStream(reader, writer)

    async def dial(self, prologue: bytes | None = OK_PROLOGUE) -> RawStream:
        """Dial the router, and write the handshake and the prologue, if there is to be one."""
        stream = await self.connect()
        stream.send(json.dumps({"subject": self.info["subject"], "stream_type": "response"}).encode())
        if prologue is not None:
            stream.send(prologue)
        return stream


class RawStream:
    """The worker's end of a response stream."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, header: bytes = b"", data: bytes = b"") -> None:
        self.writer.write(two_part(header, data))

    def items(self, *values: Any) -> None:
        for value in values:
            self.send(data=item(value))

    def end(self) -> None:
        """The final marker and the sentinel."""
        self.send(data=FINAL)
        self.send(SENTINEL)

    def half_close(self) -> None:
        self.writer.write_eof()

    def reset(self) -> None:
        endpoint = self.writer.get_extra_info("socket")
        endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def received(self) -> list[bytes]:
        """The headers that the router sends until it closes, then `b""` for an end of file or `b"reset"`."""
        headers = []
        try:
            while True:
                prefix = await asyncio.wait_for(self.reader.readexactly(24), LIMIT)
                header_size, body_size, _ = struct.unpack(">QQQ", prefix)
                assert body_size == 0, "a router writes no data on a response stream"
                headers.append(await self.reader.readexactly(header_size))
        except asyncio.IncompleteReadError as error:
            assert not error.partial
            return [*headers, b""]
        except ConnectionError:
            return [*headers, b"reset"]

    async def next_control(self) -> bytes:
        """The next header that the router sends."""
        header_size, _, _ = struct.unpack(">QQQ", await asyncio.wait_for(self.reader.readexactly(24), LIMIT))
        return await self.reader.readexactly(header_size)
