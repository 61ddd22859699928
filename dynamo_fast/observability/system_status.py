"""`SystemStatus`: the health and the metrics of a process, and their HTTP server (runtime.md 5.3 and 7.1)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dynamo_fast.config import StatusConfig
from dynamo_fast.logs import get_logger
from dynamo_fast.observability.metrics import REQUEST_PLANE
from dynamo_fast.observability.status_server import Health, StatusServer
from dynamo_fast.observability.worker_metrics import uptime_metric
from dynamo_fast.wire.address import EndpointId

if TYPE_CHECKING:
    from prometheus_client.core import Metric

__all__ = ["Served", "Serving", "SystemStatus"]

logger = get_logger(__name__)


class Served(Protocol):
    """One endpoint of a process."""

    @property
    def ready(self) -> bool: ...


class Serving(Protocol):
    """The worker of a process."""

    @property
    def endpoints(self) -> Mapping[EndpointId, Served]: ...

    @property
    def metrics(self) -> _Collector: ...


class _Collector(Protocol):
    def collect(self) -> Iterator[Metric]: ...


class SystemStatus:
    """The health and the metrics of one process, and the HTTP server for them if `DYN_SYSTEM_PORT` is set.

    A `DistributedRuntime` or a `Worker` owns it: it makes it, calls `open`, then `start` on its event loop, and `close`
    after everything else has been closed. The worker of the process sets `serving`.
    """

    def __init__(
        self,
        worker_id: int,
        config: StatusConfig | None = None,
        *,
        metadata: Callable[[], bytes | None] = lambda: None,
    ) -> None:
        """`metadata`: what discovery has of this process, for `/metadata` (`Store.metadata`)."""
        self.config = config or StatusConfig.from_env()
        self.healthy = self.config.starting_status == "ready"
        """The health of the process itself. It counts only while no endpoint has a payload for health checks and
        `DYN_SYSTEM_USE_ENDPOINT_HEALTH_STATUS` names no endpoint."""
        self.checked_endpoints: set[EndpointId] = set()
        """Endpoints served with a payload for health checks: the process is healthy if all of them are ready."""
        self.serving: Serving | None = None
        self.text_callbacks: list[Callable[[], object]] = []
        """Metrics of the program itself, in Prometheus's text format: appended in the order of their registration."""
        self._metadata = metadata
        self._worker_id = f"{worker_id:x}"
        self._started = time.monotonic()
        self._server: StatusServer | None = None

    @property
    def url(self) -> str | None:
        """The URL of the server, `http://IP:PORT`; None if there is no server."""
        return None if self._server is None else f"http://{self._server.address}"

    def open(self) -> None:
        """Listen, if a port is configured.

        A host or a port that cannot be bound is only logged, as in Dynamo. Raises InvalidConfig for an invalid host, and
        if aiohttp is not installed.
        """
        if self.config.port < 0:
            return
        try:
            self._server = StatusServer(self.config, self.health, self.metrics, self._metadata)
        except OSError as error:
            where = f"DYN_SYSTEM_HOST={self.config.host!r}, DYN_SYSTEM_PORT={self.config.port}"
            logger.error("no status server at %s: %s", where, error)

    def start(self) -> None:
        """Serve on the running event loop; may be called twice."""
        if self._server is not None:
            self._server.start()

    async def close(self) -> None:
        """Stop the server; may be called twice."""
        if self._server is not None:
            await self._server.close()

    def register_engine_route(self, name: str, callback: Callable[..., Any]) -> None:
        """Answer `POST /engine/{name}` with `await callback(body)`. Does nothing without a server."""
        if self._server is not None:
            self._server.engine_routes[name] = callback

    @property
    def files(self) -> dict[str, Path] | None:
        """The files that the server serves, by the path of their URL, to add to; None if there is no server."""
        return None if self._server is None else self._server.files

    def health(self) -> Health:
        """Whether the process is healthy, by Dynamo's rules, and which of its endpoints are ready."""
        served = {} if self.serving is None else self.serving.endpoints
        endpoints = {endpoint.name: each.ready for endpoint, each in served.items()}
        wanted = self.config.endpoint_names
        endpoints.update({name: False for name in wanted if name not in endpoints})
        if wanted:
            return Health(all(endpoints[name] for name in wanted), endpoints)
        if self.checked_endpoints:
            return Health(all(each in served and served[each].ready for each in self.checked_endpoints), endpoints)
        return Health(self.healthy, endpoints)

    def metrics(self) -> bytes:
        """Prometheus's text format: the metrics of the worker, and of the routers if they have sent a request.

        This makes no metric object of prometheus-client: in its multi-process mode each one would write into the folder
        of the program that set the mode.
        """
        from prometheus_client import CollectorRegistry, generate_latest

        registry = CollectorRegistry()
        registry.register(self if self.serving is None else self.serving.metrics)
        if REQUEST_PLANE.queue.count:
            registry.register(REQUEST_PLANE)
        return generate_latest(registry) + "".join(map(_text_of, self.text_callbacks)).encode("utf-8", "replace")

    def collect(self) -> Iterator[Metric]:
        """The metrics of a process without a worker."""
        yield uptime_metric(self._worker_id, self._started)


def _text_of(callback: Callable[[], object]) -> str:
    """What a callback of the program returns, as whole lines; nothing if it fails."""
    try:
        text = callback()
    except Exception:
        logger.exception("a callback for metrics failed: %r", callback)
        return ""
    if not isinstance(text, str):
        logger.error("a callback for metrics must return a text, not %s: %r", type(text).__name__, callback)
        return ""
    return text if not text or text.endswith("\n") else f"{text}\n"
