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
from pathlib import Path

import msgspec
from aiohttp import web

from dynamo_fast import __version__
from dynamo_fast.config import GatewayConfig
from dynamo_fast.gateway.browsers import refuse_other_sites, refuse_rebound
from dynamo_fast.gateway.cors import Cors
from dynamo_fast.gateway.endpoints import Endpoints
from dynamo_fast.gateway.errors import HttpError
from dynamo_fast.gateway.exchange import Exchanges
from dynamo_fast.gateway.fleet import Fleet, RoutersFleet
from dynamo_fast.gateway.limits import Limits
from dynamo_fast.gateway.metrics import GatewayMetrics
from dynamo_fast.gateway.observer import Guarded, Observer
from dynamo_fast.gateway.openai import OpenAi
from dynamo_fast.gateway.page import Page
from dynamo_fast.gateway.routers import PermittedRouters, RouterSource
from dynamo_fast.gateway.shares import Shares
from dynamo_fast.gateway.state import LiveState
from dynamo_fast.wire.text import printable

__all__ = ["GATEWAY", "Gateway", "app"]

_encode = msgspec.json.Encoder().encode


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def app(
    source: RouterSource,
    config: GatewayConfig | None = None,
    *,
    observers: Sequence[Observer] = (),
    routes: Sequence[web.RouteDef] = (),
    pages: Sequence[web.RouteDef] = (),
    shared: Path | None = None,
) -> web.Application:
    """The application: `web.run_app(app(routers), handler_cancellation=True)`, or `other.add_subapp("/prefix", ...)`.

    `source` says which endpoints and models there are (`Routers`), and stays the caller's; `config` is by default what
    the environment says. `observers` are told of every request to an endpoint. `routes` are added for clients that may
    call, `pages` for everyone: what is served there must hold no secrets. `shared` is an existing folder of all processes
    that serve the same port: the page of each then shows what all of them do. Call it on the event loop.

    The server must cancel handlers whose clients have gone (`handler_cancellation`): otherwise a worker hears of that
    only with its next item.
    """
    config = config or GatewayConfig.from_env()
    if config.permitted:
        source = PermittedRouters(source, config.permitted)
    observers = [Guarded(each) for each in observers]
    application = web.Application()
    if config.page:
        page = Page(_state(source, config, shared))
        page.live_with(application)
        observers, routes, pages = [page.state, *observers], [*page.routes(), *routes], [*page.pages(), *pages]
    gateway = Gateway(source, config, observers)
    application[GATEWAY] = gateway
    gateway.add_routes(application, routes, pages)
    return application


def _state(source: RouterSource, config: GatewayConfig, shared: Path | None) -> LiveState:
    others = None if shared is None else Shares(shared)
    fleet = Fleet(RoutersFleet(source))
    return LiveState(fleet, version=__version__, show_errors=config.show_errors, others=others)


class Gateway:
    """The parts of one application, and its routes. It ends with the application, which owns it."""

    def __init__(self, source: RouterSource, config: GatewayConfig, observers: Sequence[Observer]) -> None:
        self.metrics = GatewayMetrics()
        self.limits = Limits(config)
        """Which requests run."""
        self.is_local = False
        """Whether only this machine can reach it: the server says so."""
        self.exchanges = Exchanges(config, [self.metrics, *observers])
        self._authorization = f"Bearer {config.token}".encode() if config.token else None
        self._cors = Cors(config.cors) if config.cors else None
        self._endpoints = Endpoints(source, config, self.exchanges)
        self._openai = OpenAi(source, config, self.exchanges)

    async def life(self, application: web.Application) -> AsyncIterator[None]:
        """See aiohttp's `cleanup_ctx`."""
        yield
        self.exchanges.close()

    def add_routes(
        self, application: web.Application, routes: Sequence[web.RouteDef], pages: Sequence[web.RouteDef]
    ) -> None:
        """Every route, and what is answered to other methods and paths."""
        application.cleanup_ctx.append(self.life)
        if self._cors is not None:
            application.on_response_prepare.append(self._cors.add_headers)
        endpoints, openai = self._endpoints, self._openai
        table: list[tuple[str, str, Handler]] = [
            ("GET", "/health", self._health),
            ("GET", "/metrics", self._allowed(self._metrics)),
            ("GET", "/v1/endpoints", self._allowed(endpoints.list)),
            ("GET", "/v1/models", self._allowed(openai.models)),
            ("GET", "/v1/models/{name:.+}", self._allowed(openai.model)),
            ("POST", "/v1/chat/completions", self._limited(openai.chat)),
            ("POST", "/v1/completions", self._limited(openai.completions)),
            ("POST", "/v1/embeddings", self._limited(openai.embeddings)),
            ("POST", "/v1/responses", self._limited(openai.responses)),
            *((page.method, page.path, page.handler) for page in pages),
            *((route.method, route.path, self._allowed(route.handler)) for route in routes),
            ("POST", "/{namespace}/{component}/{endpoint}", self._limited(endpoints.post)),
        ]
        for method, path, handler in table:
            application.router.add_route(method, path, handler)
        methods: dict[str, set[str]] = {}
        for method, path, _ in table:
            methods.setdefault(path, set()).add(method)
        for path, known in methods.items():
            application.router.add_route("*", path, self._of_another_method(", ".join(sorted(known))))
        application.router.add_route("*", "/{path:.*}", self._unknown)

    def _allowed(self, handler: Handler) -> Handler:
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
                place = self.limits.enter(request)
                try:
                    return await handler(request)
                finally:
                    self.limits.exit(place)
            except HttpError as error:
                return error.response()

        return answer

    def _authorize(self, request: web.Request) -> None:
        if self._authorization is None:
            if self.is_local:
                refuse_rebound(request)
            if request.method == "POST":
                refuse_other_sites(request)
            return
        given = request.headers.get("Authorization", "").encode(errors="surrogateescape")
        if not hmac.compare_digest(given, self._authorization):
            message = "this needs the header `Authorization: Bearer TOKEN`"
            raise HttpError(401, message, headers={"WWW-Authenticate": "Bearer"})

    # What is not an endpoint --------------------------------------------------------------------------------------

    async def _health(self, request: web.Request) -> web.Response:
        leaving = self.limits.leaving
        body = {"status": "notready" if leaving else "ready", "inflight": self.limits.running}
        return web.Response(body=_encode(body), status=503 if leaving else 200, content_type="application/json")

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self.metrics.exposition(), headers={"Content-Type": "text/plain; version=0.0.4"})

    def _of_another_method(self, known: str) -> Handler:
        async def answer(request: web.Request) -> web.StreamResponse:
            question = None if self._cors is None else self._cors.preflight(request)
            if question is not None:
                return question
            message = f"{request.method} is not offered here: expected {known}"
            return HttpError(405, message, headers={"Allow": known}).response()

        return answer

    async def _unknown(self, request: web.Request) -> web.Response:
        return HttpError(404, f"nothing is at {printable(request.path)}").response()


GATEWAY = web.AppKey("gateway", Gateway)
"""Where the application keeps its parts."""
