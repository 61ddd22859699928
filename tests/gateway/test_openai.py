"""OpenAI's routes, asked by OpenAI's own client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest

from dynamo_fast.gateway.responses import chat_request
from dynamo_fast.llm import ModelCard, ModelInput, ModelType
from tests.gateway.chats import USAGE, chats
from tests.gateway.conftest import Stage, staged
from tests.waiting import until

ALL = ModelType.Chat | ModelType.Completions | ModelType.Embedding


class Asker:
    """OpenAI's client, and what it asks most."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.client = openai.AsyncOpenAI(base_url=f"{stage.server.url}/v1", api_key="none", max_retries=0)

    async def chat(self, text: str, **options: Any) -> Any:
        messages: Any = [{"role": "user", "content": text}]
        return await self.client.chat.completions.create(**{"model": "m", "messages": messages, **options})

    async def response(self, text: Any, **options: Any) -> Any:
        return await self.client.responses.create(**{"model": "m", "input": text, **options})


@pytest.fixture
async def asker(tmp_path: Path) -> AsyncIterator[Asker]:
    async with staged(tmp_path, chats) as stage:
        await stage.worker.serve(chats, "a.b.m", model=ModelCard.text("m", model_type=ALL, aliases=["other"]))
        await stage.worker.serve(chats, "a.b.few", model=ModelCard.text("few", model_type=ModelType.Completions))
        await until(lambda: {"m", "few"} <= stage.routers.models().keys())
        asker = Asker(stage)
        try:
            yield asker
        finally:
            await asker.client.close()


# Models -------------------------------------------------------------------------------------------------------------


async def test_the_models_are_those_of_the_cards(asker: Asker) -> None:
    assert [each.id async for each in await asker.client.models.list()] == ["few", "m", "other"]
    assert (await asker.client.models.retrieve("m")).owned_by == "nvidia"
    with pytest.raises(openai.NotFoundError, match="the model 'x' is not known here"):
        await asker.client.models.retrieve("x")


async def test_a_model_that_takes_tokens_is_not_listed_and_says_why(asker: Asker, tmp_path: Path) -> None:
    card = ModelCard.text("tokens", model_input=ModelInput.Tensor)
    await asker.stage.worker.serve(chats, "a.b.tokens", model=card)
    await until(lambda: "tokens" in asker.stage.routers.models())
    assert "tokens" not in [each.id async for each in await asker.client.models.list()]
    with pytest.raises(openai.NotFoundError, match="ask Dynamo's frontend"):
        await asker.chat("hi", model="tokens")


async def test_a_model_whose_worker_has_gone_is_gone(asker: Asker) -> None:
    await asker.stage.worker.close()
    await until(lambda: not asker.stage.routers.models())
    with pytest.raises(openai.NotFoundError):
        await asker.chat("hi")


# Chats --------------------------------------------------------------------------------------------------------------


async def test_a_chat_streams(asker: Asker) -> None:
    stream = await asker.chat("hi", stream=True)
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "ab"
    assert stream.response.headers["content-type"] == "text/event-stream"
    assert stream.response.headers["x-request-id"]


async def test_a_chat_that_does_not_stream_is_folded(asker: Asker) -> None:
    answer = await asker.chat("hi")
    assert answer.model_dump(exclude_unset=True) == {
        "id": "my-id",
        "object": "chat.completion",
        "created": 7,
        "model": "m",
        "usage": USAGE,
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "logprobs": None,
                "message": {"role": "assistant", "content": "ab", "refusal": None},
            }
        ],
    }


async def test_choices_and_log_probabilities_are_put_together(asker: Asker) -> None:
    answer = await asker.chat("two", n=2)
    assert [each.message.content for each in answer.choices] == ["a0b0", "a1b1"]
    assert [each.token for each in answer.choices[1].logprobs.content] == ["a", "b"]
    assert answer.usage.total_tokens == 3


async def test_tool_calls_are_put_together(asker: Asker) -> None:
    (choice,) = (await asker.chat("tool")).choices
    (call,) = choice.message.tool_calls
    assert (call.id, call.function.name, call.function.arguments) == ("c1", "f", "{}")
    assert (choice.message.content, choice.finish_reason) == (None, "tool_calls")


async def test_a_whole_answer_of_the_worker_passes_through(asker: Asker) -> None:
    assert (await asker.chat("whole")).choices[0].message.content == "all of it"


async def test_no_item_is_an_answer_without_choices(asker: Asker) -> None:
    assert (await asker.chat("empty")).choices == []


@pytest.mark.parametrize("text", ["early", "late"])
async def test_an_error_of_a_chat_that_does_not_stream_is_a_status(asker: Asker, text: str) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        await asker.chat(text)
    assert raised.value.body == {"message": "Invalid request", "type": "invalid_request_error", "code": 400}


async def test_an_error_before_the_first_chunk_of_a_stream_is_a_status(asker: Asker) -> None:
    with pytest.raises(openai.BadRequestError):
        await asker.chat("early", stream=True)


async def test_an_error_after_the_first_chunk_is_raised_by_the_stream(asker: Asker) -> None:
    stream = await asker.chat("late", stream=True)
    assert (await anext(stream)).choices[0].delta.content == "x"
    with pytest.raises(openai.APIError, match="Invalid request"):
        await anext(stream)


async def test_an_item_that_is_no_chunk_is_an_error_of_the_worker(asker: Asker) -> None:
    with pytest.raises(openai.InternalServerError):
        await asker.chat("no chunk")


async def test_closing_a_stream_stops_the_worker(asker: Asker) -> None:
    stream = await asker.chat("hang", stream=True)
    await anext(stream)
    assert asker.stage.inflight == 1
    await stream.close()
    await until(lambda: asker.stage.inflight == 0)


async def test_the_worker_gets_what_the_client_sent(asker: Asker) -> None:
    stream = await asker.chat("request", stream=True, temperature=0.5, extra_body={"nvext": {"a": [1]}})
    seen = (await anext(stream)).model_dump()["seen"]
    assert seen == {
        "model": "m",
        "messages": [{"role": "user", "content": "request"}],
        "stream": True,
        "temperature": 0.5,
        "nvext": {"a": [1]},
    }


async def test_an_alias_is_a_name_of_the_model(asker: Asker) -> None:
    assert (await asker.chat("hi", model="other")).choices[0].message.content == "ab"


async def test_an_unknown_model_and_another_kind_of_request_are_404(asker: Asker) -> None:
    with pytest.raises(openai.NotFoundError, match="the model 'nobody' is not known here"):
        await asker.chat("hi", model="nobody")
    with pytest.raises(openai.NotFoundError, match="the model 'few' does not take such requests"):
        await asker.chat("hi", model="few")


# The other routes ---------------------------------------------------------------------------------------------------


async def test_completions(asker: Asker) -> None:
    answer = await asker.client.completions.create(model="m", prompt="p")
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("ab", "stop")
    stream = await asker.client.completions.create(model="m", prompt="p", stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == "ab"


async def test_embeddings(asker: Asker) -> None:
    answer = await asker.client.embeddings.create(model="m", input="x")
    assert answer.data[0].embedding == [0.5, 0.25]


async def test_a_response(asker: Asker) -> None:
    answer = await asker.response("hi", instructions="be nice", max_output_tokens=5)
    assert (answer.status, answer.output_text, answer.instructions) == ("completed", "ab", "be nice")
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (1, 2)


async def test_a_response_with_a_tool_call(asker: Asker) -> None:
    answer = await asker.response("tool")
    (call,) = answer.output
    assert (call.type, call.call_id, call.name, call.arguments) == ("function_call", "c1", "f", "{}")


async def test_a_response_that_is_cut_is_incomplete(asker: Asker) -> None:
    answer = await asker.response("long")
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        (
            "hi",
            "created in_progress output_item.added content_part.added output_text.delta output_text.delta "
            "output_text.done content_part.done output_item.done completed",
        ),
        (
            "tool",
            "created in_progress output_item.added function_call_arguments.delta function_call_arguments.delta "
            "function_call_arguments.done output_item.done completed",
        ),
        (
            "late",
            "created in_progress output_item.added content_part.added output_text.delta output_text.done "
            "content_part.done output_item.done failed",
        ),
        ("empty", "created in_progress completed"),
    ],
)
async def test_a_response_streams_the_events_that_the_real_frontend_sends(asker: Asker, text: str, kinds: str) -> None:
    events = [event async for event in await asker.response(text, stream=True)]
    assert [event.type for event in events] == [f"response.{kind}" for kind in kinds.split()]
    assert [event.sequence_number for event in events] == list(range(len(events)))


def test_a_request_for_a_response_is_a_chat_for_the_worker() -> None:
    tool = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": False}
    asked = [
        {
            "role": "user",
            "content": [{"type": "input_text", "text": "look"}, {"type": "input_image", "image_url": "u"}],
        },
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "1"},
        {"role": "user", "content": [{"type": "input_text", "text": "request"}]},
    ]
    assert chat_request(
        {
            "model": "m",
            "input": asked,
            "instructions": "be nice",
            "tools": [tool],
            "tool_choice": {"type": "function", "name": "f"},
            "text": {"format": {"type": "json_schema", "name": "s", "schema": {}}},
            "reasoning": {"effort": "low"},
            "max_output_tokens": 9,
        }
    ) == {
        "messages": [
            {"role": "system", "content": "be nice"},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "look"},
                    {"type": "image_url", "image_url": {"url": "u", "detail": "auto"}},
                ],
            },
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
            },
            {"role": "tool", "tool_call_id": "c", "content": "1"},
            {"role": "user", "content": "request"},
        ],
        "model": "m",
        "max_completion_tokens": 9,
        "stream": True,
        "stream_options": {"include_usage": True},
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, "strict": False}}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "reasoning_effort": "low",
        "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {}}},
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"previous_response_id": "r"}, "`previous_response_id` is not offered"),
        ({"background": True}, "`background` is not offered"),
        ({"tools": [{"type": "web_search"}]}, "only functions are offered"),
        ({"text": [{"type": "item_reference", "id": "x"}]}, "which is not offered"),
    ],
)
async def test_what_a_response_cannot_have_is_an_error_of_the_client(
    asker: Asker, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=message):
        await asker.response(**{"text": "hi", **options})


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("chat/completions", {"model": "m"}, "missing field `messages`"),
        ("chat/completions", {"messages": []}, "missing field `model`"),
        ("chat/completions", {"model": 3, "messages": []}, "`model` is 3: expected the name of a model"),
        ("chat/completions", [1], "the body is [1]: expected a JSON object"),
        ("completions", {"model": "m"}, "missing field `prompt`"),
        ("embeddings", {"model": "m"}, "missing field `input`"),
        ("responses", {"model": "m"}, "missing field `input`"),
    ],
)
async def test_a_request_that_lacks_something_is_told_what(asker: Asker, path: str, body: Any, message: str) -> None:
    async with asker.stage.post(body, f"/v1/{path}") as response:
        assert (response.status, (await response.json())["error"]["message"]) == (400, message)
