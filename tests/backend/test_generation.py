"""What becomes of a request before the engine, and of its chunks after it. The texts are those of Dynamo 1.6.1."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from dynamo_fast.backend.generation import raw_handler, token_handler
from dynamo_fast.context import Context


class Engine:
    """Yields what it was made with, and keeps the request."""

    def __init__(self, *chunks: Any) -> None:
        self._chunks = chunks
        self.request: Any = None
        self.closed = False

    async def generate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.request = request
        try:
            for chunk in self._chunks:
                yield chunk
        finally:
            self.closed = True


async def chunks_of(engine: Engine, request: Any, *, raw: bool = False) -> list[Any]:
    handler = (raw_handler if raw else token_handler)(engine)
    return [chunk async for chunk in handler(request, context=Context())]


async def test_an_engine_finds_every_option_in_a_request() -> None:
    engine = Engine()
    await chunks_of(
        engine, {"token_ids": [1], "stop_conditions": {"max_tokens": 3}, "sampling_options": None, "mine": 1}
    )
    request = engine.request
    assert (request["token_ids"], request["model"], request["mine"]) == ([1], "", 1)
    assert (request["stop_conditions"]["max_tokens"], request["stop_conditions"]["ignore_eos"]) == (3, None)
    assert request["sampling_options"]["guided_decoding"] is None
    assert request["output_options"]["logprobs"] is None


@pytest.mark.parametrize("request_", ["text", None, {}, {"token_ids": None}])
async def test_what_is_no_request_for_tokens_is_refused(request_: Any) -> None:
    engine = Engine()
    with pytest.raises(ValueError, match="expected an object with a list of `token_ids`"):
        await chunks_of(engine, request_)
    assert engine.request is None


async def test_a_raw_engine_gets_the_request_and_yields_as_it_likes() -> None:
    engine = Engine("text", {"finish_reason": "mine"}, None)
    assert await chunks_of(engine, "a prompt", raw=True) == ["text", {"finish_reason": "mine"}, None]
    assert engine.request == "a prompt"


async def test_the_first_finish_reason_ends_the_answer() -> None:
    last = {"token_ids": [2], "finish_reason": "stop"}
    engine = Engine({"token_ids": [1]}, last, {"token_ids": [3]})
    assert await chunks_of(engine, {"token_ids": []}) == [{"token_ids": [1]}, last]
    assert engine.closed


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("stop", "stop"),
        ("abort", "cancelled"),
        ("error", {"error": "backend emitted finish_reason=error without a message"}),
        ({"error": "mine"}, {"error": "mine"}),
    ],
)
async def test_finish_reasons_that_frontends_know(given: Any, sent: Any) -> None:
    chunk = {"token_ids": [1], "finish_reason": given}
    assert await chunks_of(Engine(chunk), {"token_ids": []}) == [{"token_ids": [1], "finish_reason": sent}]
    assert chunk["finish_reason"] == given


@pytest.mark.parametrize(
    ("chunk", "text"),
    [
        ("text", "invalid chunk shape: unexpected type: 'str' object cannot be converted to 'Mapping'"),
        ({"index": 0}, "invalid chunk shape: missing field `token_ids`"),
        ({"token_ids": [], "finish_reason": "zzz"}, "invalid chunk shape: Invalid FinishReason variant: 'zzz'"),
        (
            {"token_ids": [], "finish_reason": "stop", "completion_usage": {"prompt_tokens": 1}},
            "invalid chunk shape: completion_usage needs the numbers prompt_tokens, completion_tokens, total_tokens",
        ),
    ],
)
async def test_a_chunk_that_frontends_cannot_read_is_an_error_of_the_engine(chunk: Any, text: str) -> None:
    engine = Engine(chunk)
    with pytest.raises(ValueError) as raised:  # noqa: PT011  # the text is compared below
        await chunks_of(engine, {"token_ids": []})
    assert str(raised.value) == text
    assert engine.closed
