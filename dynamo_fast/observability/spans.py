"""The spans of requests: their ids always, and what OpenTelemetry records of them if it is switched on.

    router.route_request    caller, CLIENT      one attempt at one worker
    client_request          caller, INTERNAL    a call that a handler makes with its context; the parent of the attempts
    handle_payload          worker, SERVER      one request; the parent of what its handler does

The names and attributes are those of Dynamo 1.6.1 (observability.md 2). A router or worker asks `tracer()` once, when it is
made. Without a `Tracer` nothing of this runs.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from dynamo_fast.config import OtelConfig
from dynamo_fast.context import Context
from dynamo_fast.logs import get_logger
from dynamo_fast.observability import otel_export, tracing
from dynamo_fast.wire.address import EndpointId
from dynamo_fast.wire.headers import TRACEPARENT, TRACESTATE

if TYPE_CHECKING:
    from opentelemetry import trace

__all__ = ["EndpointTracer", "RequestSpan", "TracedContext", "Tracer", "endpoint_tracer", "tracer"]

logger = get_logger(__name__)

Kind = Literal["client", "internal", "server"]


class RequestSpan:
    """One step of a trace, from its construction to `end`. Who began it owns it, and ends it; on any thread.

    It has ids and fields for log records in any case. `recorded` is OpenTelemetry's span, or None.
    """

    __slots__ = ("_kind", "_recorder", "_span", "attributes", "name", "recorded")

    def __init__(
        self,
        name: str,
        kind: Kind,
        span: tracing.Span,
        attributes: dict[str, str | bool],
        *,
        recorder: trace.Tracer | None = None,
        recorded: trace.Span | None = None,
    ) -> None:
        self._recorder = recorder
        self.name = name
        self._kind = kind
        self._span = span
        self.attributes = attributes
        """By Dynamo's names."""
        self.recorded = recorded

    @property
    def headers(self) -> dict[str, str]:
        """What the next step is told."""
        return self._span.headers

    @property
    def parent_span_id(self) -> str | None:
        """The step before; None for the first one of a trace."""
        return self._span.parent_span_id

    def fields(self) -> dict[str, str]:
        """The fields that Dynamo writes with each log line of the step."""
        span = self._span
        texts = {
            name: value if isinstance(value, str) else str(value).lower() for name, value in self.attributes.items()
        }
        fields = {**texts, "span_name": self.name, "otel.kind": self._kind}
        fields |= {"trace_id": span.trace_id, "span_id": span.span_id}
        if span.parent_span_id is not None:
            fields["parent_id"] = span.parent_span_id
        return fields

    def set(self, attributes: Mapping[str, str | bool]) -> None:
        """Add attributes."""
        self.attributes.update(attributes)
        if self.recorded is not None:
            self.recorded.set_attributes(attributes)

    def event(self, name: str) -> None:
        """Something happened now."""
        if self.recorded is not None:
            self.recorded.add_event(name)

    def end(self, error: str | None = None) -> None:
        """The step is over; `error`: how it failed."""
        if self.recorded is None:
            return
        if error is not None:
            from opentelemetry.trace import Status, StatusCode

            self.recorded.set_status(Status(StatusCode.ERROR, error))
        self.recorded.end()

    def enter(self) -> None:
        """Make it OpenTelemetry's current span, until the running task ends."""
        if self.recorded is not None:
            from opentelemetry import context, trace

            context.attach(trace.set_span_in_context(self.recorded))

    def child(self, name: str, attributes: Mapping[str, Any] | None) -> SpanHandle | None:
        """A new span below this one, for the handler; None if nothing is recorded."""
        if self.recorded is None or self._recorder is None:
            return None
        from opentelemetry import trace

        above = trace.set_span_in_context(self.recorded)
        return SpanHandle(self._recorder.start_span(name, above, attributes=_values(attributes)), owned=True)


class SpanHandle:
    """A recorded span in the hands of a handler. It ends the span if it owns it. One task."""

    __slots__ = ("_owned", "_span", "_token")

    def __init__(self, span: trace.Span | None, *, owned: bool = False) -> None:
        self._span = span
        self._owned = owned
        self._token: Any = None

    def set_attribute(self, key: str, value: Any) -> None:
        """See `opentelemetry.trace.Span`."""
        if self._span is not None:
            self._span.set_attributes(_values({key: value}))

    def add_event(self, name: str, attributes: Mapping[str, Any] | None) -> None:
        """The same."""
        if self._span is not None:
            self._span.add_event(name, _values(attributes))

    def set_status(self, good: bool, description: str | None) -> None:
        """The same. A good status has no description."""
        if self._span is not None:
            from opentelemetry.trace import Status, StatusCode

            self._span.set_status(Status(StatusCode.OK) if good else Status(StatusCode.ERROR, description))

    def enter(self) -> None:
        """Make it the current span, until `close`."""
        if self._span is not None:
            from opentelemetry import context, trace

            self._token = context.attach(trace.set_span_in_context(self._span))

    def close(self) -> None:
        """End the span, if it is owned. May be called again."""
        token, self._token = self._token, None
        if token is not None:
            from opentelemetry import context

            context.detach(token)
        if self._owned and self._span is not None:
            self._owned = False
            self._span.end()


class TracedContext(Context):
    """The context of an incoming request whose trace is followed. `span` is the request's `handle_payload`."""

    __slots__ = ("span",)

    def __init__(self, id: str, metadata: Mapping[str, str] | None, span: RequestSpan) -> None:
        super().__init__(id, metadata, span.headers)
        self.span = span
        self.parent_span_id = span.parent_span_id


class Tracer:
    """Begins spans. Without a `recorder` they have ids, and nothing is exported."""

    def __init__(self, recorder: trace.Tracer | None) -> None:
        self._recorder = recorder

    def call(
        self, name: str, kind: Kind, headers: Mapping[str, str] | None, attributes: Mapping[str, str | bool]
    ) -> RequestSpan:
        """A step of a call that is made on behalf of a request with `headers`; without any, of the current span."""
        return self.begin(name, kind, tracing.outgoing(headers), dict(attributes), current=True)

    def below(self, span: RequestSpan, name: str, kind: Kind, attributes: Mapping[str, str | bool]) -> RequestSpan:
        """A step inside `span`."""
        return self.begin(name, kind, tracing.outgoing(span.headers), dict(attributes), current=False)

    def begin(
        self, name: str, kind: Kind, span: tracing.Span, attributes: dict[str, str | bool], *, current: bool
    ) -> RequestSpan:
        """The step `span`. With `current`, OpenTelemetry's current span may be its parent."""
        if self._recorder is None:
            return RequestSpan(name, kind, span, attributes)
        from opentelemetry.trace import SpanKind

        recorded = self._recorder.start_span(name, _parent(span, current), SpanKind[kind.upper()], attributes)
        return RequestSpan(
            name, kind, _as_recorded(span, recorded), attributes, recorder=self._recorder, recorded=recorded
        )


class EndpointTracer:
    """Begins the span of each request of one endpoint. The endpoint owns it."""

    def __init__(self, tracer: Tracer, endpoint: EndpointId, instance_id: int) -> None:
        self._tracer = tracer
        self._attributes = {
            "component": endpoint.component,
            "endpoint": endpoint.name,
            "namespace": endpoint.namespace,
            "instance_id": str(instance_id),
        }

    def accept(self, id: str, metadata: Mapping[str, str] | None, headers: Mapping[str, str]) -> TracedContext:
        """The context of a request that came with `headers`, with its span."""
        came = tracing.follow(headers)
        attributes: dict[str, str | bool] = {"request_id": id, **self._attributes}
        if came.parent_span_id is not None:
            attributes |= {"trace_id": came.trace_id, "parent_id": came.parent_span_id}
            attributes["trace_flags"] = came.headers[TRACEPARENT][-2:]
        span = self._tracer.begin("handle_payload", "server", came, attributes, current=False)
        span.event("request received")
        return TracedContext(id, metadata, span)


def endpoint_tracer(endpoint: EndpointId, instance_id: int) -> EndpointTracer | None:
    """As `tracer`, for the requests of one endpoint."""
    found = tracer()
    return None if found is None else EndpointTracer(found, endpoint, instance_id)


def tracer() -> Tracer | None:
    """What begins the spans of a router or worker that is made now; None if nothing asks for traces.

    The program's own tracer provider records them, if it has set one. Else `OTEL_EXPORT_ENABLED` makes one, and sets it
    for the process. Raises InvalidConfig.
    """
    recorder = _recorder()
    return Tracer(recorder) if recorder is not None or tracing.active() else None


def _recorder() -> trace.Tracer | None:
    config = OtelConfig.from_env()
    if not config.export and "opentelemetry.trace" not in sys.modules:
        return None  # a program that has set a provider has imported it
    try:
        from opentelemetry import trace
    except ImportError:
        logger.warning("OTEL_EXPORT_ENABLED: spans are not exported: pip install dynamo_fast[otel]")
        return None
    provider = trace.get_tracer_provider()
    if isinstance(provider, trace.ProxyTracerProvider):  # none is set
        if not config.export or not otel_export.set_provider(config):
            return None
        provider = trace.get_tracer_provider()
    if isinstance(provider, trace.NoOpTracerProvider):
        return None
    return provider.get_tracer(config.service_name)


def _values(attributes: Mapping[str, Any] | None) -> dict[str, Any]:
    """The attributes as OpenTelemetry takes them: a value of another type is written as text."""
    return {
        name: value if isinstance(value, (str, bool, int, float, list, tuple)) else str(value)
        for name, value in (attributes or {}).items()
    }


def _parent(span: tracing.Span, current: bool) -> Any:
    """OpenTelemetry's context of the parent of `span`.

    That is the current span, if it may be: the request belongs to its trace, or to none.
    """
    from opentelemetry import context, trace

    if current:
        here = trace.get_current_span().get_span_context()
        if span.parent_span_id is None or (here.is_valid and here.trace_id == int(span.trace_id, 16)):
            return context.get_current()
    if span.parent_span_id is None:
        return context.Context()
    state = trace.TraceState.from_header([span.headers[TRACESTATE]] if TRACESTATE in span.headers else [])
    flags = trace.TraceFlags(int(span.headers[TRACEPARENT][-2:], 16))
    remote = trace.SpanContext(int(span.trace_id, 16), int(span.parent_span_id, 16), True, flags, state)
    return trace.set_span_in_context(trace.NonRecordingSpan(remote), context.Context())


def _as_recorded(span: tracing.Span, recorded: trace.Span) -> tracing.Span:
    """`span` with the ids that OpenTelemetry has given it. Flags but `sampled` are not sent: Dynamo 1.6.1 refuses them."""
    context = recorded.get_span_context()
    trace_id, span_id = f"{context.trace_id:032x}", f"{context.span_id:016x}"
    parent = getattr(recorded, "parent", None)  # a span that is not sampled has none
    parent_id = span.parent_span_id if parent is None else f"{parent.span_id:016x}"
    headers = {**span.headers, TRACEPARENT: f"00-{trace_id}-{span_id}-{context.trace_flags & tracing.SAMPLED:02x}"}
    if context.trace_state:
        headers[TRACESTATE] = context.trace_state.to_header()
    return tracing.Span(trace_id, span_id, parent_id, headers)
