# cython: freethreading_compatible=True, annotation_typing=False
"""The worker's metrics, under Dynamo's names, help texts, labels and buckets (runtime.md 5.1), so that its dashboards work.

On the hot path a metric is a plain attribute that is incremented; prometheus-client reads the attributes at each scrape:

    prometheus_client.REGISTRY.register(worker.metrics)
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Protocol

from dynamo_fast.errors import InvalidLabel
from dynamo_fast.observability.histogram import Histogram
from dynamo_fast.wire.address import EndpointId

if TYPE_CHECKING:
    from prometheus_client.core import Metric

__all__ = ["PERMIT_WAIT", "EndpointMetrics", "Pool", "WorkerMetrics", "uptime_metric"]

_DURATION = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)
_TRANSIT = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1)
_FIRST_RESPONSE = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
PERMIT_WAIT = (0.0001, 0.001, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60)

_RESERVED_LABELS = ("dynamo_namespace", "dynamo_component", "dynamo_endpoint", "worker_id")


class Pool(Protocol):
    """The part of the server's admission control that is exported. `wait` is in seconds."""

    capacity: int
    queue_capacity: int
    rejected: int
    wait: Histogram

    @property
    def running(self) -> int: ...

    @property
    def queued(self) -> int: ...


class EndpointMetrics:
    """What is counted for one endpoint. Sizes are in bytes, times in seconds.

    Owned by the worker's metrics, from the first `serve` of the endpoint to the worker's end. The request handler
    increments it.

    Raises InvalidLabel for a label that Dynamo sets itself.
    """

    __slots__ = (
        "cancellations",
        "duration",
        "errors",
        "inflight",
        "labels",
        "request_bytes",
        "requests",
        "response_bytes",
    )

    def __init__(self, endpoint: EndpointId, worker_id: int, labels: Iterable[tuple[str, str]] = ()) -> None:
        extra = dict(labels)
        for name in extra:
            if name in _RESERVED_LABELS or name == "le":
                raise InvalidLabel(
                    f"Label '{name}' is automatically added by auto-label injection and cannot be manually set",
                    label=name,
                )
        self.labels = {
            "dynamo_component": endpoint.component,
            "dynamo_endpoint": endpoint.name,
            "dynamo_namespace": endpoint.namespace,
            **extra,
            "worker_id": f"{worker_id:x}",
        }
        self.requests = 0
        """Requests accepted."""
        self.inflight = 0
        """Accepted requests whose answer has not ended."""
        self.request_bytes = 0
        """Two-part messages received, their heads included."""
        self.response_bytes = 0
        """Bodies of data frames written, the final one included."""
        self.duration = Histogram(_DURATION)
        """From acceptance to the end of the answer."""
        self.cancellations = 0
        """Answers that the router, or the loss of its connection, cut short."""
        self.errors: dict[str, int] = {}
        """Failures of the framework, by kind. What a handler raises does not count."""

    def error(self, kind: str) -> None:
        """Count a failure: deserialization, invalid_message, response_stream, generate, serialization, ..."""
        self.errors[kind] = self.errors.get(kind, 0) + 1


class WorkerMetrics:
    """What one worker counts: for each endpoint, and for its request server.

    Owned by the worker, as long as it runs. `collect` is called by prometheus-client and by the status server.
    """

    def __init__(self, worker_id: int, pool: Pool) -> None:
        self.worker_id = f"{worker_id:x}"
        self.started = time.monotonic()
        self.pool = pool
        self.endpoints: list[EndpointMetrics] = []
        self.network_transit = Histogram(_TRANSIT)
        """From sending, by the router's clock, to reading, by ours."""
        self.time_to_first_response = Histogram(_FIRST_RESPONSE)
        """From acceptance to the prologue."""

    def collect(self) -> Iterator[Metric]:
        """The metrics, as prometheus-client asks for them at each scrape."""
        yield from self._endpoint_metrics()
        yield from self._pool_metrics()
        yield uptime_metric(self.worker_id, self.started)
        for name, documentation, histogram in (
            (
                "network_transit_seconds",
                "Frontend-to-backend network transit time (cross-process wall-clock, seconds)",
                self.network_transit,
            ),
            (
                "time_to_first_response_seconds",
                "Backend processing time from handle_payload entry to prologue sent (seconds)",
                self.time_to_first_response,
            ),
            ("permit_wait_seconds", "Time spent waiting for a worker-pool permit (seconds)", self.pool.wait),
        ):
            metric = _metric(f"dynamo_work_handler_{name}", documentation, "histogram")
            _add_histogram(metric, {}, histogram)
            yield metric

    def _endpoint_metrics(self) -> Iterator[Metric]:
        for name, documentation, kind, attribute in (
            ("requests", "Total number of requests processed by work handler", "counter", "requests"),
            (
                "inflight_requests",
                "Number of requests currently being processed by work handler",
                "gauge",
                "inflight",
            ),
            (
                "request_bytes",
                "Total number of bytes received in requests by work handler",
                "counter",
                "request_bytes",
            ),
            (
                "response_bytes",
                "Total number of bytes sent in responses by work handler",
                "counter",
                "response_bytes",
            ),
            ("cancellation", "Total number of requests cancelled by work handler", "counter", "cancellations"),
        ):
            metric = _metric(f"dynamo_component_{name}", documentation, kind)
            suffix = "_total" if kind == "counter" else ""
            for endpoint in self.endpoints:
                metric.add_sample(metric.name + suffix, endpoint.labels, getattr(endpoint, attribute))
            yield metric
        duration = _metric(
            "dynamo_component_request_duration_seconds", "Time spent processing requests by work handler", "histogram"
        )
        errors = _metric("dynamo_component_errors", "Total number of errors in work handler processing", "counter")
        for endpoint in self.endpoints:
            _add_histogram(duration, endpoint.labels, endpoint.duration)
            for error, count in endpoint.errors.items():
                errors.add_sample("dynamo_component_errors_total", {**endpoint.labels, "error_type": error}, count)
        yield duration
        if errors.samples:
            yield errors

    def _pool_metrics(self) -> Iterator[Metric]:
        pool = self.pool
        for name, documentation, kind, value in (
            (
                "dynamo_engine_request",
                "Current number of requests being handled by the engine (--engine-request-limit)",
                "gauge",
                pool.running,
            ),
            (
                "dynamo_request_queue",
                "Current number of requests queued in Dynamo not yet in the engine (--dynamo-request-queue-limit)",
                "gauge",
                pool.queued,
            ),
            (
                "dynamo_rejection_request",
                "Requests rejected because the worker is at capacity (engine in-flight limit and Dynamo queue both full)",
                "counter",
                pool.rejected,
            ),
            (
                "dynamo_work_handler_queue_depth",
                "Current items in the bounded work queue awaiting dispatcher pickup",
                "gauge",
                pool.queued,
            ),
            (
                "dynamo_work_handler_queue_capacity",
                "Configured capacity of the bounded work queue",
                "gauge",
                pool.queue_capacity,
            ),
            (
                "dynamo_work_handler_pool_active_tasks",
                "Current number of active worker-pool tasks (permits in use)",
                "gauge",
                pool.running,
            ),
            (
                "dynamo_work_handler_pool_capacity",
                "Configured worker-pool capacity (total permits)",
                "gauge",
                pool.capacity,
            ),
            (
                "dynamo_work_handler_enqueue_rejected",
                "Times enqueuing work failed because the dispatcher channel was closed",
                "counter",
                0,  # our server has no channel to its handlers that could be closed
            ),
        ):
            metric = _metric(name, documentation, kind)
            metric.add_sample(name + ("_total" if kind == "counter" else ""), {}, value)
            yield metric


def uptime_metric(worker_id: str, started: float) -> Metric:
    """How long a process has been up, from `time.monotonic()` at its start. `worker_id` is in hexadecimal."""
    metric = _metric("dynamo_component_uptime_seconds", "Total uptime of the DistributedRuntime in seconds", "gauge")
    metric.add_sample(metric.name, {"worker_id": worker_id}, time.monotonic() - started)
    return metric


def _metric(name: str, documentation: str, kind: str) -> Metric:
    from prometheus_client.core import Metric

    return Metric(name, documentation, kind)


def _add_histogram(metric: Metric, labels: dict[str, str], histogram: Histogram) -> None:
    for bound, count in histogram.buckets():
        metric.add_sample(metric.name + "_bucket", {**labels, "le": bound}, count)
    metric.add_sample(metric.name + "_count", labels, histogram.count)
    metric.add_sample(metric.name + "_sum", labels, histogram.sum)
