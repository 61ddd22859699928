# cython: freethreading_compatible=True, annotation_typing=False
"""`PushHandler`: one endpoint. It takes the requests for its handler, and knows which of them run.

    accept      in the read callback: `Request` reads whom to answer, and the admission runs it now or later
    call        one call of the handler, for each request that runs
    drained     when every accepted request has its answer
    cancel      the worker shuts down

(Source: transport.md 6.2 to 6.4.)

Where there is a compiler, Cython translates this very file, with the types in `push_handler.pxd` (see setup.py).
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from dynamo_fast.context import Context
from dynamo_fast.errors import InvalidAddress, ProtocolError, Unavailable
from dynamo_fast.ingress.request import Host, Request
from dynamo_fast.ingress.response_addresses import ResponseAddresses
from dynamo_fast.ingress.response_connection import ResponseConnection
from dynamo_fast.ingress.response_sender import ResponseSender
from dynamo_fast.logs import get_logger
from dynamo_fast.observability import spans
from dynamo_fast.observability.histogram import Histogram
from dynamo_fast.observability.worker_metrics import EndpointMetrics
from dynamo_fast.wire.address import EndpointId
from dynamo_fast.wire.headers import FRONTEND_SEND_TS_NS
from dynamo_fast.wire.payload import PayloadCodec

__all__ = ["Handler", "PushHandler", "takes_context", "takes_response_sender"]

_MAX_TIME_DIGITS = 20  # of an unsigned 64-bit number

_INFO, _WARNING = logging.INFO, logging.WARNING

logger = get_logger(__name__)

Handler = Callable[..., AsyncIterator[Any]]
"""Called as `handler(request)`, or `handler(request, context=context)` if it has a parameter of that name;
`handler(request, context=context, response_sender=sender)` if it has one of that name (see `ResponseSender`).

The handler of a bidirectional endpoint gets an async iterator of requests (`RequestStream`)."""


class PushHandler:
    """One endpoint and its handler; `accept` is what `RequestServer.register` wants.

    The worker makes one for each endpoint that it serves. It owns the requests that run, and counts them in `metrics`. It
    ends when it is registered nowhere and `drained` returns.
    """

    def __init__(
        self,
        handler: Handler,
        endpoint: EndpointId,
        worker: Host,
        metrics: EndpointMetrics,
        *,
        bidirectional: bool = False,
    ) -> None:
        self.endpoint = endpoint
        self.worker = worker
        self.metrics = metrics
        self.bidirectional = bidirectional
        self.addresses = ResponseAddresses(worker.config)
        self.tracer = spans.endpoint_tracer(endpoint, int(metrics.labels["worker_id"], 16))
        """Begins the span of each request; None: traces are not followed."""
        self.cancelled = False
        """Whether `cancel` was called."""
        self._handler = handler
        self._takes_context = takes_context(handler)
        self.pushes = takes_response_sender(handler) and not bidirectional
        """Whether the handler sends its items with a `ResponseSender`."""
        self._drained: asyncio.Future[None] | None = None
        self._running: set[Request] = set()
        self._items_sent = 0

    def accept(self, payload: bytes | memoryview, headers: Mapping[str, str]) -> None:
        """Take a request, and answer it in a task of its own.

        Raises Unavailable if it does not say whom to answer, or if that is not allowed; ResourceExhausted if the worker
        has too many requests.
        """
        try:
            request = Request(self, payload, headers)
        except (ProtocolError, InvalidAddress) as error:
            self.metrics.error("deserialization")
            raise Unavailable(f"Server unavailable: unreadable request: {error}") from error
        admission = self.worker.admission
        admission.submit(request)
        self.metrics.requests += 1
        self.metrics.inflight += 1
        self.metrics.request_bytes += len(payload)
        _observe_transit(self.worker.metrics.network_transit, headers)

    def sender(self, stream: ResponseConnection, codec: PayloadCodec) -> ResponseSender:
        """What a push handler sends the items of one answer with."""
        return ResponseSender(stream, codec, self.worker.dialler.loop, self.worker.config.push_buffer)

    def call(self, request: Any, context: Context, sender: ResponseSender | None = None) -> AsyncIterator[Any]:
        """Call the handler. Raises what it raises, and AttributeError if it returns no async iterator.

        A push handler without a `sender` yields its items, as others do.
        """
        returned: Any
        if sender is not None:
            returned = self._handler(request, context=context, response_sender=sender)
        else:
            returned = self._handler(request, context=context) if self._takes_context else self._handler(request)
        if not hasattr(type(returned), "__anext__"):
            if inspect.iscoroutine(returned):
                returned.close()  # avoid the warning that it was never awaited: the error says more
            raise AttributeError(f"'{type(returned).__name__}' object has no attribute '__anext__'")
        iterator: AsyncIterator[Any] = returned
        return iterator

    async def drained(self) -> None:
        """Wait until every accepted request has its answer. May be called by several tasks."""
        while self.metrics.inflight:
            if self._drained is None or self._drained.done():
                self._drained = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._drained)  # others may wait for it, too

    def cancel(self) -> None:
        """The process shuts down: cancel the handlers that run, and call none for the requests that wait.

        Callers get the error EngineShutdown, with which both releases of Dynamo try another worker, unless the handler
        answers its cancellation otherwise.
        """
        self.cancelled = True
        for request in self._running:
            request.cancellation.shut_down()

    @property
    def handler_name(self) -> str:
        """The handler's own name, for logs."""
        name: str = getattr(self._handler, "__qualname__", None) or type(self._handler).__qualname__
        return name

    @property
    def items_sent(self) -> int:
        """Items of all answers so far."""
        return self._items_sent + sum(request.stream.items for request in self._running)

    def began(self, request: Request) -> None:
        """`request` is being answered."""
        self._running.add(request)

    def ended(self, request: Request) -> None:
        """`request` has its answer: count it, and log how it ended."""
        self._running.discard(request)
        stream, metrics = request.stream, self.metrics
        seconds = time.monotonic() - request.accepted_at
        self._items_sent += stream.items
        metrics.duration.observe(seconds)
        metrics.response_bytes += stream.bytes
        metrics.cancellations += request.cancellation.was_cut_short
        metrics.inflight -= 1
        level = _INFO if stream.orderly else _WARNING
        if logger.isEnabledFor(level):
            self._log(level, request, seconds)
        if not metrics.inflight and self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    def _log(self, level: int, request: Request, seconds: float) -> None:
        stream = request.stream
        logger.log(
            level,
            "request %s for %s was %s after %d items, %d bytes, %.3f s",
            request.context.id(),
            self.endpoint,
            stream.end,
            stream.items,
            stream.bytes,
            seconds,
        )


def takes_context(handler: Handler) -> bool:
    """Whether the handler has a parameter named `context` that can be given by name."""
    try:
        parameter = inspect.signature(handler).parameters.get("context")
    except (TypeError, ValueError):  # it cannot be called, which its first call will say; or it is written in C
        return False
    return parameter is not None and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)


def takes_response_sender(handler: Handler) -> bool:
    """Whether the handler has a parameter named `response_sender`: it is called with both names then, as in Dynamo."""
    try:
        return "response_sender" in inspect.signature(handler).parameters
    except (TypeError, ValueError):  # as above
        return False


def _observe_transit(histogram: Histogram, headers: Mapping[str, str]) -> None:
    sent_at = headers.get(FRONTEND_SEND_TS_NS, "")
    if sent_at.isdecimal() and len(sent_at) <= _MAX_TIME_DIGITS:
        histogram.observe(max(0, time.time_ns() - int(sent_at)) / 1e9)
