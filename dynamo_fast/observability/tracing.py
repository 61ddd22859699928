"""Which trace a request belongs to: W3C trace context over the request headers (runtime.md 6.1 to 6.3, as 1.6.1 reads it).

This needs no other package. A worker follows the trace that a request came with, and hands it on. Like Dynamo's it does
so only if the process is set up for tracing: by `DYN_LOGGING_JSONL`, `OTEL_EXPORT_ENABLED`,
`DYN_LOGGING_CONSOLE_FORMAT=jsonl`, or a tracer provider of OpenTelemetry. `spans` records and exports the steps.
"""

from __future__ import annotations

import re
import secrets
import uuid
from collections.abc import Mapping
from typing import NamedTuple

from dynamo_fast.config import TracingConfig
from dynamo_fast.wire.headers import REQUEST_ID, TRACEPARENT, TRACESTATE, X_REQUEST_ID

__all__ = ["Span", "active", "follow", "outgoing"]

_PARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
SAMPLED = 1
"""The flag that is handed on; others are read and left out, as W3C wants it (OpenTelemetry's SDKs also set `random`)."""


class Span(NamedTuple):
    """One step of a trace: `headers` are what the next step is told."""

    trace_id: str
    span_id: str
    parent_span_id: str | None
    headers: dict[str, str]


def active() -> bool:
    """Whether this process follows traces. Raises InvalidConfig for a variable that is no truth word."""
    return TracingConfig.from_env().active


def follow(headers: Mapping[str, str]) -> Span:
    """The span of a request that came with `headers`; of a new trace, if they name none that is valid."""
    carried = {name: headers[name] for name in (TRACESTATE, X_REQUEST_ID) if name in headers}
    if _is_uuid(headers.get(REQUEST_ID, "")):
        carried[REQUEST_ID] = headers[REQUEST_ID]
    return _next(headers.get(TRACEPARENT), carried)


def outgoing(headers: Mapping[str, str] | None) -> Span:
    """The span of a call that is made on behalf of a request with `headers`, or of none.

    The state goes on, as W3C wants it; a caller of Dynamo leaves it out.
    """
    headers = headers or {}
    carried = {name: headers[name] for name in (TRACESTATE, X_REQUEST_ID) if name in headers}
    return _next(headers.get(TRACEPARENT), carried)


def _next(traceparent: str | None, carried: dict[str, str]) -> Span:
    trace_id, parent, flags = _parse(traceparent) or (secrets.token_hex(16), None, SAMPLED)
    span_id = secrets.token_hex(8)
    return Span(trace_id, span_id, parent, {TRACEPARENT: f"00-{trace_id}-{span_id}-{flags:02x}", **carried})


def _parse(traceparent: str | None) -> tuple[str, str | None, int] | None:
    match = _PARENT.fullmatch(traceparent or "")
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    if version == "ff" or (version == "00" and more is not None):  # a later version may say more
        return None
    if not int(trace_id, 16) or not int(span_id, 16):
        return None
    return trace_id, span_id, int(flags, 16) & SAMPLED


def _is_uuid(text: str) -> bool:
    try:
        uuid.UUID(text)
    except ValueError:
        return False
    return True
