"""`dynamo_worker` and `dynamo_endpoint` (runtime.md 4.9)."""

from __future__ import annotations

import asyncio
import functools
import sys
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from dynamo_fast.config import RuntimeConfig
from dynamo_fast.ingress.cancellation import Resumed
from dynamo_fast.runtime.distributed import NATS_WARNING

__all__ = ["dynamo_endpoint", "dynamo_worker"]

Main = Callable[..., Coroutine[Any, Any, Any]]


def dynamo_worker(enable_nats: bool | None = None) -> Callable[[Main], Callable[..., Coroutine[Any, Any, None]]]:
    """Decorate `async def main(runtime, ...)`: call it without the runtime, and it gets the one of `RuntimeConfig`.

    The runtime's class is looked up in `dynamo_fast.runtime` at the call, so that a test can patch it there.
    """
    if enable_nats is not None:
        warnings.warn(NATS_WARNING, DeprecationWarning, stacklevel=2)

    def decorate(main: Main) -> Callable[..., Coroutine[Any, Any, None]]:
        @functools.wraps(main)
        async def with_runtime(*arguments: Any, **named: Any) -> None:
            config = RuntimeConfig.from_env()
            make = sys.modules[__package__].DistributedRuntime
            runtime = make(asyncio.get_running_loop(), config.discovery_backend, config.request_plane)
            await main(runtime, *arguments, **named)

        return with_runtime

    return decorate


def dynamo_endpoint(request_model: Any, response_model: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a handler that takes a pydantic model: the model is made from the JSON text or the dict of the request.

    Only the last of one or two positional arguments is converted, and only if `request_model` is a pydantic model. The
    handler raises ValueError for a request that does not fit. `response_model` is not checked.
    """
    parse = _parser(request_model)

    def decorate(handler: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(handler)
        async def with_model(*arguments: Any, **named: Any) -> AsyncIterator[Any]:
            if parse is not None and len(arguments) in (1, 2):
                arguments = (*arguments[:-1], parse(arguments[-1]))
            items = rest = handler(*arguments, **named)
            while rest is not None:
                source, rest = rest, None
                async for item in source:
                    try:
                        yield item
                    except asyncio.CancelledError as cancellation:  # the handler must see it at its own yield
                        rest = Resumed(items, cancellation)
                        break

        return with_model

    return decorate


def _parser(model: Any) -> Callable[[Any], Any] | None:
    try:
        from pydantic import BaseModel, ValidationError
    except ImportError:
        return None
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return None

    def parse(request: Any) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # the newer parser has other error texts
                if isinstance(request, str):
                    return model.parse_raw(request)
            if isinstance(request, dict):
                return model.model_validate(request)
        except ValidationError as error:
            raise ValueError(f"Invalid request: {error}") from error
        raise ValueError(f"Invalid request: {request}")

    return parse
