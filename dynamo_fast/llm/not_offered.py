"""The names of `dynamo.llm` and `dynamo._core` whose work stays in Rust: each can be imported, and says so when it is used.

A class raises `NotOffered` when it, or a subclass, is instantiated, and for each of its attributes; a function when it is
called. `isinstance`, annotations and subclasses work.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from dynamo_fast.runtime.exceptions import NotOffered

__all__ = ["CLASSES", "FUNCTIONS"]

_FRONTEND = "it belongs to Dynamo's frontend: run `python -m dynamo.frontend` for it"
_ROUTER = "it belongs to Dynamo's KV router: run the frontend with `--router-mode kv` for it"
_RELAY = "it belongs to Dynamo's relays of KV state between clusters"
_PLANNER = "it belongs to Dynamo's planner"
_MOCKER = "it belongs to Dynamo's simulator of engines"
_ENGINE = "its events are not written here"
_DOWNLOAD = "it downloads: give the path of a local folder in place of it"
_CARD = "read and write model cards with `dynamo_fast.llm.ModelCard`"


def _named(reason: str, names: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), reason)


CLASSES: dict[str, str] = {
    **_named(
        _FRONTEND,
        "AisPerfConfig EngineConfig EngineType EntrypointArgs FrontendExtensionContext FrontendResponse FrontendRoute "
        "HttpAsyncEngine HttpService KserveGrpcService PythonAsyncEngine AicPerfConfig",
    ),
    **_named(
        _ROUTER,
        "KvRouter KvRouterConfig LoadThresholdConfig OverlapScores RadixTree RouterConfig RoutingConstraints "
        "SelectionCacheConfig SelectionService",
    ),
    **_named(_RELAY, "KvDcRelay KvStateAgentHost KvStateAttachmentOwner"),
    **_named(_PLANNER, "PlannerDecision VirtualConnectorClient VirtualConnectorCoordinator PlannerReplayBridge"),
    **_named(
        _MOCKER,
        "ReasoningConfig _OfflineReplayResult AicEngineConfig EngineCapacity EngineCapacityRequest EnginePerfLimits "
        "MockEngineArgs OptimizationTarget RustEnginePerfModel RustEnginePerfOptions SglangArgs TrtllmArgs",
    ),
    **_named(_ENGINE, "FpmDirectPublisher FpmEventRelay FpmEventSubscriber MultimodalEmbeddingCachePublisher"),
    **_named(_DOWNLOAD, "LoRADownloader"),
    **_named(_CARD, "ModelCardInstanceId ModelDeploymentCard"),
}
"""Class -> why it is not offered, and what to do."""

FUNCTIONS: dict[str, str] = {
    **_named(_FRONTEND, "make_engine run_input resolve_routing_image_token_id"),
    **_named(_ROUTER, "run_kv_indexer run_select_service run_slot_tracker"),
    **_named(_MOCKER, "run_mocker_synthetic_trace_replay run_mocker_trace_replay _normalize_mocker_config"),
}
"""Function -> the same."""


class _NotOfferedType(type):
    """The class of such a class."""

    def __call__(cls, *_: Any, **__: Any) -> NoReturn:
        raise _error(_original(cls))

    def __getattr__(cls, name: str) -> NoReturn:
        if name.startswith("_"):  # Python and its libraries look for these everywhere
            raise AttributeError(f"type object {cls.__name__!r} has no attribute {name!r}")
        raise _error(_original(cls), name)


def _original(cls: type) -> str:
    return next(each.__name__ for each in cls.__mro__ if each.__name__ in CLASSES)


def _error(name: str, member: str = "") -> NotOffered:
    what = f"{name}.{member}" if member else name
    return NotOffered(f"{what} is not offered: {CLASSES.get(name) or FUNCTIONS[name]}")


def _function(name: str) -> Callable[..., NoReturn]:
    def function(*_: Any, **__: Any) -> NoReturn:
        raise _error(name)

    function.__name__ = function.__qualname__ = name
    return function


def __getattr__(name: str) -> Any:
    made: Any
    if name in CLASSES:
        made = _NotOfferedType(name, (), {"__module__": __name__, "__doc__": f"Not offered: {CLASSES[name]}."})
    elif name in FUNCTIONS:
        made = _function(name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = made
    return made
