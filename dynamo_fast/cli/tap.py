"""`dynamo-fast tap LISTEN UPSTREAM`: show the traffic of a worker while it flows, through a proxy on loopback.

A worker answers on a connection of its own, to an address that stands in the request. The tap writes its own address
there, so that the answer comes by as well; what it shows is what the router wrote.
"""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import itertools
import socket
import struct
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field

from msgspec.structs import replace

from dynamo_fast.cli.decode import add_look, look_of
from dynamo_fast.cli.frames import MAX_FRAME_SIZE, Conversation, Frame, Plane, complete_messages
from dynamo_fast.cli.loop import run as run_loop
from dynamo_fast.cli.show import Look
from dynamo_fast.codec import TcpRequestCodec, TcpRequestDecoder, TcpRequestMessage, TwoPartDecoder, encode_two_part
from dynamo_fast.errors import ControlError, InvalidRequest, ProtocolError
from dynamo_fast.wire.address import join_host_port, split_host_port
from dynamo_fast.wire.control import (
    CallHomeHandshake,
    ConnectionInfo,
    RequestControlMessage,
    TcpStreamConnectionInfo,
)

__all__ = ["Tap", "add_parser", "run"]

_CHUNK = 1 << 16
_DIAL_TIMEOUT = 5.0
_HANDSHAKE_TIMEOUT = 10.0
_MAX_PENDING_ANSWERS = 100_000


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "tap",
        help="show live traffic through a proxy on loopback",
        description="Listen on LISTEN, pass everything on to UPSTREAM, and show it frame by frame: `>` is router to "
        "worker, `<` is worker to router. The answers of a worker come back through the tap, too. Call the worker "
        "through it, e.g.: dynamo-fast call LISTEN/PATH JSON.",
    )
    parser.add_argument("listen", metavar="LISTEN", help="HOST:PORT on loopback; port 0 takes a free one")
    parser.add_argument("upstream", metavar="UPSTREAM", help="HOST:PORT of a worker's request plane (see `instances`)")
    parser.add_argument("--no-answers", action="store_true", help="let answers go straight to the router, unseen")
    add_look(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Until it is interrupted."""
    return run_loop(_tap(options))


async def _tap(options: argparse.Namespace) -> int:
    tap = Tap(options.upstream, look_of(options), answers=not options.no_answers)
    await tap.start(options.listen)
    print(tap.look.note(f"listening on {tap.address}, passing on to {options.upstream}"), flush=True)
    try:
        await asyncio.Event().wait()  # Ctrl-C ends it
    finally:
        await tap.close()
    return 0


class Tap:
    """The proxy. `show` gets each line."""

    def __init__(
        self, upstream: str, look: Look, *, answers: bool = True, show: Callable[[str], None] | None = None
    ) -> None:
        self.look = look
        self._upstream = split_host_port(upstream)
        self._with_answers = answers
        self._show = show or (lambda line: print(line, flush=True))
        self._numbers = itertools.count(1)
        self._servers: list[asyncio.Server] = []
        self._running: set[asyncio.Task[None]] = set()
        self._answers_go_to: OrderedDict[str, tuple[str, int]] = OrderedDict()  # by subject
        self._answer_address = ""
        self.address = ""
        """Where it listens, once it has started."""

    async def start(self, listen: str) -> None:
        """Listen. Raises InvalidAddress, InvalidRequest for an address that is not on loopback, and OSError."""
        host, port = split_host_port(listen)
        if not ipaddress.ip_address(host).is_loopback:
            raise InvalidRequest(
                f"a tap shows everything to whoever sees its output, and listens on loopback, not {host}"
            )
        self.address = await self._listen(host, port, self._request_plane)
        if self._with_answers:
            self._answer_address = await self._listen(host, 0, self._response_plane)

    async def close(self) -> None:
        """Drop every connection."""
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
                _reset(writer)  # `close`: nobody waits for this task but us
            finally:
                self._running.discard(task)

        server = await asyncio.start_server(accept, host, port)
        self._servers.append(server)
        return join_host_port(*server.sockets[0].getsockname()[:2])

    # The two planes

    async def _request_plane(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        rewriter = _Rewriter(self._answer_address, self._expect_answer) if self._with_answers else None
        await self._between(reader, writer, self._upstream, Plane.REQUEST, rewriter=rewriter)

    async def _response_plane(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            handshake, begins = await asyncio.wait_for(_handshake(reader), _HANDSHAKE_TIMEOUT)
            router = self._answers_go_to.pop(handshake.subject)
        except (asyncio.TimeoutError, ProtocolError, OSError, EOFError, KeyError) as error:
            self._show(
                self.look.note(f"{_peer(writer)} does not bring an expected answer: {type(error).__name__} {error}")
            )
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
        rewriter: _Rewriter | None = None,
        begins: bytes = b"",
    ) -> None:
        """Pass on everything between one who dialled and `target`, until both have said all."""
        number = next(self._numbers)
        self._show(self.look.opened(number, _peer(writer), join_host_port(*target)))
        try:
            far_reader, far_writer = await asyncio.wait_for(asyncio.open_connection(*target), _DIAL_TIMEOUT)
        except (OSError, asyncio.TimeoutError) as error:
            self._show(self.look.note(f"{join_host_port(*target)} cannot be dialled: {error or 'timed out'}", number))
            _reset(writer)
            return
        conversation = Conversation(plane)

        def seen(from_dialler: bool, data: bytes) -> None:
            self._show_frames(conversation.feed(from_dialler, data), number)

        def there(data: bytes) -> bytes:
            seen(True, data)
            if rewriter is None:
                return data
            return rewriter.rewrite(data) if data else rewriter.rest()

        def back(data: bytes) -> bytes:
            seen(False, data)
            return data

        how = "the end of the tap"
        try:
            far_writer.write(there(begins))
            await _both(_pass_on(reader, far_writer, there), _pass_on(far_reader, writer, back))
            how = "FIN"
        except OSError:
            how = "RST"
        finally:
            for each in (writer, far_writer):
                each.close() if how == "FIN" else _reset(each)
            self._show_frames(conversation.close(), number)
            self._show(self.look.note(f"closed ({how})", number))

    def _show_frames(self, frames: list[Frame], number: int) -> None:
        now = time.time()
        for frame in frames:
            self._show(self.look.frame(frame, number=number, time=now))


@dataclass
class _Rewriter:
    """Puts `address` into the requests that pass, in place of the router's own, which is told to `expect`.

    What is no request, or none that can be read, passes as it is.
    """

    address: str
    expect: Callable[[TcpStreamConnectionInfo], None]
    _decoder: TcpRequestDecoder = field(default_factory=lambda: TcpRequestDecoder(MAX_FRAME_SIZE))
    _held: bytearray = field(default_factory=bytearray)

    def rewrite(self, data: bytes) -> bytes:
        """What to pass on for `data`: whole requests."""
        self._held += data
        rewritten = []
        for message in complete_messages(self._decoder, data):
            size = 8 + len(message.endpoint_path) + len(message.headers) + len(message.payload)
            rewritten.append(self._request(message) or bytes(self._held[:size]))
            del self._held[:size]
        if self._decoder.failed is not None:
            rewritten.append(self.rest())
        return b"".join(rewritten)

    def rest(self) -> bytes:
        """What has been held back of a request that is not complete, and now never will be."""
        rest = bytes(self._held)
        self._held.clear()
        return rest

    def _request(self, message: TcpRequestMessage) -> bytes | None:
        parts = complete_messages(TwoPartDecoder(MAX_FRAME_SIZE), bytes(message.payload))
        try:
            control = RequestControlMessage.decode(parts[0].header) if parts else None
            if control is None:
                return None
            second = control.request_stream_connection_info
            control = replace(
                control,
                connection_info=self._info(control.connection_info),
                request_stream_connection_info=None if second is None else self._info(second),
            )
        except (ControlError, InvalidRequest):
            return None
        payload = encode_two_part(control.encode(), parts[0].data)
        return TcpRequestCodec().encode_message(
            TcpRequestMessage.from_parts(message.endpoint_path, message.headers, payload)
        )

    def _info(self, connection_info: ConnectionInfo) -> ConnectionInfo:
        info = TcpStreamConnectionInfo.from_connection_info(connection_info)
        self.expect(info)
        return replace(info, address=self.address).to_connection_info()


async def _handshake(reader: asyncio.StreamReader) -> tuple[CallHomeHandshake, bytes]:
    """The first frame on a connection of a worker, and all the bytes that came with it."""
    decoder, begins = TwoPartDecoder(_CHUNK), b""
    while True:
        data = await reader.read(_CHUNK)
        if not data:
            raise EOFError("it was closed before its handshake")
        begins += data
        messages = decoder.feed(data)
        if messages:
            return CallHomeHandshake.decode(messages[0].header), begins


async def _pass_on(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, look_at: Callable[[bytes], bytes]
) -> None:
    """Pass on what `look_at` makes of the data, of which the last is empty: the end."""
    is_open = True
    while is_open:
        data = await reader.read(_CHUNK)
        is_open = bool(data)
        writer.write(look_at(data))
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


async def _both(*directions: Coroutine[None, None, None]) -> None:
    """Run both to their end; if one fails, the other is cancelled."""
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
