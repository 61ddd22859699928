"""`POST /{namespace}/{component}/{endpoint}`: any endpoint, any JSON value; and `GET /v1/endpoints`."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from dynamo_fast.config import GatewayConfig
from dynamo_fast.errors import PayloadError
from dynamo_fast.gateway.errors import HttpError
from dynamo_fast.gateway.exchange import Asked, Exchanges
from dynamo_fast.gateway.forms import NDJSON, SSE, Form
from dynamo_fast.gateway.limits import read_body
from dynamo_fast.gateway.routers import RouterSource
from dynamo_fast.wire.address import EndpointId
from dynamo_fast.wire.payload import PayloadCodec
from dynamo_fast.wire.text import printable

__all__ = ["Endpoints", "parsed"]


class Endpoints:
    """The route of plain endpoints. Owned by the application."""

    def __init__(self, source: RouterSource, config: GatewayConfig, exchanges: Exchanges) -> None:
        self._source = source
        self._config = config
        self._exchanges = exchanges

    async def post(self, request: web.Request) -> web.StreamResponse:
        """Call the endpoint. The answer is a stream of events; `Accept` may ask for NDJSON or for one JSON array."""
        endpoint = EndpointId(*(request.match_info[part] for part in ("namespace", "component", "endpoint")))
        router = self._source.find(endpoint)
        if router is None:
            raise HttpError(404, f"no instance serves {printable('.'.join(endpoint))}")
        asked = Asked(request, endpoint, router, parsed(await read_body(request, self._config)))
        form = _form(request)
        if form is not None:
            return await self._exchanges.stream(asked, form)
        items, headers = await self._exchanges.collect(asked)
        body = b"[%b]" % b",".join(items)
        return await self._exchanges.whole(request, body, {**headers, "Content-Type": "application/json"})

    async def list(self, request: web.Request) -> web.Response:
        """The endpoints, and the ids of their instances."""
        found = {
            ".".join(endpoint): [f"{each.instance_id:x}" for each in instances]
            for endpoint, instances in self._source.endpoints().items()
        }
        return web.Response(body=msgspec.json.encode({"endpoints": found}), content_type="application/json")


def parsed(body: bytes) -> Any:
    """The JSON value of a body; None for an empty one. Raises HttpError."""
    if not body:
        return None
    try:
        return PayloadCodec.JSON.decode(body)
    except PayloadError as error:
        raise HttpError(400, f"the body is not JSON: {error}") from None


def _form(request: web.Request) -> Form | None:
    """What `Accept` asks for; None: one JSON array."""
    accept = request.headers.get("Accept")
    if accept is None or SSE.content_type in accept:
        return SSE
    if NDJSON.content_type in accept:
        return NDJSON
    return None if "application/json" in accept else SSE
