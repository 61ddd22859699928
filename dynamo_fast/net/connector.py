"""`Connector`: every TCP connection that this package opens is dialled here. Listening is in `listener`."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from typing import TypeVar

from dynamo_fast.deadlines import Deadlines
from dynamo_fast.errors import ConnectionTimeout
from dynamo_fast.net.sockets import keep_alive
from dynamo_fast.net.tls import ClientTls
from dynamo_fast.wire.address import join_host_port

__all__ = ["Connector"]

_Dialled = TypeVar("_Dialled", bound=asyncio.Protocol)

# Every local port towards the other end, or every descriptor, is in use: one may become free.
_TEMPORARY = frozenset({errno.EADDRNOTAVAIL, errno.EMFILE, errno.ENFILE})
_RETRY_SECONDS = 0.2


class Connector:
    """Dials with one time limit for all its connections.

    Owns the dials under way, not the connections. A request client and a worker make one each and use it on one event
    loop; it ends with them.
    """

    def __init__(
        self,
        seconds: float,
        *,
        retry: bool = False,
        user_timeout: float | None = None,
        tls: ClientTls | None = None,
    ) -> None:
        """`seconds`: how long one dial may take, its retries included. `user_timeout`: see `keep_alive`.

        `retry`: while this machine lacks a local port or a descriptor, try again until the time limit. `tls`: None for
        plain text.
        """
        self._loop = asyncio.get_running_loop()
        self._retry = retry
        self._user_timeout = user_timeout
        self._tls = tls
        self._dialling: Deadlines[asyncio.Task[object]] = Deadlines(self._loop, seconds, _cancel)

    async def dial(
        self, host: str, port: int, protocol: Callable[[], _Dialled], *, kept_alive: bool = True
    ) -> tuple[asyncio.Transport, _Dialled]:
        """Connect what `protocol` returns to `host` (an IP address) and `port`.

        `kept_alive`: let the kernel notice that the other machine is gone; it costs 5 system calls. Raises OSError, or
        ConnectionTimeout, which names the address and the limit. The other end may have closed the connection already:
        the transport says so.
        """
        task = asyncio.current_task(self._loop)
        assert task is not None
        self._dialling.add(task)
        try:
            transport, made = await self._connect(host, port, protocol)
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
        if kept_alive and not transport.is_closing():
            keep_alive(transport.get_extra_info("socket"), self._user_timeout)
        return transport, made

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
