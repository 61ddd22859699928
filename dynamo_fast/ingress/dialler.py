"""`Dialler`: connects a worker to the routers that wait for its answers, and keeps the deadlines of these connections."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterable

from dynamo_fast.codec import encode_two_part
from dynamo_fast.config import WorkerConfig, refuse_tls
from dynamo_fast.deadlines import Deadlines
from dynamo_fast.errors import CannotConnect, ConnectionTimeout
from dynamo_fast.ingress.clock import clock_of
from dynamo_fast.ingress.response_addresses import host_and_port
from dynamo_fast.ingress.response_connection import ResponseConnection
from dynamo_fast.net.sockets import close_in_forked_children, descriptors_of
from dynamo_fast.wire.control import CallHomeHandshake, TcpStreamConnectionInfo

__all__ = ["Dialler"]

_ADDRESS_RETRY = 0.2
# Every local port towards the router, or every descriptor, is in use: one may become free.
_PASSING = frozenset({errno.EADDRNOTAVAIL, errno.EMFILE, errno.ENFILE})
_LASTING_SECONDS = 5.0


class Dialler:
    """Connects to routers, and keeps the deadlines of all response connections of a worker.

    The worker owns it and waits in `all_closed` before it ends. Requests call `dial`; connections add themselves to the
    tables below and call `closed` when they are lost. Made and used on one event loop.
    """

    def __init__(self, config: WorkerConfig) -> None:
        refuse_tls()
        self.loop = loop = asyncio.get_running_loop()
        self.clock = clock_of(loop)
        self.closing: Deadlines[ResponseConnection] = Deadlines(
            loop, config.close_timeout, ResponseConnection.not_closed
        )
        """Connections whose end is written; the router must close them within the close timeout."""
        self.stalled: Deadlines[ResponseConnection] = Deadlines(loop, config.stall_timeout, ResponseConnection.not_read)
        """Connections that wait for the router to read."""
        self.young: Deadlines[ResponseConnection] = Deadlines(loop, _LASTING_SECONDS, ResponseConnection.lasts)
        """Connections that were started less than 5 seconds ago."""
        self.started: set[ResponseConnection] = set()
        """Connections on which an answer has begun."""
        self._connecting: Deadlines[asyncio.Task[object]] = Deadlines(loop, config.connect_timeout, _cancel)
        self._all_closed: asyncio.Future[None] | None = None
        close_in_forked_children(self)

    async def dial(self, info: TcpStreamConnectionInfo, protocol: asyncio.Protocol) -> asyncio.Transport:
        """Connect `protocol` to the router at `info.address`, and write the handshake; returns the transport.

        Raises CannotConnect or ConnectionTimeout, both naming the address.
        """
        task = asyncio.current_task(self.loop)
        assert task is not None
        self._connecting.add(task)
        try:
            transport = await _connect(self.loop, *host_and_port(info.address), protocol)
        except asyncio.CancelledError:
            if task in self._connecting:
                raise
            seconds = self._connecting.seconds
            raise ConnectionTimeout(f"{info.address} took no connection within {seconds:g} s") from None
        except OSError as error:
            raise CannotConnect(f"{info.address} cannot be reached: {error}") from error
        finally:
            self._connecting.discard(task)
        if not transport.is_closing():  # lost or closed before this task ran again: the protocol knows
            # In a write of its own, before the handler runs: it may compute for longer than a router waits for this.
            transport.write(encode_two_part(CallHomeHandshake(info.subject, info.stream_type).encode(), b""))
        return transport

    def open_sockets(self) -> Iterable[int]:
        """See SocketHolder."""
        return descriptors_of(connection._transport for connection in self.started)

    async def all_closed(self) -> None:
        """Wait until every finished connection is closed, which takes no longer than the close timeout."""
        while self.closing:
            if self._all_closed is None or self._all_closed.done():
                self._all_closed = self.loop.create_future()
            await asyncio.shield(self._all_closed)  # others may wait for it, too

    def closed(self, connection: ResponseConnection) -> None:
        """`connection` is lost: remove it from every table."""
        self.started.discard(connection)
        self.young.discard(connection)
        self.closing.discard(connection)
        if not self.closing and self._all_closed is not None and not self._all_closed.done():
            self._all_closed.set_result(None)


def _cancel(task: asyncio.Task[object]) -> None:
    task.cancel()


async def _connect(
    loop: asyncio.AbstractEventLoop, host: str, port: int, protocol: asyncio.Protocol
) -> asyncio.Transport:
    while True:
        try:
            transport, _ = await loop.create_connection(lambda: protocol, host, port)
            return transport
        except OSError as error:
            if error.errno not in _PASSING:
                raise
            await asyncio.sleep(_ADDRESS_RETRY)
