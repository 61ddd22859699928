"""`Endpoint`, as `dynamo.runtime` has it (runtime.md 4.2)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any, Protocol

from dynamo_fast.context import Context as RequestContext
from dynamo_fast.egress.push_router import RouterMode
from dynamo_fast.errors import DynamoError, InvalidLabel, InvalidRequest
from dynamo_fast.ingress.model_cards import Model
from dynamo_fast.ingress.push_handler import Handler, takes_context, takes_response_sender
from dynamo_fast.ingress.response_sender import ResponseSender
from dynamo_fast.ingress.worker import Worker
from dynamo_fast.runtime.client import Client
from dynamo_fast.runtime.context import Context
from dynamo_fast.runtime.exceptions import argument_error, plainly
from dynamo_fast.runtime.hub import Hub
from dynamo_fast.runtime.metrics import FirstTokenSource, RuntimeMetrics
from dynamo_fast.wire.address import EndpointId
from dynamo_fast.wire.model_card import Card

__all__ = ["Endpoint"]


class WorkerType(Protocol):
    """`dynamo_fast.llm.WorkerType`: that package stands above this one."""

    @property
    def name(self) -> str: ...


class Endpoint:
    """One endpoint, to serve or to call. Made by `DistributedRuntime.endpoint`.

    It owns nothing but the mark that it was served: Dynamo refuses a second `serve_endpoint` of one object. The hub has
    the worker and the routers, and outlives the endpoint.
    """

    def __init__(self, hub: Hub, endpoint: EndpointId) -> None:
        self._hub = hub
        self._id = endpoint
        self._served = False

    def connection_id(self) -> int:
        """The instance id of every endpoint that this runtime serves."""
        return self._hub.discovery.connection_id

    @property
    def metrics(self) -> RuntimeMetrics:
        """Where a program adds its own metrics to those of the status server."""
        return RuntimeMetrics(self._hub.status)

    def first_token_source(self, worker_type: WorkerType) -> asyncio.Future[FirstTokenSource | None]:
        """A source for a worker that decodes (`WorkerType.Aggregated`, `Decode`); None for the others."""
        if type(worker_type).__name__ != "WorkerType":
            raise argument_error("worker_type", worker_type, "WorkerType")
        source: asyncio.Future[FirstTokenSource | None] = asyncio.get_running_loop().create_future()
        source.set_result(FirstTokenSource() if worker_type.name in ("Aggregated", "Decode") else None)
        return source

    def serve_endpoint(
        self,
        generator: Handler,
        graceful_shutdown: bool = True,
        metrics_labels: Sequence[tuple[str, str]] | None = None,
        health_check_payload: dict[str, Any] | None = None,
    ) -> asyncio.Future[tuple[()]]:
        """Serve the endpoint. The future is `()` after the runtime has shut down; cancelling it does not stop serving.

        Requests in flight finish for both values of `graceful_shutdown`, as in Dynamo. The future raises an error for a
        second call on one object and for a reserved label, and what `Worker.serve` raises.
        """
        return self._serve(generator, metrics_labels, health_check_payload, bidirectional=False)

    def serve_bidirectional_endpoint(
        self,
        generator: Handler,
        graceful_shutdown: bool = True,
        metrics_labels: Sequence[tuple[str, str]] | None = None,
    ) -> asyncio.Future[tuple[()]]:
        """As `serve_endpoint`, for a handler that takes an async iterator of requests."""
        return self._serve(generator, metrics_labels, None, bidirectional=True)

    def client(self, router_mode: RouterMode | None = None) -> asyncio.Future[Client]:
        """A client that knows the present instances. Raises TypeError for a mode that is not a RouterMode."""
        if router_mode is not None and not isinstance(router_mode, RouterMode):
            raise argument_error("router_mode", router_mode, "RouterMode")
        return asyncio.ensure_future(self._client(router_mode))

    def register_endpoint_instance(self) -> asyncio.Future[tuple[()]]:
        """Put the record into discovery, in place of an older one."""
        return asyncio.ensure_future(self._hub.register(self._id))

    def unregister_endpoint_instance(self) -> asyncio.Future[tuple[()]]:
        """Take the record out of discovery, and continue to serve."""
        return asyncio.ensure_future(self._unregister())

    # What `dynamo_fast.llm` asks for; Dynamo's own endpoint has no such methods.

    @property
    def endpoint_id(self) -> EndpointId:
        """The name of the endpoint."""
        return self._id

    async def worker(self) -> Worker:
        """The worker of this runtime. Raises Disconnected after `shutdown`, and what `Worker.start` raises."""
        return await self._hub.worker()

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` on the loop of this runtime; see `Hub.run`."""
        self._hub.run(work)

    async def publish_model(self, model: Model) -> None:
        """Put the card of a model under this endpoint. Raises what `ModelCards.publish` raises."""
        worker = await self._hub.worker()
        await worker.models.publish(self._id, model)

    async def remove_model(self, suffix: str | None = None) -> None:
        """Remove the card of the model, or of the LoRA adapter with that suffix.

        Does nothing if the endpoint has no card at all. Raises InvalidRequest if it has only others.
        """
        models = (await self._hub.worker()).models
        if not await models.remove(self._id, suffix) and models.of(self._id):
            raise InvalidRequest(f"{self._id} has no card of {f'the LoRA adapter {suffix!r}' if suffix else 'a model'}")

    async def update_model(self, change: Callable[[Card], Card]) -> None:
        """Replace the card of the model by `change` of it. Raises what `ModelCards.update` raises."""
        worker = await self._hub.worker()
        await worker.models.update(self._id, change)

    async def _client(self, mode: RouterMode | None) -> Client:
        return Client(await self._hub.push_router(self._id), mode, self._hub)

    async def _unregister(self) -> tuple[()]:
        try:
            return await self._hub.unregister(self._id)
        except InvalidRequest as error:
            raise plainly(
                error, "Unable to unregister endpoint instance from discovery. Check discovery service status"
            ) from error

    def _serve(
        self,
        generator: Handler,
        metrics_labels: Sequence[tuple[str, str]] | None,
        health_check_payload: dict[str, Any] | None,
        *,
        bidirectional: bool,
    ) -> asyncio.Future[tuple[()]]:
        labels = _labels(metrics_labels)
        if health_check_payload is not None and not isinstance(health_check_payload, dict):
            raise argument_error("health_check_payload", health_check_payload, "PyDict")
        # Cancelling the future cancels only the wait for the end, not the service.
        serving = asyncio.ensure_future(self._start(generator, labels, bidirectional, health_check_payload))
        serving.add_done_callback(lambda task: task.cancelled() or task.exception())
        ending = asyncio.ensure_future(self._until_shutdown(serving))
        ending._log_destroy_pending = False  # type: ignore[attr-defined]  # a program may end without a shutdown
        return ending

    async def _start(
        self,
        generator: Handler,
        labels: list[tuple[str, str]],
        bidirectional: bool,
        health_check_payload: dict[str, Any] | None,
    ) -> None:
        if self._served:
            raise plainly(
                InvalidRequest(),
                "Failed to create work handler metrics: Failed to register metric: Duplicate metrics collector "
                "registration attempted",
            )
        self._served = True
        try:
            worker = await self._hub.worker()
            await worker.serve(
                _adapted(generator),
                self._id,
                metrics_labels=labels,
                bidirectional=bidirectional,
                health_check_payload=health_check_payload,
                adapt=False,
            )
        except InvalidLabel as error:
            raise plainly(error, f"Failed to create work handler metrics: {error}") from error

    async def _until_shutdown(self, serving: asyncio.Future[None]) -> tuple[()]:
        try:
            await asyncio.shield(serving)
        except DynamoError:
            if not self._hub.is_shut_down:  # else it ended before it had begun, which is no error of Dynamo's either
                raise
        await asyncio.shield(self._hub.ended())
        return ()


def _adapted(generator: Handler) -> Handler:
    """The handler, with the drop-in's `Context` in place of the request plane's."""
    if takes_response_sender(generator):
        return _pushing(generator)
    if not takes_context(generator):
        return generator

    def handler(request: Any, context: RequestContext) -> AsyncIterator[Any]:
        return generator(request, context=Context.of(context))

    return handler


def _pushing(generator: Handler) -> Handler:
    """The same for a push handler. A health check calls it without a sender."""

    def handler(
        request: Any, context: RequestContext, response_sender: ResponseSender | None = None
    ) -> AsyncIterator[Any]:
        if response_sender is not None:
            return generator(request, context=Context.of(context), response_sender=response_sender)
        return generator(request, context=Context.of(context)) if takes_context(generator) else generator(request)

    return handler


def _labels(labels: Any) -> list[tuple[str, str]]:
    if labels is None:
        return []
    if not isinstance(labels, (list, tuple)):
        raise argument_error("metrics_labels", labels, "Sequence")
    for label in labels:
        if not isinstance(label, tuple):
            raise argument_error("metrics_labels", label, "PyTuple")
        for each in label:
            if not isinstance(each, str):
                raise argument_error("metrics_labels", each, "PyString")
    return [(name, value) for name, value in labels]
