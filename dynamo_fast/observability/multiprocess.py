"""`SharedMetrics`: metrics of several processes in one answer, through prometheus-client's multi-process mode.

A server with several workers (gunicorn, `uvicorn --workers`) has the metrics of each in another process, and a scrape
reaches one of them. In this mode each process writes its figures into files of one folder, `PROMETHEUS_MULTIPROC_DIR`, and
prometheus-client's `MultiProcessCollector` adds them up, in whichever process is asked.

    sharing = share(REQUEST_PLANE)          # on the event loop of the router
    ...
    sharing.close()                         # the counters stay in the folder

The hot path counts in plain attributes, as without it. The files are written from these once a second.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dynamo_fast.config import MultiprocessConfig
from dynamo_fast.errors import InvalidConfig
from dynamo_fast.logs import get_logger
from dynamo_fast.observability.metrics import REQUEST_PLANE

if TYPE_CHECKING:
    from prometheus_client.core import Metric

__all__ = ["SharedMetrics", "share"]

logger = get_logger(__name__)

_PID = re.compile(r"_(\d+)\.db$")


class Collector(Protocol):
    """`RequestPlaneMetrics` and `WorkerMetrics` are collectors."""

    def collect(self) -> Iterator[Metric]: ...


class SharedMetrics:
    """Writes the metrics of some collectors into the folder, once in each `interval`, until `close`.

    Made by `share`, on one event loop. Owns its values in the files of this process, and a timer.
    """

    def __init__(self, collectors: tuple[Collector, ...], interval: float) -> None:
        self._collectors = collectors
        self._interval = interval
        self._values: dict[tuple[str, frozenset[tuple[str, str]]], Any] = {}
        self._gauges: list[Any] = []
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._write_often()

    def write(self) -> None:
        """Write the figures as they are now. Raises OSError if the folder is gone or full."""
        for collector in self._collectors:
            for metric in collector.collect():
                for name, labels, figure in _figures(metric):
                    self._value(metric, name, labels).set(figure)

    def close(self) -> None:
        """Write the counters for the last time, and every gauge as 0. May be called again."""
        if self._timer is None:
            return
        self._timer.cancel()
        self._timer = None
        try:
            self.write()
            for gauge in self._gauges:
                gauge.set(0.0)
        except OSError as error:
            logger.warning("the last metrics of this process are not shared: %s", error)

    def _write_often(self) -> None:
        try:
            self.write()
        except OSError as error:
            logger.warning("the metrics of this process are not shared for now: %s", error)
        self._timer = self._loop.call_later(self._interval, self._write_often)

    def _value(self, metric: Metric, name: str, labels: Mapping[str, str]) -> Any:
        key = name, frozenset(labels.items())
        value = self._values.get(key)
        if value is None:
            from prometheus_client import values

            # Gauges are added up. After the end of a process prometheus-client's `mark_process_dead` removes them.
            value = values.ValueClass(
                metric.type,
                metric.name,
                name,
                tuple(labels),
                tuple(labels.values()),
                metric.documentation,
                "livesum" if metric.type == "gauge" else "",
            )
            self._values[key] = value
            if metric.type == "gauge":
                self._gauges.append(value)
        return value


def share(*collectors: Collector, interval: float = 1.0) -> SharedMetrics:
    """Share the metrics of these collectors, by default `REQUEST_PLANE`, with the other processes of a server.

    Call it in each process, on its event loop, after the server has forked. `interval` is in seconds: as old is the
    oldest figure that a scrape may show. Raises InvalidConfig if `PROMETHEUS_MULTIPROC_DIR` was not set when
    prometheus-client was imported.
    """
    from prometheus_client import values

    folder = MultiprocessConfig.from_env().folder
    if not folder or not getattr(values.ValueClass, "_multiprocess", False):
        raise InvalidConfig(
            f"PROMETHEUS_MULTIPROC_DIR={folder!r}: metrics of several processes need a folder, which is set before "
            "prometheus_client is imported"
        )
    _forget_the_dead(Path(folder))
    return SharedMetrics(collectors or (REQUEST_PLANE,), interval)


def _forget_the_dead(folder: Path) -> None:
    """Remove the gauges of processes that were killed. gunicorn has a hook for that, uvicorn has none."""
    if sys.platform == "win32":  # there a process cannot be asked whether it lives
        return
    from prometheus_client.multiprocess import mark_process_dead

    for pid in {match[1] for each in folder.glob("gauge_live*.db") if (match := _PID.search(each.name))}:
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            mark_process_dead(int(pid), str(folder))  # type: ignore[no-untyped-call]
        except PermissionError:
            continue  # it lives, and is another user's


def _figures(metric: Metric) -> Iterator[tuple[str, Mapping[str, str], float]]:
    """The samples of a metric as the files have them: the buckets of a histogram are not cumulated, and not counted."""
    below = 0.0
    for sample in metric.samples:
        if metric.type != "histogram" or sample.name.endswith("_sum"):
            yield sample.name, sample.labels, sample.value
        elif sample.name.endswith("_bucket"):
            yield sample.name, sample.labels, sample.value - below
            below = 0.0 if sample.labels["le"] == "+Inf" else sample.value
