"""Whole answers of a model, for programs that do not stream: `LLMUnaryClient`, `UnaryChatModel`, `with_engine_data`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dynamo_fast.llm.kinds import ModelInput, ModelType, WorkerType
from dynamo_fast.llm.registration import register_model
from dynamo_fast.runtime.client import Client
from dynamo_fast.runtime.context import Context
from dynamo_fast.runtime.distributed import DistributedRuntime
from dynamo_fast.runtime.unary import serve_unary_endpoint

__all__ = ["LLMUnaryClient", "RoutedEngine", "UnaryChatModel", "with_engine_data"]


class RoutedEngine(Protocol):
    """What Dynamo's frontend hands to an engine factory: something that answers a request with a stream."""

    async def generate(self, request: Any, **kwargs: Any) -> AsyncIterator[Any]:
        """The items of the answer."""


@dataclass(frozen=True)
class UnaryChatModel:
    """A chat model whose handler returns one whole answer."""

    model_path: str
    """The model folder."""
    service_name: str
    """The model is served at the endpoint `<service_name>.app.generate`."""
    public_model_name: str | None = None
    """The name in requests; by default `service_name`."""
    chat_template: Path | None = None
    """A chat template in place of the folder's."""

    async def serve(self, runtime: DistributedRuntime, handler: Callable[..., Awaitable[Any]]) -> None:
        """Publish the model, and serve it with `await handler(request, context=context)` until the runtime shuts down.

        Raises what `register_model` raises.
        """
        endpoint = runtime.endpoint(f"{self.service_name}.app.generate")
        await register_model(
            ModelInput.Tokens,
            ModelType.Chat,
            endpoint,
            self.model_path,
            model_name=self.public_model_name or self.service_name,
            custom_template_path=None if self.chat_template is None else str(self.chat_template),
            worker_type=WorkerType.Aggregated,
            ignore_weights=True,
        )
        await serve_unary_endpoint(endpoint, handler)


class LLMUnaryClient:
    """Calls of a model that collect the whole answer. It wraps a `Client`, and has no state of its own."""

    def __init__(self, client: Client) -> None:
        self._client = client

    @classmethod
    async def connect(cls, runtime: DistributedRuntime, endpoint_name: str) -> LLMUnaryClient:
        """A client of that endpoint, as soon as it has an instance. Waits without a limit."""
        client = await runtime.endpoint(endpoint_name).client()
        await client.wait_for_instances()
        return cls(client)

    async def complete(self, request: Mapping[str, Any], *, context: Context | None = None) -> dict[str, Any]:
        """The last item of the answer to a preprocessed request, with the token ids of all items.

        Raises ValueError for a request that wants several choices or log probabilities, RuntimeError for an answer that is
        not one choice with token ids and an end, and what the call raises.
        """
        _check_request(request)
        return await _collect(await self._client.round_robin(request, annotated=False, context=context))


def with_engine_data(completion: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of an answer with more `engine_data`. Raises ValueError for a key that is there already."""
    if not isinstance(completion, Mapping):
        raise ValueError("LLM completion must be an object")
    if not isinstance(values, Mapping):
        raise ValueError("engine_data values must be an object")
    present = completion.get("engine_data")
    if not values:
        return dict(completion)
    if present is not None and not isinstance(present, Mapping):
        raise ValueError("existing engine_data must be an object")
    present = present or {}
    twice = sorted(present.keys() & values.keys())
    if twice:
        raise ValueError(f"engine_data already contains keys: {', '.join(map(repr, twice))}")
    return {**completion, "engine_data": {**present, **values}}


def _check_request(request: Any) -> None:
    if not isinstance(request, Mapping):
        raise ValueError("LLM request must be an object")
    options = {name: request.get(name, {}) for name in ("sampling_options", "output_options")}
    for name, value in options.items():
        if not isinstance(value, Mapping):
            raise ValueError(f"{name} must be an object")
        if name == "sampling_options" and value.get("n") not in (None, 1):
            raise ValueError("LLMUnaryClient requires n=1")
    output = options["output_options"]
    if any(output.get(name) is not None for name in ("logprobs", "prompt_logprobs")):
        raise ValueError("LLMUnaryClient does not support logprobs")


async def _collect(stream: Any) -> dict[str, Any]:
    token_ids: list[int] = []
    last: dict[str, Any] | None = None
    async for item in stream:
        if last is not None:
            raise RuntimeError("LLM endpoint returned data after terminal")
        token_ids += _token_ids(item)
        reason = item.get("finish_reason")
        if reason is not None:
            if not isinstance(reason, str) or not reason:
                raise RuntimeError("LLM endpoint returned invalid finish_reason")
            last = dict(item)
    if last is None:
        raise RuntimeError("LLM endpoint returned no terminal chunk")
    last["token_ids"] = token_ids
    return last


def _token_ids(item: Any) -> list[int]:
    if not isinstance(item, Mapping):
        raise RuntimeError("LLM endpoint returned a non-object chunk")
    if item.get("index") != 0:
        raise RuntimeError("LLM endpoint requires choice index 0")
    token_ids = item.get("token_ids")
    if not isinstance(token_ids, list) or any(type(each) is not int for each in token_ids):
        raise RuntimeError("LLM endpoint returned invalid token_ids")
    if "log_probs" in item or "top_logprobs" in item:
        raise RuntimeError("LLM endpoint returned unsupported logprobs")
    return token_ids
