# cython: freethreading_compatible=True, annotation_typing=False
"""`SharedTcpServer`: one port that takes the requests of many endpoints (transport.md 2 and 6.1).

A router keeps a few connections to a worker and writes request frames one after the other. Each frame gets one
acknowledgement, in order: empty if the request is accepted, else the reason why not. It is written as soon as the frame is
read, whatever the handlers do: the answer itself goes over the response plane (`request`).

    accepted                        (empty)
    no such endpoint                Server unavailable: unknown endpoint <path>
    the request cannot be read      Server unavailable: unreadable request: <why>
    an address that is not allowed  Server unavailable: this worker may not dial <address> ...
    too many requests               Server overloaded: worker at capacity
    too many bytes or descriptors   Server overloaded: <both numbers, and which limit to raise>
    the path is not UTF-8           Invalid endpoint path
    a frame over the limit          Read error: message too large: <total> bytes (max: <max> bytes), then closed

Both releases of Dynamo take the two `Server ...` texts for a refusal; after any other text they wait for the answer for
ever.

A connection is *new* until one of its requests could be read. New connections have a limit and a deadline of their own, so
that silent ones cannot keep routers out: when the limit is reached, the oldest new connection is closed.

This runs for every request. Where there is a compiler, Cython translates this very file, with the types in
`tcp_server.pxd` (see setup.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from dynamo_fast.codec import TcpRequestDecoder, TcpRequestMessage, TcpResponseCodec, TcpResponseMessage
from dynamo_fast.config import TcpServerConfig, TlsConfig
from dynamo_fast.deadlines import Deadlines
from dynamo_fast.errors import CodecError, MessageTooLarge, RequestRefused, ResourceExhausted
from dynamo_fast.ingress.buffered_bytes import BufferedBytes
from dynamo_fast.ingress.request_server import Accept, RequestServer
from dynamo_fast.logs import get_logger
from dynamo_fast.net.addresses import Listening, resolve
from dynamo_fast.net.descriptors import PROCESS
from dynamo_fast.net.frame_protocol import FrameProtocol
from dynamo_fast.net.listener import Listener
from dynamo_fast.net.sockets import close_in_forked_children
from dynamo_fast.net.tls import server_tls
from dynamo_fast.observability.limited_log import LimitedLog
from dynamo_fast.wire.address import join_host_port
from dynamo_fast.wire.headers import decode_headers
from dynamo_fast.wire.instance import TransportType

__all__ = ["SharedTcpServer"]

logger = get_logger(__name__)

_ACCEPTED = TcpResponseCodec().encode_message(TcpResponseMessage.from_parts(b""))
# What a TLS client begins with, as the length of a path: 0x1603. No path is so long.
_EXPECTED_OF_A_HELLO = 2 + 0x1603 + 2
# How long a closed connection may take to read the acknowledgements that were written to it.
_CLOSE_SECONDS = 10.0
_SHOWN = 300  # characters of a refusal in the log: it may carry what the peer sent


class SharedTcpServer(RequestServer):
    """The request-plane server of a process. Made and used on one event loop.

    The worker owns it. It owns the listener, the connections and their deadlines. A connection is in the tables until it is
    closed or lost. A closed connection stays in `_closing` until its acknowledgements are read. It ends with `close`.
    """

    def __init__(
        self,
        config: TcpServerConfig | None = None,
        buffered: BufferedBytes | None = None,
        tls: TlsConfig | None = None,
    ) -> None:
        """`config`, `tls`: by default as the environment says. `buffered`: counts the bytes of unfinished frames.

        Raises InvalidConfig.
        """
        self._tls = server_tls(tls or TlsConfig.from_env(), "the request server")
        self.config = config or TcpServerConfig.from_env()
        self.buffered = buffered or BufferedBytes(self.config.buffered_bytes)
        loop = asyncio.get_running_loop()
        self.log = LimitedLog(loop, logger)
        self._endpoints: dict[bytes, Accept] = {}
        self._aliases: dict[bytes, set[bytes]] = {}
        self._listening: Listening | None = None
        self._listener: Listener | None = None
        self._ended = False
        self._connections: set[_RequestConnection] = set()
        # Ordered by the last request: the first connection is the one that has been silent for longest.
        self._idle: Deadlines[_RequestConnection] = Deadlines(loop, self.config.idle_timeout, _RequestConnection.idle)
        self._new: Deadlines[_RequestConnection] = Deadlines(
            loop, self.config.first_request_timeout, _RequestConnection.stayed_new
        )
        self._unfinished: Deadlines[_RequestConnection] = Deadlines(
            loop, self.config.frame_timeout, _RequestConnection.stuck
        )
        self._closing: Deadlines[_RequestConnection] = Deadlines(loop, _CLOSE_SECONDS, _RequestConnection.abort)
        close_in_forked_children(self)

    async def start(self) -> None:
        """Listen. Raises OSError if the port is taken, InvalidConfig if the host means no address."""
        self._listening = resolve(self.config.host, "DYN_TCP_RPC_HOST")
        self._listener = Listener(
            self._listening.bind_ip,
            self.config.port,
            self.config.backlog,
            lambda: _RequestConnection(self),
            user_timeout=self.config.user_timeout,
            tls=self._tls,
        )

    @property
    def address(self) -> str:
        """`ip:port`, as it stands in instance records (IPv6 in brackets)."""
        if self._listening is None or self._listener is None:
            raise RuntimeError("the server has no address before start()")
        return join_host_port(self._listening.advertised_ip, self._listener.port)

    def transport(self, path: str) -> TransportType:
        """`tcp`, `ip:port/path`."""
        return TransportType("tcp", f"{self.address}/{path}")

    def register(self, path: str, accept: Accept, alias: str = "") -> None:
        """See `RequestServer`. (The paths of Dynamo 1.3.1 are shorter than those of 1.6.1, and not unique in a process.)"""
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
        self._ended = True
        if self._listener is not None:
            self._listener.close()
        for connection in list(self._connections):
            connection.close()
        for deadlines in (self._idle, self._new, self._unfinished):
            deadlines.close()
        self.log.close()

    def open_sockets(self) -> Iterator[int]:
        """See SocketHolder."""
        if self._listener is not None:
            yield from self._listener.open_sockets()
        for connection in self._connections:
            yield from connection.open_sockets()

    def _find(self, path: bytes) -> Accept | None:
        accept = self._endpoints.get(path)
        if accept is None and len(paths := self._aliases.get(path, ())) == 1:
            accept = self._endpoints.get(next(iter(paths)))
        return accept

    def _opened(self, connection: _RequestConnection) -> None:
        if self._ended:  # accepted just before
            connection.close()
            return
        files = PROCESS.usable
        if len(self._new) >= (limit := min(self.config.max_new_connections, max(1, files // 8))):
            self._new.oldest().close("new", "it has sent no request, and there are %d like it", limit)
        if len(self._connections) >= (limit := min(self.config.max_connections, max(1, files // 2))):
            self._idle.oldest().close("full", "there are %d others, and it has been silent for longest", limit)
        self._connections.add(connection)
        self._idle.add(connection)
        self._new.add(connection)

    def _closed(self, connection: _RequestConnection) -> None:
        self._connections.discard(connection)
        self._idle.discard(connection)
        self._new.discard(connection)
        self._unfinished.discard(connection)

    def _lost(self, connection: _RequestConnection) -> None:
        self._closed(connection)
        self._closing.discard(connection)
        self.buffered.release(connection)


class _RequestConnection(FrameProtocol):
    """One router's connection: request frames in, acknowledgements out.

    Made by the listener. It ends with `connection_lost`; `close` and `abort` bring that about.
    """

    __slots__ = ("_acknowledgements", "_held", "_new", "_open", "_server", "_unread")

    def __init__(self, server: SharedTcpServer) -> None:
        super().__init__(TcpRequestDecoder(server.config.max_message_size, views=True))
        self._server = server
        self._acknowledgements: list[bytes] = []  # of the read that is being handled
        self._open = False
        self._new = True
        self._held = 0  # bytes reported to the server
        self._unread = 0  # bytes of acknowledgements, while the router does not read them

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._open = True
        self._server._opened(self)

    def message_received(self, message: TcpRequestMessage) -> None:
        self._acknowledgements.append(self._answer(message))

    def stream_failed(self, error: CodecError) -> None:
        self._acknowledgements.append(_refusal(_read_error(error)))
        self._write_acknowledgements()
        self.close("bytes", "its bytes are no request frame: %s", error)

    def read_finished(self, size: int) -> None:
        got_request = bool(self._acknowledgements)
        if got_request:
            self._write_acknowledgements()
        if self._open:
            if self._new and self._decoder.expected == _EXPECTED_OF_A_HELLO:
                self.close("tls", "it speaks TLS, and this process accepts plain text (see DYN_TCP_TLS_CERT_PATH)")
                return
            self._restart_deadlines(got_request)

    def _write_acknowledgements(self) -> None:
        written = self._acknowledgements
        self._transport.write(written[0] if len(written) == 1 else b"".join(written))
        written.clear()

    def pause_writing(self) -> None:
        # A router that does not read its acknowledgements gets no further request read.
        self._unread = self._transport.get_write_buffer_size()
        self._hold(self._decoder.pending)
        if self._open:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._unread = 0
        self._hold(self._decoder.pending)
        if self._open:
            self._transport.resume_reading()

    def eof_received(self) -> None:
        if self._decoder.pending:
            self._server.log.tell(
                "eof",
                "%s closed its connection inside a request frame, after %d bytes",
                _peer(self._transport),
                self._decoder.pending,
            )

    def connection_lost(self, error: Exception | None) -> None:
        self._open = False
        self._server._lost(self)

    def close(self, cause: str = "", reason: str = "", *args: object) -> None:
        """Close after what was written; `reason` is logged, for each `cause` once in a while."""
        if not self._open:
            return
        self._open = False
        if cause:
            self._server.log.tell(cause, "closing the connection of %s: " + reason, _peer(self._transport), *args)
        self._server._closed(self)
        if self._transport.get_write_buffer_size():
            self._server._closing.add(self)
        self._transport.close()

    def abort(self) -> None:
        """Close now; acknowledgements that the router has not read are dropped."""
        self._open = False
        self._transport.abort()

    def idle(self) -> None:
        """Nothing came for the idle timeout."""
        self.close("idle", "no request came for %g s", self._server.config.idle_timeout)

    def stayed_new(self) -> None:
        """No request came since it was opened. A large one may be on its way: it has the frame timeout."""
        if self._decoder.pending:
            self._server._new.add(self)
        else:
            self.close("silent", "it has sent no request within %g s", self._server.config.first_request_timeout)

    def stuck(self) -> None:
        """A frame was begun and not finished within the frame timeout."""
        self.close(
            "stuck",
            "%d bytes of a request frame came, but not the rest within %g s",
            self._decoder.pending,
            self._server.config.frame_timeout,
        )

    def crowded_out(self, total: int, limit: int) -> None:
        """See `Holder`."""
        self._server.log.tell(
            "buffered",
            "closing the connection of %s: it holds %d of %d buffered bytes, over the limit of %d "
            "(DYNAMO_FAST_MAX_BUFFERED_REQUEST_BYTES)",
            _peer(self._transport),
            self._held,
            total,
            limit,
        )
        self._server._closed(self)
        self.abort()

    def _answer(self, message: TcpRequestMessage) -> bytes:
        path = bytes(message.endpoint_path)
        accept = self._server._find(path)
        if accept is None:
            return self._refuse("unknown", _unknown(path))
        try:
            accept(message.payload, decode_headers(message.headers))
        except ResourceExhausted as refusal:
            self._is_known()
            return self._refuse("overloaded", str(refusal))
        except RequestRefused as refusal:
            return self._refuse("unavailable", str(refusal))
        if self._new:
            self._is_known()
        return _ACCEPTED

    def _refuse(self, cause: str, text: str) -> bytes:
        self._server.log.tell(cause, "refusing a request of %s: %r", _peer(self._transport), text[:_SHOWN])
        return _refusal(text)

    def _is_known(self) -> None:
        self._new = False
        self._server._new.discard(self)

    def _restart_deadlines(self, got_request: bool) -> None:
        idle, unfinished = self._server._idle, self._server._unfinished
        pending: int = self._decoder.pending
        if got_request:
            idle.discard(self)
            idle.add(self)
            unfinished.discard(self)
        if not pending:
            unfinished.discard(self)
        elif self not in unfinished:
            unfinished.add(self)
        if pending or self._held:
            self._hold(pending)

    def _hold(self, pending: int) -> None:
        self._held = pending + self._unread
        self._server.buffered.hold(self, self._held)


def _read_error(error: CodecError) -> str:
    if isinstance(error, MessageTooLarge):
        return f"Read error: message too large: {error.size} bytes (max: {error.limit} bytes)"
    return f"Read error: {error}"


def _unknown(path: bytes) -> str:
    try:
        return f"Server unavailable: unknown endpoint {path.decode()}"
    except UnicodeDecodeError:
        return "Invalid endpoint path"


def _refusal(text: str) -> bytes:
    return TcpResponseCodec().encode_message(TcpResponseMessage.from_parts(text.encode()))


def _peer(transport: asyncio.BaseTransport) -> str:
    name = transport.get_extra_info("peername")
    return join_host_port(name[0], name[1]) if name else "an unknown peer"
