"""`Worker`: drives one engine from its start to its cleanup, as Dynamo's own does.

    run  -> engine.start(worker_id)             returns its EngineConfig; requests may come from now on
            engine.register_prometheus(metrics)
            engine.component_metrics_dp_ranks()
            engine.kv_event_sources()           one publisher for each source     (an engine of tokens, with KV routing)
            engine.attach_snapshot_publisher()  if there are ranks, and KV routing
            engine.on_endpoint_ready(endpoint)  (an engine of tokens)
            the model card is published
            engine.supported_controls(), .supported_updates()   (an engine of tokens)
            engine.health_check_payload()
            the endpoint is served:             engine.generate(request, context), engine.abort(context)
    stop -> the model card and the instance leave discovery; requests that come are still answered
            the grace period
            every accepted request gets its answer, or is cancelled when time is up
            engine.is_quiescent()               again and again, for a prefill worker
            engine.cleanup()

SIGTERM and SIGINT stop it. An error of the engine before it serves stops it, too, and `run` raises it after `cleanup`.
Only `start`, `generate` and `cleanup` are required; the others are called if the engine has them.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from dynamo_fast.backend.config import DisaggregationMode, RuntimeConfig, WorkerConfig
from dynamo_fast.backend.generation import raw_handler, token_handler
from dynamo_fast.backend.metrics import ComponentMetrics, EngineMetrics
from dynamo_fast.backend.publishing import publish_kv_events, publish_load
from dynamo_fast.backend.registration import check, model_name, register
from dynamo_fast.backend.signals import Termination
from dynamo_fast.config import BackendConfig, ServeConfig
from dynamo_fast.config import RuntimeConfig as RuntimeSettings
from dynamo_fast.config import WorkerConfig as ServingConfig
from dynamo_fast.errors import DynamoError, InvalidConfig
from dynamo_fast.ingress.worker import ServedEndpoint
from dynamo_fast.llm import update_model_taints
from dynamo_fast.logs import get_logger
from dynamo_fast.runtime.distributed import DistributedRuntime
from dynamo_fast.runtime.endpoint import Endpoint
from dynamo_fast.runtime.exceptions import argument_error, plainly
from dynamo_fast.wire.error import display, from_exception

__all__ = ["Worker"]

logger = get_logger(__name__)

_POLL = 0.5
"""Seconds between two questions whether a prefill worker is quiescent; Dynamo's."""


class Worker:
    """Drives one engine, once. It owns the `DistributedRuntime`, from `run` until its future is done.

    `raw` says that the engine takes the client's request, and not a request with token ids.
    """

    def __init__(self, engine: Any, config: WorkerConfig, event_loop: Any, raw: bool = False) -> None:
        if not isinstance(config, WorkerConfig):
            raise argument_error("config", config, "WorkerConfig")
        if not isinstance(raw, bool):
            raise argument_error("raw", raw, "PyBool")
        self._engine = engine
        self._config = config
        self._settings = BackendConfig.from_env()
        self._event_loop = event_loop
        self._raw = raw
        self._has_run = False

    def run(self) -> asyncio.Future[None]:
        """Serve until a signal comes. The future is done when everything is closed.

        It raises what the engine raised before it served, as an error of this package with Dynamo's text, and the same for
        a wrong configuration. Raises RuntimeError without a running event loop, and for a second call.
        """
        loop = asyncio.get_running_loop()
        if self._has_run:
            raise RuntimeError(
                "Worker.run() can only be called once per Worker instance; construct a fresh engine + Worker to run again "
                "(most LLM engines do not tolerate re-initialization)"
            )
        self._has_run = True
        return loop.create_task(self._run())

    async def _run(self) -> None:
        with _in_dynamos_words():
            check(self._config, raw=self._raw)
        with Termination() as termination:
            runtime = self._open_runtime()
            try:
                await self._drive(runtime, termination.asked)
            finally:
                runtime.shutdown()
                await runtime.ended()

    def _open_runtime(self) -> DistributedRuntime:
        settings, chosen = RuntimeSettings.from_env(), self._config.runtime or RuntimeConfig()
        try:
            return DistributedRuntime(
                self._event_loop,
                chosen.discovery_backend or settings.discovery_backend,
                chosen.request_plane or settings.request_plane,
                event_plane=chosen.event_plane,
                response_plane=chosen.response_plane,
            )
        except InvalidConfig as error:
            raise plainly(error, f"InvalidRequest: distributed runtime config: {error}") from error

    async def _drive(self, runtime: DistributedRuntime, asked: asyncio.Event) -> None:
        driven = _Driven(self._engine, self._config, self._settings, runtime, self._raw)
        try:
            with _in_dynamos_words():
                await driven.start()
                if not asked.is_set():
                    await driven.serve()
            await asked.wait()
            await driven.leave()
        finally:
            await driven.clean_up()


class _Driven:
    """The engine of one run, and what was opened for it."""

    def __init__(
        self, engine: Any, config: WorkerConfig, settings: BackendConfig, runtime: DistributedRuntime, raw: bool
    ) -> None:
        self._engine = engine
        self._config = config
        self._settings = settings
        self._runtime = runtime
        self._raw = raw
        self._endpoint: Endpoint = runtime.endpoint(f"{config.namespace}.{config.component}.{config.endpoint}")
        self._engine_config: Any = None
        self._metrics = ComponentMetrics()
        self._served: ServedEndpoint | None = None

    async def start(self) -> None:
        """Start the engine, and give it what it publishes with."""
        engine, worker_id = self._engine, self._endpoint.connection_id()
        began = time.monotonic()
        self._engine_config = await engine.start(worker_id)
        labels = self._labels(self._engine_config, worker_id)
        self._metrics.labels = labels
        self._metrics.times["model_load_time_seconds"] = time.monotonic() - began
        add_exposition = self._endpoint.metrics.register_prometheus_expfmt_callback
        add_exposition(self._metrics.exposition)
        await self._call("register_prometheus", EngineMetrics(labels, add_exposition))
        ranks = self._ask("component_metrics_dp_ranks")
        if not self._config.enable_kv_routing:
            return
        if not self._raw:
            llm = self._engine_config.llm
            block_size = None if llm is None else llm.kv_cache_block_size
            sources = await self._call("kv_event_sources")
            await publish_kv_events(sources or (), self._endpoint, block_size, self._config)
        if ranks:
            await publish_load(engine, ranks, self._endpoint, self._metrics)

    async def serve(self) -> None:
        """Publish the model, and take requests."""
        engine, config, endpoint = self._engine, self._config, self._endpoint
        if not self._raw:
            await self._call("on_endpoint_ready", endpoint)
        await register(endpoint, config, self._engine_config)
        if not self._raw:
            self._open_routes()
        worker = await endpoint.worker()
        worker.config = self._leaving(worker.config)
        self._served = await worker.serve(
            raw_handler(engine) if self._raw else token_handler(engine),
            endpoint.endpoint_id,
            metrics_labels=config.metrics_labels,
            health_check_payload=await self._health_check_payload(),
        )
        self._runtime.set_health_status(True)
        logger.info("serving the model %s on %s", model_name(config, self._engine_config), endpoint.endpoint_id)

    async def leave(self) -> None:
        """Leave discovery, and wait until the engine has nothing more to do, or until time is up."""
        self._runtime.set_health_status(False)
        if self._served is None:
            return
        await self._served.close()
        worker = self._served.worker
        worker.config = replace(
            worker.config, leave_delay=0.0
        )  # its other endpoints, of KV events, need not wait again
        began = time.monotonic()
        if self._config.disaggregation_mode is DisaggregationMode.Prefill:
            await self._until_quiescent()
        self._metrics.times["drain_time_seconds"] = time.monotonic() - began

    async def clean_up(self) -> None:
        """Release the engine's resources. An error is only logged: there is nothing left to stop."""
        began = time.monotonic()
        try:
            await self._engine.cleanup()
        except Exception:
            logger.exception("the engine's cleanup failed")
        self._metrics.times["cleanup_time_seconds"] = time.monotonic() - began

    def _leaving(self, config: ServingConfig) -> ServingConfig:
        """How the endpoint leaves: after the grace period of Dynamo's `Worker`, and in a limited time."""
        limit = ServeConfig.from_env().grace if config.shutdown_timeout is None else config.shutdown_timeout
        return replace(config, leave_delay=self._settings.grace_period, shutdown_timeout=limit)

    async def _until_quiescent(self) -> None:
        timeout = self._settings.prefill_drain_timeout
        deadline = time.monotonic() + timeout
        while not await self._is_quiescent():
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                logger.warning("the engine was not quiescent after %g s: it is released all the same", timeout)
                return
            await asyncio.sleep(min(_POLL, remaining))

    async def _is_quiescent(self) -> bool:
        try:
            return await self._call("is_quiescent") is True
        except Exception as error:
            logger.warning("is_quiescent() failed: the engine counts as busy", exc_info=error)
            return False

    async def _health_check_payload(self) -> dict[str, Any] | None:
        if self._config.health_check_payload is not None:
            return self._config.health_check_payload
        try:
            payload: dict[str, Any] | None = await self._call("health_check_payload")
        except Exception as error:
            logger.warning("health_check_payload() failed: the endpoint is not checked", exc_info=error)
            return None
        return payload

    def _open_routes(self) -> None:
        """Answer `POST /engine/control/{name}` and `/engine/update/{name}` of the status server."""
        for kind, names, method in (
            ("control", self._ask("supported_controls"), "engine_control"),
            ("update", self._ask("supported_updates"), "engine_update"),
        ):
            for name in names or ():
                route = _route(getattr(self._engine, method), kind, name)
                self._runtime.register_engine_route(f"{kind}/{name}", route)
        self._runtime.register_engine_route("update/model_taints", self._update_taints)

    async def _update_taints(self, body: Any) -> dict[str, Any]:
        """Replace the taints in the model card: a route that Dynamo's worker has for every engine."""
        if not isinstance(body, dict):
            raise ValueError("request body must be a JSON object")
        taints = body.get("taints")
        if not isinstance(taints, list) or not all(isinstance(each, str) for each in taints):
            raise ValueError("'taints' must be a JSON array of strings")
        await update_model_taints(self._endpoint, set(taints))
        return {"status": "ok", "taints": sorted(taints)}

    def _labels(self, engine_config: Any, worker_id: int) -> dict[str, str]:
        return {
            "dynamo_namespace": self._config.namespace,
            "dynamo_component": self._config.component,
            "dynamo_endpoint": self._config.endpoint,
            "worker_id": f"{worker_id:x}",
            "model": engine_config.model,
            "model_name": engine_config.served_model_name or engine_config.model,
        }

    def _ask(self, method: str) -> Any:
        """What a method of the engine returns; None if it has no such method."""
        found = getattr(self._engine, method, None)
        return None if found is None else found()

    async def _call(self, method: str, *arguments: Any) -> Any:
        """The same for an asynchronous method."""
        found = getattr(self._engine, method, None)
        returned = None if found is None else found(*arguments)
        return await returned if inspect.isawaitable(returned) else returned


def _route(method: Callable[[str, dict[str, Any]], Any], kind: str, name: str) -> Callable[[Any], Any]:
    async def call(body: Any) -> Any:
        if not isinstance(body, dict):
            return {"status": "error", "message": f"engine {kind} request body must be a JSON object"}
        return await method(name, body)

    return call


@contextmanager
def _in_dynamos_words() -> Iterator[None]:
    """Errors come out with the class of Dynamo's error in front, as Dynamo's `Worker.run` raises them."""
    try:
        yield
    except Exception as error:
        shown = error if isinstance(error, DynamoError) else from_exception(error)
        raise plainly(shown, display(shown)) from error
