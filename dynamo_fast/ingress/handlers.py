"""`adapted`: a handler as people write it, as the function that `PushHandler` calls, which returns an async iterator.

    async def f(request): ... yield item        a stream; it is taken as it is
    async def f(request): ... return item       an answer of one item
    def f(request): ... yield item              a stream that is made in a thread (see `threaded`)
    def f(request) -> AsyncIterator[Item]: ...  it returns one of the above; so does a class or a callable object

Anything else is refused when it is served, not when its first request comes. The drop-in does not use this: there Dynamo's
own rules and texts hold.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from types import FunctionType
from typing import Any

from dynamo_fast.ingress.push_handler import Handler, takes_response_sender
from dynamo_fast.ingress.threaded import Threaded, Threads

__all__ = ["AnyHandler", "adapted"]

AnyHandler = Callable[..., AsyncIterator[Any] | Awaitable[Any] | Iterator[Any]]
"""As `Handler`, and every other form that `adapted` takes."""

_WAYS = (
    "write it as `async def` with `yield` (a stream), as `async def` with `return` (one item), or as `def` with `yield` (a "
    "stream that is made in a thread)"
)
_ITEMS = ("__anext__", "__aiter__", "__next__", "__await__")
"""What has one of these becomes an answer."""


def adapted(handler: AnyHandler, threads: int, *, bidirectional: bool = False) -> Handler:
    """The handler in the form that is called. `threads`: of its answers, so many at once may run in a thread.

    Raises TypeError for what cannot be a handler.
    """
    if not callable(handler):
        raise TypeError(f"a '{type(handler).__name__}' object is no handler: it cannot be called")
    function = _function_of(handler)
    if inspect.isasyncgenfunction(function):
        return typing.cast(Handler, handler)
    name = getattr(function, "__qualname__", None) or type(handler).__qualname__
    if inspect.iscoroutinefunction(function):
        return _named(_one_item(handler), handler, name)
    if inspect.isgeneratorfunction(function):
        if bidirectional:
            raise TypeError(f"the handler {name} runs in a thread, where it cannot take an async iterator of requests")
        return _named(_in_thread(handler, Threads(threads)), handler, name)
    _check(function, name)
    return _named(_by_result(handler, Threads(threads)), handler, name)


def _function_of(handler: Any) -> Any:
    """The function that says what a call returns; a class, or what is written in C, as it is."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    if not isinstance(handler, type) and not inspect.isroutine(handler):
        handler = type(handler).__call__
    return inspect.unwrap(getattr(handler, "__func__", handler))


def _check(function: Any, name: str) -> None:
    """Raises TypeError if calls of this function, or class, cannot return items."""
    if isinstance(function, type):
        if not _has_items(function):
            raise TypeError(f"the handler {name} is a class whose objects are no async iterators: {_WAYS}")
    elif isinstance(function, FunctionType) and not _says_items(function):
        raise TypeError(
            f"the handler {name} is a plain function: {_WAYS}; a function that returns an async iterator says so in its "
            "annotation, `-> AsyncIterator[...]`"
        )


def _says_items(function: FunctionType) -> bool:
    """Whether the annotation says that items are returned, or may say so. A lambda cannot have one."""
    if function.__name__ == "<lambda>":
        return True
    try:
        found = typing.get_type_hints(function).get("return", str)
    except Exception:  # names that exist for the type checker only
        return True
    found = typing.get_origin(found) or found
    return _has_items(found) if isinstance(found, type) else True


def _has_items(kind: type) -> bool:
    return any(hasattr(kind, name) for name in _ITEMS)


def _one_item(handler: Any) -> Handler:
    pushes = takes_response_sender(handler)

    async def call(request: Any, **options: Any) -> AsyncIterator[Any]:
        item = await handler(request, **options)
        if not pushes or item is not None:
            yield item

    return call


def _in_thread(handler: Any, threads: Threads) -> Handler:
    def call(request: Any, **options: Any) -> AsyncIterator[Any]:
        return Threaded(functools.partial(handler, request, **options), threads)

    return call


def _by_result(handler: Any, threads: Threads) -> Handler:
    def call(request: Any, **options: Any) -> AsyncIterator[Any]:
        result = handler(request, **options)
        kind = type(result)
        if hasattr(kind, "__anext__"):
            return typing.cast(AsyncIterator[Any], result)
        if hasattr(kind, "__aiter__"):
            return typing.cast(AsyncIterator[Any], result.__aiter__())
        if hasattr(kind, "__await__"):
            return _awaited(result)
        if hasattr(kind, "__next__"):
            return Threaded(lambda: result, threads)
        raise TypeError(f"the handler returned a {kind.__name__}, which is neither an async iterator nor awaitable")

    return call


async def _awaited(result: Awaitable[Any]) -> AsyncIterator[Any]:
    yield await result


def _named(call: Handler, handler: Any, name: str) -> Handler:
    """Give `call` the signature of `handler`, and its name for the log."""
    functools.update_wrapper(call, handler, assigned=("__module__", "__doc__"), updated=())
    call.__qualname__ = name
    return call
