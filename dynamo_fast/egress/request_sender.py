"""The input of a bidirectional request: `ManyIn`, and the connection that carries it (transport.md 9).

The worker dials it as it dials the one of its answer, with a subject of its own. The router writes each item as a bare
data frame, then how the input ended: `sentinel`, or `stop` or `kill` with the request's context; then its end of file.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable, Iterable
from typing import Any

from dynamo_fast.codec import encode_two_part
from dynamo_fast.context import Context
from dynamo_fast.net.sockets import close_in_forked_children, descriptors_of
from dynamo_fast.wire.control import ControlMessage, StreamType, TcpStreamConnectionInfo
from dynamo_fast.wire.payload import PayloadCodec

__all__ = ["ManyIn", "RequestSender"]


class ManyIn:
    """A stream of requests in place of a single one: `AddressedRequest(ManyIn(items), address)`.

    `items` is read while the answer comes. What it raises, and an item that cannot be serialised, kill the request and
    are raised where the answer is awaited.
    """

    __slots__ = ("items",)

    def __init__(self, items: AsyncIterable[Any]) -> None:
        self.items = items


class RequestSender(asyncio.Protocol):
    """One input: waits for the worker's connection, then writes until the input or the request has ended.

    Owns that connection and the task that reads the caller's items. The registry makes it; `close`, the end of the items,
    the context or the loss of the connection ends it.
    """

    def __init__(
        self,
        subject: str,
        source: ManyIn,
        codec: PayloadCodec,
        context: Context,
        on_error: Callable[[BaseException], None],
    ) -> None:
        self.subject = subject
        self._source = source
        self._codec = codec
        self._context = context
        self._on_error = on_error
        self.is_dialled = False
        """Whether the worker has dialled for it."""
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None
        self._room = asyncio.Event()
        self._room.set()
        context.on_cancel(self._context_changed)

    def connection_info(self, address: str) -> TcpStreamConnectionInfo:
        """Where the worker is to dial, for the control message."""
        return TcpStreamConnectionInfo(address, self.subject, self._context.id(), StreamType.REQUEST)

    def dialled(self, transport: asyncio.Transport) -> None:
        """The worker has dialled: `transport` belongs to this input from now on."""
        self.is_dialled = True
        self._transport = transport
        close_in_forked_children(self)
        transport.set_protocol(self)
        if self._context.is_stopped():
            self._context_changed()
        else:
            self._task = asyncio.get_running_loop().create_task(self._write())

    def close(self) -> None:
        """The answer has ended: the worker reads no more input."""
        if self._context.is_stopped():  # a kill ends the answer first, and then comes here
            self._context_changed()
        else:
            self._finish(ControlMessage.SENTINEL)

    def open_sockets(self) -> Iterable[int]:
        """See SocketHolder."""
        return descriptors_of([self._transport])

    # What the event loop does

    def pause_writing(self) -> None:
        self._room.clear()

    def resume_writing(self) -> None:
        self._room.set()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._stop_writing()

    # The input

    async def _write(self) -> None:
        try:
            async for item in self._source.items:
                if self._transport is None:
                    return
                self._transport.write(encode_two_part(b"", self._codec.encode(item)))
                await self._room.wait()
        except asyncio.CancelledError:
            if self._task is not None:  # not by `_stop_writing`: the source itself was cancelled
                self._on_error(RuntimeError("the input of the call was cancelled"))
            raise
        except Exception as error:
            self._on_error(error)
        else:
            self._finish(ControlMessage.SENTINEL)

    def _context_changed(self) -> None:
        self._finish(ControlMessage.KILL if self._context.is_killed() else ControlMessage.STOP)

    def _finish(self, word: ControlMessage) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.write(encode_two_part(word.encode(), b""))
            transport.close()  # after what was written
        self._stop_writing()

    def _stop_writing(self) -> None:
        self._context.off_cancel(self._context_changed)
        self._room.set()
        task, self._task = self._task, None
        if task is not None and task is not _current_task():
            task.cancel()


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None
