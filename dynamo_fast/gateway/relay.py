"""`Relay`: the items of one answer, on their way from the worker's socket to the client's. `Collected`: kept in a list.

Both are sinks (`dynamo_fast.egress.sink`): they run in the callback that reads the worker's frames. What one read brings
leaves in one write, and no task is woken for it. The task of the request waits only for the first item, for a client that
reads too slowly, and for the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from dynamo_fast.deadlines import Deadlines
from dynamo_fast.egress.call import Call
from dynamo_fast.egress.sink import Delivery
from dynamo_fast.gateway.errors import HttpError
from dynamo_fast.gateway.forms import Form, Item
from dynamo_fast.gateway.observer import RequestObserver

__all__ = ["MOST_UNSENT", "Collected", "Relay"]

MOST_UNSENT = 64 * 1024
"""Bytes that may wait in the client's transport before the answer is paused."""


class _Sink:
    """What both kinds share: the items, the waiting task, the observers, the end.

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
        self._items: list[Item] = []
        self.item: Callable[[Item], None] = self._first_item
        """See Sink. From the second item on it is the list's own method."""
        self._delivery: Delivery | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def send(self) -> None:
        """Send the request. Returns when the answer begins; raises why it does not."""
        stream = await self.call.send()
        stream._bare = stream._mixed = True
        Delivery(stream, self, self.call).begin()

    def begin(self, delivery: Delivery) -> None:
        """See Sink."""
        self._delivery = delivery
        self._learn_instance()

    def end(self, error: BaseException | None) -> None:
        """See Sink."""
        self.item = self._items.append
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
        self._delivery = None  # break the reference cycles
        self.item = self._items.append

    def cut(self, error: Exception) -> None:
        """End the answer with `error`, from this side."""
        if not self._ended:
            self.close()
            self._ended, self.error = True, error
            self._wake()

    async def changed(self) -> None:
        """Wait until there is something to do. Ends with the answer at the latest."""
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _first_item(self, item: Item) -> None:
        self.begun = True
        self._learn_instance()
        self.item = self._items.append
        self.item(item)

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
        self._wrote = False
        self._transport: asyncio.WriteTransport | None = None
        self._chunked = False
        silence.add(self)

    def close(self) -> None:
        """See _Sink."""
        self._silence.discard(self)
        super().close()

    def start(self, transport: asyncio.WriteTransport, *, chunked: bool) -> None:
        """The head of the answer was sent: from now on items go to `transport`, in HTTP/1.1 as chunks."""
        self._transport, self._chunked = transport, chunked
        if self._ended:
            return
        self._silence.discard(self)
        self._silence.add(self)
        self.flush()
        if self._delivery is not None and self._delivery.paused and not self.full:
            self._delivery.resume()

    def resume(self) -> None:
        """The client has read what was sent."""
        self.full = False
        if self._delivery is not None:
            self._delivery.resume()

    def rest(self) -> bytes:
        """What has come and was not written yet."""
        items = self._items
        if not items:
            return b""
        for each in self._observers:
            each.items(len(items))
        try:
            return self._form.items(items)
        except Exception as error:  # the worker's items are not what the form needs
            self.cut(error)
            return b""
        finally:
            items.clear()

    def flush(self) -> None:
        """See Sink."""
        if not self._items:
            return
        if self._transport is None:
            assert self._delivery is not None
            self._delivery.pause()
            self._wake()
            return
        block = self.rest()
        if block:
            self.write(block)

    def silence_ended(self) -> None:
        """A time is over. If nothing was written in it: tell the client that its connection is alive."""
        if self._ended:
            return
        if self._transport is None:
            self.silent = True
            self._wake()
            return
        self._silence.add(self)
        if not self._wrote and self._form.comment:
            self.write(self._form.comment)
        self._wrote = False

    def write(self, block: bytes) -> None:
        """Write to the client, and pause if it does not read."""
        transport = self._transport
        assert transport is not None
        self._wrote = True
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
        self._limit = limit
        self._size = 0
        self._data: list[bytes] = []

    def flush(self) -> None:
        """See Sink. Raises HttpError if there are too many bytes: the answer ends."""
        items = self._items
        for each in self._observers:
            each.items(len(items))
        data = [item if isinstance(item, bytes) else item.data() for item in items]
        items.clear()
        self._data += [each for each in data if each is not None]
        self._size += sum(len(each) for each in data if each is not None)
        if self._size > self._limit:
            raise HttpError(502, f"the answer has more than {self._limit} bytes: ask for it as a stream")

    def data(self) -> list[bytes]:
        """The data of all items, when the answer is over. Raises what ended it."""
        if self._items:
            self.flush()
        if self.error is not None:
            raise self.error
        return self._data
