"""`GatewayMetrics`: what is counted of the requests that reach an endpoint. It is an `Observer`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from time import perf_counter
from typing import TYPE_CHECKING

from dynamo_fast.config import MultiprocessConfig
from dynamo_fast.observability.histogram import Histogram
from dynamo_fast.observability.metrics import REQUEST_PLANE

if TYPE_CHECKING:
    from prometheus_client.core import Metric

__all__ = ["GatewayMetrics"]

_FIRST_ITEM = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_DURATION = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class GatewayMetrics:
    """Counters of one application. Owned by it, counted up on its event loop; scrapes read them."""

    def __init__(self) -> None:
        self.inflight = 0
        """Requests whose answers have not ended."""
        self.items = 0
        """Items that left for clients."""
        self.requests: Counter[tuple[str, int]] = Counter()
        """Requests that have ended, by endpoint and status."""
        self.first_item = Histogram(_FIRST_ITEM)
        """From the whole request to its first item, in seconds."""
        self.duration = Histogram(_DURATION)
        """From the whole request to the end of its answer, in seconds."""

    def request_started(self, endpoint: str, model: str | None, request_id: str) -> _Request:
        """See Observer."""
        self.inflight += 1
        return _Request(self, endpoint)

    def collect(self) -> Iterator[Metric]:
        """The metrics, as prometheus-client asks for them at each scrape."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        yield GaugeMetricFamily(
            "dynamo_fast_gateway_inflight_requests", "Requests whose answers have not ended", value=self.inflight
        )
        requests = CounterMetricFamily(
            "dynamo_fast_gateway_requests", "Requests that have ended", labels=["endpoint", "status"]
        )
        for (endpoint, status), count in sorted(self.requests.items()):
            requests.add_metric([endpoint, str(status)], count)
        yield requests
        yield CounterMetricFamily("dynamo_fast_gateway_items", "Items that left for clients", value=self.items)
        for name, documentation, histogram in (
            ("time_to_first_item", "From the whole request to its first item (seconds)", self.first_item),
            ("request_duration", "From the whole request to the end of its answer (seconds)", self.duration),
        ):
            yield HistogramMetricFamily(
                f"dynamo_fast_gateway_{name}_seconds", documentation, histogram.buckets(), sum_value=histogram.sum
            )

    def exposition(self) -> bytes:
        """These metrics and those of the routers of this process, in Prometheus's text format.

        In prometheus-client's multi-process mode: those of all processes that share them (`observability.multiprocess`).
        """
        from prometheus_client import CollectorRegistry, generate_latest

        registry = CollectorRegistry()
        folder = MultiprocessConfig.from_env().folder
        if folder:
            from prometheus_client.multiprocess import MultiProcessCollector

            MultiProcessCollector(registry, folder)  # type: ignore[no-untyped-call]
        else:
            registry.register(self)
            registry.register(REQUEST_PLANE)
        return generate_latest(registry)


class _Request:
    """See RequestObserver."""

    __slots__ = ("_began", "_endpoint", "_metrics", "_waits")

    def __init__(self, metrics: GatewayMetrics, endpoint: str) -> None:
        self._metrics = metrics
        self._endpoint = endpoint
        self._began = perf_counter()
        self._waits = True

    def items(self, count: int) -> None:
        self._metrics.items += count
        if self._waits:
            self._waits = False
            self._metrics.first_item.observe(perf_counter() - self._began)

    def ended(self, status: int, error: str | None) -> None:
        metrics = self._metrics
        metrics.inflight -= 1
        metrics.requests[self._endpoint, status] += 1
        metrics.duration.observe(perf_counter() - self._began)
