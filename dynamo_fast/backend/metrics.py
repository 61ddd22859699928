"""What an engine may publish of itself: its metrics (`EngineMetrics`), how full its KV cache is (`SnapshotPublisher`).

`ComponentMetrics` keeps the figures of both, and of the worker itself, for the status server. Names, texts and labels are
Dynamo's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from prometheus_client.core import Metric

__all__ = ["ComponentMetrics", "EngineMetrics", "Load", "SnapshotPublisher"]

_TIMES = {
    "cleanup_time_seconds": "Time spent releasing engine resources during shutdown. Set by the framework once after "
    "engine.cleanup() returns.",
    "drain_time_seconds": "Time spent draining in-flight work before cleanup. Stays at 0 for engines without a drain hook.",
    "model_load_time_seconds": "Time engine.start() took to return. Set once at Worker setup.",
}
_SNAPSHOT = {
    "gpu_cache_usage_percent": ("GPU cache usage as a percentage (0.0-1.0).", "gpu_cache_usage"),
    "kv_cache_hit_rate": ("Prefix cache hit rate (0.0-1.0). Portable across engines.", "kv_cache_hit_rate"),
    "total_blocks": ("Total number of KV cache blocks available on the worker.", "kv_total_blocks"),
}


class Load(Protocol):
    """Where the load of a worker is published for frontends: `dynamo_fast.llm.WorkerMetricsPublisher` is one."""

    def publish(self, dp_rank: int, *, kv_used_blocks: int) -> None: ...


class ComponentMetrics:
    """The gauges `dynamo_component_*` of one worker and its engine. Owned by the worker; any thread may set a figure."""

    def __init__(self) -> None:
        self.labels: dict[str, str] = {}
        self.times = dict.fromkeys(_TIMES, 0.0)
        """Seconds, by the name of the gauge."""
        self.snapshots: dict[int, dict[str, float]] = {}
        """The last snapshot of each data-parallel rank."""

    def exposition(self) -> str:
        """The gauges, in Prometheus's text format."""
        from prometheus_client import CollectorRegistry, generate_latest

        registry = CollectorRegistry()
        registry.register(self)
        return generate_latest(registry).decode()

    def collect(self) -> Iterator[Metric]:
        """The gauges, as prometheus-client asks for them."""
        from prometheus_client.core import Metric

        for name, documentation in _TIMES.items():
            metric = Metric(f"dynamo_component_{name}", documentation, "gauge")
            metric.add_sample(metric.name, self.labels, self.times[name])
            yield metric
        for name, (documentation, _) in _SNAPSHOT.items():
            metric = Metric(f"dynamo_component_{name}", documentation, "gauge")
            for rank, figures in list(self.snapshots.items()):
                if name in figures:
                    metric.add_sample(metric.name, {**self.labels, "dp_rank": str(rank)}, figures[name])
            yield metric


class EngineMetrics:
    """What an engine gets in `register_prometheus`. Only `Worker` makes one."""

    def __init__(self, labels: Mapping[str, str], add_expfmt: Callable[[Callable[[], str]], None]) -> None:
        self.auto_labels = dict(labels)
        """The labels that the engine puts on its metrics: namespace, component, endpoint, worker and model."""
        self._add_expfmt = add_expfmt

    def register_prometheus_expfmt_callback(self, callback: Callable[[], str]) -> None:
        """Show what `callback` returns, metrics in Prometheus's text format, at each scrape of the status server."""
        self._add_expfmt(callback)

    def register_prometheus_typed_callback(self, callback: Callable[[], Any]) -> None:
        """Do nothing: in Dynamo, the metrics of `callback` go to an OpenTelemetry collector, never to `/metrics`."""


class SnapshotPublisher:
    """Publishes how full the engine's KV cache is: as gauges, and to frontends. Only `Worker` makes one."""

    def __init__(self, metrics: ComponentMetrics, ranks: Iterable[int], load: Load) -> None:
        self._metrics = metrics
        self._load = load
        for rank in ranks:
            metrics.snapshots[rank] = {"gpu_cache_usage_percent": 0.0, "total_blocks": 0.0}

    def publish(self, dp_rank: int, snapshot: Any) -> None:
        """Publish the snapshot of one rank: `kv_used_blocks`, `kv_total_blocks`, `gpu_cache_usage`, `kv_cache_hit_rate`.

        A hit rate of None is not shown. From any thread; nothing waits. Raises AttributeError for an object without them.
        """
        used = snapshot.kv_used_blocks
        figures = {name: getattr(snapshot, attribute) for name, (_, attribute) in _SNAPSHOT.items()}
        self._metrics.snapshots[dp_rank] = {name: float(value) for name, value in figures.items() if value is not None}
        self._load.publish(dp_rank, kv_used_blocks=used)
