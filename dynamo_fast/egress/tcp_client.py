# cython: freethreading_compatible=True, annotation_typing=False
"""`TcpRequestClient`: requests over pooled, pipelined TCP connections (transport.md 2.4 and 2.5). The pool is in `pool`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from functools import lru_cache
from time import time_ns
from typing import NamedTuple

from dynamo_fast._native import Native
from dynamo_fast.codec import TcpRequestCodec, TcpRequestMessage
from dynamo_fast.config import TcpClientConfig, TlsConfig
from dynamo_fast.deadlines import Deadlines
from dynamo_fast.egress.pool import PendingRequest, WorkerPool
from dynamo_fast.egress.request_client import Ack, AckListener, RequestConnection
from dynamo_fast.errors import CannotConnect, DynamoError, MessageTooLarge, RequestTooLarge
from dynamo_fast.net.connector import Connector
from dynamo_fast.net.sockets import close_in_forked_children
from dynamo_fast.net.tls import client_tls
from dynamo_fast.observability.metrics import REQUEST_PLANE, RequestPlaneMetrics
from dynamo_fast.wire.address import TcpAddress, join_host_port
from dynamo_fast.wire.headers import ENDPOINT_PATH, FRONTEND_SEND_TS_NS, encode_headers

__all__ = ["TcpRequestClient"]

_IDLE_SWEEP_SECONDS = 30.0
_OWN = frozenset({ENDPOINT_PATH, FRONTEND_SEND_TS_NS})


class Target(NamedTuple):
    """What is written and looked up for each request to one address."""

    worker: tuple[str, int]
    """The host and the port, by which its pool is found."""
    path: bytes
    headers: bytes
    """What follows the request's own headers: the path again, up to the time of sending."""

    @classmethod
    def of(cls, address: str) -> Target:
        """`[tcp://]IP:PORT/PATH`. Raises InvalidAddress."""
        host, port, path = TcpAddress.parse(address)
        headers = encode_headers({ENDPOINT_PATH: path, FRONTEND_SEND_TS_NS: ""})
        return cls((host, port), path.encode(), headers.removeprefix(b"{").removesuffix(b'"}'))


class _FutureAck(asyncio.Future[Ack]):
    """The acknowledgement as a future, whose holder may cancel it."""

    def acknowledged(self, text: bytes, connection: RequestConnection) -> None:
        """See AckListener."""
        self.set_result(Ack(text, connection))

    def unacknowledged(self, error: DynamoError) -> None:
        """See AckListener."""
        if not self.done():
            self.set_exception(error)

    is_settled = asyncio.Future.done


_target = lru_cache(maxsize=4096)(Target.of)


class TcpRequestClient(Native):
    """The TCP transport of the request plane.

    Owns a pool for each worker process; pools that were idle for `host_idle_ttl` are closed. A router owns the client and
    calls it on one event loop; `close` ends it.
    """

    def __init__(
        self,
        config: TcpClientConfig | None = None,
        *,
        tls: TlsConfig | None = None,
        metrics: RequestPlaneMetrics = REQUEST_PLANE,
    ) -> None:
        """`config`, `tls`: by default as the environment says. Raises InvalidConfig."""
        self.loop = asyncio.get_running_loop()
        self.config = TcpClientConfig.from_env() if config is None else config
        self.metrics = metrics
        self.connects = asyncio.Semaphore(self.config.connect_limit)
        self.connector = Connector(
            self.config.connect_timeout,
            user_timeout=self.config.user_timeout,
            tls=client_tls(tls or TlsConfig.from_env(), "the request client"),
        )
        self._codec = TcpRequestCodec(self.config.max_message_size)
        self.deadlines: Deadlines[PendingRequest] = Deadlines(
            self.loop, self.config.request_timeout, PendingRequest.time_out
        )
        self._pools: dict[tuple[str, int], WorkerPool] = {}
        self._idle_timer: asyncio.TimerHandle | None = None
        self._closed = False
        close_in_forked_children(self)

    def send_request(self, address: str, payload: bytes, headers: Mapping[str, str]) -> asyncio.Future[Ack]:
        """See RequestPlaneClient. `address` is `[tcp://]IP:PORT/PATH`; the two headers of the transport are added."""
        future = _FutureAck(loop=self.loop)
        self.send(address, payload, self.encoded(headers), future)
        return future

    def send(self, address: str, payload: bytes, headers: bytes, listener: AckListener) -> None:
        """As `send_request`, and `listener` is told of the acknowledgement, or why there is none: never during this call.

        `headers` are the JSON text of the request's own, without its closing brace and without those of the transport.
        """
        target = _target(address)
        frame = self._frame(target, payload, headers)
        worker = target.worker
        pool = self._pools.get(worker) or self._new_pool(*worker)
        request = PendingRequest(pool, frame, listener)
        self.deadlines.add(request)
        pool.submit(request)

    async def close(self) -> None:
        """See RequestPlaneClient."""
        self._closed = True
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        self.deadlines.close()
        for pool in self._pools.values():
            pool.close()
        self._pools.clear()
        await asyncio.sleep(0)  # the transports close in the next turn

    def open_sockets(self) -> Iterator[int]:
        """See SocketHolder."""
        for pool in self._pools.values():
            for connection in pool.connections:
                yield from connection.open_sockets()

    @staticmethod
    def encoded(headers: Mapping[str, str]) -> bytes:
        """As `send` takes them."""
        if not _OWN.isdisjoint(headers):
            headers = {name: value for name, value in headers.items() if name not in _OWN}
        return encode_headers(headers).removesuffix(b"}")

    def _frame(self, target: Target, payload: bytes, headers: bytes) -> bytes:
        now = time_ns()
        all_headers = b"".join((headers, b"" if headers == b"{" else b",", target.headers, f'{now}"}}'.encode()))
        message = TcpRequestMessage(target.path, all_headers, payload)
        try:
            return self._codec.encode_message(message)
        except MessageTooLarge as error:
            raise RequestTooLarge(
                "Request payload is too large for this deployment. Reduce the input size or metadata size and retry.",
                f"It takes {error.size} bytes; the limit is {error.limit}.",
                size=error.size,
                limit=error.limit,
            ) from None

    def _new_pool(self, host: str, port: int) -> WorkerPool:
        if self._closed:
            raise CannotConnect(f"TCP connection to {join_host_port(host, port)} failed: the client was closed")
        pool = self._pools[host, port] = WorkerPool(self, host, port)
        if self._idle_timer is None:
            self._sweep_later()
        return pool

    def _sweep_later(self) -> None:
        interval = max(self.config.host_idle_ttl / 2, _IDLE_SWEEP_SECONDS)
        self._idle_timer = self.loop.call_later(interval, self._close_idle_pools)

    def _close_idle_pools(self) -> None:
        self._idle_timer = None
        unused_since = self.loop.time() - self.config.host_idle_ttl
        for key, pool in list(self._pools.items()):
            if pool.is_idle(unused_since):
                pool.close()
                del self._pools[key]
        if self._pools:
            self._sweep_later()
