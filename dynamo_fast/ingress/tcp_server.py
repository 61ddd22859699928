"""`SharedTcpServer`: one port that takes the requests of many endpoints (transport.md 2 and 6.1).

A router keeps a few connections to a worker, and writes request frames one after the other. Each is answered with one
acknowledgement, in order: empty if the request was taken, else the reason why not. The answer itself goes another way
(`push_handler`), so an acknowledgement is written as soon as the frame has been read, whatever the handlers do.

    accepted                        (empty)
    no such endpoint                Server unavailable: unknown endpoint <path>
    nobody could be answered        Server unavailable: <why the request cannot be read>
    too many requests               Server overloaded: worker at capacity
    the path is not UTF-8           Invalid endpoint path
    a frame over the limit          Read error: message too large: <total> bytes (max: <max> bytes), then closed

Both releases of Dynamo wake up at the two `Server ...` texts; at any other text they wait for an answer for ever.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import cast

from dynamo_fast.codec import TcpRequestDecoder, TcpRequestMessage, TcpResponseCodec, TcpResponseMessage
from dynamo_fast.config import TcpServerConfig
from dynamo_fast.deadlines import Deadlines
from dynamo_fast.errors import CodecError, MessageTooLarge, RequestRefused
from dynamo_fast.ingress.admission import Admission, Submit
from dynamo_fast.net.addresses import advertised_ip, local_ip
from dynamo_fast.net.listener import Listener
from dynamo_fast.net.sockets import close_in_forked_children, descriptors_of
from dynamo_fast.observability import frame_log
from dynamo_fast.wire.address import join_host_port

__all__ = ["Accept", "SharedTcpServer"]

logger = logging.getLogger(__name__)

Accept = Callable[[TcpRequestMessage, Submit], None]
"""What an endpoint does with a request frame: look at it and submit the job that answers it. Raises RequestRefused,
whose text becomes the acknowledgement."""

_ACCEPTED = TcpResponseCodec().encode_message(TcpResponseMessage.from_parts(b""))


class SharedTcpServer:
    """The request-plane server of a process. Made and used on one event loop."""

    def __init__(self, config: TcpServerConfig | None = None, admission: Admission | None = None) -> None:
        self.config = config or TcpServerConfig.from_env()
        self.admission = admission or Admission(self.config)
        self._endpoints: dict[bytes, Accept] = {}
        self._aliases: dict[bytes, set[bytes]] = {}
        self._listener: Listener | None = None
        self._connections: set[_RequestConnection] = set()
        loop = asyncio.get_running_loop()
        # Ordered by the last request: the first connection is the one that has been silent for longest.
        self._idle: Deadlines[_RequestConnection] = Deadlines(loop, self.config.idle_timeout, _RequestConnection.idle)
        self._unfinished: Deadlines[_RequestConnection] = Deadlines(
            loop, self.config.frame_timeout, _RequestConnection.stuck
        )
        close_in_forked_children(self)

    async def start(self) -> None:
        """Listen. Raises OSError if the port is taken, InvalidConfig if the host means no address."""
        ip = local_ip(self.config.host, "DYN_TCP_RPC_HOST")
        self._listener = Listener(
            ip,
            self.config.port,
            self.config.backlog,
            lambda: _RequestConnection(self),
            user_timeout=self.config.user_timeout,
        )

    @property
    def address(self) -> str:
        """`ip:port`, as it stands in instance records (IPv6 in brackets)."""
        if self._listener is None:
            raise RuntimeError("the server has no address before start()")
        return join_host_port(advertised_ip(self._listener.ip), self._listener.port)

    def register(self, path: str, accept: Accept, alias: str = "") -> None:
        """Serve `path`, in place of whoever served it. Also under `alias`, as long as no other path has the same one.

        (Dynamo 1.3.1's paths are shorter than 1.6.1's and not unique in a process.)
        """
        self._endpoints[path.encode()] = accept
        if alias:
            self._aliases.setdefault(alias.encode(), set()).add(path.encode())

    def unregister(self, path: str) -> None:
        """Refuse what comes for `path` from now on; what was accepted runs on."""
        self._endpoints.pop(path.encode(), None)
        for alias, paths in list(self._aliases.items()):
            paths.discard(path.encode())
            if not paths:
                del self._aliases[alias]

    async def close(self) -> None:
        """Stop listening and close the connections; may be called twice. Accepted requests run on."""
        if self._listener is not None:
            self._listener.close()
        for connection in list(self._connections):
            connection.close()
        self._idle.close()
        self._unfinished.close()

    def descriptors(self) -> Iterator[int]:
        """See SocketHolder."""
        if self._listener is not None:
            yield from self._listener.descriptors()
        yield from descriptors_of(connection._transport for connection in self._connections)

    def _find(self, path: bytes) -> Accept | None:
        accept = self._endpoints.get(path)
        if accept is None and len(paths := self._aliases.get(path, ())) == 1:
            accept = self._endpoints.get(next(iter(paths)))
        return accept

    def _opened(self, connection: _RequestConnection) -> None:
        if len(self._connections) >= self.config.max_connections:
            self._idle.keys()[0].close(
                "there are %d others, and it has been silent for longest", self.config.max_connections
            )
        self._connections.add(connection)
        self._idle.add(connection)

    def _closed(self, connection: _RequestConnection) -> None:
        self._connections.discard(connection)
        self._idle.discard(connection)
        self._unfinished.discard(connection)


class _RequestConnection(asyncio.Protocol):
    """One router's connection: request frames in, acknowledgements out."""

    def __init__(self, server: SharedTcpServer) -> None:
        self._server = server
        self._decoder = TcpRequestDecoder(server.config.max_message_size)
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._server._opened(self)

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        try:
            messages = self._decoder.feed(data)
        except CodecError:  # a bad frame with none before it; what to do is the same, see below
            messages = []
        if frame_log.ENABLED:
            frame_log.log_frames(self._transport, messages)
        acknowledgements = [self._answer(message) for message in messages]
        error = self._decoder.failed
        if error is not None:
            acknowledgements.append(_refusal(_read_error(error)))
        if acknowledgements:
            self._transport.write(b"".join(acknowledgements))
        if error is not None:
            self.close("its bytes are no request frame: %s", error)
        else:
            self._restart_deadlines(bool(acknowledgements))

    def pause_writing(self) -> None:
        # A router that does not read its acknowledgements gets no further request read.
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        if self._transport is not None:
            self._transport.resume_reading()

    def eof_received(self) -> None:
        if self._decoder.pending:
            logger.warning(
                "%s closed its connection inside a request frame, after %d bytes", self, self._decoder.pending
            )

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._server._closed(self)

    def close(self, reason: str = "", *args: object) -> None:
        """Close after what was written; `reason` is logged."""
        transport, self._transport = self._transport, None
        if transport is not None:
            if reason:
                logger.warning("closing the connection of %s: " + reason, _peer(transport), *args)
            self._server._closed(self)
            transport.close()

    def idle(self) -> None:
        """Nothing came for the idle timeout."""
        self.close("no request came for %g s", self._server.config.idle_timeout)

    def stuck(self) -> None:
        """A frame was begun and not finished for the frame timeout."""
        self.close(
            "%d bytes of a request frame came, but not the rest within %g s",
            self._decoder.pending,
            self._server.config.frame_timeout,
        )

    def _answer(self, message: TcpRequestMessage) -> bytes:
        accept = self._server._find(bytes(message.endpoint_path))
        if accept is None:
            return _unknown(bytes(message.endpoint_path))
        try:
            accept(message, self._server.admission.submit)
        except RequestRefused as refusal:
            return _refusal(str(refusal))
        return _ACCEPTED

    def _restart_deadlines(self, got_request: bool) -> None:
        idle, unfinished = self._server._idle, self._server._unfinished
        if got_request:
            idle.discard(self)
            idle.add(self)
            unfinished.discard(self)
        if not self._decoder.pending:
            unfinished.discard(self)
        elif self not in unfinished:
            unfinished.add(self)


def _read_error(error: CodecError) -> str:
    if isinstance(error, MessageTooLarge):
        return f"Read error: message too large: {error.size} bytes (max: {error.limit} bytes)"
    return f"Read error: {error}"


def _unknown(path: bytes) -> bytes:
    try:
        return _refusal(f"Server unavailable: unknown endpoint {path.decode()}")
    except UnicodeDecodeError:
        return _refusal("Invalid endpoint path")


def _refusal(text: str) -> bytes:
    return TcpResponseCodec().encode_message(TcpResponseMessage.from_parts(text.encode()))


def _peer(transport: asyncio.BaseTransport) -> str:
    name = transport.get_extra_info("peername")
    return join_host_port(name[0], name[1]) if name else "an unknown peer"
