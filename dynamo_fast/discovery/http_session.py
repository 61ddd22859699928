"""Sessions of aiohttp for the backends that speak HTTP (etcd, Kubernetes): look-up of names, keep-alive."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable
from typing import TypeVar

from dynamo_fast.errors import InvalidConfig
from dynamo_fast.net.sockets import keep_alive
from dynamo_fast.wire.json_text import dumps

try:
    import aiohttp
    from aiohttp.abc import AbstractResolver, ResolveResult
except ImportError as error:
    raise InvalidConfig(
        "the discovery backends 'etcd' and 'kubernetes' need aiohttp: pip install 'dynamo-fast[etcd]' or "
        "'dynamo-fast[kubernetes]'"
    ) from error

__all__ = ["aiohttp", "enable_keep_alive", "session"]

_T = TypeVar("_T")


def session(tls: ssl.SSLContext | bool, limit: int) -> aiohttp.ClientSession:
    """A session that opens at most `limit` connections; 0 for no limit."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=tls, limit=limit, resolver=_Resolver()),
        json_serialize=lambda value: dumps(value).decode(),
        trust_env=False,
    )


def enable_keep_alive(response: aiohttp.ClientResponse) -> None:
    """Switch TCP keep-alive on for the connection of this answer."""
    transport = response.connection.transport if response.connection is not None else None
    endpoint = transport.get_extra_info("socket") if transport is not None else None
    if endpoint is not None:
        keep_alive(endpoint)


class _Resolver(AbstractResolver):
    """Looks names up in daemon threads. A thread pool refuses work at interpreter exit, and delays the exit.

    Holds nothing. Owned by a session, which calls it on its event loop.
    """

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await _in_daemon_thread(
            lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, family=family, flags=socket.AI_ADDRCONFIG)
        )
        numeric = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        return [
            ResolveResult(
                hostname=host, host=str(address[0]), port=int(address[1]), family=kind, proto=proto, flags=numeric
            )
            for kind, _, proto, _, address in found
        ]

    async def close(self) -> None:
        """There is nothing to close."""


async def _in_daemon_thread(function: Callable[[], _T]) -> _T:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_T] = loop.create_future()

    def settle(result: _T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]  # there is one, as there is no error

    def work() -> None:
        try:
            outcome: tuple[_T | None, BaseException | None] = (function(), None)
        except BaseException as error:  # for the loop's side
            outcome = (None, error)
        try:
            loop.call_soon_threadsafe(settle, *outcome)
        except RuntimeError:  # the loop is closed
            pass

    try:
        threading.Thread(target=work, name="name-lookup", daemon=True).start()
    except RuntimeError:  # no more threads, at interpreter exit
        work()
    return await future
