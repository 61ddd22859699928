"""What makes a worker a model: model cards, and the drop-in for `dynamo.llm`.

    from dynamo_fast.llm import ModelCard                       # the native way: serve(handler, endpoint, model=card)
    from dynamo_fast.llm import register_model, ModelInput      # was: from dynamo.llm import ...

Each name is loaded when it is first used (PEP 562), so that importing this package costs little and needs no extra.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynamo_fast.llm.card import ModelCard as ModelCard
    from dynamo_fast.llm.kinds import ModelInput as ModelInput
    from dynamo_fast.llm.kinds import ModelType as ModelType
    from dynamo_fast.llm.kinds import WorkerType as WorkerType
    from dynamo_fast.llm.registration import fetch_llm as fetch_llm
    from dynamo_fast.llm.registration import fetch_model as fetch_model
    from dynamo_fast.llm.registration import lora_name_to_id as lora_name_to_id
    from dynamo_fast.llm.registration import register_llm as register_llm
    from dynamo_fast.llm.registration import register_model as register_model
    from dynamo_fast.llm.registration import unregister_llm as unregister_llm
    from dynamo_fast.llm.registration import unregister_model as unregister_model
    from dynamo_fast.llm.registration import update_model_taints as update_model_taints
    from dynamo_fast.llm.runtime_config import ModelRuntimeConfig as ModelRuntimeConfig

#: Name -> the module of this package that has it.
_HOMES: dict[str, str] = {
    "ModelCard": "card",
    "ModelInput": "kinds",
    "ModelType": "kinds",
    "WorkerType": "kinds",
    "ModelRuntimeConfig": "runtime_config",
    "fetch_llm": "registration",
    "fetch_model": "registration",
    "lora_name_to_id": "registration",
    "register_llm": "registration",
    "register_model": "registration",
    "unregister_llm": "registration",
    "unregister_model": "registration",
    "update_model_taints": "registration",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
