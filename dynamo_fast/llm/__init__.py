"""What makes a worker a model: model cards, KV events and load, and the drop-in for `dynamo.llm`.

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
    from dynamo_fast.llm.kv_events import KvEventSource as KvEventSource
    from dynamo_fast.llm.runtime_config import ModelRuntimeConfig as ModelRuntimeConfig

#: Name -> the module of this package that has it; a pair if it has another name there.
_HOMES: dict[str, str | tuple[str, str]] = {
    "ModelCard": "card",
    "ModelInput": "kinds",
    "ModelType": "kinds",
    "WorkerType": "kinds",
    "KvEventSource": "kv_events",
    "ModelRuntimeConfig": "runtime_config",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, original = (home, name) if isinstance(home, str) else home
    value = getattr(import_module(f"{__name__}.{module}"), original)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
