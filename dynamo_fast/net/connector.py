"""`Connector`: every TCP connection that this package opens is dialled here. Listening is in `listener`."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from dynamo_fast.deadlines import Deadlines
from dynamo_fast.errors import ConnectionTimeout
from dynamo_fast.net._direct import DirectTransport, Poller
from dynamo_fast.net.sockets import close_in_forked_children, keep_alive
from dynamo_fast.net.tls import ClientTls
from dynamo_fast.wire.address import join_host_port

__all__ = ["Connector"]

_Dialled = TypeVar("_Dialled", bound=asyncio.Protocol)
_Result = TypeVar("_Result")

# Every local port towards the other end, or every descriptor, is in use: one may become free.
_TEMPORARY = frozenset({errno.EADDRNOTAVAIL, errno.EMFILE, errno.ENFILE})
_RETRY_SECONDS = 0.2


class Connector:
    """Dials with one time limit for all its connections.

    Owns the dials under way and the poller of direct connections, not the connections. A request client and a worker make
    one each and use it on one event loop; it ends with them.
    """

    def __init__(
        self,
        seconds: float,
        *,
        retry: bool = False,
        direct: bool = False,
        user_timeout: float | None = None,
        tls: ClientTls | None = None,
    ) -> None:
        """`seconds`: how long one dial may take, its retries included. `user_timeout`: see `keep_alive`.

        `retry`: while this machine lacks a local port or a descriptor, try again until the time limit. `direct`: offer
        `dial_directly`, which needs `close`; it dials in plain text only. `tls`: None for plain text.
        """
        self._loop = asyncio.get_running_loop()
        self._retry = retry
        self._user_timeout = user_timeout
        self._tls = tls
        self._dialling: Deadlines[asyncio.Task[object]] = Deadlines(self._loop, seconds, _cancel)
        is_direct = direct and tls is None and Poller.is_offered(self._loop)
        self._poller = Poller(self._loop) if is_direct else None
        if self._poller is not None:
            close_in_forked_children(self._poller)

    def close(self) -> None:
        """Dial directly no more, and stop watching direct connections when the last one is closed."""
        if self._poller is not None:
            self._poller.close()
            self._poller = None

    def dial_directly(self, host: str, port: int, protocol: object, first: bytes) -> DirectTransport | None:
        """Begin to connect `protocol` without a transport of the event loop (see `_direct`), and to write `first`.

        It is connected already if `host` is this machine; if not, await `connected`. Returns None if `dial` has to do it:
        this system or loop has no direct connections, or this machine lacks a local port or a descriptor. Raises OSError.
        """
        if self._poller is None:
            return None
        try:
            return self._poller.connect(host, port, protocol, first)
        except OSError as error:
            if self._retry and error.errno in _TEMPORARY:
                return None
            raise

    async def connected(self, transport: DirectTransport, host: str, port: int) -> None:
        """Wait until a direct connection is connected. Raises as `dial`."""
        await self._within_limit(transport.wait(), host, port)

    async def dial(
        self, host: str, port: int, protocol: Callable[[], _Dialled], *, kept_alive: bool = True
    ) -> tuple[asyncio.Transport, _Dialled]:
        """Connect what `protocol` returns to `host` (an IP address) and `port`.

        `kept_alive`: let the kernel notice that the other machine is gone; it costs 5 system calls. Raises OSError, or
        ConnectionTimeout, which names the address and the limit. The other end may have closed the connection already:
        the transport says so.
        """
        transport, made = await self._within_limit(self._connect(host, port, protocol), host, port)
        if kept_alive and not transport.is_closing():
            keep_alive(transport.get_extra_info("socket"), self._user_timeout)
        return transport, made

    async def _within_limit(self, connecting: Coroutine[Any, Any, _Result], host: str, port: int) -> _Result:
        task = asyncio.current_task(self._loop)
        assert task is not None
        self._dialling.add(task)
        try:
            return await connecting
        except asyncio.CancelledError:
            if task in self._dialling:  # the deadline did not cancel it
                raise
            if _uncancel(task):
                raise
            raise ConnectionTimeout(
                f"{join_host_port(host, port)} took no connection within {self._dialling.seconds:g} s"
            ) from None
        finally:
            self._dialling.discard(task)

    async def _connect(
        self, host: str, port: int, protocol: Callable[[], _Dialled]
    ) -> tuple[asyncio.Transport, _Dialled]:
        while True:
            try:
                if self._tls is not None:
                    return await self._tls.connect(protocol, host, port)
                transport, made = await self._loop.create_connection(protocol, host, port)
            except OSError as error:
                if not self._retry or error.errno not in _TEMPORARY:
                    raise
            else:
                return transport, made
            await asyncio.sleep(_RETRY_SECONDS)


def _cancel(task: asyncio.Task[object]) -> None:
    task.cancel()


def _uncancel(task: asyncio.Task[object]) -> bool:
    """The cancellation was the deadline's: a TaskGroup around the dial must not see it. True if another one came, too."""
    return hasattr(task, "uncancel") and task.uncancel() > 0  # Python 3.11 and later
