"""`Sink`: takes the items of an answer straight from the callback that reads them; `Delivery`: one answer on its way there.

For a caller that writes each item on at once: no task is woken for an item.

    class Relay:
        def begin(self, delivery):
            self.delivery = delivery

        def item(self, item):
            transport.write(item.data())

        def end(self, error):
            transport.close() if error is None else transport.abort()

    await router.generate(request, raw=True, sink=Relay())
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from dynamo_fast.egress.response_stream import ResponseStream
from dynamo_fast.errors import DynamoError

__all__ = ["Delivery", "Sink"]

_Item_contra = TypeVar("_Item_contra", contravariant=True)


class Sink(Protocol[_Item_contra]):
    """What a caller passes as `sink` to `generate`. Its methods are called on the router's event loop.

    In this order, once the worker's handler was started: `begin` once, `item` for each item, `end` once. After `end`, or if
    `generate` raises, nothing is called. A sink may have a method `flush` without arguments, too: it is called when the
    items that came together were given out, unless the end came with them.

    The methods must not block; they may use the delivery, write to transports, set futures, and start tasks. What `begin`,
    `item` or `flush` raises ends this answer only: the worker is told to stop, and `end` gets it. What `end` raises goes to
    the loop's exception handler.
    """

    def begin(self, delivery: Delivery) -> None:
        """The answer begins. `delivery` controls it."""

    def item(self, item: _Item_contra) -> None:
        """The next item: what the stream would have yielded."""

    def end(self, error: BaseException | None) -> None:
        """The answer is over: `error` is what the stream would have raised, or what `item` did.

        None if it is complete, or was ended from this side: by `Delivery.close`, or by the context.
        """


class Attempts(Protocol):
    """What a delivery tells the call that it answers (`call.Call`)."""

    async def send(self) -> ResponseStream[Any]:
        """Send the request to the worker that was picked."""

    def begun(self) -> None:
        """The first item has come."""

    def failed(self, error: DynamoError) -> bool:
        """The worker failed. Returns whether another one was picked."""

    def completed(self) -> None:
        """The answer has come to its end."""

    def release(self) -> None:
        """The worker does not have the request any more."""


class Delivery:
    """One answer that goes to a sink. It goes on until its end, also if no one refers to it.

    `generate` makes it. The receiver of the answer calls it when frames have come; the caller may pause, resume and close
    it. Used on the router's event loop; `close` works on any thread.
    """

    __slots__ = (
        "__weakref__",
        "_again",
        "_at_end",
        "_call",
        "_ended",
        "_flush",
        "_loop",
        "_running",
        "_sink",
        "_stream",
        "_take",
    )

    def __init__(
        self,
        stream: ResponseStream[Any],
        sink: Sink[Any],
        call: Attempts | None = None,
        at_end: Callable[[BaseException | None], BaseException | None] | None = None,
    ) -> None:
        """`call` is told how the answer went. `at_end` is called before the sink's `end`, and returns its argument."""
        self._stream = stream
        self._sink: Any = sink
        """None after the end."""
        self._call = call
        self._at_end = at_end
        self._loop = stream.loop
        self._take: Callable[[Any], object] = sink.item if call is None else self._first
        self._flush: Callable[[], object] | None = getattr(sink, "flush", None)
        self._running = False
        self._again: asyncio.Task[None] | None = None
        """Sends the request to another worker."""
        self._ended: asyncio.Future[None] = self._loop.create_future()

    def begin(self) -> Delivery:
        """Call the sink's `begin`, and give it what has come already. `generate` calls this."""
        self._running = True
        try:
            self._sink.begin(self)
        except BaseException as error:
            self._stream._in_take = True
            self._cut(error)
        self._running = False
        self._run()
        return self

    @property
    def paused(self) -> bool:
        """Whether no items are given out now."""
        return not self._stream._flowing

    def pause(self) -> None:
        """Give out no more items. At most 256 KiB of them wait here by default; then the worker must wait, too.

        The end comes when no item is left before it.
        """
        self._stream._flowing = False

    def resume(self) -> None:
        """Give out items again, beginning at once with those that have come."""
        self._stream._flowing = True
        self._run()

    def close(self) -> None:
        """End the answer: the worker is told to quit, and the sink's `end` is called, if it was not yet. Never blocks.

        From another thread it takes effect in the next turn of the router's loop.
        """
        if asyncio._get_running_loop() is self._loop:
            if self._call is not None:
                self._call.release()  # before the end is seen: the answer was not completed
            self._stream.close()
            if self._again is not None:
                self._again.cancel()  # it may not have begun: then it does not hear of this
                self._finish(None)
            self._run()
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.close)

    async def wait_ended(self) -> None:
        """Wait until the sink's `end` was called."""
        await asyncio.shield(self._ended)

    def _first(self, item: Any) -> None:
        """The first item has come: no other worker is tried from now on."""
        assert self._call is not None
        self._call.begun()
        self._sink.item(item)
        self._take = self._sink.item

    def _run(self) -> None:
        """Frames have come, or the end has."""
        if self._running or self._again is not None or self._ended.done():
            return
        stream = self._stream
        self._running = True
        try:
            if stream._flowing:
                stream.feed(self._take)
                if self._flush is not None:
                    stream._in_take = True
                    self._flush()
                    stream._in_take = False
            if stream.is_exhausted():
                stream.pull()  # raises
            if stream._flowing:
                stream.listen(self._run)
        except BaseException as error:
            self._cut(error)
        finally:
            self._running = False

    def _cut(self, error: BaseException) -> None:
        """`error` was raised: by the sink, or by the answer, whose end it is."""
        stream, call = self._stream, self._call
        stream.listen(None)
        if stream._in_take or not isinstance(error, (StopAsyncIteration, DynamoError)):
            stream.close()  # the sink, or the caller's own input, has failed: the worker is told
            self._finish(error)
            if not isinstance(error, (Exception, asyncio.CancelledError)):
                raise error  # the program is to end
        elif isinstance(error, StopAsyncIteration):
            if call is not None:
                call.completed()
            self._finish(None)
        elif call is not None and call.failed(error):
            self._again = self._loop.create_task(self._send_again(call, stream))
        else:
            self._finish(error)

    async def _send_again(self, call: Attempts, failed: ResponseStream[Any]) -> None:
        try:
            stream = await call.send()
        except DynamoError as error:
            self._finish(error)
        except asyncio.CancelledError:  # by `close`, or with the loop
            self._finish(None)
        except BaseException as error:
            self._finish(error)
            if not isinstance(error, Exception):
                raise  # the program is to end
        else:
            if self._ended.done():
                stream.close()
                return
            stream._bare, stream._mixed, stream._flowing = failed._bare, failed._mixed, failed._flowing
            self._stream = stream
            self._again = None
            self._run()

    def _finish(self, error: BaseException | None) -> None:
        if self._ended.done():
            return
        self._ended.set_result(None)
        if self._call is not None:
            self._call.release()
        if self._at_end is not None:
            error = self._at_end(error)
        sink = self._sink
        # The traceback of the error passes this delivery. A sink may keep the error: break the reference cycle.
        self._sink, self._take, self._flush = None, _ended, None
        try:
            sink.end(error)
        except Exception as raised:
            self._loop.call_exception_handler(
                {"message": f"{type(sink).__qualname__}.end() raised", "exception": raised}
            )


def _ended(item: Any) -> None:
    """Takes the place of the sink's `item`: nothing comes after the end."""
