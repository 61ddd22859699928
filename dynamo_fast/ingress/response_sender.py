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
from collections.abc import AsyncIterator
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

    __slots__ = ("_closed", "_codec", "_early", "_flush_is_due", "_limit", "_loop", "_stream")

    def __init__(
        self, stream: ResponseConnection, codec: PayloadCodec, loop: asyncio.AbstractEventLoop, limit: int
    ) -> None:
        """`limit`: bytes that may wait for the router."""
        self._stream = stream
        self._codec = codec
        self._loop = loop
        self._limit = limit
        self._early: list[bytes] | None = []  # sent while the handler was being called: the prologue comes first
        self._closed = False
        self._flush_is_due = False

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
        if stream.corked.paused and (waiting := stream.waiting) > self._limit:
            raise RuntimeError(
                f"response stream is full: {waiting} bytes wait for a caller that reads slowly "
                f"(the limit is {self._limit}, DYNAMO_FAST_MAX_PUSHED_BYTES)"
            )
        if asyncio._get_running_loop() is self._loop and self._early is None:
            due = stream.corked.add(obj)
            self._added(stream.send(self._encode(obj)) if due is None else due)
        else:
            self._later(self._encode(obj))

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
        early, self._early = self._early or [], None
        for item in early:
            self._write(item)
        if self._closed:
            self._finish()

    @property
    def closed(self) -> bool:
        """Whether the handler has closed it."""
        return self._closed

    def _end(self, error_item: bytes) -> None:
        if self._closed:
            return
        self._closed = True
        if error_item:
            self._later(error_item)
        if asyncio._get_running_loop() is not self._loop:
            self._tell_loop(self._finish)
        elif self._early is None:
            self._finish()

    def _encode(self, obj: Any) -> bytes:
        try:
            return self._codec.encode_item(obj)
        except SerializationError as error:
            text = f"critical error: failed serializing python response as {self._codec.value}: {error.problem}"
            raise ValueError(text) from error

    def _later(self, item: bytes) -> None:
        """Write an encoded item: after the prologue, on the loop."""
        if asyncio._get_running_loop() is not self._loop:
            self._tell_loop(self._write, item)
        elif self._early is not None:
            self._early.append(item)
        else:
            self._write(item)

    def _tell_loop(self, call: Any, *arguments: Any) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(call, *arguments)

    def _write(self, item: bytes) -> None:
        if self._early is not None:
            self._early.append(item)
        else:
            self._added(self._stream.send(item))

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
        if self._early is None:
            self._stream.finish(self._codec.final)


class Pushed:
    """The iterator of a push handler, for `Answer`: it yields nothing, and ends with the handler.

    What the handler raises after it has closed its sender goes to nobody but the log.
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
        raise RemoteError(_YIELDED)

    async def aclose(self) -> None:
        """Close the handler's iterator, if it can be closed."""
        close = getattr(self._iterator, "aclose", None)
        if close is not None:
            await close()
