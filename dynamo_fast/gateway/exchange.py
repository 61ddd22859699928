"""`Exchanges`: one HTTP request, sent to a worker, and its answer, sent to the client.

    stream    items leave as they come (SSE, NDJSON)
    collect   items are kept until the last one, for an answer that is one JSON value

Both raise HttpError as long as the head of the answer was not sent. After that an error is a part of the stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

from aiohttp import web
from aiohttp.http import HttpVersion11

from dynamo_fast.config import GatewayConfig
from dynamo_fast.context import Context
from dynamo_fast.deadlines import Deadlines
from dynamo_fast.egress.call import Call
from dynamo_fast.egress.push_router import PushRouter
from dynamo_fast.egress.sink import Delivery
from dynamo_fast.errors import DynamoError
from dynamo_fast.gateway.errors import CLIENT_GONE, HttpError, http_error
from dynamo_fast.gateway.forms import Form
from dynamo_fast.gateway.observer import Observer, RequestObserver
from dynamo_fast.gateway.relay import Collected, Relay, TooLong
from dynamo_fast.logs import get_logger
from dynamo_fast.observability import spans
from dynamo_fast.wire.address import EndpointId
from dynamo_fast.wire.headers import TRACEPARENT, TRACESTATE

__all__ = ["Asked", "Exchanges"]

logger = get_logger(__name__)

METADATA = "x-dynamo-metadata-"
INSTANCE_ID = "x-dynamo-instance-id"
_MAX_ID = 256
_Sink = TypeVar("_Sink", Relay, Collected)


class Asked(NamedTuple):
    """What a client asks for."""

    request: web.Request
    endpoint: EndpointId
    router: PushRouter
    body: Any
    model: str | None = None


class Exchanges:
    """Runs the exchanges of one application. Owned by it; `close` ends its timer."""

    def __init__(self, config: GatewayConfig, observers: Sequence[Observer]) -> None:
        self._config = config
        self._observers = observers
        self._ids: set[str] = set()
        self._tracer = spans.tracer()
        loop = asyncio.get_running_loop()
        self._silence: Deadlines[Relay] = Deadlines(loop, config.keep_alive, Relay.silence_ended)

    def close(self) -> None:
        """No request is left."""
        self._silence.close()

    # The two ways -------------------------------------------------------------------------------------------------

    async def stream(self, asked: Asked, form: Form) -> web.StreamResponse:
        """Answer with a stream of items."""
        with self._call(asked) as (call, observed):
            relay = Relay(call, observed.observers, form, self._silence)
            try:
                await _send(call, relay)
                if not (relay.begun or relay.over() or relay.silent):
                    await relay.changed()
                if relay.over() and not relay.begun and relay.error is not None:
                    raise relay.error
                return await self._stream(asked.request, relay, form, observed)
            finally:
                relay.close()

    async def collect(self, asked: Asked) -> tuple[list[bytes], dict[str, str]]:
        """The data of all items, JSON each, and the headers of the answer."""
        with self._call(asked) as (call, observed):
            collected = Collected(call, observed.observers, self._config.max_answer)
            try:
                await _send(call, collected)
                if not collected.over():
                    await collected.changed()
            finally:
                collected.close()
            if collected.error is not None:
                raise collected.error
            return collected.items, _headers(call.context, collected.instance_id)

    async def _stream(self, request: web.Request, relay: Relay, form: Form, observed: _Observed) -> web.StreamResponse:
        headers = _headers(relay.call.context, relay.instance_id)
        headers |= {"Content-Type": form.content_type, "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        if relay.over():
            return web.Response(body=self._last(relay, form, observed), headers=headers)
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the client has gone")
        relay.start(transport, chunked=request.version >= HttpVersion11)
        while not relay.over():
            await relay.changed()
            if relay.full:
                await self._drained(request)
                relay.resume()
        await response.write(self._last(relay, form, observed))
        await self._drained(request)
        await response.write_eof()
        return response

    def _last(self, relay: Relay, form: Form, observed: _Observed) -> bytes:
        """The last items, the error if there was one, and the end."""
        last = relay.rest()
        if relay.error is not None:
            error = http_error(relay.error, self._config.show_errors)
            observed.failed(error)
            last += form.error(error.body())
        return last + form.end

    async def _drained(self, request: web.Request) -> None:
        """Wait until the client has read what was sent. Cuts its connection if that takes too long."""
        if not request.protocol.writing_paused:
            return
        try:
            await asyncio.wait_for(request.writer.drain(), self._config.write_timeout)
        except asyncio.TimeoutError:
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionResetError(
                f"the client has read nothing for {self._config.write_timeout:g} s: its connection was cut"
            ) from None

    # Around them --------------------------------------------------------------------------------------------------

    @contextmanager
    def _call(self, asked: Asked) -> Iterator[tuple[Call, _Observed]]:
        """A call that was prepared for the worker that the client, or the router, chooses; its observers and its span."""
        request = asked.request
        to = _instance(request.headers, asked)
        context = _context(request.headers)
        if context.id() in self._ids:
            raise HttpError(409, f"a request with the id {context.id()!r} is running: ids must be unique")
        name = ".".join(asked.endpoint)
        observed = _Observed([each.request_started(name, asked.model, context.id()) for each in self._observers])
        self._ids.add(context.id())
        try:
            router = asked.router
            retries = router.retries if to is None else 0
            call = router.prepare(
                router.mode if to is None else to, asked.body, context, retries=retries, how=(None, True)
            )
            yield call, observed
        except (asyncio.CancelledError, ConnectionError) as error:
            if not isinstance(error, DynamoError):
                observed.failed(HttpError(CLIENT_GONE, "the client has gone"))
                raise
            raise self._told(observed, error) from error
        except (DynamoError, TooLong) as error:
            raise self._told(observed, error) from error
        except BaseException as error:
            observed.failed(http_error(error, True))
            raise
        finally:
            self._ids.discard(context.id())
            observed.ended()

    def _told(self, observed: _Observed, error: BaseException) -> HttpError:
        found = http_error(error, self._config.show_errors)
        observed.failed(found)
        return found


class _Observed:
    """The observers of one request, and how it went. Owned by its exchange."""

    def __init__(self, observers: Sequence[RequestObserver]) -> None:
        self.observers = observers
        self._error: HttpError | None = None

    def failed(self, error: HttpError) -> None:
        self._error = error

    def ended(self) -> None:
        error = self._error
        for each in self.observers:
            each.ended(200 if error is None else error.status, None if error is None else error.detail)


async def _send(call: Call, sink: _Sink) -> None:
    stream = await call.send()
    Delivery(stream, sink, call).begin()


def _context(headers: Mapping[str, str]) -> Context:
    """The context that the headers of a request describe. Raises HttpError."""
    given = headers.get("X-Request-Id")
    if given is not None and not (0 < len(given) <= _MAX_ID and given.isprintable()):
        raise HttpError(400, f"x-request-id is not valid: expected 1 to {_MAX_ID} printable characters")
    metadata = {
        name[len(METADATA) :].lower(): value for name, value in headers.items() if name.lower().startswith(METADATA)
    }
    trace = {name: headers[name] for name in (TRACEPARENT, TRACESTATE) if name in headers}
    return Context(given, metadata, trace or None)


def _instance(headers: Mapping[str, str], asked: Asked) -> int | None:
    """The worker that the client names. Raises HttpError."""
    text = headers.get(INSTANCE_ID)
    if text is None:
        return None
    try:
        instance_id = int(text, 16)
    except ValueError:
        raise HttpError(400, f"{INSTANCE_ID} is not valid: expected a hexadecimal number") from None
    if asked.router.table.find(instance_id) is None:
        raise HttpError(404, f"{'.'.join(asked.endpoint)} has no instance {instance_id:x}")
    return instance_id


def _headers(context: Context, instance_id: int | None) -> dict[str, str]:
    headers = {"X-Request-Id": context.id()}
    if instance_id is not None:
        headers[INSTANCE_ID] = f"{instance_id:x}"
    trace = context.trace_headers()
    if trace and TRACEPARENT in trace:
        headers[TRACEPARENT] = trace[TRACEPARENT]
    return headers
