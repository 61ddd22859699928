"""A router for tests: it writes request frames and receives the answers, on bare sockets and by hand.

It uses nothing of dynamo_fast, so that a mistake in our codec cannot hide one in our worker.
"""

from __future__ import annotations

import asyncio
import json
import struct
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any
from uuid import uuid4

PATIENCE = 20.0
"""Seconds after which a test gives up waiting for bytes."""


def two_part(header: bytes, data: bytes) -> bytes:
    return struct.pack(">QQQ", len(header), len(data), 0) + header + data


def request_frame(path: str | bytes, payload: bytes, headers: bytes = b"{}") -> bytes:
    path = path.encode() if isinstance(path, str) else path
    head = struct.pack(">H", len(path)) + path + struct.pack(">H", len(headers)) + headers
    return head + struct.pack(">I", len(payload)) + payload


def control_frame(word: str) -> bytes:
    return two_part(json.dumps(word).encode(), b"")


@dataclass
class Frame:
    """One two-part message; `header` is decoded."""

    header: Any
    data: bytes

    @property
    def item(self) -> Any:
        """The wrapper of a data frame (JSON)."""
        return json.loads(self.data)


async def read_frame(reader: asyncio.StreamReader) -> Frame | None:
    """The next frame, None at the end of file."""
    try:
        head = await asyncio.wait_for(reader.readexactly(24), PATIENCE)
    except asyncio.IncompleteReadError as error:
        assert not error.partial, f"the stream ends inside a frame: {error.partial!r}"
        return None
    header_size, data_size, checksum = struct.unpack(">QQQ", head)
    assert checksum == 0
    body = await asyncio.wait_for(reader.readexactly(header_size + data_size), PATIENCE)
    return Frame(json.loads(body[:header_size]) if header_size else None, body[header_size:])


@dataclass
class Answer:
    """One connection that the worker dialled."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    handshake: Frame

    async def read(self) -> Frame | None:
        return await read_frame(self.reader)

    async def items(self) -> list[Any]:
        """The wrappers up to the sentinel, which must come; then our end of file."""
        items: list[Any] = []
        while (frame := await self.read()) is not None:
            if frame.header == "sentinel":
                self.writer.write_eof()
                return items
            assert frame.header is None, frame
            items.append(frame.item)
        raise AssertionError(f"the stream ended without a sentinel, after {items}")

    async def rest(self) -> bytes:
        """Everything until the worker closes."""
        return await asyncio.wait_for(self.reader.read(), PATIENCE)

    def send(self, frame: bytes) -> None:
        self.writer.write(frame)

    def reset(self) -> None:
        self.writer.transport.get_extra_info("socket").setsockopt(1, 13, struct.pack("ii", 1, 0))  # SO_LINGER 0
        self.writer.transport.abort()


@dataclass
class Requester:
    """The requester of any number of requests to one worker. Use `async with`."""

    worker: str
    """The worker's `ip:port/path`."""
    acks: list[str] = field(default_factory=list)

    async def __aenter__(self) -> Requester:
        self._dialled: dict[str, asyncio.Future[Answer]] = {}
        self._writers: list[asyncio.StreamWriter] = []
        self._is_gone = False
        self._server = await asyncio.start_server(self._on_dial, "127.0.0.1", 0, limit=2**24)
        self.port = self._server.sockets[0].getsockname()[1]
        address, _, self.path = self.worker.partition("/")
        host, _, port = address.rpartition(":")
        self.reader, self.writer = await asyncio.open_connection(host.strip("[]"), int(port))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_gone = True
        for writer in [self.writer, *self._writers]:
            writer.transport.abort()
        self._server.close()
        await asyncio.sleep(0)

    def control(self, request_id: str | None = None, **changes: Any) -> dict[str, Any]:
        """A control message for a new subject; a change to None removes the key."""
        request_id = str(uuid4()) if request_id is None else request_id
        control: dict[str, Any] = {
            "id": request_id,
            "request_type": "single_in",
            "response_type": "many_out",
            "payload_codec": "json",
            "connection_info": self.connection_info(request_id),
        }
        control.update(changes)
        return {key: value for key, value in control.items() if value is not None}

    def connection_info(self, request_id: str, stream_type: str = "response", **changes: Any) -> dict[str, str]:
        subject = str(uuid4())
        self._dialled[subject] = asyncio.get_running_loop().create_future()
        self.subject = subject
        info = {
            "address": f"127.0.0.1:{self.port}",
            "subject": subject,
            "context": request_id,
            "stream_type": stream_type,
        }
        return {"transport": "tcp_server", "info": json.dumps({**info, **changes})}

    def send(self, control: dict[str, Any] | bytes, body: bytes = b"{}", path: str | None = None) -> None:
        header = control if isinstance(control, bytes) else json.dumps(control).encode()
        self.writer.write(request_frame(self.path if path is None else path, two_part(header, body)))

    async def ack(self) -> str:
        """The next acknowledgement."""
        (size,) = struct.unpack(">I", await asyncio.wait_for(self.reader.readexactly(4), PATIENCE))
        return (await asyncio.wait_for(self.reader.readexactly(size), PATIENCE)).decode()

    async def dialled(self, subject: str | None = None) -> Answer:
        """The connection for `subject`, by default that of the newest control message."""
        return await asyncio.wait_for(self._dialled[subject or self.subject], PATIENCE)

    async def call(self, body: Any, request_id: str | None = None, **changes: Any) -> Answer:
        """Send a request; its acknowledgement must be good and the worker must dial."""
        self.send(self.control(request_id, **changes), json.dumps(body).encode())
        assert await self.ack() == ""
        return await self.dialled()

    async def _on_dial(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_gone:  # accepted while the server was being closed
            writer.transport.abort()
            return
        self._writers.append(writer)
        handshake = await read_frame(reader)
        assert handshake is not None
        self._dialled[handshake.header["subject"]].set_result(Answer(reader, writer, handshake))
