"""The router's metrics, under Dynamo's names, labels and buckets (runtime.md 5.2).

On the hot path a metric is a plain attribute that is bumped. Whoever wants to see it calls `register`, once, and
prometheus-client reads the attributes at each scrape; a program that never does pays nothing for it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate
from time import perf_counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prometheus_client.core import Metric
    from prometheus_client.registry import CollectorRegistry

__all__ = ["REQUEST_PLANE", "Histogram", "RequestPlaneMetrics", "RequestTiming", "register"]

_SUB_SECOND = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0)
_FIRST_RESPONSE = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_STAGE = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0)


class Histogram:
    """Counts per bucket (the last one unbounded) and the sum of what was observed."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count `value` in the first bucket whose upper bound is not below it."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def count(self) -> int:
        """How many values were observed."""
        return sum(self.counts)

    def buckets(self) -> list[tuple[str, float]]:
        """Upper bound and cumulated count of each bucket, as Prometheus writes them."""
        labels = [*(repr(bound) for bound in self.bounds), "+Inf"]
        return [(label, float(count)) for label, count in zip(labels, accumulate(self.counts), strict=True)]


class RequestPlaneMetrics:
    """What a router counts. Times in seconds."""

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
        """What prometheus-client calls at each scrape."""
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
    """Takes the time of one request as it goes."""

    __slots__ = ("_called", "_metrics", "_sent")

    def __init__(self, metrics: RequestPlaneMetrics) -> None:
        self._metrics = metrics
        self._called = self._sent = perf_counter()

    def sending(self) -> None:
        """The request is encoded and goes out."""
        self._sent = perf_counter()
        self._metrics.queue.observe(self._sent - self._called)

    def acknowledged(self) -> None:
        """The worker has answered the request, or the wait for that has ended."""
        self._metrics.send.observe(perf_counter() - self._sent)

    def first_item(self) -> None:
        """The first item has come."""
        now = perf_counter()
        self._metrics.roundtrip_ttft.observe(now - self._sent)
        self._metrics.transport_roundtrip.observe(now - self._called)


#: The metrics of every router of this process that was not given its own.
REQUEST_PLANE = RequestPlaneMetrics()


def register(metrics: RequestPlaneMetrics = REQUEST_PLANE, registry: CollectorRegistry | None = None) -> None:
    """Show `metrics` in `registry`, by default prometheus-client's own. Raises ValueError if they are there already."""
    from prometheus_client import REGISTRY

    (REGISTRY if registry is None else registry).register(metrics)
