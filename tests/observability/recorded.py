"""A tracer provider of the program, for one test: it keeps the spans that ended, in their order."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.observability.otlp import Span


class Recorded:
    """The provider, and what it recorded."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    @property
    def spans(self) -> list[Span]:
        return [
            Span(
                each.name,
                each.kind.name,
                f"{each.context.trace_id:032x}",
                f"{each.context.span_id:016x}",
                "" if each.parent is None else f"{each.parent.span_id:016x}",
                dict(each.attributes or {}),  # type: ignore[arg-type]  # ours are texts
                [event.name for event in each.events],
                each.status.description if each.status.status_code is trace.StatusCode.ERROR else None,
                str(each.resource.attributes["service.name"]),
            )
            for each in self._exporter.get_finished_spans()
            if each.context is not None
        ]


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorded]:
    """Set the provider for the time of a test; OpenTelemetry's own setter works once in a process."""
    found = Recorded()
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", found.provider)
    yield found
    found.provider.shutdown()
