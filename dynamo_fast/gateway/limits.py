"""`Limits`: how many requests run at once, in all and for each client; `read_body`: how much one may send, and how slowly.

A client is an IP address, so behind a proxy all clients are one.
"""

from __future__ import annotations

import asyncio
from collections import Counter

from aiohttp import web

from dynamo_fast.config import GatewayConfig
from dynamo_fast.gateway.errors import HttpError
from dynamo_fast.wire.text import printable

__all__ = ["Limits", "read_body"]

_CLOSE = {"Connection": "close"}


class Limits:
    """Counts the requests of one application, on its event loop. It ends with the application."""

    def __init__(self, config: GatewayConfig) -> None:
        self.running = 0
        """Requests at once, now."""
        self.leaving = False
        """Whether the process ends: it takes no further request."""
        self._empty: asyncio.Future[None] | None = None
        self._most = config.max_requests
        self._most_per_client = config.max_requests_per_client
        self._per_client: Counter[str] = Counter()

    def enter(self, request: web.Request) -> str | None:
        """Take a place for one request, which `exit` gives back. Raises HttpError if there is none."""
        if self.leaving:
            raise HttpError(503, "the gateway is leaving: ask another one", headers=_CLOSE)
        if self.running >= self._most:
            raise HttpError(503, f"{self._most} requests run already: try again later")
        client = (request.remote or "") if self._most_per_client else None
        if client is not None:
            if self._per_client[client] >= self._most_per_client:
                raise HttpError(429, f"{self._most_per_client} requests of {client} run already: try again later")
            self._per_client[client] += 1
        self.running += 1
        return client

    def exit(self, client: str | None) -> None:
        """Give the place back: what `enter` returned."""
        self.running -= 1
        if self._empty is not None and not self.running and not self._empty.done():
            self._empty.set_result(None)
        if client is not None:
            self._per_client[client] -= 1
            if not self._per_client[client]:
                del self._per_client[client]

    async def leave(self, seconds: float) -> None:
        """Take no further request, and wait until none runs, for at most so long."""
        self.leaving = True
        if self.running:
            self._empty = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._empty], timeout=seconds)


async def read_body(request: web.Request, config: GatewayConfig) -> bytes:
    """The whole body. Raises HttpError: 413 if it is too long, 408 if it is late, 400 if it cannot be read."""
    limit = config.max_body
    if (request.content_length or 0) > limit:
        raise _too_long(limit)
    if not request.body_exists:
        return b""
    try:
        if request.content.is_eof():  # it came with the head
            body = request.content.read_nowait()
        else:
            body = await asyncio.wait_for(_read(request, limit), config.body_timeout)
    except asyncio.TimeoutError:
        message = f"the body did not come within {config.body_timeout:g} s"
        raise HttpError(408, message, headers=_CLOSE) from None
    except web.RequestPayloadError as error:  # wrong chunks, or not what Content-Encoding says
        raise HttpError(400, f"the body cannot be read: {printable(str(error))}", headers=_CLOSE) from None
    if len(body) > limit:
        raise _too_long(limit)
    return body


async def _read(request: web.Request, limit: int) -> bytes:
    parts = []
    size = 0
    async for part in request.content.iter_any():
        parts.append(part)
        size += len(part)
        if size > limit:
            raise _too_long(limit)
    return b"".join(parts)


def _too_long(limit: int) -> HttpError:
    return HttpError(413, f"the body has more than {limit} bytes", headers=_CLOSE)
