# cython: freethreading_compatible=True, annotation_typing=False
"""The router's metrics, under Dynamo's names, help texts, labels and buckets (runtime.md 5.2).

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

_SUB_SECOND = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1)
_FIRST_RESPONSE = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_STAGE = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 2.5, 5)


class RequestPlaneMetrics:
    """What a router counts. Times are in seconds.

    Owned by the program, for as long as it runs: several routers may share one, as those that were not given their own
    share `REQUEST_PLANE`. The router and its request client increment it; `collect` reads it.
    """

    __slots__ = (
        "inflight",
        "nats_errors",
        "queue",
        "roundtrip_ttft",
        "route",
        "send",
        "tcp_accept_backoffs",
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
        self.route = Histogram(_STAGE)
        """From before the choice of a worker until the request is handed over to be sent."""
        self.transport_roundtrip = Histogram(_STAGE)
        """From the call to the first item."""
        self.tcp_bytes_sent = 0
        self.tcp_bytes_received = 0
        """Bytes of acknowledgement texts: 0 for each request that is accepted."""
        self.tcp_errors = 0
        """Requests that were not sent, or not acknowledged in time."""
        self.nats_errors = 0
        self.tcp_accept_backoffs = 0
        """How often the response server accepted nothing for a while, for lack of descriptors or of memory."""

    def collect(self) -> Iterator[Metric]:
        """The metrics, as prometheus-client asks for them at each scrape."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        yield GaugeMetricFamily(
            "dynamo_request_plane_inflight_requests",
            "Currently in-flight requests at AddressedPushRouter",
            value=self.inflight,
        )
        for name, documentation, histogram in (
            ("queue", "Time from generate() entry to send_request() (seconds)", self.queue),
            ("send", "Time for send_request() to complete (seconds)", self.send),
            ("roundtrip_ttft", "Time from send_request() to first response item (seconds)", self.roundtrip_ttft),
        ):
            yield HistogramMetricFamily(
                f"dynamo_request_plane_{name}_seconds", documentation, histogram.buckets(), sum_value=histogram.sum
            )
        stage = HistogramMetricFamily(
            "dynamo_frontend_stage_duration_seconds", "Pipeline stage duration (seconds)", labels=["stage"]
        )
        for name, histogram in (("route", self.route), ("transport_roundtrip", self.transport_roundtrip)):
            stage.add_metric([name], histogram.buckets(), histogram.sum)
        yield stage
        for name, documentation, value in (
            ("bytes_sent", "Total bytes sent by TCP request client", self.tcp_bytes_sent),
            ("bytes_received", "Total bytes received by TCP request client", self.tcp_bytes_received),
            ("errors", "Total TCP request errors (send failure or timeout)", self.tcp_errors),
            (
                "accept_backoff",
                "Total TCP response-server accept failures caused by descriptor or memory exhaustion",
                self.tcp_accept_backoffs,
            ),
        ):
            yield CounterMetricFamily(f"dynamo_transport_tcp_{name}", documentation, value=value)
        nats = CounterMetricFamily(
            "dynamo_transport_nats_errors", "NATS requests that failed or timed out", labels=["error_type"]
        )
        nats.add_metric(["request_failed"], self.nats_errors)
        yield nats


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
