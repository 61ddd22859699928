"""`Relay`: a proxy on loopback in front of a worker, which reports every frame that passes.

A worker answers on a connection of its own, to an address that is in the request. The relay replaces that address by its
own, so that the answer passes through it as well. What it reports is what the router wrote.
"""

from __future__ import annotations

import asyncio
import ipaddress
import itertools
import socket
import struct
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine

from dynamo_fast.codec import TwoPartDecoder
from dynamo_fast.errors import ControlError, InvalidRequest, ProtocolError
from dynamo_fast.inspect.conversation import Conversation, Plane
from dynamo_fast.inspect.describe import Frame
from dynamo_fast.inspect.events import Closed, Event, Failed, FrameSeen, Opened
from dynamo_fast.inspect.rewriter import AnswerRewriter
from dynamo_fast.net.listener import listening_at
from dynamo_fast.wire.address import join_host_port, split_host_port
from dynamo_fast.wire.control import CallHomeHandshake, TcpStreamConnectionInfo
from dynamo_fast.wire.mux import MuxHandshake

__all__ = ["Relay"]

_CHUNK = 1 << 16
_DIAL_TIMEOUT = 5.0
_HANDSHAKE_TIMEOUT = 10.0
_MAX_PENDING_ANSWERS = 100_000
"""Answers that have not come yet; the oldest is forgotten above it."""


class Relay:
    """Listens on loopback, passes everything on to `upstream` (`IP:PORT` of a worker's request plane), and reports it.

        relay = Relay("10.0.0.7:9000", on_event)
        await relay.start()             # listens on relay.address
        ...                             # call the worker at f"{relay.address}/{path}"
        await relay.close()

    `on_event` is called on the event loop with each event, in order. Without `answers`, workers answer straight to the
    router, and only the request plane is seen.

    Owned by the code that made it, from `start` to `close`. It owns a listener for each plane, a task for each connection
    that it accepted, and the addresses of the routers whose answers have not come yet.
    """

    def __init__(self, upstream: str, on_event: Callable[[Event], None], *, answers: bool = True) -> None:
        """Raises InvalidAddress if `upstream` is not `IP:PORT`."""
        self._upstream = split_host_port(upstream)
        self._on_event = on_event
        self._with_answers = answers
        self._numbers = itertools.count(1)
        self._servers: list[asyncio.Server] = []
        self._running: set[asyncio.Task[None]] = set()
        self._answers_go_to: OrderedDict[str, tuple[str, int]] = OrderedDict()  # by subject
        self.address = ""
        """Where the relay listens for requests, once it has started."""
        self.answer_address = ""
        """Where the relay listens for answers, once it has started; empty without `answers`."""

    async def start(self, listen: str = "127.0.0.1:0") -> None:
        """Listen. Port 0 takes a free port.

        Raises InvalidAddress if `listen` is not `IP:PORT`, InvalidRequest if it is not on loopback, and OSError.
        """
        host, port = split_host_port(listen)
        if not ipaddress.ip_address(host).is_loopback:
            raise InvalidRequest(
                f"a tap listens on loopback only, not on {host}: it shows all traffic to everyone who can read its output"
            )
        self.address = await self._listen(host, port, self._request_plane)
        if self._with_answers:
            self.answer_address = await self._listen(host, 0, self._response_plane)

    async def close(self) -> None:
        """Stop listening, and reset every connection. May be called twice."""
        for server in self._servers:
            server.close()
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _listen(
        self, host: str, port: int, serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
    ) -> str:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._running.add(task)
            try:
                await serve(reader, writer)
            except asyncio.CancelledError:
                _reset(writer)  # by `close`; nothing else waits for this task
            finally:
                self._running.discard(task)

        with listening_at(host, port):
            server = await asyncio.start_server(accept, host, port)
        self._servers.append(server)
        return join_host_port(*server.sockets[0].getsockname()[:2])

    # The two planes

    async def _request_plane(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        rewriter = AnswerRewriter(self.answer_address, self._expect_answer) if self._with_answers else None
        await self._between(reader, writer, self._upstream, Plane.REQUEST, rewriter=rewriter)

    async def _response_plane(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            subject, begins = await asyncio.wait_for(_handshake(reader), _HANDSHAKE_TIMEOUT)
            router = self._answers_go_to.pop(subject)
        except (asyncio.TimeoutError, ProtocolError, OSError, EOFError, KeyError) as error:
            reason = f"{_peer(writer)} does not bring an expected answer: {type(error).__name__} {error}"
            self._on_event(Failed(reason))
            _reset(writer)
            return
        await self._between(reader, writer, router, Plane.RESPONSE, begins=begins)

    def _expect_answer(self, info: TcpStreamConnectionInfo) -> None:
        self._answers_go_to[info.subject] = split_host_port(info.address)
        while len(self._answers_go_to) > _MAX_PENDING_ANSWERS:
            self._answers_go_to.popitem(last=False)

    # One connection

    async def _between(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        target: tuple[str, int],
        plane: Plane,
        *,
        rewriter: AnswerRewriter | None = None,
        begins: bytes = b"",
    ) -> None:
        """Pass on everything between an accepted connection and `target`, until both have ended."""
        number = next(self._numbers)
        self._on_event(Opened(number, _peer(writer), join_host_port(*target)))
        try:
            far_reader, far_writer = await asyncio.wait_for(asyncio.open_connection(*target), _DIAL_TIMEOUT)
        except (OSError, asyncio.TimeoutError) as error:
            self._on_event(Failed(f"{join_host_port(*target)} cannot be dialled: {error or 'timed out'}", number))
            _reset(writer)
            return
        conversation = Conversation(plane)

        def there(data: bytes) -> bytes:
            self._report(conversation.feed(True, data), number)
            if rewriter is None:
                return data
            return rewriter.rewrite(data) if data else rewriter.rest()

        def back(data: bytes) -> bytes:
            self._report(conversation.feed(False, data), number)
            return data

        how = "the relay was closed"
        try:
            far_writer.write(there(begins))
            await _both(_pass_on(reader, far_writer, there), _pass_on(far_reader, writer, back))
            how = "FIN"
        except OSError:
            how = "RST"
        finally:
            for each in (writer, far_writer):
                each.close() if how == "FIN" else _reset(each)
            self._report(conversation.close(), number)
            self._on_event(Closed(number, how))

    def _report(self, frames: list[Frame], number: int) -> None:
        now = time.time()
        for frame in frames:
            self._on_event(FrameSeen(number, frame, now))


async def _handshake(reader: asyncio.StreamReader) -> tuple[str, bytes]:
    """The subject on a worker's connection, or the token of a session, and all the bytes that came with it."""
    decoder, begins = TwoPartDecoder(_CHUNK), b""
    while True:
        data = await reader.read(_CHUNK)
        if not data:
            raise EOFError("it was closed before its handshake")
        begins += data
        messages = decoder.feed(data)
        if messages:
            return _subject(messages[0].header), begins


def _subject(header: bytes | memoryview) -> str:
    try:
        return CallHomeHandshake.decode(header).subject
    except ControlError:
        return MuxHandshake.decode(header).session


async def _pass_on(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, look_at: Callable[[bytes], bytes]
) -> None:
    """Write what `look_at` returns for each piece of data, the last of which is empty: the end."""
    is_open = True
    while is_open:
        data = await reader.read(_CHUNK)
        is_open = bool(data)
        writer.write(look_at(data))
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


async def _both(*directions: Coroutine[None, None, None]) -> None:
    """Run both to their end; if one fails, cancel the other."""
    tasks = list(map(asyncio.ensure_future, directions))
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _peer(writer: asyncio.StreamWriter) -> str:
    return join_host_port(*writer.get_extra_info("peername")[:2])


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with a reset: on the response plane a reset and an end mean different things."""
    if not writer.transport.is_closing():
        connection = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
