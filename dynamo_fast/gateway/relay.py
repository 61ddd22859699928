"""`Relay`: the items of one answer, on their way from the worker's socket to the client's. `Collected`: kept in a list.

Both are sinks (`dynamo_fast.egress.sink`): they run in the callback that reads the worker's frames. What one read brings
leaves in one write, and no task is woken for it. The task of the request waits only for the first item, for a client that
reads too slowly, and for the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from dynamo_fast.deadlines import Deadlines
from dynamo_fast.egress.call import Call
from dynamo_fast.egress.sink import Delivery
from dynamo_fast.gateway.errors import HttpError
from dynamo_fast.gateway.forms import Form
from dynamo_fast.gateway.observer import RequestObserver
from dynamo_fast.wire.payload import Annotated

__all__ = ["MOST_UNSENT", "Collected", "Relay"]

MOST_UNSENT = 64 * 1024
"""Bytes that may wait in the client's transport before the answer is paused."""


class _Sink:
    """What both kinds share: the waiting task, the observers, the end.

    Owned by the exchange of the request, which makes it, waits with `changed`, and ends it with `close`.
    """

    def __init__(self, call: Call, observers: Sequence[RequestObserver]) -> None:
        self._ended = False
        self.error: BaseException | None = None
        """What ended it; None if it is complete."""
        self.instance_id: int | None = None
        """The worker that answers."""
        self.begun = False
        """Whether an item has come."""
        self.call = call
        self._observers = observers
        self._delivery: Delivery | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()

    def begin(self, delivery: Delivery) -> None:
        """See Sink."""
        self._delivery = delivery
        self._learn_instance()

    def end(self, error: BaseException | None) -> None:
        """See Sink."""
        if not self._ended:
            self._ended, self.error = True, error
            self._wake()

    def over(self) -> bool:
        """Whether the answer has ended."""
        return self._ended

    def close(self) -> None:
        """If the answer has not ended: tell the worker to stop, and drop what still comes."""
        if not self._ended and self._delivery is not None:
            self.call.context.stop_generating()
            self._delivery.close()

    def cut(self, error: Exception) -> None:
        """End the answer with `error`, from this side."""
        if not self._ended:
            self.close()
            self._ended, self.error = True, error
            self._wake()

    async def changed(self) -> None:
        """Wait until there is something to do. Ends with the answer at the latest."""
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _first_item(self) -> None:
        self.begun = True
        self._learn_instance()

    def _learn_instance(self) -> None:
        """After a retry it is another one. The call has none any more when the answer is over."""
        if self.call.entry is not None:
            self.instance_id = self.call.entry.instance.instance_id


class Relay(_Sink):
    """Writes the items to the client's transport, once it has one.

    Until `start` it keeps the first items and pauses the answer. Then it writes by itself, and only pauses when the client
    does not read: `full` is true then, and the task calls `resume` when the transport is empty.
    """

    def __init__(self, call: Call, observers: Sequence[RequestObserver], form: Form, silence: Deadlines[Relay]) -> None:
        super().__init__(call, observers)
        self.full = False
        """Whether the client must read before the answer goes on."""
        self.silent = False
        """Whether the silence has ended once before `start`: the head cannot wait any longer."""
        self._form = form
        self._silence = silence
        self._items: list[bytes] = []
        self._parts: list[bytes] = []
        self._count = 0
        self._scheduled = False
        self._transport: asyncio.WriteTransport | None = None
        self._chunked = False
        silence.add(self)

    def item(self, item: Annotated[bytes]) -> None:
        """See Sink."""
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush)
            if not self.begun:
                self._first_item()
        if item._event is None and item._comment is None and item._id is None and item._data is not None:
            self._items.append(item._data)
        else:
            self._take_plain()
            self._parts.append(self._form.annotated(item))
            self._count += 1

    def close(self) -> None:
        """See _Sink."""
        self._silence.discard(self)
        super().close()

    def start(self, transport: asyncio.WriteTransport, *, chunked: bool) -> None:
        """The head of the answer was sent: from now on items go to `transport`, in HTTP/1.1 as chunks."""
        self._transport, self._chunked = transport, chunked
        self._silence.discard(self)
        self._silence.add(self)
        self._scheduled = True
        self._flush()
        if self._delivery is not None and self._delivery.paused and not self.full:
            self._delivery.resume()

    def resume(self) -> None:
        """The client has read what was sent."""
        self.full = False
        if self._delivery is not None:
            self._delivery.resume()

    def rest(self) -> bytes:
        """What has come and was not written yet."""
        if not (self._items or self._parts):
            return b""
        try:
            self._take_plain()
        except Exception as error:  # the worker's items are not what the form needs
            self.cut(error)
        block = b"".join(self._parts)
        self._parts.clear()
        for each in self._observers:
            each.items(self._count)
        self._count = 0
        return block

    def silence_ended(self) -> None:
        """No item came for a while: tell the client that its connection is alive."""
        if self._transport is None:
            self.silent = True
            self._wake()
            return
        if not self._ended:
            self._silence.add(self)
            if self._form.comment:
                self.write(self._form.comment)

    def _take_plain(self) -> None:
        items, self._items = self._items, []
        if items:
            self._count += len(items)
            self._parts.append(self._form.items(items))

    def _flush(self) -> None:
        self._scheduled = False
        if self._ended:
            return  # the task writes the rest together with the end
        if self._transport is None:
            assert self._delivery is not None
            self._delivery.pause()
            self._wake()
            return
        block = self.rest()
        if block:
            self._silence.discard(self)
            self._silence.add(self)
            self.write(block)

    def write(self, block: bytes) -> None:
        """Write to the client, and pause if it does not read."""
        transport = self._transport
        assert transport is not None
        if transport.is_closing():  # where the server does not cancel handlers whose client has gone
            self.close()
            return
        transport.write(b"%x\r\n%b\r\n" % (len(block), block) if self._chunked else block)
        if transport.get_write_buffer_size() > MOST_UNSENT and not self.full and self._delivery is not None:
            self.full = True
            self._delivery.pause()
            self._wake()


class Collected(_Sink):
    """Keeps the data of the items, at most `limit` bytes."""

    def __init__(self, call: Call, observers: Sequence[RequestObserver], limit: int) -> None:
        super().__init__(call, observers)
        self.items: list[bytes] = []
        self._limit = self._left = limit

    def item(self, item: Annotated[Any]) -> None:
        """See Sink."""
        if not self.begun:
            self._first_item()
        data: bytes | None = item.data()
        if data is not None:
            self._left -= len(data)
            if self._left < 0:
                raise HttpError(502, f"the answer has more than {self._limit} bytes: ask for it as a stream")
            self.items.append(data)
        for each in self._observers:
            each.items(1)
