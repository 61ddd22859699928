"""The handlers of an engine's endpoint: what happens to a request before the engine, and to its chunks after it.

`tokens` is for an engine of tokens, `raw` for one that takes the client's request as it is. Both call `engine.abort` as
soon as the caller stops the request; the engine then ends its answer, or is cancelled after `DYNAMO_FAST_CANCEL_GRACE`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

from dynamo_fast.context import Context as RequestContext
from dynamo_fast.ingress.push_handler import Handler
from dynamo_fast.logs import get_logger
from dynamo_fast.runtime.context import Context

__all__ = ["raw_handler", "token_handler"]

logger = get_logger(__name__)

_STOP_CONDITIONS = dict.fromkeys(
    (
        "max_tokens",
        "stop",
        "stop_token_ids",
        "stop_token_ids_visible",
        "stop_token_ids_hidden",
        "min_tokens",
        "ignore_eos",
        "max_thinking_tokens",
    )
)
_SAMPLING_OPTIONS = dict.fromkeys(
    (
        "n",
        "best_of",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "use_beam_search",
        "length_penalty",
        "seed",
        "include_stop_str_in_output",
        "guided_decoding",
    )
)
_OUTPUT_OPTIONS = dict.fromkeys(
    ("logprobs", "prompt_logprobs", "skip_special_tokens", "formatted_prompt", "return_tokens_as_token_ids")
)
_FINISH_REASONS = {"stop", "eos", "length", "content_filter", "cancelled"}
_USAGE = ("prompt_tokens", "completion_tokens", "total_tokens")


def token_handler(engine: Any) -> Handler:
    """The handler of an engine whose `generate` takes a request with token ids and yields chunks of token ids.

    The answer ends with the first chunk that has a finish reason.
    """

    async def generate(request: Any, context: RequestContext) -> AsyncIterator[Any]:
        seen = Context.of(context)
        chunks = engine.generate(_complete(request), seen)
        with _aborting(engine, context, seen):
            async with contextlib.aclosing(chunks):
                async for chunk in chunks:
                    if not isinstance(chunk, dict) or "token_ids" not in chunk:
                        raise _invalid(chunk)
                    if chunk.get("finish_reason") is not None:
                        yield _last(chunk)
                        return
                    yield chunk

    return generate


def raw_handler(engine: Any) -> Handler:
    """The handler of an engine whose `generate` takes the client's request and yields response objects."""

    async def generate(request: Any, context: RequestContext) -> AsyncIterator[Any]:
        seen = Context.of(context)
        chunks = engine.generate(request, seen)
        with _aborting(engine, context, seen):
            async with contextlib.aclosing(chunks):
                async for chunk in chunks:
                    yield chunk

    return generate


@contextlib.contextmanager
def _aborting(engine: Any, context: RequestContext, seen: Context) -> Iterator[None]:
    """Call the engine's `abort`, if it has one, once the request is stopped in this block, or was before it."""

    def stopped() -> None:
        context.off_cancel(stopped)
        aborting = asyncio.ensure_future(_abort(engine, seen))
        _ABORTING.add(aborting)
        aborting.add_done_callback(_ABORTING.discard)

    context.on_cancel(stopped)
    if context.is_stopped():
        stopped()
    try:
        yield
    finally:
        context.off_cancel(stopped)


_ABORTING: set[asyncio.Future[None]] = set()
"""Calls of `abort` that run: the event loop alone does not keep a task."""


async def _abort(engine: Any, context: Context) -> None:
    try:
        if hasattr(engine, "abort"):
            await engine.abort(context)
    except Exception:
        logger.exception("the engine failed to abort the request %s", context.id())


def _complete(request: Any) -> dict[str, Any]:
    """The request with every option that engines look for. Frontends send them all; other callers need not.

    Raises ValueError if it is no request for tokens.
    """
    if not isinstance(request, dict) or not isinstance(request.get("token_ids"), list):
        raise ValueError("invalid request: expected an object with a list of `token_ids`")
    return {
        "model": "",
        "eos_token_ids": [],
        "mdc_sum": None,
        "annotations": [],
        "router_config_override": None,
        **request,
        "stop_conditions": {**_STOP_CONDITIONS, **(request.get("stop_conditions") or {})},
        "sampling_options": {**_SAMPLING_OPTIONS, **(request.get("sampling_options") or {})},
        "output_options": {**_OUTPUT_OPTIONS, **(request.get("output_options") or {})},
    }


def _last(chunk: dict[str, Any]) -> dict[str, Any]:
    """The last chunk, with a finish reason that frontends know. Raises ValueError for any other, and for an odd usage."""
    usage = chunk.get("completion_usage")
    if usage is not None and not (isinstance(usage, dict) and all(isinstance(usage.get(name), int) for name in _USAGE)):
        raise ValueError(f"invalid chunk shape: completion_usage needs the numbers {', '.join(_USAGE)}")
    reason = chunk["finish_reason"]
    if isinstance(reason, dict) or reason in _FINISH_REASONS:
        return chunk
    if reason == "abort":
        return {**chunk, "finish_reason": "cancelled"}
    if reason == "error":
        return {**chunk, "finish_reason": {"error": "backend emitted finish_reason=error without a message"}}
    raise ValueError(f"invalid chunk shape: Invalid FinishReason variant: {reason!r}")


def _invalid(chunk: Any) -> ValueError:
    if isinstance(chunk, dict):
        return ValueError("invalid chunk shape: missing field `token_ids`")
    return ValueError(
        f"invalid chunk shape: unexpected type: '{type(chunk).__name__}' object cannot be converted to 'Mapping'"
    )
