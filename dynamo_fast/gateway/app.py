"""`app`: the gateway as an application of aiohttp, for `dynamo-fast gateway` and to mount in other programs.

GET  /                                     a page that shows all this (page.py), fed by /_state and /_events
POST /{namespace}/{component}/{endpoint}   any endpoint (endpoints.py)
GET  /v1/endpoints                         the endpoints and their instances
GET  /health                               whether the process answers
GET  /metrics                              for Prometheus
"""

from __future__ import annotations

import hmac
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import msgspec
from aiohttp import web

from dynamo_fast import __version__
from dynamo_fast.config import GatewayConfig
from dynamo_fast.gateway.endpoints import Endpoints
from dynamo_fast.gateway.errors import HttpError
from dynamo_fast.gateway.exchange import Exchanges
from dynamo_fast.gateway.fleet import Fleet, RoutersFleet
from dynamo_fast.gateway.limits import Limits
from dynamo_fast.gateway.metrics import GatewayMetrics
from dynamo_fast.gateway.observer import Observer
from dynamo_fast.gateway.page import Page
from dynamo_fast.gateway.routers import RouterSource
from dynamo_fast.gateway.state import LiveState

__all__ = ["app"]

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def app(
    source: RouterSource, config: GatewayConfig | None = None, *, observers: Sequence[Observer] = ()
) -> web.Application:
    """The application: `web.run_app(app(routers), handler_cancellation=True)`, or `other.add_subapp("/prefix", ...)`.

    `source` says which endpoints and models there are (`Routers`), and stays the caller's; `config` is by default what
    the environment says. `observers` are told of every request to an endpoint. Call it on the event loop.

    The server must cancel handlers whose clients have gone (`handler_cancellation`): otherwise a worker hears of that
    only with its next item.
    """
    gateway = _Gateway(source, config or GatewayConfig.from_env(), observers)
    application = web.Application()
    gateway.add_routes(application)
    application.cleanup_ctx.append(gateway.life)
    return application


class _Gateway:
    """The parts of one application, and its routes. It ends with the application."""

    def __init__(self, source: RouterSource, config: GatewayConfig, observers: Sequence[Observer]) -> None:
        self.metrics = GatewayMetrics()
        self._config = config
        self._authorization = f"Bearer {config.token}".encode() if config.token else None
        self._limits = Limits(config)
        self._page = _page(source, config) if config.page else None
        watching: list[Observer] = [self.metrics] if self._page is None else [self.metrics, self._page.state]
        self._exchanges = Exchanges(config, [*watching, *observers])
        self._endpoints = Endpoints(source, config, self._exchanges)

    async def life(self, application: web.Application) -> AsyncIterator[None]:
        """See aiohttp's `cleanup_ctx`."""
        yield
        self._exchanges.close()

    def add_routes(self, application: web.Application) -> None:
        """Every route, and what is answered to other methods and paths."""
        get, post = application.router.add_get, application.router.add_post
        if self._page is not None:
            self._page.add_to(application, self._open)
        get("/health", self._health)
        get("/metrics", self._open(self._metrics))
        get("/v1/endpoints", self._open(self._endpoints.list))
        post("/{namespace}/{component}/{endpoint}", self._limited(self._endpoints.post))

    def _open(self, handler: Handler) -> Handler:
        """A handler for those who may call."""

        async def answer(request: web.Request) -> web.StreamResponse:
            try:
                self._authorize(request)
                return await handler(request)
            except HttpError as error:
                return error.response()

        return answer

    def _limited(self, handler: Handler) -> Handler:
        """The same for what takes a place among the requests that run."""

        async def answer(request: web.Request) -> web.StreamResponse:
            try:
                self._authorize(request)
                with self._limits.place(request):
                    return await handler(request)
            except HttpError as error:
                return error.response()

        return answer

    def _authorize(self, request: web.Request) -> None:
        if self._authorization is None:
            return
        given = request.headers.get("Authorization", "").encode(errors="surrogateescape")
        if not hmac.compare_digest(given, self._authorization):
            raise HttpError(
                401, "this needs the header `Authorization: Bearer TOKEN`", headers={"WWW-Authenticate": "Bearer"}
            )

    async def _health(self, request: web.Request) -> web.Response:
        return _json({"status": "ready", "inflight": self.metrics.inflight})

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self.metrics.exposition(), headers={"Content-Type": "text/plain; version=0.0.4"})


def _page(source: RouterSource, config: GatewayConfig) -> Page:
    return Page(LiveState(Fleet(RoutersFleet(source)), version=__version__, show_errors=config.show_errors))


def _json(value: Any) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")
