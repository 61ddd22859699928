"""`RequestClients`: which client carries a request. The kind of transport in the worker's record decides (runtime.md 1.2).

    "transport": {"tcp": "10.0.0.7:45921/577eb898b1f7105e/demo/backend/generate"}
                   kind   address

A fleet may be mixed: the client is chosen for each call. To add a transport, write its `RequestPlaneClient`, and add a line
to `TRANSPORTS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from dynamo_fast.egress.request_client import RequestPlaneClient
from dynamo_fast.egress.tcp_client import TcpRequestClient
from dynamo_fast.errors import InvalidConfig
from dynamo_fast.observability.metrics import RequestPlaneMetrics

__all__ = ["TRANSPORTS", "ClientFactory", "RequestClients"]

ClientFactory = Callable[[RequestPlaneMetrics], RequestPlaneClient]
"""Makes a client on the running event loop, without waiting. Raises InvalidConfig."""


def _tcp(metrics: RequestPlaneMetrics) -> RequestPlaneClient:
    return TcpRequestClient(metrics=metrics)


def _nats(metrics: RequestPlaneMetrics) -> RequestPlaneClient:
    try:
        from dynamo_fast.egress.nats_client import NatsRequestClient
    except ModuleNotFoundError as error:
        raise InvalidConfig(
            f"requests to workers on NATS need nats-py: pip install 'dynamo-fast[nats]' ({error})"
        ) from error
    return NatsRequestClient(metrics=metrics)


TRANSPORTS: dict[str, ClientFactory] = {"tcp": _tcp, "nats_tcp": _nats}
"""The kinds that are offered."""


class RequestClients:
    """The clients of one router, at most one for each kind of transport.

    Owns them. A client is made when the first request needs it; `close` closes all of them. One event loop.
    """

    def __init__(self, made: Mapping[str, RequestPlaneClient], metrics: RequestPlaneMetrics) -> None:
        """`made`: clients that exist already, by their kind. `metrics`: what the others count in."""
        self._made = dict(made)
        self._metrics = metrics

    def get(self, kind: str) -> RequestPlaneClient | None:
        """The client of that kind; None if it is not offered. Raises InvalidConfig if the client cannot be made."""
        return self._made.get(kind) or self._make(kind)

    async def close(self) -> None:
        """Close every client."""
        for client in self._made.values():
            await client.close()

    def _make(self, kind: str) -> RequestPlaneClient | None:
        factory = TRANSPORTS.get(kind)
        if factory is None:
            return None
        client = self._made[kind] = factory(self._metrics)
        return client
