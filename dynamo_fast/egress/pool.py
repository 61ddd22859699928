# cython: freethreading_compatible=True, annotation_typing=False
"""The connections to one worker process: the pool of `TcpRequestClient` (transport.md 2.4).

A connection carries many requests at once; the worker acknowledges them in order, so a queue of requests is all the
matching that is needed. Another connection to the same worker is opened only when each of the present ones has
`channel_buffer` requests unacknowledged, or is *retired*: an acknowledgement on it did not come in time. No new request
is written to a retired connection, and it is closed when nothing waits on it any more.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol, cast

from dynamo_fast.codec import TcpResponseDecoder, TcpResponseMessage
from dynamo_fast.config import TcpClientConfig
from dynamo_fast.deadlines import Deadlines
from dynamo_fast.egress.request_client import AckListener
from dynamo_fast.errors import CannotConnect, CodecError, ConnectionTimeout, ResourceExhausted, TlsError
from dynamo_fast.net.connector import Connector
from dynamo_fast.net.frame_protocol import FrameProtocol
from dynamo_fast.net.tls import is_alert, lost
from dynamo_fast.observability.metrics import RequestPlaneMetrics
from dynamo_fast.wire.address import join_host_port

__all__ = ["PendingRequest", "PoolOwner", "PooledConnection", "WorkerPool"]

_LARGE = 16 * 1024  # bytes of a frame that is written alone
_MOST_GATHERED = 64  # frames of one write


class PoolOwner(Protocol):
    """What a pool and its connections ask of the client."""

    loop: asyncio.AbstractEventLoop
    config: TcpClientConfig
    metrics: RequestPlaneMetrics
    connector: Connector
    connects: asyncio.Semaphore
    """Held by each dial: limits how many there are at once."""
    deadlines: Deadlines[PendingRequest]
    """The requests that are not acknowledged, and may time out."""


class PendingRequest:
    """A request between the call and its acknowledgement.

    Owned by its pool until it is written, then by its connection. It ends when it `is_over`.
    """

    __slots__ = ("_pool", "_timed_out", "connection", "frame", "listener")

    def __init__(self, pool: WorkerPool, frame: bytes, listener: AckListener) -> None:
        self._pool = pool
        self.connection: PooledConnection | None = None
        """The connection that it was written to."""
        self.frame = frame
        self.listener = listener
        self._timed_out = False

    def is_over(self) -> bool:
        """Whether its acknowledgement matters no more."""
        return self._timed_out or self.listener.is_settled()

    def acknowledge(self, text: bytes, connection: PooledConnection) -> None:
        """Its acknowledgement has come."""
        self._pool.deadlines.discard(self)
        if not self.is_over():
            self._pool.metrics.tcp_bytes_received += len(text)
            self.listener.acknowledged(text, connection)

    def fail(self, cause: BaseException | None) -> None:
        """Its connection could not be made, or is lost."""
        self._pool.deadlines.discard(self)
        if not self.is_over():
            self._pool.metrics.tcp_errors += 1
            # The words of Dynamo. For TLS the reason is added: without it such a fault cannot be found.
            kind, why = (TlsError, f": {cause}") if isinstance(cause, TlsError) else (CannotConnect, "")
            error = kind(f"TCP connection to {self._pool.peer} failed{why}")
            error.__cause__ = cause
            self.listener.unacknowledged(error)

    def refuse(self, waiting: int) -> None:
        """Too many requests wait for a connection. Told in the next turn: the caller has not got its answer yet."""
        self._pool.deadlines.discard(self)
        error = ResourceExhausted(
            f"{waiting} requests wait for a connection to {self._pool.peer} already: try again later"
        )
        self._pool.loop.call_soon(self.listener.unacknowledged, error)

    def time_out(self) -> None:
        """Its acknowledgement did not come in time."""
        if not self.is_over():
            self._pool.metrics.tcp_errors += 1
            self._timed_out = True
            error = ConnectionTimeout(f"TCP request to {self._pool.peer} timed out")
            self._pool.loop.call_soon(
                self.listener.unacknowledged, error
            )  # after its connection, if that is closed now
        if self.connection is not None:
            self.connection.retire()


class WorkerPool:
    """The connections to one worker process, and the requests that wait for room on one of them.

    Owns both. The client submits requests and closes it; the connections tell it when they have room or are lost.
    """

    __slots__ = (
        "_client",
        "_connect_task",
        "_last_used",
        "_next",
        "_port",
        "_waiting",
        "connections",
        "deadlines",
        "host",
        "loop",
        "metrics",
        "peer",
    )

    def __init__(self, client: PoolOwner, host: str, port: int) -> None:
        self._client = client
        self.loop, self.metrics, self.deadlines = client.loop, client.metrics, client.deadlines
        self.host = host
        """The address of the worker."""
        self._port = port
        self.peer = join_host_port(host, port)
        self.connections: list[PooledConnection] = []
        self._next = 0
        self._waiting: deque[PendingRequest] = deque()
        self._connect_task: asyncio.Task[None] | None = None
        self._last_used = 0.0

    def submit(self, request: PendingRequest) -> None:
        """Send `request` now if a connection has room, else queue it."""
        self._last_used = self.loop.time()
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
        """There may be room: send queued requests."""
        while self._waiting:
            if self._waiting[0].is_over():  # the caller gave it up
                self._waiting.popleft()
                continue
            connection = self._with_room()
            if connection is None:
                self._grow()
                return
            connection.send(self._waiting.popleft())

    def is_idle(self, unused_since: float) -> bool:
        """Whether no request was sent since then, and none is under way."""
        busy = self._waiting or self._connect_task or any(not each.is_idle() for each in self.connections)
        return self._last_used < unused_since and not busy

    def remove(self, connection: PooledConnection) -> None:
        """The connection is lost."""
        if connection in self.connections:
            self.connections.remove(connection)
        self.dispatch()

    def close(self) -> None:
        """Close the connections; requests that wait fail with CannotConnect."""
        if self._connect_task is not None:
            self._connect_task.cancel()
        self._fail_waiting(None)
        for connection in list(self.connections):
            connection.close()

    def _with_room(self) -> PooledConnection | None:
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
        """Open one more connection if each of the present ones is full or retired."""
        full = all(connection.is_full() or connection.retired for connection in self.connections)
        if self._connect_task is None and full and len(self.connections) < self._client.config.pool_size:
            self._connect_task = self._client.loop.create_task(self._connect())

    async def _connect(self) -> None:
        client = self._client
        try:
            async with client.connects:
                transport, connection = await client.connector.dial(
                    self.host, self._port, lambda: PooledConnection(client, self)
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


class PooledConnection(FrameProtocol):
    """One connection to a worker: request frames out, acknowledgements in.

    A request is written at once if no other is under way. While others are, those of one turn of the loop leave in one
    write, and so in one record of TLS: a write costs more than all else that is done for a request here.

    Owns the requests that it has taken and that are not acknowledged. Its pool sends on it; `close`, or the loss of the
    connection, ends it.
    """

    __slots__ = ("_failure", "_gathered", "_most", "_on_lost", "_paused", "_pool", "_unacknowledged", "retired")

    def __init__(self, client: PoolOwner, pool: WorkerPool) -> None:
        super().__init__(TcpResponseDecoder(client.config.max_message_size))
        self._pool = pool
        self._most = client.config.channel_buffer
        self._unacknowledged: deque[PendingRequest] = deque()
        self._gathered: list[bytes] = []  # frames of this turn
        self._paused = False
        self._on_lost: set[Callable[[], None]] = set()
        self._failure: TlsError | None = None
        self.retired = False
        """Whether an acknowledgement did not come in time: the worker, or the network on the way, may not respond."""

    @property
    def host(self) -> str:
        """See RequestConnection."""
        return self._pool.host

    def has_room(self) -> bool:
        """Whether a request may be sent now."""
        return not self._paused and not self.retired and not self.is_full() and not self._transport.is_closing()

    def is_full(self) -> bool:
        """Whether `channel_buffer` requests are unacknowledged."""
        return len(self._unacknowledged) >= self._most

    def is_idle(self) -> bool:
        """Whether no acknowledgement and no call home is expected."""
        return not self._unacknowledged and not self._on_lost

    def retire(self) -> None:
        """Send no new request on it, and close it as soon as nothing waits on it."""
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
        if not self._on_lost and all(request.is_over() for request in self._unacknowledged):
            self.close()

    def send(self, request: PendingRequest) -> None:
        """Write a request, now or at the end of this turn."""
        frame = request.frame
        request.connection = self
        if not self._unacknowledged:
            self._transport.write(frame)
        else:
            self._gather(frame)
        self._unacknowledged.append(request)
        self._pool.metrics.tcp_bytes_sent += len(frame)
        request.frame = b""  # the transport has it: do not hold a large one until the acknowledgement

    def _gather(self, frame: bytes) -> None:
        gathered = self._gathered
        if len(frame) > _LARGE:  # a copy would cost more than a write
            self._flush()
            self._transport.write(frame)
            return
        if not gathered:
            self._pool.loop.call_soon(self._flush)
        gathered.append(frame)
        if len(gathered) >= _MOST_GATHERED:
            self._flush()

    def _flush(self) -> None:
        gathered, self._gathered = self._gathered, []
        if gathered and not self._transport.is_closing():  # else it was lost in this turn
            self._transport.write(gathered[0] if len(gathered) == 1 else b"".join(gathered))

    def close(self) -> None:
        """Close now; requests that were not acknowledged fail with CannotConnect."""
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        cause = self._failure or lost(error, self._pool.peer)
        while self._unacknowledged:
            self._unacknowledged.popleft().fail(cause)
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
            data = message.data
            self._acknowledge(data if type(data) is bytes else bytes(data))
        else:
            self._transport.abort()  # it acknowledges no request: the other end is no Dynamo worker

    def _acknowledge(self, text: bytes) -> None:
        request = self._unacknowledged.popleft()
        request.acknowledge(text, self)

    def bytes_refused(self, data: bytes) -> None:
        if is_alert(data):
            self._failure = TlsError(
                f"{self._pool.peer} speaks TLS, and this process dials in plain text (see DYN_TCP_TLS_CA_CERT_PATH)"
            )

    def stream_failed(self, error: CodecError) -> None:
        self._transport.abort()

    def read_finished(self, size: int) -> None:
        if self._decoder.pending and not self._unacknowledged:
            self._transport.abort()  # the rest would be taken for the acknowledgement of the next request
        elif self.retired:
            self._close_if_unused()
        self._pool.dispatch()
