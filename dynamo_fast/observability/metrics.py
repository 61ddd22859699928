# cython: freethreading_compatible=True, annotation_typing=False
"""The router's metrics, under Dynamo's names, labels and buckets (runtime.md 5.2).

On the hot path a metric is a plain attribute that is incremented. To export the metrics, call `register` once:
prometheus-client then reads the attributes at each scrape. Without that call there is no other cost.
"""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter
from typing import TYPE_CHECKING

from dynamo_fast.observability.histogram import Histogram

if TYPE_CHECKING:
    from prometheus_client.core import Metric
    from prometheus_client.registry import CollectorRegistry

__all__ = ["REQUEST_PLANE", "RequestPlaneMetrics", "RequestTiming", "register"]

_SUB_SECOND = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0)
_FIRST_RESPONSE = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_STAGE = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0)


class RequestPlaneMetrics:
    """What a router counts. Times are in seconds.

    Owned by the program, for as long as it runs: several routers may share one, as those that were not given their own
    share `REQUEST_PLANE`. The router and its request client increment it; `collect` reads it.
    """

    __slots__ = (
        "inflight",
        "queue",
        "roundtrip_ttft",
        "send",
        "tcp_bytes_received",
        "tcp_bytes_sent",
        "tcp_errors",
        "transport_roundtrip",
    )

    def __init__(self) -> None:
        self.inflight = 0
        """Requests between the call and the end of their stream."""
        self.queue = Histogram(_SUB_SECOND)
        """From the call to just before sending: registration and encoding."""
        self.send = Histogram(_SUB_SECOND)
        """From sending to the acknowledgement."""
        self.roundtrip_ttft = Histogram(_FIRST_RESPONSE)
        """From sending to the first item."""
        self.transport_roundtrip = Histogram(_STAGE)
        """From the call to the first item."""
        self.tcp_bytes_sent = 0
        self.tcp_bytes_received = 0
        """Bytes of acknowledgement texts: 0 for each request that is accepted."""
        self.tcp_errors = 0

    def collect(self) -> Iterator[Metric]:
        """The metrics, as prometheus-client asks for them at each scrape."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        yield GaugeMetricFamily(
            "dynamo_request_plane_inflight_requests", "Number of requests in flight", value=self.inflight
        )
        for name, documentation, histogram in (
            ("queue", "Time from the call to sending the request", self.queue),
            ("send", "Time from sending the request to its acknowledgement", self.send),
            ("roundtrip_ttft", "Time from sending the request to its first response item", self.roundtrip_ttft),
        ):
            yield HistogramMetricFamily(
                f"dynamo_request_plane_{name}_seconds", documentation, histogram.buckets(), sum_value=histogram.sum
            )
        stage = HistogramMetricFamily(
            "dynamo_frontend_stage_duration_seconds", "Time spent in each stage of a request", labels=["stage"]
        )
        transport = self.transport_roundtrip
        stage.add_metric(["transport_roundtrip"], transport.buckets(), transport.sum)
        yield stage
        for name, documentation, value in (
            ("bytes_sent", "Bytes sent to workers over TCP request connections", self.tcp_bytes_sent),
            ("bytes_received", "Bytes of acknowledgements received over TCP", self.tcp_bytes_received),
            ("errors", "TCP requests that failed or timed out", self.tcp_errors),
        ):
            yield CounterMetricFamily(f"dynamo_transport_tcp_{name}", documentation, value=value)


class RequestTiming:
    """The times of one request, from the call to the first item. Owned by the request's response stream."""

    __slots__ = ("_called", "_metrics", "_sent")

    def __init__(self, metrics: RequestPlaneMetrics) -> None:
        self._metrics = metrics
        self._called = self._sent = perf_counter()

    def sending(self) -> None:
        """The request is encoded, and is now written."""
        self._sent = perf_counter()
        self._metrics.queue.observe(self._sent - self._called)

    def acknowledged(self) -> None:
        """The worker has acknowledged or refused the request, or the wait for that has ended."""
        self._metrics.send.observe(perf_counter() - self._sent)

    def first_item(self) -> None:
        """The first item has arrived."""
        now = perf_counter()
        self._metrics.roundtrip_ttft.observe(now - self._sent)
        self._metrics.transport_roundtrip.observe(now - self._called)


#: The metrics of every router of this process that was not given its own.
REQUEST_PLANE = RequestPlaneMetrics()


def register(metrics: RequestPlaneMetrics = REQUEST_PLANE, registry: CollectorRegistry | None = None) -> None:
    """Export `metrics` from `registry`, by default prometheus-client's own. Raises ValueError if it has them already."""
    from prometheus_client import REGISTRY

    (REGISTRY if registry is None else registry).register(metrics)
