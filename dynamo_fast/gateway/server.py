"""`Server`: an application on a port. Sockets, TLS, the limit of connections, and the order of leaving."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import sys
from typing import Any, cast

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from dynamo_fast.config import GatewayConfig, TlsConfig
from dynamo_fast.gateway.app import GATEWAY
from dynamo_fast.gateway.errors import HttpError
from dynamo_fast.logs import get_logger
from dynamo_fast.net.addresses import resolve
from dynamo_fast.net.listener import Listener
from dynamo_fast.net.tls import ServerTls
from dynamo_fast.observability.limited_log import LimitedLog
from dynamo_fast.wire.address import join_host_port

__all__ = ["Server"]

logger = get_logger(__name__)

_BACKLOG = 1024
_LAST_SECONDS = 1.0
"""How long the last bytes may take, when everything was answered."""


class Server:
    """Made with `start`, on one event loop. Owns the listener, the connections of clients, and the running application.

    A handler is cancelled as soon as its client has gone, so that the worker hears of it.
    """

    def __init__(
        self, application: web.Application, runner: web.AppRunner, log: _HttpLog, config: GatewayConfig
    ) -> None:
        self._gateway = application[GATEWAY]
        self._runner = runner
        self._log = log
        self._config = config
        self._most = config.max_connections or _half_of_the_descriptors()
        self._listener: Listener | None = None
        self.url = ""
        """Where clients reach it."""

    @classmethod
    async def start(cls, application: web.Application, config: GatewayConfig, *, reuse_port: bool = False) -> Server:
        """Listen. `reuse_port`: other processes listen on the same port, too.

        Raises OSError if the port is taken, InvalidConfig for the host and for the certificate.
        """
        tls = None
        if config.listens_with_tls:
            identity = TlsConfig(cert_path=config.tls_cert, key_path=config.tls_key)
            tls = ServerTls(identity, ("DYNAMO_FAST_GATEWAY_TLS_CERT", "DYNAMO_FAST_GATEWAY_TLS_KEY"))
        listening = resolve(config.host, "DYNAMO_FAST_GATEWAY_HOST", names=True)
        application[GATEWAY].is_local = ipaddress.ip_address(listening.bind_ip).is_loopback
        log = _HttpLog(asyncio.get_running_loop())
        runner = web.AppRunner(
            application,
            logger=log,
            access_log=None,
            handler_cancellation=True,
            keepalive_timeout=config.idle_timeout,
            shutdown_timeout=_LAST_SECONDS,
        )
        await runner.setup()
        server = cls(application, runner, log, config)
        try:
            server._listener = Listener(
                listening.bind_ip,
                config.port,
                _BACKLOG,
                server._accepted,
                user_timeout=config.write_timeout,
                tls=tls,
                reuse_port=reuse_port,
            )
        except BaseException:
            await runner.cleanup()
            raise
        address = join_host_port(listening.advertised_ip, server._listener.port)
        server.url = f"{'http' if tls is None else 'https'}://{address}"
        return server

    @property
    def port(self) -> int:
        """The port that it listens on."""
        assert self._listener is not None
        return self._listener.port

    async def leave(self, seconds: float) -> None:
        """Take nothing new, let what runs go on for at most so long, then end it with an error. Closes."""
        if self._listener is not None:
            self._listener.close()
        await self._gateway.limits.leave(seconds)
        self.cut()
        await self.close()

    def cut(self) -> None:
        """End every answer under way with an error."""
        self._gateway.exchanges.cut(HttpError(503, "the gateway is leaving"))

    async def close(self) -> None:
        """Stop listening, end what still runs, and close all connections. May be called again."""
        if self._listener is not None:
            self._listener.close()
        await self._runner.cleanup()
        self._log.close()

    @property
    def running(self) -> int:
        """Requests that run."""
        return self._gateway.limits.running

    @property
    def is_leaving(self) -> bool:
        """Whether nothing new is taken."""
        return self._gateway.limits.leaving

    @property
    def connections(self) -> int:
        """Connections of clients, idle ones included."""
        return 0 if self._runner.server is None else len(self._runner.server.connections)

    def _accepted(self) -> asyncio.BaseProtocol:
        server = self._runner.server
        if server is None or self.connections >= self._most:
            return _Refusal(f"{self._most} connections are open: try again later")
        return server()


class _HttpLog(logging.LoggerAdapter):  # type: ignore[type-arg]  # it has a parameter from Python 3.11 on
    """What aiohttp logs of its connections, without the tracebacks of what a stranger sends. Owned by the server.

    aiohttp has a traceback for each malformed request. Here it is one line at most every few seconds, with the count.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(logger, {})
        self._limited = LimitedLog(loop, logger)

    def exception(self, msg: object, *args: object, exc_info: Any = True, **options: Any) -> None:
        """As the logger does it, unless `exc_info` is an error of the HTTP parser."""
        if isinstance(exc_info, HttpProcessingError):
            client = args[0] if args else "a client"
            self._limited.tell("malformed", "%s sent what is not HTTP: %s", client, exc_info.message)
        else:
            super().exception(msg, *args, exc_info=exc_info, **options)

    def close(self) -> None:
        """Log what was counted."""
        self._limited.close()


class _Refusal(asyncio.Protocol):
    """Answers a connection that is one too many, and closes it."""

    def __init__(self, why: str) -> None:
        self._why = why

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        client = cast(asyncio.Transport, transport)
        body = HttpError(503, self._why).body()
        head = (
            "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        client.write(head.encode() + body)
        client.close()


def _half_of_the_descriptors() -> int:
    """The other half is for the answers of workers."""
    try:
        import resource
    except ImportError:  # Windows has no limit
        return sys.maxsize
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if files == resource.RLIM_INFINITY else max(files // 2, 16)
