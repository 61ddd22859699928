"""`register_model` and its companions, as `dynamo.llm` has them: a model card under an endpoint of `dynamo_fast.runtime`.

They check their arguments when they are called, with Dynamo's classes and texts of errors, and return a future. The
signatures are those of Dynamo 1.6.1. Where Dynamo publishes a card that no frontend serves, these raise InvalidRequest.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec

from dynamo_fast.errors import InvalidRequest
from dynamo_fast.ingress.model_cards import Model
from dynamo_fast.llm.card import ModelCard
from dynamo_fast.llm.kinds import ModelInput, ModelType, WorkerType, role_fault
from dynamo_fast.llm.runtime_config import ModelRuntimeConfig
from dynamo_fast.wire.model_card import Card, lora_id, slug

__all__ = [
    "fetch_llm",
    "fetch_model",
    "lora_name_to_id",
    "register_llm",
    "register_model",
    "unregister_llm",
    "unregister_model",
    "update_model_taints",
]

_MAX_U32 = (1 << 32) - 1
_WITHOUT_FILES = ModelType.TensorBased | ModelType.Images | ModelType.Videos | ModelType.Realtime
_TENSOR_FIELDS = ("name", "inputs", "outputs")


class ModelEndpoint(Protocol):
    """What these functions ask of an endpoint: `dynamo_fast.runtime.Endpoint` has it."""

    async def publish_model(self, model: Model) -> None: ...

    async def remove_model(self, suffix: str | None = None) -> None: ...

    async def update_model(self, change: Callable[[Card], Card]) -> None: ...


class _AsCard(Protocol):
    """A configuration that knows its form in a card."""

    def to_card(self) -> dict[str, Any]: ...


def register_model(  # noqa: PLR0917  # Dynamo's signature
    model_input: ModelInput,
    model_type: ModelType,
    endpoint: ModelEndpoint,
    model_path: str,
    model_name: str | None = None,
    kv_cache_block_size: int | None = None,
    router_config: _AsCard | None = None,
    runtime_config: ModelRuntimeConfig | None = None,
    user_data: dict[str, Any] | None = None,
    custom_template_path: str | None = None,
    media_decoder: _AsCard | None = None,
    media_fetcher: _AsCard | None = None,
    lora_name: str | None = None,
    base_model_path: str | None = None,
    worker_type: WorkerType | None = None,
    needs: Sequence[Sequence[WorkerType]] | None = None,
    self_host_metadata: bool | None = None,
    *,
    tensor_model_config: dict[str, Any] | None = None,
    ignore_weights: bool = False,
    max_gpu_lora_count: int | None = None,
    model_aliases: Sequence[str] | None = None,
    skip_model_assets: bool = False,
) -> asyncio.Future[tuple[()]]:
    """Publish the card of the model in `model_path` under `endpoint`, before it is served or after.

    With `lora_name` and `base_model_path` it is the card of a LoRA adapter of the model in `base_model_path`. Models of
    tensors, images, videos and real-time audio, and `skip_model_assets`, need no folder. `ignore_weights` is accepted:
    weights are never read.

    Raises TypeError, OverflowError, ValueError and FileNotFoundError for an argument, as Dynamo does. The future raises
    InvalidRequest, which names the file or the field, if a frontend could not serve the model, or has another card of it.
    """
    _check_kinds(model_input, model_type, endpoint)
    _check_texts(
        model_path=(model_path, True),
        model_name=(model_name, False),
        custom_template_path=(custom_template_path, False),
        lora_name=(lora_name, False),
        base_model_path=(base_model_path, False),
    )
    _check_numbers(kv_cache_block_size=kv_cache_block_size, max_gpu_lora_count=max_gpu_lora_count)
    for name, value, kind, wanted in (
        ("runtime_config", runtime_config, ModelRuntimeConfig, "ModelRuntimeConfig"),
        ("user_data", user_data, dict, "PyDict"),
    ):
        _check(value is None or isinstance(value, kind), name, value, wanted)
    _check_worker(model_type, worker_type, needs)
    assert worker_type is not None
    if isinstance(model_aliases, str):
        raise TypeError("argument 'model_aliases': Can't extract `str` to `Vec`")
    _check_tensors(tensor_model_config)
    if (lora_name is None) != (base_model_path is None):
        raise ValueError("lora_name and base_model_path must both be provided together, or neither")
    if custom_template_path is not None and not os.path.isfile(custom_template_path):
        raise FileNotFoundError(f"Custom template file does not exist: {custom_template_path}")

    path = model_path if base_model_path is None else base_model_path
    common: dict[str, Any] = {
        "model_type": model_type,
        "model_input": model_input,
        "runtime_config": runtime_config,
        "aliases": model_aliases or (),
        "user_data": user_data,
        "worker_type": worker_type,
        "needs": needs or (),
        "router_config": _as_card("router_config", router_config, "RouterConfig"),
    }
    media = {
        "media_decoder": _as_card("media_decoder", media_decoder, "MediaDecoder"),
        "media_fetcher": _as_card("media_fetcher", media_fetcher, "MediaFetcher"),
    }

    def make() -> ModelCard:
        """Reads the files: in a thread."""
        name = path if model_name is None else model_name
        if skip_model_assets or model_type & _WITHOUT_FILES:
            card = ModelCard.text(name, **common, tensor_model_config=tensor_model_config, source_path=path)
        else:
            card = ModelCard.from_folder(
                path,
                **common,
                name=name,
                kv_cache_block_size=kv_cache_block_size,
                chat_template=custom_template_path,
                self_host=self_host_metadata,
            )
        made = msgspec.structs.replace(card.card, **media)
        if lora_name is not None:
            return ModelCard(made, card.self_host).adapter(lora_name, max_gpu_lora_count)
        if max_gpu_lora_count is not None:
            runtime = {**(made.runtime_config or {}), "max_gpu_lora_count": max_gpu_lora_count}
            made = msgspec.structs.replace(made, runtime_config=runtime)
        return ModelCard(made, card.self_host)

    async def register() -> tuple[()]:
        await endpoint.publish_model(await asyncio.to_thread(make))
        return ()

    return asyncio.ensure_future(register())


def unregister_model(endpoint: ModelEndpoint, lora_name: str | None = None) -> asyncio.Future[tuple[()]]:
    """Remove the card of the model, or of the LoRA adapter of that name; the endpoint serves on.

    Does nothing if the endpoint has no card at all. The future raises InvalidRequest if it has only others.
    """
    _check_endpoint(endpoint)
    _check_texts(lora_name=(lora_name, False))

    async def unregister() -> tuple[()]:
        await endpoint.remove_model(None if lora_name is None else slug(lora_name))
        return ()

    return asyncio.ensure_future(unregister())


def update_model_taints(endpoint: ModelEndpoint, taints: set[str]) -> asyncio.Future[tuple[()]]:
    """Replace the taints in the card of the model: the only change that frontends follow.

    The future raises InvalidRequest if the endpoint has no card of a model.
    """
    _check_endpoint(endpoint)
    _check(isinstance(taints, (set, frozenset)), "taints", taints, "PySet")
    for taint in taints:
        _check(isinstance(taint, str), "taints", taint, "PyString")

    def change(card: Card) -> Card:
        return msgspec.structs.replace(card, runtime_config={**(card.runtime_config or {}), "taints": sorted(taints)})

    async def update() -> tuple[()]:
        await endpoint.update_model(change)
        return ()

    return asyncio.ensure_future(update())


def fetch_model(remote_name: str, ignore_weights: bool = False) -> asyncio.Future[str]:
    """The absolute path of a local model folder. Nothing is fetched, which differs from Dynamo.

    The future raises InvalidRequest for a name that is no local folder.
    """
    _check_texts(remote_name=(remote_name, True))

    def find() -> str:
        if not os.path.isdir(remote_name):
            raise InvalidRequest(
                f"{remote_name!r} is no local folder, and dynamo_fast fetches nothing: fetch the model first, and pass its "
                "folder"
            )
        return os.path.realpath(remote_name)

    return asyncio.ensure_future(asyncio.to_thread(find))


def lora_name_to_id(lora_name: str) -> int:
    """The number of a LoRA adapter, 31 bits of the BLAKE3 of its name. Raises InvalidConfig without `blake3`."""
    _check_texts(lora_name=(lora_name, True))
    return lora_id(lora_name)


fetch_llm = fetch_model
register_llm = register_model
unregister_llm = unregister_model


def _as_card(name: str, value: _AsCard | None, wanted: str) -> dict[str, Any] | None:
    if value is None:
        return None
    if not hasattr(value, "to_card"):
        raise _wrong_type(name, value, wanted)
    return value.to_card()


def _check_kinds(model_input: Any, model_type: Any, endpoint: Any) -> None:
    _check(isinstance(model_input, ModelInput), "model_input", model_input, "ModelInput")
    _check(isinstance(model_type, ModelType), "model_type", model_type, "ModelType")
    _check_endpoint(endpoint)


def _check_endpoint(endpoint: Any) -> None:
    _check(hasattr(endpoint, "publish_model"), "endpoint", endpoint, "Endpoint")


def _check_texts(**arguments: tuple[Any, bool]) -> None:
    """Each argument, and whether it must be given."""
    for name, (value, required) in arguments.items():
        _check(isinstance(value, str) or (value is None and not required), name, value, "PyString")


def _check_numbers(**arguments: Any) -> None:
    for name, value in arguments.items():
        if value is None:
            continue
        if not isinstance(value, int):
            raise TypeError(f"argument '{name}': '{type(value).__name__}' object cannot be interpreted as an integer")
        if not 0 <= value <= _MAX_U32:
            raise OverflowError("out of range integral type conversion attempted")


def _check_worker(model_type: ModelType, worker_type: Any, needs: Any) -> None:
    if worker_type is None:
        raise ValueError(
            "register_model: `worker_type` is required. Pass one of WorkerType.Prefill / Decode / Encode / Aggregated."
        )
    _check(isinstance(worker_type, WorkerType), "worker_type", worker_type, "WorkerType")
    for group in needs or ():
        _check(isinstance(group, (list, tuple)), "needs", group, "Sequence")
        for each in group:
            _check(isinstance(each, WorkerType), "needs", each, "WorkerType")
    if fault := role_fault(model_type, worker_type, needs or ()):
        raise ValueError(f"register_model: {fault}")


def _check_tensors(config: Any) -> None:
    _check(config is None or isinstance(config, dict), "tensor_model_config", config, "PyDict")
    for field in _TENSOR_FIELDS if config is not None else ():
        if field not in config:
            raise InvalidRequest(f"Failed to convert tensor_model_config: missing field `{field}`")


def _check(holds: bool, name: str, value: object, wanted: str) -> None:
    if not holds:
        raise _wrong_type(name, value, wanted)


def _wrong_type(name: str, value: object, wanted: str) -> TypeError:
    return TypeError(f"argument '{name}': '{type(value).__name__}' object cannot be converted to '{wanted}'")
