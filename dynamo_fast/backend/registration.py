"""The model card of an engine: from its `WorkerConfig` and from the `EngineConfig` that its `start` returned.

As Dynamo's `Worker` makes it; what a part (`DisaggregationMode`) changes is in the two tables.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import msgspec

from dynamo_fast.backend.config import DisaggregationMode, WorkerConfig
from dynamo_fast.errors import InvalidRequest
from dynamo_fast.ingress.model_cards import Model
from dynamo_fast.llm import ModelCard, ModelInput, ModelRuntimeConfig, ModelType, WorkerType, register_model
from dynamo_fast.llm.card import DEFAULT_BLOCK_SIZE
from dynamo_fast.runtime.endpoint import Endpoint
from dynamo_fast.wire.address import EndpointId

__all__ = ["check", "model_name", "register"]

_TYPES = {
    "chat": ModelType.Chat,
    "completions": ModelType.Completions,
    "completion": ModelType.Completions,
    "embedding": ModelType.Embedding,
    "embeddings": ModelType.Embedding,
    "tensor": ModelType.TensorBased,
    "image": ModelType.Images,
    "images": ModelType.Images,
    "audio": ModelType.Audios,
    "audios": ModelType.Audios,
    "video": ModelType.Videos,
    "videos": ModelType.Videos,
}
_WORKER_TYPES = {
    DisaggregationMode.Aggregated: WorkerType.Aggregated,
    DisaggregationMode.Prefill: WorkerType.Prefill,
    DisaggregationMode.Decode: WorkerType.Decode,
    DisaggregationMode.Encode: WorkerType.Encode,
}
_NEEDS: dict[DisaggregationMode, list[list[WorkerType]]] = {
    DisaggregationMode.Aggregated: [[]],
    DisaggregationMode.Prefill: [[WorkerType.Decode]],
    DisaggregationMode.Decode: [[WorkerType.Prefill]],
    DisaggregationMode.Encode: [[WorkerType.Prefill, WorkerType.Decode], [WorkerType.Aggregated]],
}


def check(config: WorkerConfig, *, raw: bool) -> None:
    """Raises InvalidRequest for a configuration that does not fit the kind of the engine, or itself."""
    if raw and config.model_input is ModelInput.Tokens:
        raise InvalidRequest(
            "RawEngine (raw media pipeline) requires ModelInput::Text or ::Tensor; got 'tokens'. Use an LLMEngine for the "
            "token pipeline."
        )
    if not raw and config.model_input is not ModelInput.Tokens:
        raise InvalidRequest(
            f"LLMEngine (token pipeline) requires ModelInput::Tokens; got '{config.model_input.name.lower()}'. Use a "
            "RawEngine for ModelInput::Text / Tensor."
        )
    mode = config.disaggregation_mode
    if config.route_to_encoder and mode not in (DisaggregationMode.Aggregated, DisaggregationMode.Prefill):
        raise InvalidRequest(
            f"--route-to-encoder is meaningful only for --disaggregation-mode agg|prefill; got '{mode.option}'. Decode "
            "workers consume KV cache from a Prefill peer (encoder dependency propagates transitively through Prefill); "
            "Encode workers are the producer of the encoder result."
        )


def model_name(config: WorkerConfig, engine: Any) -> str:
    """The model's name for clients: the operator's, else the engine's."""
    return config.served_model_name or engine.served_model_name or engine.model


async def register(endpoint: Endpoint, config: WorkerConfig, engine: Any) -> None:
    """Publish the card under the endpoint. `engine` is what `start` returned.

    Raises InvalidRequest for an endpoint type, and what `register_model` and a `ModelRuntimeConfig` raise.
    """
    llm, name = engine.llm, model_name(config, engine)
    has_files = config.model_input is ModelInput.Tokens and config.model_name != ""
    block_size = None if llm is None else llm.kv_cache_block_size
    await register_model(
        config.model_input,
        _model_type(config),
        endpoint if has_files else _Sized(endpoint, DEFAULT_BLOCK_SIZE if block_size is None else block_size),
        config.model_name if has_files else name,
        name,
        kv_cache_block_size=block_size,
        runtime_config=_runtime_config(config, engine),
        custom_template_path=config.custom_jinja_template,
        media_decoder=config.media_decoder,
        media_fetcher=config.media_fetcher,
        worker_type=_WORKER_TYPES[config.disaggregation_mode],
        needs=_needs(config),
        max_gpu_lora_count=getattr(llm, "max_gpu_lora_count", None),
        model_aliases=getattr(engine, "model_aliases", None),
        skip_model_assets=not has_files,
    )


class _Sized:
    """An endpoint whose cards have that block size: `register_model` writes 0 without files, Dynamo's `Worker` does not."""

    def __init__(self, endpoint: Endpoint, block_size: int) -> None:
        self._block_size = block_size
        self._endpoint = endpoint
        self.remove_model = endpoint.remove_model
        self.update_model = endpoint.update_model

    async def publish_model(self, model: Model) -> None:
        assert isinstance(model, ModelCard)
        card = msgspec.structs.replace(model.card, kv_cache_block_size=self._block_size)
        await self._endpoint.publish_model(replace(model, card=card))


def _model_type(config: WorkerConfig) -> ModelType:
    names = [name for each in config.endpoint_types.split(",") if (name := each.strip().lower())]
    if not names:
        raise InvalidRequest("endpoint_types cannot be empty")
    kinds = ModelType.Empty
    for name in names:
        if name not in _TYPES:
            raise InvalidRequest(f"unknown endpoint type '{name}'")
        kinds |= _TYPES[name]
    if config.disaggregation_mode is DisaggregationMode.Prefill:
        return ModelType.Prefill
    return ModelType.Empty if config.disaggregation_mode is DisaggregationMode.Encode else kinds


def _needs(config: WorkerConfig) -> list[list[WorkerType]]:
    encoder = [WorkerType.Encode] if config.route_to_encoder else []
    groups = [[*group, *encoder] for group in _NEEDS[config.disaggregation_mode]]
    return [group for group in groups if group]


def _runtime_config(config: WorkerConfig, engine: Any) -> ModelRuntimeConfig:
    runtime_config = ModelRuntimeConfig(
        tool_call_parser=config.tool_call_parser,
        reasoning_parser=config.reasoning_parser,
        exclude_tools_when_tool_choice_none=config.exclude_tools_when_tool_choice_none,
        enable_local_indexer=(
            config.enable_local_indexer and config.disaggregation_mode is not DisaggregationMode.Encode
        ),
    )
    config.set_structural_tags(runtime_config)
    if config.kv_state_endpoint is not None:
        runtime_config.kv_state_endpoint = "/".join(EndpointId.parse(config.kv_state_endpoint))
    data = {"default_thinking_mode": config.default_thinking_mode} if config.default_thinking_mode else {}
    if config.route_to_encoder:
        data["encoder_result_handoff"] = True  # type: ignore[assignment]  # JSON of any type
    for key, value in {**data, **(engine.runtime_data or {})}.items():
        runtime_config.set_engine_specific(key, json.dumps(value))
    if engine.llm is not None:
        _add_llm(runtime_config, engine.llm)
    return runtime_config


def _add_llm(runtime_config: ModelRuntimeConfig, llm: Any) -> None:
    for name in (
        "context_length",
        "total_kv_blocks",
        "max_num_seqs",
        "max_num_batched_tokens",
        "data_parallel_size",
        "data_parallel_start_rank",
        "enable_eagle",
    ):
        value = getattr(llm, name, None)  # the class of Dynamo 1.3 has fewer
        if value is not None:
            setattr(runtime_config, name, value)
    if llm.bootstrap_host is not None and llm.bootstrap_port is not None:
        runtime_config.set_disaggregated_endpoint(llm.bootstrap_host, llm.bootstrap_port)
