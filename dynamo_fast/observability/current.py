"""The request that the running code answers, and its fields for log records.

    current_request.get()    the context of the request whose handler runs here, or None
    request_fields()         {"request_id": ..., "trace_id": ..., "span_id": ..., ...}

A worker sets it in the task of each request. Tasks that a handler starts inherit it, and so does `asyncio.to_thread`.
"""

from __future__ import annotations

from contextvars import ContextVar

from dynamo_fast.context import Context

__all__ = ["current_request", "request_fields"]

current_request: ContextVar[Context | None] = ContextVar("dynamo_fast_request", default=None)
"""The context of the request that the running task answers."""


def request_fields() -> dict[str, str]:
    """What log records say about the request that is answered here: empty outside of a request.

    `request_id` in any case. With traces all fields of its span: `trace_id`, `span_id`, `parent_id`, `span_name`,
    `namespace`, `component`, `endpoint`, `instance_id`, `trace_flags` (observability.md 4).
    """
    context = current_request.get()
    if context is None:
        return {}
    span = getattr(context, "span", None)
    return {"request_id": context.id()} if span is None else span.fields()
