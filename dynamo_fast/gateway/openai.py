"""OpenAI's routes, for models whose workers take text: the request passes through, the chunks pass through raw.

    GET  /v1/models, /v1/models/NAME
    POST /v1/chat/completions, /v1/completions, /v1/embeddings, /v1/responses

Models are found by the cards in discovery (`ModelInput.Text`). A request that does not stream gets the chunks folded into
one answer, as Dynamo's frontend does it; one of `/v1/responses` reaches the worker as a chat.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from aiohttp import web

from dynamo_fast.config import GatewayConfig
from dynamo_fast.egress.push_router import PushRouter
from dynamo_fast.gateway.endpoints import parsed
from dynamo_fast.gateway.errors import HttpError
from dynamo_fast.gateway.exchange import Asked, Exchanges
from dynamo_fast.gateway.folding import Json, chat_completion, decoded, not_openai, text_completion
from dynamo_fast.gateway.forms import SSE
from dynamo_fast.gateway.limits import read_body
from dynamo_fast.gateway.responses import ResponseEvents, chat_request, response
from dynamo_fast.gateway.routers import RouterSource, ServedModel
from dynamo_fast.wire.text import shown

__all__ = ["OpenAi"]

_encode = msgspec.json.Encoder().encode
Fold = Callable[[Sequence[Json]], Json]


class OpenAi:
    """The routes. Owned by the application."""

    def __init__(self, source: RouterSource, config: GatewayConfig, exchanges: Exchanges) -> None:
        self._source = source
        self._config = config
        self._exchanges = exchanges
        self._started = int(time.time())

    async def models(self, request: web.Request) -> web.Response:
        """The models that can be asked."""
        found = self._served()
        return _json({"object": "list", "data": [self._described(name, found[name]) for name in sorted(found)]})

    async def model(self, request: web.Request) -> web.Response:
        """One of them."""
        name = request.match_info["name"]
        served = self._served().get(name)
        if served is None:
            raise _unknown(name)
        return _json(self._described(name, served))

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """`/v1/chat/completions`."""
        body = await self._body(request, "messages")
        return await self._completed(self._asked(request, body, "Chat"), chat_completion)

    async def completions(self, request: web.Request) -> web.StreamResponse:
        """`/v1/completions`."""
        body = await self._body(request, "prompt")
        return await self._completed(self._asked(request, body, "Completions"), text_completion)

    async def embeddings(self, request: web.Request) -> web.StreamResponse:
        """`/v1/embeddings`: the worker's one item is the answer."""
        body = await self._body(request, "input")
        items, headers = await self._exchanges.collect(self._asked(request, body, "Embedding"))
        if len(items) != 1:
            raise not_openai(f"{len(items)} items, expected 1")
        return await self._exchanges.whole(request, items[0], {**headers, "Content-Type": "application/json"})

    async def responses(self, request: web.Request) -> web.StreamResponse:
        """`/v1/responses`: a chat for the worker."""
        body = await self._body(request, "input")
        asked = self._asked(request, chat_request(body), "Chat")
        if body.get("stream"):
            return await self._exchanges.stream(asked, ResponseEvents(body))
        items, headers = await self._exchanges.collect(asked)
        return _json(response(body, chat_completion(decoded(items))), headers)

    async def _completed(self, asked: Asked, fold: Fold) -> web.StreamResponse:
        if asked.body.get("stream"):
            return await self._exchanges.stream(asked, SSE)
        items, headers = await self._exchanges.collect(asked)
        return _json(fold(decoded(items)), headers)

    async def _body(self, request: web.Request, needed: str) -> Json:
        """The request's object, which has the name of a model and the field `needed`. Raises HttpError."""
        body = parsed(await read_body(request, self._config))
        if not isinstance(body, dict):
            raise HttpError(400, f"the body is {shown(body)}: expected a JSON object")
        for name in ("model", needed):
            if name not in body:
                raise HttpError(400, f"missing field `{name}`")
        if not isinstance(body["model"], str):
            raise HttpError(400, f"`model` is {shown(body['model'])}: expected the name of a model")
        return body

    def _asked(self, request: web.Request, body: Json, flag: str) -> Asked:
        """The request, for a worker that has the model and takes such requests. Raises HttpError."""
        name: str = body["model"]
        places = self._source.find_model(name)
        if not places:
            raise _unknown(name)
        places = [each for each in places if each.card.model_input == "Text"]
        if not places:
            raise HttpError(404, f"the model {shown(name)} takes tokens: ask Dynamo's frontend for it")
        places = [each for each in places if flag in each.card.flags]
        if not places:
            raise HttpError(404, f"the model {shown(name)} does not take such requests")
        found = [(each, router) for each in places if (router := self._source.find(each.endpoint)) is not None]
        if not found:
            raise HttpError(503, f"no instance serves the model {shown(name)} now")
        place, router = found[0] if len(found) == 1 else min(found, key=lambda each: _load(each[1]))
        return Asked(request, place.endpoint, router, body, name)

    def _served(self) -> dict[str, ServedModel]:
        return {
            name: places[0]
            for name, all_places in self._source.models().items()
            if (places := [each for each in all_places if self._is_served(each)])
        }

    def _is_served(self, place: ServedModel) -> bool:
        return place.card.model_input == "Text" and self._source.find(place.endpoint) is not None

    def _described(self, name: str, served: ServedModel) -> Any:
        length = served.card.effective_context_length()
        common = {"id": name, "object": "model", "created": self._started}
        return {**common, "owned_by": "nvidia", "context_window": length}


def _load(router: PushRouter) -> int:
    return sum(entry.in_flight for entry in router.table)


def _unknown(name: str) -> HttpError:
    return HttpError(404, f"the model {shown(name)} is not known here")


def _json(value: Any, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(body=_encode(value), content_type="application/json", headers=headers)
