"""What a `Worker` and an engine are configured with, as `dynamo._core.backend` has it (1.6.1; 1.3.1 has fewer arguments).

The classes are values that cannot be changed. Their constructors check the types of their arguments and raise what
Dynamo's raise: TypeError, OverflowError for a number that is too large, ValueError for a dict with wrong contents. What
depends on several arguments is checked by `Worker.run`.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dynamo_fast.llm import ModelInput, ModelRuntimeConfig
from dynamo_fast.runtime.exceptions import argument_error

__all__ = ["DisaggregationMode", "EngineConfig", "LlmRegistration", "RuntimeConfig", "WorkerConfig"]

_U16, _U32, _U64 = (1 << 16) - 1, (1 << 32) - 1, (1 << 64) - 1


class DisaggregationMode(enum.IntEnum):
    """A worker's part: everything (`Aggregated`), or one step of a request."""

    Aggregated = 1
    Prefill = 2
    Decode = 3
    Encode = 4

    def __str__(self) -> str:
        return f"DisaggregationMode.{self.name}"

    __repr__ = __str__

    @property
    def option(self) -> str:
        """As command lines and Dynamo's errors have it."""
        return "agg" if self is DisaggregationMode.Aggregated else self.name.lower()


@dataclass(frozen=True, eq=False)
class RuntimeConfig:
    """The parts of the worker's `DistributedRuntime`; None: as the environment says."""

    discovery_backend: str | None = None
    request_plane: str | None = None
    event_plane: str | None = None
    response_plane: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        for name in ("discovery_backend", "request_plane", "event_plane", "response_plane"):
            _check_text(name, getattr(self, name), optional=True)


@dataclass(frozen=True, eq=False)
class LlmRegistration:
    """What an engine of tokens tells the frontend and its router; what is None is not published.

    Blocks are blocks of the KV cache, and counted for each data-parallel rank.
    """

    context_length: int | None = None
    kv_cache_block_size: int | None = None
    total_kv_blocks: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    data_parallel_size: int | None = None
    data_parallel_start_rank: int | None = None
    bootstrap_host: str | None = None
    bootstrap_port: int | None = None
    enable_eagle: bool = False
    max_gpu_lora_count: int | None = None

    def __post_init__(self) -> None:
        _check_text("bootstrap_host", self.bootstrap_host, optional=True)
        _check_flag("enable_eagle", self.enable_eagle)
        for name in ("total_kv_blocks", "max_num_seqs", "max_num_batched_tokens"):
            _check_number(name, getattr(self, name), _U64)
        for name in (
            "context_length",
            "kv_cache_block_size",
            "data_parallel_size",
            "data_parallel_start_rank",
            "max_gpu_lora_count",
        ):
            _check_number(name, getattr(self, name), _U32)
        _check_number("bootstrap_port", self.bootstrap_port, _U16)


@dataclass(frozen=True, eq=False)
class EngineConfig:
    """What an engine's `start` returns. `Worker` takes any object with these attributes.

    `model` is the folder of the model, `served_model_name` its name for clients; `runtime_data` is published with it.
    """

    model: str
    served_model_name: str | None = None
    runtime_data: dict[str, Any] | None = None
    """None becomes an empty dict."""
    llm: LlmRegistration | None = None
    model_aliases: list[str] | None = None
    """None becomes an empty list."""

    def __post_init__(self) -> None:
        _check_text("model", self.model)
        _check_text("served_model_name", self.served_model_name, optional=True)
        if self.runtime_data is None:
            object.__setattr__(self, "runtime_data", {})
        if not isinstance(self.runtime_data, dict):
            raise argument_error("runtime_data", self.runtime_data, "PyDict")
        if self.llm is not None and not isinstance(self.llm, LlmRegistration):
            raise argument_error("llm", self.llm, "LlmRegistration")
        object.__setattr__(self, "model_aliases", _texts("model_aliases", self.model_aliases or []))


@dataclass(frozen=True, eq=False)
class WorkerConfig:
    """Where the worker serves, and what the operator has chosen for its model."""

    namespace: str
    component: str = "backend"
    endpoint: str = "generate"
    model_name: str = ""
    served_model_name: str | None = None
    model_input: ModelInput = ModelInput.Tokens
    endpoint_types: str = "chat,completions"
    custom_jinja_template: str | None = None
    tool_call_parser: str | None = None
    reasoning_parser: str | None = None
    exclude_tools_when_tool_choice_none: bool = True
    enable_local_indexer: bool = True
    enable_kv_routing: bool = True
    metrics_labels: Sequence[tuple[str, str]] = ()
    runtime: RuntimeConfig | None = None
    disaggregation_mode: DisaggregationMode = DisaggregationMode.Aggregated
    health_check_payload: dict[str, Any] | None = None
    structural_tag: dict[str, Any] | None = None
    route_to_encoder: bool = False
    media_decoder: Any = None
    media_fetcher: Any = None
    kv_state_endpoint: str | None = None
    default_thinking_mode: str | None = None
    structural_tag_mode: str | None = field(default=None, kw_only=True)
    """This and the two below are Dynamo 1.3's way to say what `structural_tag` says; None: not said."""
    structural_tag_scope: str | None = field(default=None, kw_only=True)
    structural_tag_schema: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        for name in ("namespace", "component", "endpoint", "model_name", "endpoint_types"):
            _check_text(name, getattr(self, name))
        for name in (
            "served_model_name",
            "custom_jinja_template",
            "tool_call_parser",
            "reasoning_parser",
            "kv_state_endpoint",
            "default_thinking_mode",
            "structural_tag_mode",
            "structural_tag_scope",
            "structural_tag_schema",
        ):
            _check_text(name, getattr(self, name), optional=True)
        for name in (
            "exclude_tools_when_tool_choice_none",
            "enable_local_indexer",
            "enable_kv_routing",
            "route_to_encoder",
        ):
            _check_flag(name, getattr(self, name))
        if not isinstance(self.model_input, ModelInput):
            raise argument_error("model_input", self.model_input, "ModelInput")
        if not isinstance(self.disaggregation_mode, DisaggregationMode):
            raise argument_error("disaggregation_mode", self.disaggregation_mode, "DisaggregationMode")
        if self.runtime is not None and not isinstance(self.runtime, RuntimeConfig):
            raise argument_error("runtime", self.runtime, "RuntimeConfig")
        _check_labels(self.metrics_labels)
        _check_payload(self.health_check_payload)
        self.set_structural_tags(ModelRuntimeConfig())

    def set_structural_tags(self, runtime_config: ModelRuntimeConfig) -> None:
        """Set what was said of structural tags, in either way. Raises ValueError for an unknown word."""
        for word, set_word in (
            (self.structural_tag_mode, runtime_config.set_structural_tag_mode),
            (self.structural_tag_scope, runtime_config.set_structural_tag_scope),
            (self.structural_tag_schema, runtime_config.set_structural_tag_schema),
        ):
            if word is not None:
                set_word(word)
        if self.structural_tag is not None:
            runtime_config.set_structural_tag(self.structural_tag)


def _check_text(name: str, value: Any, *, optional: bool = False) -> None:
    if not isinstance(value, str) and not (optional and value is None):
        raise argument_error(name, value, "PyString")


def _check_flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise argument_error(name, value, "PyBool")


def _check_number(name: str, value: Any, limit: int) -> None:
    if value is None:
        return
    if not isinstance(value, int):
        raise TypeError(f"argument '{name}': '{type(value).__name__}' object cannot be interpreted as an integer")
    if not 0 <= value <= limit:
        raise OverflowError(f"{name}={value} is out of range: expected 0 to {limit}")


def _texts(name: str, values: Any) -> list[str]:
    if isinstance(values, str):
        raise TypeError(f"argument '{name}': Can't extract `str` to `Vec`")
    if not isinstance(values, Sequence):
        raise argument_error(name, values, "Sequence")
    for value in values:
        _check_text(name, value)
    return list(values)


def _check_labels(labels: Any) -> None:
    if not isinstance(labels, (list, tuple)):
        raise argument_error("metrics_labels", labels, "Sequence")
    for label in labels:
        if not isinstance(label, tuple):
            raise argument_error("metrics_labels", label, "PyTuple")
        for text in label:
            _check_text("metrics_labels", text)


def _check_payload(payload: Any) -> None:
    if payload is None:
        return
    if not isinstance(payload, dict):
        raise ValueError("health_check_payload must be a JSON object (dict)")
    try:
        json.dumps(payload)
    except (TypeError, ValueError) as error:
        raise ValueError(f"health_check_payload must be a JSON-serializable dict: {error}") from error
