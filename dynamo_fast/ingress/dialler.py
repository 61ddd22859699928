# cython: freethreading_compatible=True, annotation_typing=False
"""`Dialler`: connects a worker to the routers that wait for its answers, and keeps the deadlines of these connections.

Where there is a compiler, Cython translates this very file, with the types in `dialler.pxd` (see setup.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from dynamo_fast.codec import encode_two_part
from dynamo_fast.config import TlsConfig, WorkerConfig
from dynamo_fast.deadlines import Deadlines
from dynamo_fast.errors import CannotConnect, ConnectionTimeout
from dynamo_fast.ingress.clock import clock_of
from dynamo_fast.ingress.mux_sender import MuxSender
from dynamo_fast.ingress.mux_session import MuxSessions
from dynamo_fast.ingress.response_addresses import host_and_port
from dynamo_fast.ingress.response_connection import ResponseConnection
from dynamo_fast.net._direct import DirectTransport
from dynamo_fast.net.connector import Connector
from dynamo_fast.net.sockets import close_in_forked_children, descriptors_of
from dynamo_fast.net.tls import client_tls
from dynamo_fast.wire.control import CallHomeHandshake, StreamType, TcpStreamConnectionInfo
from dynamo_fast.wire.mux import MuxOffer

__all__ = ["Dialler"]

_LASTING_SECONDS = 5.0
_REQUEST = StreamType.REQUEST


class Dialler:
    """Connects to routers, and keeps the deadlines of all response connections of a worker.

    The worker owns it and waits in `all_closed` before it ends. Requests call `dial`; connections add themselves to the
    tables below and call `closed` when they are lost. Made and used on one event loop.
    """

    def __init__(self, config: WorkerConfig, tls: TlsConfig | None = None) -> None:
        """`tls`: by default as the environment says. Raises InvalidConfig."""
        self.loop = loop = asyncio.get_running_loop()
        self.clock = clock_of(loop)
        self.closing: Deadlines[ResponseConnection] = Deadlines(
            loop, config.close_timeout, ResponseConnection.not_closed
        )
        """Connections whose end is written; the router must close them within the close timeout."""
        self.stalled: Deadlines[ResponseConnection] = Deadlines(loop, config.stall_timeout, ResponseConnection.not_read)
        """Connections that wait for the router to read."""
        self.draining: Deadlines[ResponseConnection] = Deadlines(
            loop, config.stall_timeout, ResponseConnection.not_closed
        )
        """Streams of sessions whose end waits for the router to read."""
        self.young: Deadlines[ResponseConnection] = Deadlines(loop, _LASTING_SECONDS, ResponseConnection.lasts)
        """Connections that were started less than 5 seconds ago."""
        self.started: set[ResponseConnection] = set()
        """Connections on which an answer has begun."""
        self._connector = Connector(
            config.connect_timeout,
            retry=True,
            direct=True,
            tls=client_tls(tls or TlsConfig.from_env(), "the worker"),
        )
        self.sessions = MuxSessions(loop, self._connector, config.connect_timeout) if config.mux == "auto" else None
        """Connections that carry many answers each; None: none are used."""
        self._all_closed: asyncio.Future[None] | None = None
        close_in_forked_children(self)

    async def dial(self, info: TcpStreamConnectionInfo, protocol: asyncio.Protocol) -> asyncio.Transport:
        """Connect `protocol` to the router at `info.address`, and write the handshake; returns the transport.

        Raises CannotConnect or ConnectionTimeout, both naming the address.
        """
        host, port = host_and_port(info.address)
        # In a write of its own, before the handler runs: it may compute for longer than a router waits for this.
        handshake = _handshake(info)
        try:
            # A response connection is kept alive once it has lasted a while: see `lasts`.
            transport, _ = await self._connector.dial(
                host, port, lambda: protocol, kept_alive=info.stream_type is _REQUEST
            )
        except ConnectionTimeout:
            raise
        except OSError as error:
            raise _unreachable(info, error) from error
        if not transport.is_closing():  # lost or closed before this task ran again: the protocol knows
            transport.write(handshake)
        return transport

    def dial_directly(self, info: TcpStreamConnectionInfo, protocol: ResponseConnection) -> DirectTransport | None:
        """As `dial`, at once; None if `dial` has to do it. Await `connected` unless the transport is connected already."""
        host, port = host_and_port(info.address)
        try:
            return self._connector.dial_directly(host, port, protocol, _handshake(info))
        except OSError as error:
            raise _unreachable(info, error) from error

    async def open_stream(
        self, info: TcpStreamConnectionInfo, offer: MuxOffer, protocol: ResponseConnection
    ) -> MuxSender | None:
        """Open a stream for `protocol` on the session with the router at `info.address`; None if it cannot be had.

        The first one dials; see `MuxSessions.find` for a session that is open.
        """
        assert self.sessions is not None
        session = await self.sessions.connected(*host_and_port(info.address), info.address, offer)
        return None if session is None else session.open(protocol, info.subject)

    async def connected(self, info: TcpStreamConnectionInfo, transport: DirectTransport) -> None:
        """Wait until it is connected. Raises as `dial`."""
        try:
            await self._connector.connected(transport, *host_and_port(info.address))
        except ConnectionTimeout:
            raise
        except OSError as error:
            raise _unreachable(info, error) from error

    def close(self) -> None:
        """Close the sessions, and what connections share when the last one is closed."""
        if self.sessions is not None:
            self.sessions.close("the worker leaves")
        self._connector.close()

    def open_sockets(self) -> Iterable[int]:
        """See SocketHolder."""
        sessions = () if self.sessions is None else self.sessions.open_sockets()
        return [*descriptors_of(connection._transport for connection in self.started), *sessions]

    async def all_closed(self) -> None:
        """Wait until every finished connection is closed, which takes no longer than the close timeout."""
        if self.draining:
            for connection in list(self.draining):
                self.draining.discard(connection)
                self.closing.add(connection)  # until now it had the stall timeout
        while self.closing:
            if self._all_closed is None or self._all_closed.done():
                self._all_closed = self.loop.create_future()
            await asyncio.shield(self._all_closed)  # others may wait for it, too

    def closed(self, connection: ResponseConnection) -> None:
        """`connection` is lost: remove it from every table."""
        self.started.discard(connection)
        self.young.discard(connection)
        self.closing.discard(connection)
        if self.draining:
            self.draining.discard(connection)
        if not self.closing and self._all_closed is not None and not self._all_closed.done():
            self._all_closed.set_result(None)


def _handshake(info: TcpStreamConnectionInfo) -> bytes:
    return encode_two_part(CallHomeHandshake(info.subject, info.stream_type).encode(), b"")


def _unreachable(info: TcpStreamConnectionInfo, error: OSError) -> CannotConnect:
    return CannotConnect(f"{info.address} cannot be reached: {error}")
