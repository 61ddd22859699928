"""`StatusServer`: health, metrics and engine routes of a process over HTTP (runtime.md 5.3, 5.4). On aiohttp."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dynamo_fast.config import StatusConfig
from dynamo_fast.errors import InvalidConfig, PayloadError
from dynamo_fast.logs import get_logger
from dynamo_fast.net.addresses import resolve
from dynamo_fast.net.listener import listening_socket
from dynamo_fast.net.sockets import close_in_forked_children
from dynamo_fast.wire.address import join_host_port
from dynamo_fast.wire.payload import PayloadCodec

if TYPE_CHECKING:
    from aiohttp import web

__all__ = ["METADATA_PATH", "EngineRoute", "Health", "StatusServer"]

logger = get_logger(__name__)

_BACKLOG = 128
_MAX_BODY = 2 * 1024 * 1024
"""The largest body that an engine route takes, in bytes; Dynamo's limit."""

METADATA_PATH = "/v1/metadata/"
"""The beginning of the path of each file of a model card, as Dynamo 1.6 has it."""

EngineRoute = Callable[[Any], Awaitable[Any]]


class Health(NamedTuple):
    """Whether the process is well, and which of its endpoints are ready."""

    ready: bool
    endpoints: dict[str, bool]


class StatusServer:
    """Listens from the moment that it is made; answers on the event loop once `start` was called there.

    Raises OSError if the port is taken or the host is unknown, InvalidConfig without aiohttp or for a host that is none.
    """

    def __init__(
        self,
        config: StatusConfig,
        health: Callable[[], Health],
        metrics: Callable[[], bytes],
        metadata: Callable[[], bytes | None],
    ) -> None:
        try:
            import aiohttp  # noqa: F401  # said now, not when the first request comes
        except ImportError as error:
            raise InvalidConfig("DYN_SYSTEM_PORT needs aiohttp: pip install 'dynamo-fast[status]'") from error
        self.engine_routes: dict[str, EngineRoute] = {}
        self.files: dict[str, Path] = {}
        """The files that it serves, by the path of their URL. No other file is ever read."""
        self._config = config
        self._health = health
        self._metrics = metrics
        self._metadata = metadata
        self._started = time.monotonic()
        listening = resolve(config.host, "DYN_SYSTEM_HOST", names=True)
        self._socket = listening_socket(listening.bind_ip, config.port, _BACKLOG)
        self.address = join_host_port(listening.advertised_ip, self._socket.getsockname()[1])
        """Where others reach it, `IP:PORT`."""
        self._runner: web.AppRunner | None = None
        self._starting: asyncio.Task[None] | None = None
        close_in_forked_children(self)

    def open_sockets(self) -> Iterable[int]:
        """See SocketHolder."""
        return [self._socket.fileno()]

    def start(self) -> None:
        """Answer from now on."""
        if self._starting is None:
            self._starting = asyncio.get_running_loop().create_task(self._start())

    async def close(self) -> None:
        """Stop listening; may be called twice. The port is free although this is cancelled."""
        try:
            if self._starting is not None:
                await self._starting
            if self._runner is not None:
                await self._runner.cleanup()
        finally:
            self._socket.close()

    async def _start(self) -> None:
        from aiohttp import web

        application = web.Application(client_max_size=_MAX_BODY)
        for path in dict.fromkeys((self._config.health_path, self._config.live_path)):
            application.router.add_get(path, self._answer_health)
        application.router.add_get("/metrics", self._answer_metrics)
        application.router.add_get("/metadata", self._answer_metadata)
        application.router.add_get(METADATA_PATH + "{name:.+}", self._answer_file)
        application.router.add_route("*", "/engine/{name:.+}", self._answer_engine)
        application.router.add_route("*", "/{path:.*}", self._answer_nothing)
        self._runner = web.AppRunner(application, access_log=None)
        await self._runner.setup()
        await web.SockSite(self._runner, self._socket).start()

    async def _answer_health(self, request: web.Request) -> web.Response:
        health = self._health()
        seconds, nanoseconds = divmod(int((time.monotonic() - self._started) * 1e9), 1_000_000_000)
        body = {
            "status": _word(health.ready),
            "uptime": {"secs": seconds, "nanos": nanoseconds},
            "endpoints": {name: _word(ready) for name, ready in health.endpoints.items()},
        }
        return _text(_compact(body), 200 if health.ready else 503)

    async def _answer_metrics(self, request: web.Request) -> web.Response:
        return _text(self._metrics().decode(), 200)

    async def _answer_metadata(self, request: web.Request) -> web.Response:
        metadata = self._metadata()
        return _text("Discovery metadata not available", 404) if metadata is None else _text(metadata.decode(), 200)

    async def _answer_file(self, request: web.Request) -> web.StreamResponse:
        """The file whose whole path is known: parts of a path are never joined to a folder."""
        from aiohttp import web

        path = self.files.get(request.path)
        if path is None or not path.is_file():
            return _text("Metadata file not found", 404)
        return web.FileResponse(path)

    async def _answer_nothing(self, request: web.Request) -> web.Response:
        known = request.path in (self._config.health_path, self._config.live_path, "/metrics", "/metadata")
        return _text("", 405) if known else _text("Route not found", 404)

    async def _answer_engine(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        callback = self.engine_routes.get(name)
        if callback is None:
            return _error("Route not found", f"Route /engine/{name} not found", 404)
        if request.method != "POST":
            message = f"engine routes take POST, not {request.method}"
            return _error("Method not allowed", message, 405, allow="POST")
        # A web page may send a form or plain text to any address without asking, but not JSON: the browser asks first.
        if _is_of_a_browser(request) and request.content_type.lower() != "application/json":
            given = request.headers.get("content-type", "")
            message = f"engine routes take application/json from a browser, not {given!r}"
            return _error("Unsupported media type", message, 415)
        body = await request.read()
        try:
            value = PayloadCodec.JSON.decode(body) if body else {}
        except PayloadError as error:
            return _error("Invalid JSON", str(error), 400)
        try:
            return _text(PayloadCodec.JSON.encode(await callback(value)).decode(), 200)
        except Exception as error:
            logger.warning("the engine route %s failed", name, exc_info=error)
            return _error("Handler error", f"Python callback failed: {type(error).__name__}: {error}", 500)


def _is_of_a_browser(request: web.Request) -> bool:
    """Whether a browser sends this for a page: it names the page in each POST, which the page cannot prevent."""
    return "Origin" in request.headers or "Sec-Fetch-Site" in request.headers


def _word(ready: bool) -> str:
    return "ready" if ready else "notready"


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _error(error: str, message: str, status: int, **headers: str) -> web.Response:
    return _text(_compact({"error": error, "message": message}), status, **headers)


def _text(text: str, status: int, **headers: str) -> web.Response:
    from aiohttp import web

    # An error may quote a lone surrogate.
    body = text.encode(errors="backslashreplace")
    return web.Response(body=body, status=status, headers={"content-type": "text/plain; charset=utf-8", **headers})
