"""The exporter of spans that `OTEL_EXPORT_ENABLED` asks for: OpenTelemetry's SDK, with the defaults of Dynamo 1.6.1."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynamo_fast.config import OtelConfig
from dynamo_fast.logs import get_logger

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

__all__ = ["set_provider"]

logger = get_logger(__name__)


def set_provider(config: OtelConfig) -> bool:
    """Make a tracer provider and set it for the process; returns whether this was possible.

    It exports in batches, from a thread of its own, and once more when the interpreter ends. Without the packages a warning
    is logged, and requests go on: a trace that is missing must not stop a worker.
    """
    try:
        from opentelemetry import trace
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

        exporter = _exporter(config)
    except ImportError as error:
        logger.warning("OTEL_EXPORT_ENABLED: spans are not exported (%s): pip install dynamo_fast[otel]", error)
        return False
    sampler = None if config.sample_ratio is None else ParentBasedTraceIdRatio(config.sample_ratio)
    provider = TracerProvider(sampler, Resource.create({SERVICE_NAME: config.service_name}))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return True


def _exporter(config: OtelConfig) -> SpanExporter:
    if config.over_http:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter

        return HttpExporter()
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()
