"""`TcpRequestClient`: requests over pooled, pipelined TCP connections (transport.md 2.4 and 2.5).

A connection carries many requests at once; the worker acknowledges them in order, so a queue of futures is all the
matching there is. Another connection to the same worker is opened only when each of those that there are has
`channel_buffer` requests unacknowledged, or is *retired*: an acknowledgement on it did not come in time. No new request
goes onto a retired connection, and it is closed when nothing waits on it any more.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import cast

from dynamo_fast.codec import TcpRequestCodec, TcpRequestMessage, TcpResponseDecoder, TcpResponseMessage
from dynamo_fast.config import TcpClientConfig, refuse_tls
from dynamo_fast.deadlines import Deadlines
from dynamo_fast.egress.request_client import Ack, RequestPlaneClient
from dynamo_fast.errors import (
    CannotConnect,
    CodecError,
    ConnectionTimeout,
    MessageTooLarge,
    RequestTooLarge,
    ResourceExhausted,
)
from dynamo_fast.net.connector import Connector
from dynamo_fast.net.frame_protocol import FrameProtocol
from dynamo_fast.net.sockets import close_in_forked_children
from dynamo_fast.observability.metrics import REQUEST_PLANE, RequestPlaneMetrics
from dynamo_fast.wire.address import TcpAddress, join_host_port
from dynamo_fast.wire.headers import ENDPOINT_PATH, FRONTEND_SEND_TS_NS, encode_headers

__all__ = ["TcpRequestClient"]

_parse_address = lru_cache(maxsize=4096)(TcpAddress.parse)
_IDLE_SWEEP_SECONDS = 30.0


class TcpRequestClient(RequestPlaneClient):
    """The TCP transport of the request plane; one event loop."""

    def __init__(self, config: TcpClientConfig | None = None, *, metrics: RequestPlaneMetrics = REQUEST_PLANE) -> None:
        refuse_tls()
        self.loop = asyncio.get_running_loop()
        self.config = TcpClientConfig.from_env() if config is None else config
        self.metrics = metrics
        self.connects = asyncio.Semaphore(self.config.connect_limit)
        self.connector = Connector(self.config.connect_timeout, user_timeout=self.config.user_timeout)
        self._codec = TcpRequestCodec(self.config.max_message_size)
        self._deadlines: Deadlines[_Request] = Deadlines(self.loop, self.config.request_timeout, _Request.time_out)
        self._pools: dict[tuple[str, int], _Pool] = {}
        self._idle_timer: asyncio.TimerHandle | None = None
        self._closed = False
        close_in_forked_children(self)

    def send_request(self, address: str, payload: bytes, headers: Mapping[str, str]) -> asyncio.Future[Ack]:
        """See RequestPlaneClient. `address` is `[tcp://]IP:PORT/PATH`; the two headers of the transport are added."""
        target = _parse_address(address)
        frame = self._frame(target.path, payload, headers)
        pool = self._pools.get((target.host, target.port)) or self._new_pool(target.host, target.port)
        request = _Request(self, pool.peer, frame)
        self._deadlines.add(request)
        pool.submit(request)
        return request.future

    async def close(self) -> None:
        """See RequestPlaneClient."""
        self._closed = True
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        self._deadlines.close()
        for pool in self._pools.values():
            pool.close()
        self._pools.clear()
        await asyncio.sleep(0)  # the transports close in the next turn

    def open_sockets(self) -> Iterator[int]:
        """See SocketHolder."""
        for pool in self._pools.values():
            for connection in pool.connections:
                yield from connection.open_sockets()

    def settled(self, request: _Request) -> None:
        """The request has its answer: it cannot time out any more."""
        self._deadlines.discard(request)

    def _frame(self, path: str, payload: bytes, headers: Mapping[str, str]) -> bytes:
        all_headers = {**headers, ENDPOINT_PATH: path, FRONTEND_SEND_TS_NS: str(time.time_ns())}
        message = TcpRequestMessage.from_parts(path.encode(), encode_headers(all_headers), payload)
        try:
            return self._codec.encode_message(message)
        except MessageTooLarge as error:
            raise RequestTooLarge(
                "Request payload is too large for this deployment. Reduce the input size or metadata size and retry.",
                f"It takes {error.size} bytes; the limit is {error.limit}.",
                size=error.size,
                limit=error.limit,
            ) from None

    def _new_pool(self, host: str, port: int) -> _Pool:
        if self._closed:
            raise CannotConnect(f"TCP connection to {join_host_port(host, port)} failed: the client was closed")
        pool = self._pools[host, port] = _Pool(self, host, port)
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


class _Request:
    """A request between the call and its acknowledgement."""

    __slots__ = ("_client", "_peer", "connection", "frame", "future")

    def __init__(self, client: TcpRequestClient, peer: str, frame: bytes) -> None:
        self._client = client
        self._peer = peer
        self.connection: _RequestConnection | None = None
        """Where it was written."""
        self.frame = frame
        self.future: asyncio.Future[Ack] = client.loop.create_future()

    def acknowledge(self, ack: Ack) -> None:
        self._client.settled(self)
        if not self.future.done():
            self._client.metrics.tcp_bytes_received += len(ack.text)
            self.future.set_result(ack)

    def fail(self, cause: BaseException | None) -> None:
        self._client.settled(self)
        if not self.future.done():
            self._client.metrics.tcp_errors += 1
            error = CannotConnect(f"TCP connection to {self._peer} failed")
            error.__cause__ = cause
            self.future.set_exception(error)

    def refuse(self, waiting: int) -> None:
        self._client.settled(self)
        self.future.set_exception(
            ResourceExhausted(f"{waiting} requests wait for a connection to {self._peer} already: try again later")
        )

    def time_out(self) -> None:
        if not self.future.done():
            self._client.metrics.tcp_errors += 1
            self.future.set_exception(ConnectionTimeout(f"TCP request to {self._peer} timed out"))
        if self.connection is not None:
            self.connection.retire()


class _Pool:
    """The connections to one worker process, and the requests that wait for room on one."""

    __slots__ = (
        "_client",
        "_connect_task",
        "_host",
        "_last_used",
        "_next",
        "_port",
        "_waiting",
        "connections",
        "peer",
    )

    def __init__(self, client: TcpRequestClient, host: str, port: int) -> None:
        self._client = client
        self._host = host
        self._port = port
        self.peer = join_host_port(host, port)
        self.connections: list[_RequestConnection] = []
        self._next = 0
        self._waiting: deque[_Request] = deque()
        self._connect_task: asyncio.Task[None] | None = None
        self._last_used = 0.0

    def submit(self, request: _Request) -> None:
        """Send `request` now if a connection has room; else it waits for one."""
        self._last_used = self._client.loop.time()
        connection = None if self._waiting else self._with_room()
        if connection is not None:
            connection.send(request)
            return
        if len(self._waiting) >= self._client.config.max_waiting:
            request.refuse(len(self._waiting))
            return
        self._waiting.append(request)
        self._grow()

    def dispatch(self) -> None:
        """There may be room: send what waits."""
        while self._waiting:
            if self._waiting[0].future.done():  # it was given up meanwhile
                self._waiting.popleft()
                continue
            connection = self._with_room()
            if connection is None:
                self._grow()
                return
            connection.send(self._waiting.popleft())

    def is_idle(self, unused_since: float) -> bool:
        """Whether nothing was sent since then and nothing is under way."""
        busy = self._waiting or self._connect_task or any(not each.is_idle() for each in self.connections)
        return self._last_used < unused_since and not busy

    def remove(self, connection: _RequestConnection) -> None:
        """The connection is lost."""
        if connection in self.connections:
            self.connections.remove(connection)
        self.dispatch()

    def close(self) -> None:
        if self._connect_task is not None:
            self._connect_task.cancel()
        self._fail_waiting(None)
        for connection in list(self.connections):
            connection.close()

    def _with_room(self) -> _RequestConnection | None:
        """The next connection, in turn, that can take a request."""
        count = len(self.connections)
        for offset in range(count):
            index = (self._next + offset) % count
            connection = self.connections[index]
            if connection.has_room():
                self._next = index + 1
                return connection
        return None

    def _grow(self) -> None:
        """Open another connection, one at a time, if every one of those that there are is full or retired."""
        full = all(connection.is_full() or connection.retired for connection in self.connections)
        if self._connect_task is None and full and len(self.connections) < self._client.config.pool_size:
            self._connect_task = self._client.loop.create_task(self._connect())

    async def _connect(self) -> None:
        client = self._client
        try:
            async with client.connects:
                transport, connection = await client.connector.dial(
                    self._host, self._port, lambda: _RequestConnection(client, self)
                )
                if transport.is_closing():  # lost before this task had its turn: it has left the pool already
                    raise ConnectionResetError("the worker closed the connection at once")
        except OSError as error:  # ConnectionTimeout, too
            self._connect_task = None
            if not self.connections:
                self._fail_waiting(error)
            return
        self._connect_task = None
        self.connections.append(connection)
        self.dispatch()

    def _fail_waiting(self, cause: BaseException | None) -> None:
        while self._waiting:
            self._waiting.popleft().fail(cause)


class _RequestConnection(FrameProtocol[TcpResponseMessage]):
    """One connection to a worker: frames out, acknowledgements in."""

    __slots__ = ("_client", "_on_lost", "_paused", "_pool", "_unacknowledged", "retired")

    _transport: asyncio.Transport

    def __init__(self, client: TcpRequestClient, pool: _Pool) -> None:
        super().__init__(TcpResponseDecoder(client.config.max_message_size))
        self._client = client
        self._pool = pool
        self._unacknowledged: deque[_Request] = deque()
        self._paused = False
        self._on_lost: set[Callable[[], None]] = set()
        self.retired = False
        """Whether an acknowledgement did not come in time: the worker, or what is between, may be deaf."""

    def has_room(self) -> bool:
        """Whether a request may be sent now."""
        return not self._paused and not self.retired and not self.is_full() and not self._transport.is_closing()

    def is_full(self) -> bool:
        """Whether as many requests are unacknowledged as may be."""
        return len(self._unacknowledged) >= self._client.config.channel_buffer

    def is_idle(self) -> bool:
        """Whether neither an acknowledgement nor a dial-back is waited for."""
        return not self._unacknowledged and not self._on_lost

    def retire(self) -> None:
        """Send no new request here, and close as soon as nothing waits on it."""
        self.retired = True
        self._close_if_unused()
        self._pool.dispatch()

    def on_lost(self, callback: Callable[[], None]) -> None:
        """See RequestConnection."""
        if self._transport.is_closing():
            callback()
        else:
            self._on_lost.add(callback)

    def off_lost(self, callback: Callable[[], None]) -> None:
        """See RequestConnection."""
        self._on_lost.discard(callback)
        if self.retired:
            self._close_if_unused()

    def _close_if_unused(self) -> None:
        if not self._on_lost and all(request.future.done() for request in self._unacknowledged):
            self.close()

    def send(self, request: _Request) -> None:
        """Write a request."""
        self._unacknowledged.append(request)
        request.connection = self
        self._transport.write(request.frame)
        self._client.metrics.tcp_bytes_sent += len(request.frame)
        request.frame = b""  # the transport has it; a large one is not to be held until the acknowledgement

    def close(self) -> None:
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        while self._unacknowledged:
            self._unacknowledged.popleft().fail(error)
        callbacks, self._on_lost = self._on_lost, set()
        for callback in callbacks:
            callback()
        self._pool.remove(self)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._pool.dispatch()

    def message_received(self, message: TcpResponseMessage) -> None:
        if self._unacknowledged:
            self._unacknowledged.popleft().acknowledge(Ack(bytes(message.data), self))
        else:
            self._transport.abort()  # it acknowledges no request: the other end is no Dynamo worker

    def stream_failed(self, error: CodecError) -> None:
        self._transport.abort()

    def read_finished(self, size: int) -> None:
        if self._decoder.pending and not self._unacknowledged:
            self._transport.abort()  # the rest would be taken for the acknowledgement of the next request
        elif self.retired:
            self._close_if_unused()
        self._pool.dispatch()
