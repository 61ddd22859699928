"""An engine that takes text: what OpenAI's routes get from a worker. The last message says which answer is asked for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

from dynamo_fast import Context

__all__ = ["USAGE", "chats"]

USAGE = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
BASE = {"id": "my-id", "object": "chat.completion.chunk", "created": 7, "model": "m"}
TEXT = {"id": "my-cid", "object": "text_completion", "created": 7, "model": "m"}


async def chats(request: Any, context: Context) -> AsyncIterator[Any]:
    """A chat, a completion or an embedding."""
    if "prompt" in request:
        for text, finish in (("a", None), ("b", "stop")):
            yield {**TEXT, "choices": [{"index": 0, "text": text, "finish_reason": finish}]}
        return
    if "input" in request:
        numbers = {"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}
        yield {"object": "list", "model": "m", "data": [numbers], "usage": {"prompt_tokens": 1, "total_tokens": 1}}
        return
    wanted = request["messages"][-1]["content"]
    for chunk in _chunks(wanted, request):
        yield chunk
    if wanted in ("late", "early"):
        raise ValueError("on purpose")
    if wanted == "hang":
        await context.async_killed_or_stopped()


def _chunks(wanted: str, request: Any) -> Iterator[Any]:
    if wanted == "request":
        yield {"seen": request}
    elif wanted == "whole":
        message = {"role": "assistant", "content": "all of it"}
        yield {**BASE, "object": "chat.completion", "choices": [{"index": 0, "message": message}]}
    elif wanted == "two":
        for index in (0, 1):
            for text in ("a", "b"):
                logprobs: Any = {"content": [{"token": text, "logprob": -1.0, "bytes": None, "top_logprobs": []}]}
                yield _chunk({"role": "assistant", "content": f"{text}{index}"}, index=index, logprobs=logprobs)
        yield {**BASE, "choices": [], "usage": USAGE}
    elif wanted == "tool":
        function: dict[str, Any] = {"name": "f", "arguments": "{"}
        yield _chunk(
            {"role": "assistant", "tool_calls": [{"index": 0, "id": "c1", "type": "function"} | {"function": function}]}
        )
        yield _chunk({"tool_calls": [{"index": 0, "function": {"arguments": "}"}}]}, finish="tool_calls")
    elif wanted == "long":
        yield _chunk({"role": "assistant", "content": "abc"}, finish="length")
    elif wanted == "no chunk":
        yield [1, 2]
    elif wanted == "late" or wanted == "hang":
        yield _chunk({"role": "assistant", "content": "x"})
    elif wanted not in ("early", "empty"):
        yield _chunk({"role": "assistant", "content": "a"})
        yield {**_chunk({"content": "b"}, finish="stop"), "usage": USAGE}


def _chunk(delta: Any, finish: str | None = None, index: int = 0, **more: Any) -> dict[str, Any]:
    return {**BASE, "choices": [{"index": index, "delta": delta, "finish_reason": finish, **more}]}
