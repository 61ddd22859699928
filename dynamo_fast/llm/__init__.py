"""What makes a worker a model: model cards, KV events and load for frontends, and the drop-in for `dynamo.llm`.

    from dynamo_fast.llm import ModelCard                       # the native way: serve(handler, endpoint, model=card)
    from dynamo_fast.llm import register_model, ModelInput      # was: from dynamo.llm import ...

Each name is loaded when it is first used (PEP 562), so that importing this package costs little and needs no extra.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynamo_fast.egress.selection import RouterMode as RouterMode
    from dynamo_fast.llm.card import ModelCard as ModelCard
    from dynamo_fast.llm.exceptions import HttpError as HttpError
    from dynamo_fast.llm.exceptions import RouterQueueLimitExceeded as RouterQueueLimitExceeded
    from dynamo_fast.llm.kinds import ModelInput as ModelInput
    from dynamo_fast.llm.kinds import ModelType as ModelType
    from dynamo_fast.llm.kinds import WorkerType as WorkerType
    from dynamo_fast.llm.kv_blocks import compute_block_hash_for_seq as compute_block_hash_for_seq
    from dynamo_fast.llm.kv_events import KvEventSource as KvEventSource
    from dynamo_fast.llm.load import LoadSource as LoadSource
    from dynamo_fast.llm.media import MediaDecoder as MediaDecoder
    from dynamo_fast.llm.media import MediaFetcher as MediaFetcher
    from dynamo_fast.llm.parsers import get_reasoning_parser_names as get_reasoning_parser_names
    from dynamo_fast.llm.parsers import get_tool_parser_names as get_tool_parser_names
    from dynamo_fast.llm.publishers import KvEventPublisher as KvEventPublisher
    from dynamo_fast.llm.publishers import WorkerMetricsPublisher as WorkerMetricsPublisher
    from dynamo_fast.llm.registration import fetch_llm as fetch_llm
    from dynamo_fast.llm.registration import fetch_model as fetch_model
    from dynamo_fast.llm.registration import lora_name_to_id as lora_name_to_id
    from dynamo_fast.llm.registration import register_llm as register_llm
    from dynamo_fast.llm.registration import register_model as register_model
    from dynamo_fast.llm.registration import unregister_llm as unregister_llm
    from dynamo_fast.llm.registration import unregister_model as unregister_model
    from dynamo_fast.llm.registration import update_model_taints as update_model_taints
    from dynamo_fast.llm.runtime_config import ModelRuntimeConfig as ModelRuntimeConfig
    from dynamo_fast.llm.unary import LLMUnaryClient as LLMUnaryClient
    from dynamo_fast.llm.unary import RoutedEngine as RoutedEngine
    from dynamo_fast.llm.unary import UnaryChatModel as UnaryChatModel
    from dynamo_fast.llm.unary import with_engine_data as with_engine_data

#: Name -> the module that has it: of this package, unless it is a whole path.
_HOMES: dict[str, str] = {
    "ModelCard": "card",
    "ModelInput": "kinds",
    "ModelType": "kinds",
    "WorkerType": "kinds",
    "ModelRuntimeConfig": "runtime_config",
    "KvEventPublisher": "publishers",
    "KvEventSource": "kv_events",
    "LoadSource": "load",
    "WorkerMetricsPublisher": "publishers",
    "compute_block_hash_for_seq": "kv_blocks",
    "fetch_llm": "registration",
    "fetch_model": "registration",
    "lora_name_to_id": "registration",
    "register_llm": "registration",
    "register_model": "registration",
    "unregister_llm": "registration",
    "unregister_model": "registration",
    "update_model_taints": "registration",
}

_HOMES |= {
    "HttpError": "exceptions",
    "LLMUnaryClient": "unary",
    "MediaDecoder": "media",
    "MediaFetcher": "media",
    "RoutedEngine": "unary",
    "RouterMode": "dynamo_fast.egress.selection",
    "RouterQueueLimitExceeded": "exceptions",
    "UnaryChatModel": "unary",
    "get_reasoning_parser_names": "parsers",
    "get_tool_parser_names": "parsers",
    "with_engine_data": "unary",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    path = _HOMES.get(name, "not_offered")  # what has no home stays Rust, or is unknown
    home = import_module(path if "." in path else f"{__name__}.{path}")
    if name not in _HOMES and name not in {*home.CLASSES, *home.FUNCTIONS}:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
