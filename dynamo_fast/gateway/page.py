"""`Page`: a gateway in a browser. `GET /` is the page, `GET /_state` and `GET /_events` are what it shows.

`/_state` is one `Snapshot` as JSON. `/_events` is a stream of server-sent events: first `state`, a whole snapshot, then a
`tick` each second, a snapshot with the newest sample only. Both show names of endpoints, addresses of workers and texts of
errors: they are routes for clients that may call. The page itself holds no data, and its script asks for the token.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from functools import cache
from importlib import resources

import msgspec
from aiohttp import web

from dynamo_fast.gateway.errors import HttpError
from dynamo_fast.gateway.state import LiveState, Snapshot

__all__ = ["EVENTS_PATH", "PAGE_PATH", "STATE_PATH", "Page", "html", "security_headers"]

PAGE_PATH, STATE_PATH, EVENTS_PATH = "/", "/_state", "/_events"

MAX_VIEWERS = 64
"""Streams of events at once. Further ones get 503."""
_WRITE_SECONDS = 15.0
"""A viewer that takes nothing for so long is disconnected."""


@cache
def html() -> bytes:
    """The page: HTML, styles and script in one file."""
    return resources.files("dynamo_fast.gateway").joinpath("static", "index.html").read_bytes()


@cache
def security_headers() -> dict[str, str]:
    """What a browser must not do on the page: load or run anything that is not in the file, or be framed by others."""
    text = html().decode()
    policy = {
        "default-src": "'none'",
        "script-src": _hash_of("script", text),
        "style-src": _hash_of("style", text),
        "img-src": "data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",  # a text that would become HTML is an error
    }
    return {
        "content-security-policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }


def _hash_of(tag: str, text: str) -> str:
    (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


class Page:
    """The routes of the page, and the streams to those who look at it. Owned by the gateway's application.

    Nothing is encoded without viewers; one encoding of a tick serves all. The streams end when the state is closed.
    """

    def __init__(self, state: LiveState, *, max_viewers: int = MAX_VIEWERS) -> None:
        self.state = state
        self.viewers = 0
        """Streams of events that are open."""
        self._max_viewers = max_viewers
        self._tick = b""
        self._tick_at = -1.0

    def pages(self) -> list[web.RouteDef]:
        """What everyone may see."""
        return [web.get(PAGE_PATH, self.answer_page)]

    def routes(self) -> list[web.RouteDef]:
        """What those may see who may send requests."""
        return [web.get(STATE_PATH, self.answer_state), web.get(EVENTS_PATH, self.answer_events)]

    def live_with(self, application: web.Application) -> None:
        """Start and close the state with `application`."""
        application.on_startup.append(self._start)
        application.on_shutdown.append(self._close)  # before the server waits for its connections

    async def answer_page(self, request: web.Request) -> web.StreamResponse:
        """`GET /`."""
        etag = hashlib.sha256(html()).hexdigest()[:32]
        response = web.Response(body=html(), content_type="text/html", charset="utf-8", headers=security_headers())
        response.etag = etag
        if any(each.value == etag for each in request.if_none_match or ()):
            response.body = None
            response.set_status(304)
        else:
            response.enable_compression()
        return response

    async def answer_state(self, request: web.Request) -> web.Response:
        """`GET /_state`."""
        return web.Response(
            body=msgspec.json.encode(self.state.snapshot()),
            content_type="application/json",
            headers={"cache-control": "no-store", "x-content-type-options": "nosniff"},
        )

    async def answer_events(self, request: web.Request) -> web.StreamResponse:
        """`GET /_events`, until the viewer goes or the state is closed. Raises HttpError for one viewer too many."""
        if self.viewers >= self._max_viewers:
            raise HttpError(503, f"{self.viewers} streams of events are open: the limit is {self._max_viewers}")
        response = web.StreamResponse(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        response.content_type = "text/event-stream"
        self.viewers += 1
        try:
            await response.prepare(request)
            await self._stream(response)
        except (ConnectionError, asyncio.TimeoutError):
            pass  # the viewer has gone, or takes nothing
        finally:
            self.viewers -= 1
        return response

    async def _stream(self, response: web.StreamResponse) -> None:
        await _write(response, _event("state", self.state.snapshot()))
        while not self.state.is_closed:
            await self.state.next_sample()
            if not self.state.is_closed:
                await _write(response, self._latest())

    def _latest(self) -> bytes:
        """The tick of the last sample, encoded once for all viewers."""
        at = self.state.samples[-1].at if self.state.samples else 0.0
        if at != self._tick_at:
            self._tick_at, self._tick = at, _event("tick", self.state.snapshot(history=1))
        return self._tick

    async def _start(self, _: web.Application) -> None:
        self.state.start()

    async def _close(self, _: web.Application) -> None:
        self.state.close()


def _event(name: str, snapshot: Snapshot) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), msgspec.json.encode(snapshot))


async def _write(response: web.StreamResponse, data: bytes) -> None:
    await asyncio.wait_for(response.write(data), _WRITE_SECONDS)
