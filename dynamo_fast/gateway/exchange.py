"""`Exchanges`: one HTTP request, sent to a worker, and its answer, sent to the client.

    stream    items leave as they come (SSE, NDJSON)
    collect   items are kept until the last one, for an answer that is one JSON value

Both raise HttpError as long as the head of the answer was not sent. After that an error is a part of the stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import Container, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from aiohttp import web
from aiohttp.http import HttpVersion11

from dynamo_fast.config import GatewayConfig
from dynamo_fast.context import Context
from dynamo_fast.deadlines import Deadlines
from dynamo_fast.egress.call import Call
from dynamo_fast.egress.push_router import PushRouter
from dynamo_fast.errors import DynamoError
from dynamo_fast.gateway.errors import CLIENT_GONE, HttpError, http_error
from dynamo_fast.gateway.forms import Form
from dynamo_fast.gateway.observer import Observer, RequestObserver
from dynamo_fast.gateway.relay import MOST_UNSENT, Collected, Relay
from dynamo_fast.logs import get_logger
from dynamo_fast.observability import spans
from dynamo_fast.wire.address import EndpointId
from dynamo_fast.wire.headers import TRACEPARENT, TRACESTATE

__all__ = ["Asked", "Exchanges"]

logger = get_logger(__name__)

METADATA = "x-dynamo-metadata-"
INSTANCE_ID = "x-dynamo-instance-id"
_MAX_ID = 256


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
        self._running: dict[str, Relay | Collected | None] = {}
        """By the ids of the requests; None until the request is sent."""
        self._tracer = spans.tracer()
        self._silence: Deadlines[Relay] = Deadlines(asyncio.get_running_loop(), config.keep_alive, Relay.silence_ended)

    def close(self) -> None:
        """No request is left."""
        self._silence.close()

    def cut(self, error: HttpError) -> None:
        """End every answer under way with `error`."""
        for sink in list(self._running.values()):
            if sink is not None:
                sink.cut(HttpError(error.status, error.message))  # each client is told its own id

    # The two ways -------------------------------------------------------------------------------------------------

    async def stream(self, asked: Asked, form: Form) -> web.StreamResponse:
        """Answer with a stream of items."""
        told = self._begin(asked)
        relay = None
        try:
            relay = Relay(self._prepared(asked, told), told.observers, form, self._silence)
            self._running[told.request_id] = relay
            await relay.send()
            if not (relay.begun or relay.over() or relay.silent):
                await relay.changed()
            if relay.error is not None and not relay.begun:
                raise relay.error
            return await self._stream(asked.request, relay, form, told)
        except BaseException as error:
            self._raise(told, error)
        finally:
            self._end(told, relay)

    async def collect(self, asked: Asked) -> tuple[list[bytes], dict[str, str]]:
        """The data of all items, JSON each, and the headers of the answer."""
        told = self._begin(asked)
        collected = None
        try:
            collected = Collected(self._prepared(asked, told), told.observers, self._config.max_answer)
            self._running[told.request_id] = collected
            await collected.send()
            if not collected.over():
                await collected.changed()
            return collected.data(), told.headers(collected.instance_id)
        except BaseException as error:
            self._raise(told, error)
        finally:
            self._end(told, collected)

    async def whole(self, request: web.Request, body: bytes, headers: Mapping[str, str]) -> web.StreamResponse:
        """An answer of one piece."""
        if len(body) <= MOST_UNSENT:
            return web.Response(body=body, headers=headers)
        response = web.StreamResponse(headers=headers)
        response.content_length = len(body)
        await response.prepare(request)
        _transport(request).write(body)
        await self._drained(request)
        await response.write_eof()
        return response

    async def _stream(self, request: web.Request, relay: Relay, form: Form, told: _Told) -> web.StreamResponse:
        headers = told.headers(relay.instance_id)
        headers |= {"Content-Type": form.content_type, "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        if relay.over():
            return await self.whole(request, self._last(relay, form, told), headers)
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        try:
            await self._pass_on(request, response, relay, form, told)
        except Exception as error:
            if isinstance(error, ConnectionError):
                raise
            # The head was sent: nothing but the end of the connection can tell the client.
            logger.warning("the answer to the request %s is cut", told.request_id, exc_info=error)
            _transport(request).abort()
            raise ConnectionResetError("the answer was cut") from error
        return response

    async def _pass_on(
        self, request: web.Request, response: web.StreamResponse, relay: Relay, form: Form, told: _Told
    ) -> None:
        """The items, as they come, and the end."""
        relay.start(_transport(request), chunked=request.version >= HttpVersion11)
        while not relay.over():
            if relay.full:
                await self._drained(request)
                relay.resume()
            else:
                await relay.changed()
        last = self._last(relay, form, told)
        if len(last) + _transport(request).get_write_buffer_size() > MOST_UNSENT:
            relay.write(last)
            await self._drained(request)
            last = b""
        await response.write_eof(last)

    def _last(self, relay: Relay, form: Form, told: _Told) -> bytes:
        """The last items, the error if there was one, and the end."""
        last = relay.rest()
        if relay.error is not None:
            last += form.error(told.failed(relay.error, self._config.show_errors))
        return last + form.end()

    async def _drained(self, request: web.Request) -> None:
        """Wait until the client has read what was sent. Cuts its connection if that takes too long."""
        try:
            await asyncio.wait_for(request.writer.drain(), self._config.write_timeout)
        except asyncio.TimeoutError:
            _transport(request).abort()
            raise ConnectionResetError("the client does not read: its connection was cut") from None

    # Around them --------------------------------------------------------------------------------------------------

    def _begin(self, asked: Asked) -> _Told:
        """An exchange begins: its context, its span, and those who are told of it. Raises HttpError."""
        headers = asked.request.headers
        given, metadata = _given_id(headers, self._running), _metadata(headers)
        trace = {name: headers[name] for name in (TRACEPARENT, TRACESTATE) if name in headers} or None
        span = None
        if self._tracer is not None:
            route = {"http.request.method": "POST", "http.route": asked.request.path}
            span = self._tracer.call("http-request", "server", trace, route)
            trace = span.headers
        context = Context(given, metadata, trace)
        request_id = context.id()
        name = ".".join(asked.endpoint)
        told = _Told(context, span, [each.request_started(name, asked.model, request_id) for each in self._observers])
        self._running[request_id] = None
        return told

    def _prepared(self, asked: Asked, told: _Told) -> Call:
        """The call, for the worker that the client, or the router, chooses. Raises HttpError and DynamoError."""
        router = asked.router
        to = _instance(asked)
        mode, retries = (router.mode, router.retries) if to is None else (to, 0)
        return router.prepare(mode, asked.body, told.context, retries=retries, how=(None, True))

    def _raise(self, told: _Told, error: BaseException) -> NoReturn:
        """The exchange ends with `error`."""
        failure = self._failure(told, error)
        try:
            if failure is error:
                raise failure
            raise failure from error
        finally:
            del failure, error  # break the reference cycle with the traceback

    def _failure(self, told: _Told, error: BaseException) -> BaseException:
        """What to raise for `error`: an HttpError, unless the client has gone or the program ends."""
        if isinstance(error, DynamoError | HttpError):
            return told.failed(error, self._config.show_errors)
        if isinstance(error, asyncio.CancelledError | ConnectionError):
            told.failed(HttpError(CLIENT_GONE, "the client has gone"))
            return error
        failure = told.failed(error, self._config.show_errors)
        if not isinstance(error, Exception):
            return error
        logger.warning("the request %s failed", told.request_id, exc_info=error)
        return failure

    def _end(self, told: _Told, sink: Relay | Collected | None) -> None:
        if sink is not None:
            sink.close()
            sink.error = None  # whose traceback refers to the sink
        del self._running[told.request_id]
        told.ended()


class _Told:
    """Who is told of one request, and what: its observers, its span, the headers of its answer. Owned by its exchange."""

    def __init__(self, context: Context, span: spans.RequestSpan | None, observers: Sequence[RequestObserver]) -> None:
        self.context = context
        self.request_id = context.id()
        self._span = span
        self.observers = observers
        self._error: HttpError | None = None

    def failed(self, error: BaseException, show: bool = False) -> HttpError:
        """The request ends with `error`; as the client is told it."""
        self._error = http_error(error, show)
        self._error.headers.setdefault("X-Request-Id", self.context.id())
        return self._error

    def headers(self, instance_id: int | None) -> dict[str, str]:
        """The headers of an answer."""
        headers = {"X-Request-Id": self.context.id()}
        if instance_id is not None:
            headers[INSTANCE_ID] = f"{instance_id:x}"
        trace = self.context.trace_headers()
        if trace and TRACEPARENT in trace:
            headers[TRACEPARENT] = trace[TRACEPARENT]
        return headers

    def ended(self) -> None:
        """The exchange is over."""
        error = self._error
        status = 200 if error is None else error.status
        for each in self.observers:
            each.ended(status, None if error is None else error.detail)
        self._error = None
        if self._span is not None:
            self._span.set({"http.response.status_code": str(status)})
            self._span.end(None if error is None else error.kind)


def _given_id(headers: Mapping[str, str], running: Container[str]) -> str | None:
    """The id that the client gives its request. Raises HttpError."""
    given = headers.get("X-Request-Id")
    if given is None:
        return None
    if not (0 < len(given) <= _MAX_ID and given.isprintable()):
        raise HttpError(400, f"x-request-id is not valid: expected 1 to {_MAX_ID} printable characters")
    if given in running:
        raise HttpError(409, f"a request with the id {given!r} is running: ids must be unique")
    return given


def _metadata(headers: Mapping[str, str]) -> dict[str, str] | None:
    """What `x-dynamo-metadata-KEY: VALUE` says, keys in lower case."""
    size = len(METADATA)
    return {name[size:].lower(): headers[name] for name in headers if name[:size].lower() == METADATA} or None


def _instance(asked: Asked) -> int | None:
    """The worker that the client names. Raises HttpError."""
    text = asked.request.headers.get(INSTANCE_ID)
    if text is None:
        return None
    try:
        instance_id = int(text, 16)
    except ValueError:
        raise HttpError(400, f"{INSTANCE_ID} is not valid: expected a hexadecimal number") from None
    if asked.router.table.find(instance_id) is None:
        raise HttpError(404, f"{'.'.join(asked.endpoint)} has no instance {instance_id:x}")
    return instance_id


def _transport(request: web.Request) -> asyncio.Transport:
    """The client's connection. Raises ConnectionResetError if it is gone."""
    if request.transport is None:
        raise ConnectionResetError("the client has gone")
    return request.transport
