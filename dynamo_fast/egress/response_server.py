"""`TcpStreamServer`: what workers dial back to (transport.md section 4).

One listener for all requests of a router. Each request registers a subject; the worker that answers it dials, names the
subject in its handshake, and its connection is that request's from then on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial

from dynamo_fast.config import ResponseServerConfig, TlsConfig
from dynamo_fast.egress.response_connection import ResponseConnection
from dynamo_fast.egress.stream_registry import StreamRegistry
from dynamo_fast.net.addresses import resolve
from dynamo_fast.net.listener import Listener
from dynamo_fast.net.sockets import close_in_forked_children
from dynamo_fast.net.tls import server_tls
from dynamo_fast.observability.metrics import REQUEST_PLANE, RequestPlaneMetrics
from dynamo_fast.wire.address import join_host_port

__all__ = ["TcpStreamServer"]


class TcpStreamServer(StreamRegistry):
    """The response server of a router: its registry, and the listener that workers dial. Make it with `create`.

    Owns the listener; `close` ends it, and all that is in the registry. One event loop.
    """

    def __init__(
        self,
        config: ResponseServerConfig,
        tls: TlsConfig | None = None,
        *,
        metrics: RequestPlaneMetrics = REQUEST_PLANE,
    ) -> None:
        super().__init__(config)
        self._metrics = metrics
        listening = resolve(config.host, "DYN_TCP_RESPONSE_STREAM_HOST")
        self._listener = Listener(
            listening.bind_ip,
            config.port,
            config.backlog,
            partial(ResponseConnection, self),
            tls=server_tls(tls or TlsConfig.from_env(), "the response server"),
            refused=self.refused,
            backed_off=self._backed_off,
        )
        self.address = join_host_port(listening.advertised_ip, self._listener.port)
        close_in_forked_children(self)

    @classmethod
    async def create(
        cls, config: ResponseServerConfig | None = None, *, tls: TlsConfig | None = None
    ) -> TcpStreamServer:
        """Listen as `config` and `tls` say, by default as the environment does. Raises InvalidConfig, OSError."""
        return cls(ResponseServerConfig.from_env() if config is None else config, tls)

    async def close(self) -> None:
        """Stop listening; calls that wait fail with Disconnected, streams under way are cut and their workers told."""
        self._listener.close()
        self.end_streams()
        await asyncio.sleep(0)  # the transports close in the next turn

    def _backed_off(self) -> None:
        self._metrics.tcp_accept_backoffs += 1

    def open_sockets(self) -> Iterator[int]:
        """See SocketHolder."""
        yield from self._listener.open_sockets()
        for connection in self.connections:
            yield from connection.open_sockets()
        for session in self.sessions.values():
            yield from session.open_sockets()
