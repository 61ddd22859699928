"""`start`: runs a coroutine as a future, and makes a task only if the coroutine has to wait.

Dynamo's methods return futures that run already. A task for each item would cost eight times as much as the item itself,
and one turn of the event loop. Most items have arrived when the caller asks for them, and need no task.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Coroutine, Generator
from typing import Any, TypeVar

__all__ = ["start"]

_T = TypeVar("_T")


def start(coroutine: Coroutine[Any, Any, _T], loop: asyncio.AbstractEventLoop) -> asyncio.Future[_T]:
    """Run `coroutine` until it waits for something. If it never waits, the future is done when this returns.

    The first part runs in the caller's task, so it must not use `asyncio.current_task`.
    """
    future: asyncio.Future[_T] = loop.create_future()
    try:
        awaited = coroutine.send(None)
    except StopIteration as done:
        future.set_result(done.value)
    except (Exception, asyncio.CancelledError) as error:
        # Without the frame of this function: it holds the future, and both would wait for the garbage collector.
        future.set_exception(error.with_traceback(error.__traceback__ and error.__traceback__.tb_next))
    else:
        task = loop.create_task(_go_on(coroutine, awaited))
        # A task that is cancelled before its first turn does not close its coroutine.
        task.add_done_callback(lambda _: coroutine.close())
        return task
    return future


async def _go_on(coroutine: Coroutine[Any, Any, _T], awaited: Any) -> _T:
    """The rest of a coroutine that waits for `awaited`."""
    return await _rest(coroutine, awaited)  # from Python 3.12 on, a task does not take the generator itself


@types.coroutine
def _rest(coroutine: Coroutine[Any, Any, _T], awaited: Any) -> Generator[Any, Any, _T]:
    try:
        while True:
            try:
                value = yield awaited
            except BaseException as error:
                awaited = coroutine.throw(error)
            else:
                awaited = coroutine.send(value)
    except StopIteration as done:
        result: _T = done.value
        return result
