"""What a program sees of `dynamo.llm`: plain data for model cards, parsers, whole answers."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator
from typing import Any

from process import Api, attempt, eventually  # type: ignore[import-not-found]

Facts = dict[str, Any]


async def media(api: Api) -> Facts:
    decoder, fetcher = api.MediaDecoder(), api.MediaFetcher()
    limits: list[Any] = [
        *({}, {"max_image_width": 10, "max_image_height": 20, "max_alloc": 30}, {"max_alloc": None}, None, 5),
        *({"nope": 1}, {"max_alloc": -1}, {"max_alloc": "x"}, {"max_alloc": 1.5}, {"max_image_width": 1 << 32}),
    ]
    options: list[Any] = [{}, {"nope": 1}, {"limits": {}, "x": 1}, 5, None, *({"limits": each} for each in limits)]
    return {
        "decoder": [attempt(lambda each=each: decoder.enable_image(each)) for each in options],
        "by name": decoder.enable_image(decoder_options={}),
        "fetcher": [
            fetcher.user_agent(user_agent="me"),
            fetcher.allow_direct_ip(allow=True),
            fetcher.allow_direct_port(False),
            fetcher.allow_private_ips(True),
            fetcher.allowed_media_domains(domains=["a.b", "c.d"]),
            fetcher.timeout_ms(timeout_ms=5),
        ],
        "fetcher, wrong": [
            attempt(lambda: fetcher.user_agent(5)),
            attempt(lambda: fetcher.allow_direct_ip(1)),
            attempt(lambda: fetcher.allowed_media_domains("a.b")),
            attempt(lambda: fetcher.allowed_media_domains({"a.b"})),
            *(attempt(lambda each=each: fetcher.timeout_ms(each)) for each in (-1, 1.5, "5")),
        ],
    }


async def parsers(api: Api) -> Facts:
    return {"tools": sorted(api.get_tool_parser_names()), "reasoning": sorted(api.get_reasoning_parser_names())}


async def whole_answers(api: Api) -> Facts:
    module = importlib.import_module(f"{api.module.__name__.partition('.')[0]}.llm")
    runtime = api.runtime()

    async def generate(request: Any) -> AsyncIterator[Any]:
        for item in request["items"]:
            yield item

    serving = runtime.endpoint("compat.llm.a").serve_endpoint(generate)
    client = await asyncio.wait_for(module.LLMUnaryClient.connect(runtime, "compat.llm.a"), 10)

    async def answered(*items: Any, **request: Any) -> Any:
        return await eventually(lambda: client.complete({"items": list(items), **request}, context=api.Context()))

    first = {"index": 0, "token_ids": [1, 2], "text": "first"}
    last = {"index": 0, "token_ids": [3], "finish_reason": "stop", "more": {"a": 1}}
    facts: Facts = {
        "several items": await answered(first, first, last),
        "one item": await answered(last),
        "n is 1": await answered(last, sampling_options={"n": 1}, output_options={"logprobs": None}),
        "no items": await answered(),
        "no end": await answered(first),
        "after the end": await answered(last, first),
        "no object": await answered("text"),
        "a request of another type": await eventually(lambda: client.complete([1])),
    }
    for name, changed in (
        ("another index", {"index": 1}),
        ("no index", {"index": None}),
        ("token ids, a text", {"token_ids": "1"}),
        ("token ids, a truth", {"token_ids": [True]}),
        ("log probabilities", {"log_probs": None}),
        ("top log probabilities", {"top_logprobs": []}),
        ("an end of another type", {"finish_reason": 5}),
        ("an empty end", {"finish_reason": ""}),
    ):
        facts[name] = await answered({**last, **changed})
    for option in ({"sampling_options": {"n": 2}}, {"sampling_options": 5}, {"output_options": None}):
        facts[f"with {option}"] = await answered(last, **option)
    for option in ({"output_options": {"logprobs": 1}}, {"output_options": {"prompt_logprobs": 0}}):
        facts[f"with {option}"] = await answered(last, **option)
    for name, completion, values in (
        ("new", {"a": 1}, {"b": 2}),
        ("more", {"engine_data": {"a": 1}}, {"b": 2, "c": 3}),
        ("nothing", {"engine_data": 5}, {}),
        ("the same key", {"engine_data": {"b": 1, "a": 1}}, {"b": 2, "a": 1, "c": 3}),
        ("engine data of another type", {"engine_data": 5}, {"b": 2}),
        ("values of another type", {}, [1]),
        ("no completion", 5, {}),
    ):
        facts[f"engine data, {name}"] = attempt(
            lambda completion=completion, values=values: module.with_engine_data(completion, values)
        )
    runtime.shutdown()
    del serving
    return facts
