"""Endpoints that answer with exactly one item (runtime.md 4.9)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from dynamo_fast.runtime.client import Client
from dynamo_fast.runtime.context import Context
from dynamo_fast.runtime.endpoint import Endpoint

__all__ = ["UnaryClient", "serve_unary_endpoint"]


class UnaryClient:
    """Calls whose answer is one item. It wraps a `Client`, and has no state of its own."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def complete(self, request: Any, *, context: Context | None = None) -> Any:
        """The item that the next instance answers. Raises RuntimeError for no item or several, and what the call raises."""
        stream = await self._client.round_robin(request, annotated=False, context=context)
        try:
            answer = await stream.__anext__()
        except StopAsyncIteration as end:
            raise RuntimeError("unary endpoint returned no response") from end
        try:
            await stream.__anext__()
        except StopAsyncIteration:
            return answer
        raise RuntimeError("unary endpoint returned multiple responses")


async def serve_unary_endpoint(endpoint: Endpoint, handler: Callable[..., Awaitable[Any]]) -> tuple[()]:
    """Serve `endpoint` with `await handler(request, context=context)`, until the runtime has shut down."""

    async def generate(request: Any, context: Context) -> AsyncIterator[Any]:
        yield await handler(request, context=context)

    return await endpoint.serve_endpoint(generate)
