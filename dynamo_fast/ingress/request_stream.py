"""The input of a bidirectional request: a second connection to the router, on which the items come in (transport.md 9).

The worker dials it, before the response stream, and writes nothing but the handshake. The router writes the bare items,
one in each data frame, then how it ended:

    sentinel        no more items; the handler goes on
    stop, kill      the request's context is stopped, killed
    anything else   a violation, as is an end of file without one of the three: the context is killed
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, cast

from dynamo_fast.codec import TwoPartDecoder, TwoPartMessage
from dynamo_fast.context import Context
from dynamo_fast.errors import CodecError, PayloadError
from dynamo_fast.ingress.buffered_bytes import BufferedBytes
from dynamo_fast.logs import get_logger
from dynamo_fast.net.frame_protocol import FrameProtocol
from dynamo_fast.net.sockets import close_in_forked_children
from dynamo_fast.wire.payload import PayloadCodec
from dynamo_fast.wire.stream import Event, classify

__all__ = ["RequestStream"]

logger = get_logger(__name__)

# Stop reading when this many items wait for the handler; read on when this few are left.
_HIGH_WATER, _LOW_WATER = 64, 16
_HIGH_WATER_BYTES = 1 << 20
# Fewer bytes are not reported: the connection itself costs as much.
_SMALL = 4096


class RequestStream(FrameProtocol):
    """What the handler of a bidirectional endpoint gets: an async iterator of the decoded input items, for one consumer.

    It ends when the router has ended its input, or when the request was cancelled (see the context for which).

    It owns the connection to the router and the items that the handler has not taken. Their bytes count in `buffered`,
    with those of an unfinished frame; the request that holds most of them is killed when all hold too much.
    """

    def __init__(self, context: Context, codec: PayloadCodec, max_message_size: int, buffered: BufferedBytes) -> None:
        super().__init__(TwoPartDecoder(max_message_size, views=True))
        self._context = context
        self._codec = codec
        self._items: deque[Any] = deque()
        self._transport = None
        self._waiter: asyncio.Future[None] | None = None
        self._ended = False
        self._reading = True
        self._size = 0  # bytes of the items that came since they were last all taken
        self._held = 0  # bytes that were reported
        self._buffered = buffered

    def __aiter__(self) -> RequestStream:
        return self

    async def __anext__(self) -> Any:
        while not self._items:
            if self._ended:
                raise StopAsyncIteration
            await self._wait()
        item = self._items.popleft()
        if not self._items:
            self._size = 0
            self._hold()
        if not self._reading and len(self._items) <= _LOW_WATER and self._transport is not None:
            self._reading = True
            self._transport.resume_reading()
        return item

    def close(self) -> None:
        """The answer has ended: drop the input and close the connection."""
        self._end()
        self._drop()
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        close_in_forked_children(self)

    def message_received(self, message: TwoPartMessage) -> None:
        if not self._ended:
            self._take(classify(message), message.data)

    def stream_failed(self, error: CodecError) -> None:
        self._violated()

    def read_finished(self, size: int) -> None:
        self._wake()
        self._hold()
        is_full = len(self._items) >= _HIGH_WATER or (self._items and self._size >= _HIGH_WATER_BYTES)
        if is_full and self._reading and self._transport is not None:
            self._reading = False
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        if not self._ended:
            self._violated()
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        if not self._ended:
            self._violated()
        self._hold()

    def crowded_out(self, total: int, limit: int) -> None:
        """See `buffered_bytes.Holder`."""
        logger.warning(
            "killing request %r: its input holds most of %d buffered bytes, over the limit of %d "
            "(DYNAMO_FAST_MAX_BUFFERED_REQUEST_BYTES)",
            self._context.id(),
            total,
            limit,
        )
        self._drop()
        if self._transport is not None:
            self._transport.abort()
        if not self._ended:
            self._violated()

    def _drop(self) -> None:
        """Drop the items that the handler has not taken."""
        self._items.clear()
        self._size = self._held = 0
        self._buffered.release(self)

    def _hold(self) -> None:
        size = self._size + (self._decoder.pending if self._transport is not None else 0)
        if size > _SMALL or self._held:
            self._held = size if size > _SMALL else 0
            self._buffered.hold(self, self._held)

    def _take(self, event: Event, data: bytes | memoryview) -> None:
        if event is Event.DATA:
            try:
                self._items.append(self._codec.decode(data))
                self._size += len(data)
            except PayloadError:
                self._violated()
        elif event is Event.SENTINEL:
            self._end()
        elif event is Event.STOP:
            self._end()
            self._context.stop_generating()
        else:
            self._violated()

    def _violated(self) -> None:
        self._end()
        self._context.kill()

    def _end(self) -> None:
        self._ended = True
        self._wake()

    async def _wait(self) -> None:
        if self._waiter is not None:
            raise RuntimeError("a request stream has one consumer, and another one is already waiting")
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
