# cython: freethreading_compatible=True, annotation_typing=False
"""`Items`: the frames of one answer, taken as items one by one; `NextItem`: what `await` gets one with.

This runs for every item. Where there is a compiler, Cython translates this very file, with the types in `_items.pxd`
(see setup.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dynamo_fast.wire._raw import is_one_value
from dynamo_fast.wire.annotated import with_data
from dynamo_fast.wire.text import UNREADABLE

if TYPE_CHECKING:
    import asyncio

    import cython

    from dynamo_fast.egress.abandonment import Abandonment
    from dynamo_fast.egress.response_receiver import ResponseReceiver
    from dynamo_fast.wire.payload import ItemReader
else:
    from dynamo_fast._native import cython

__all__ = ["END", "Items", "NextItem", "begin"]

# Then the names that no module here defines are those of functions in C (`_send.pxd`).
_IS_COMPILED = not __file__.endswith(".py")


class _End:
    """The type of `END`."""


END: Any = _End()
"""Stands for the end of an answer."""


class Items:
    """Takes the frames that a receiver has queued, and makes items of them.

    The base of `ResponseStream`, which says what becomes of a frame that is not a plain item (`_unusual`) and of the end
    (`_end`). Nothing here waits. Used on the router's event loop only.
    """

    __slots__ = (
        "__weakref__",
        "_abandonment",
        "_asked",
        "_bare",
        "_decode",
        "_final",
        "_final_seen",
        "_flowing",
        "_frames",
        "_head",
        "_in_take",
        "_mixed",
        "_null",
        "_open",
        "_read_data",
        "_receiver",
        "_scan",
        "_tail",
    )

    def __init__(self, receiver: ResponseReceiver, reader: ItemReader) -> None:
        self._read(receiver, reader)

    def _read(self, receiver: ResponseReceiver, reader: ItemReader) -> None:
        """What `__init__` does, for a subclass: the call costs less."""
        self._receiver = receiver
        self._frames = receiver.frames
        (self._head, self._tail), self._read_data, self._scan, self._null, self._final, self._decode = reader
        self._final_seen = False
        self._open = True
        self._bare = False
        """Whether `pull` returns the data of the items, and leaves out items without data."""
        self._mixed = False
        """Whether it returns, though bare, an item whole that has something beside its data, or no data."""
        self._flowing = True
        self._in_take = False
        self._asked = False
        """Whether something has asked for an item since a wait for one was cancelled."""
        self._abandonment: Abandonment | None = None
        """From the first wait that is cancelled."""

    def pull(self) -> Any:
        """The next item, or None if it has not come.

        After the last one it raises StopAsyncIteration; or, once, what else ended the answer.
        """
        item = self.take()
        if item is END:
            raise StopAsyncIteration
        return item

    def take(self) -> Any:
        """As `pull`, but END after the last item: an exception costs as much as an item or two."""
        self._asked = True
        while self._open:
            if self._frames.first is None:
                if not self._receiver.ended:
                    return None
                self._end()
                continue
            frame = self._frames.popleft()
            if not self._final_seen:
                data = self._plain(frame)
                if data is not None:
                    return data if self._bare else with_data(data)
            item = self._unusual(frame)
            if item is not None:
                if not self._bare or self._mixed:
                    return item
                data = item.data()
                if data is not None:
                    return data
        if self._abandonment is not None:
            self._raise_abandoned()
        return END

    def _raise_abandoned(self) -> None:
        """Raise, once, why a stream that was abandoned was closed."""
        assert self._abandonment is not None
        error, self._abandonment = self._abandonment.error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback refers to this frame

    def _plain(self, frame: object) -> Any:
        """The data of an item that has nothing else, which nearly every frame is; None if it must be looked at fully."""
        if type(frame) is not bytes:  # a view of a large frame
            return None
        data: bytes | None = (
            bytes_inside(frame, self._head, self._tail)  # type: ignore[name-defined]  # noqa: F821
            if _IS_COMPILED
            else _inside(frame, self._head, self._tail)
        )
        if data is None:
            return None
        if self._read_data is None:
            if (self._scan and not is_one_value(data)) or (len(data) < 16 and data.strip() in (b"", self._null)):
                return None
            return data
        try:
            return self._read_data(data)
        except UNREADABLE:  # it is not one value, or none that fits
            return None

    def feed(self, take: Callable[[Any], object]) -> None:
        """Pull the items that have come into `take`, while `_flowing` is true. Raises what `pull` and `take` raise.

        `_in_take` says then which of the two it was.
        """
        try:
            while self._flowing:
                item = self.take()
                if item is None:
                    return
                if item is END:
                    raise StopAsyncIteration
                self._in_take = True
                take(item)
                self._in_take = False
        finally:
            del take  # the traceback of an error refers to this frame, and `take` to who may keep the error

    def is_exhausted(self) -> bool:
        """Whether `pull` raises: no item is left, and none will come."""
        return not self._open or (not self._frames and self._receiver.ended)

    def wait(self) -> asyncio.Future[None]:
        """Done when `pull` is worth a call again. Called when it has returned None."""
        return self._receiver.readable()

    def listen(self, reader: Callable[[], None] | None) -> None:
        """Call `reader` whenever `pull` is worth a call again, until this is called with None."""
        self._receiver.listen(reader)

    def __anext__(self) -> Any:
        return begin(self)

    def _unusual(self, frame: bytes | memoryview) -> Any:
        raise NotImplementedError

    def _end(self) -> None:
        raise NotImplementedError

    def wait_cancelled(self, on_close: Callable[[], None] | None = None) -> None:
        raise NotImplementedError


def _inside(frame: bytes, head: bytes, tail: bytes) -> bytes | None:
    """What stands between the two texts; None if `frame` does not begin and end with them."""
    begin, end = len(head), len(frame) - len(tail)
    return frame[begin:end] if begin <= end and frame.startswith(head) and frame.endswith(tail) else None


@cython.freelist(16)
@cython.cclass
class NextItem:
    """The next item of an answer, to be awaited. It behaves as this coroutine does, and costs half as much:

    async def next_item(items):
        while (item := items.pull()) is None:
            await items.wait()
        return item

    It begins when it is awaited, and can be awaited once. What awaits it owns it.
    """

    _items: Items | None
    """None when it is over: it has returned or raised, or was closed."""
    _waiting: Any

    def __await__(self) -> NextItem:
        return self

    def __iter__(self) -> NextItem:
        return self

    def __next__(self) -> Any:
        return self.send(None)

    def send(self, value: object) -> Any:
        """See collections.abc.Coroutine."""
        result = _step(self)
        if result is END:
            raise StopAsyncIteration
        if _is_over(self):
            raise StopIteration(result)
        return result

    def throw(self, kind: Any, value: Any = None, traceback: Any = None) -> Any:
        """See collections.abc.Coroutine. So a task is cancelled while it waits."""
        items = self._items
        self._items = self._waiting = None
        if items is not None:
            items.wait_cancelled()
        if value is None:
            value = kind() if isinstance(kind, type) else kind
        try:
            raise value if traceback is None else value.with_traceback(traceback)
        finally:
            kind = value = traceback = items = None  # the traceback refers to this frame: break the cycle

    def close(self) -> None:
        """See collections.abc.Coroutine."""
        items = None if self._waiting is None else self._items
        self._items = self._waiting = None
        if items is not None:
            items.wait_cancelled()


def begin(items: Items) -> NextItem:
    """What `__anext__` returns."""
    next_item = NextItem.__new__(NextItem)
    next_item._items, next_item._waiting = items, None
    return next_item


def _step(item: Any) -> Any:
    """The item, or END, after which it is over; or what the task is to wait for."""
    next_item: NextItem = item
    items = next_item._items
    if items is None:
        raise RuntimeError("cannot reuse already awaited coroutine")
    next_item._items = None  # it is over, unless it has to wait
    if next_item._waiting is not None:
        next(next_item._waiting, None)  # done, or it raises
        next_item._waiting = None
    while True:
        result = items.take()
        if result is not None:
            return result
        waiting = items.wait().__await__()
        result = next(waiting, None)
        if result is not None:
            next_item._items, next_item._waiting = items, waiting
            return result


def _is_over(item: Any) -> bool:
    next_item: NextItem = item
    return next_item._items is None


if _IS_COMPILED:
    fill_send_slot(NextItem, _step, _is_over, END)  # type: ignore[name-defined]  # noqa: F821  # it is in `_send.pxd`
