"""`ResponseSender`: push handlers. Such a handler has a parameter named `response_sender`, and sends its items with it.

    async def generate(request, context, response_sender):
        async for output in engine.generate(request):
            response_sender.send(output)
        if False:
            yield                      # it is an async generator that yields nothing

The handler of an engine saves a turn of its generator for each item. Nothing holds it back while the router reads slowly,
so what waits has a limit (`WorkerConfig.push_buffer`). (Source: runtime.md 4.10.)
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

from dynamo_fast.errors import RemoteError, SerializationError
from dynamo_fast.ingress.response_connection import ResponseConnection
from dynamo_fast.wire.payload import PayloadCodec

__all__ = ["Pushed", "ResponseSender"]

_AFTER_CLOSE = "response stream is closed; send() after close()"
_CONSUMER_GONE = "response stream is closed; the consumer dropped the response stream"
_YIELDED = "critical error: push-mode handler yielded a response instead of pushing it to its response_sender"


class ResponseSender:
    """Sends the items of one answer: `send` for each, then `close`, or nothing: the end of the handler closes it.

    `Answer` makes one for each request of a push handler, and calls `begin` once the handler was called. Any thread may
    use it. It ends with `close`, `close_with_error`, or with the handler.
    """

    __slots__ = (
        "_begun",
        "_closed",
        "_codec",
        "_flush_is_due",
        "_held",
        "_held_items",
        "_limit",
        "_lock",
        "_loop",
        "_stream",
    )

    def __init__(
        self, stream: ResponseConnection, codec: PayloadCodec, loop: asyncio.AbstractEventLoop, limit: int
    ) -> None:
        """`limit`: bytes that may wait for the router."""
        self._stream = stream
        self._codec = codec
        self._loop = loop
        self._limit = limit
        self._begun = False
        self._closed = False
        self._flush_is_due = False
        # Items that are not at the stream yet: sent by another thread, or before the prologue. And their bytes.
        self._held_items: deque[bytes] = deque()
        self._held = 0
        self._lock = threading.Lock()  # for `_held`

    # For the handler

    def send(self, obj: Any) -> None:
        """Send one item, as if it were yielded.

        Raises ValueError if it cannot be expressed (others may follow), and RuntimeError after `close`, if the answer has
        ended, or if more than `push_buffer` bytes wait for a router that reads too slowly.
        """
        if self._closed:
            raise RuntimeError(_AFTER_CLOSE)
        stream = self._stream
        if not stream.open:
            raise RuntimeError(_CONSUMER_GONE)
        if (stream.corked.paused or self._held) and (waiting := stream.waiting + self._held) > self._limit:
            raise RuntimeError(
                f"response stream is full: {waiting} bytes wait for a caller that reads slowly "
                f"(the limit is {self._limit}, DYNAMO_FAST_MAX_PUSHED_BYTES)"
            )
        if self._begun and not self._held and asyncio._get_running_loop() is self._loop:
            due = stream.corked.add(obj)
            self._added(stream.send(self._encode(obj)) if due is None else due)
        else:
            self._hold(self._encode(obj))

    def close(self) -> None:
        """End the answer; the handler may go on. May be called again."""
        self._end(b"")

    def close_with_error(self, msg: str) -> None:
        """End the answer with an error of that text. Does nothing after `close`."""
        if not isinstance(msg, str):
            raise TypeError(f"argument 'msg': '{type(msg).__name__}' object cannot be converted to 'PyString'")
        self._end(self._codec.encode_error_item(RemoteError(msg)))

    # For `Answer` and `Pushed`

    def begin(self) -> None:
        """The prologue is written: write what was sent before it."""
        self._begun = True
        self.drain()
        if self._closed:
            self._finish()

    def drain(self) -> None:
        """On the loop: write what is held, in its order; nothing before `begin`."""
        while self._begun and self._held_items:
            item = self._held_items.popleft()
            with self._lock:
                self._held -= len(item)
            self._added(self._stream.send(item))

    def _end(self, error_item: bytes) -> None:
        if self._closed:
            return
        self._closed = True
        if error_item:
            self._hold(error_item)
        if asyncio._get_running_loop() is self._loop:
            self._finish()
        else:
            self._tell_loop(self._finish)

    def _encode(self, obj: Any) -> bytes:
        try:
            return self._codec.encode_item(obj)
        except SerializationError as error:
            text = f"critical error: failed serializing python response as {self._codec.value}: {error.problem}"
            raise ValueError(text) from error

    def _hold(self, item: bytes) -> None:
        with self._lock:
            self._held += len(item)
        self._held_items.append(item)
        if asyncio._get_running_loop() is self._loop:
            self.drain()
        else:
            self._tell_loop(self.drain)

    def _tell_loop(self, call: Callable[[], None]) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(call)

    def _added(self, due: bool) -> None:
        """Write now, or at the end of this turn of the loop: the handler need not be the task that sends."""
        if due:
            self._stream.uncork()
        elif not self._flush_is_due:
            self._flush_is_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_is_due = False
        if self._stream.open:
            self._stream.uncork()

    def _finish(self) -> None:
        if self._begun:
            self.drain()
            self._stream.finish(self._codec.final)


class Pushed:
    """The iterator of a push handler, for `Answer`: it yields nothing, and ends with the handler.

    What the handler raises after it has closed its sender goes to the log only.
    """

    __slots__ = ("_iterator", "_sender")

    def __init__(self, iterator: AsyncIterator[Any], sender: ResponseSender) -> None:
        self._iterator = iterator
        self._sender = sender

    def __aiter__(self) -> Pushed:
        return self

    async def __anext__(self) -> Any:
        """Raises StopAsyncIteration at the end, what the handler raises, and RemoteError if it yields."""
        try:
            await self._iterator.__anext__()
        except StopAsyncIteration:
            self._sender.close()
            raise
        finally:
            self._sender.drain()  # what other threads have sent comes before an error
        raise RemoteError(_YIELDED)

    async def aclose(self) -> None:
        """Close the handler's iterator, if it can be closed."""
        close = getattr(self._iterator, "aclose", None)
        if close is not None:
            await close()
