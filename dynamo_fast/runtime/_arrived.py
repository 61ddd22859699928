# cython: freethreading_compatible=True, annotation_typing=False
"""`Arrived`: a future of an item that was there already; `FutureItems`: the items of a stream as futures.

This runs for every item. Where there is a compiler, Cython translates this very file, with the types in `_arrived.pxd`
(see setup.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context
from typing import Any

from dynamo_fast.egress._items import END, Items

__all__ = ["Arrived", "FutureItems"]

# Then the names that no module here defines are those of functions in C (`egress/_send.pxd`).
_IS_COMPILED = not __file__.endswith(".py")


class FutureItems:
    """Gives out each item as a future: one that is done if the item is there, else one that `_later` makes.

    The base of the drop-in's `AsyncResponseStream`, which owns the items. Used on their event loop.
    """

    __slots__ = ("__weakref__", "_loop", "_stream", "_waits")

    def __init__(self, items: Items, loop: asyncio.AbstractEventLoop) -> None:
        self._stream = items
        self._loop = loop
        self._waits = 0
        """Futures that were given out and wait for their items."""

    def __anext__(self) -> Any:
        if self._waits:
            return self._later()
        try:
            value = self._stream.take()
        except BaseException as error:
            return self._failed(error)
        if value is None:
            return self._later()
        if value is END:
            return self._failed(StopAsyncIteration())
        return _arrived(value, self._loop)

    def _later(self) -> asyncio.Future[Any]:
        raise NotImplementedError

    def _failed(self, error: BaseException) -> asyncio.Future[Any]:
        raise NotImplementedError


class Arrived:
    """A future that has its result from the beginning. For `isinstance`, and for all of asyncio, an `asyncio.Future`.

    One of asyncio's own costs five times as much to make.
    """

    _value: Any
    _loop: asyncio.AbstractEventLoop

    @property  # type: ignore[misc]  # object's can be set
    def __class__(self) -> type:
        return asyncio.Future

    @property
    def _asyncio_future_blocking(self) -> bool:
        """By this attribute asyncio knows a future. It is true while a task waits for one."""
        return False

    def __await__(self) -> Arrived:
        return self

    def __iter__(self) -> Arrived:
        return self

    def __next__(self) -> Any:
        raise StopIteration(self._value)

    def done(self) -> bool:
        """See asyncio.Future."""
        return True

    def cancelled(self) -> bool:
        """See asyncio.Future."""
        return False

    def cancel(self, msg: Any = None) -> bool:
        """See asyncio.Future. It is too late."""
        return False

    def result(self) -> Any:
        """See asyncio.Future."""
        return self._value

    def exception(self) -> None:
        """See asyncio.Future."""
        return

    def set_result(self, result: Any) -> None:
        """See asyncio.Future."""
        raise asyncio.InvalidStateError("invalid state")

    def set_exception(self, exception: Any) -> None:
        """See asyncio.Future."""
        raise asyncio.InvalidStateError("invalid state")

    def add_done_callback(self, fn: Callable[[Any], object], *, context: Context | None = None) -> None:
        """See asyncio.Future. The callback is called in the next turn of the loop."""
        self._loop.call_soon(fn, self, context=context)

    def remove_done_callback(self, fn: Callable[[Any], object]) -> int:
        """See asyncio.Future. Callbacks are on their way already."""
        return 0

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """See asyncio.Future."""
        return self._loop

    def __repr__(self) -> str:
        return f"<Future finished result={self._value!r}>"


def _arrived(value: Any, loop: asyncio.AbstractEventLoop) -> Any:
    """An `Arrived`."""
    arrived = Arrived.__new__(Arrived)
    arrived._value, arrived._loop = value, loop
    return arrived


def _step(arrived: Any) -> Any:
    done: Arrived = arrived
    return done._value


def _is_over(arrived: Any) -> bool:
    return True


if _IS_COMPILED:
    fill_send_slot(Arrived, _step, _is_over, END)  # type: ignore[name-defined]  # noqa: F821  # it is in `_send.pxd`
