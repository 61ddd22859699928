"""The public names of Dynamo's modules, with their parameters and members. Standard library only, and no neighbours."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

Facts = dict[str, Any]


def signature(function: Any) -> Any:
    """The names of its parameters; None if they are not known."""
    try:
        return [name for name in inspect.signature(function).parameters if name != "self"]
    except (TypeError, ValueError):
        return None


def described(value: Any) -> Facts:
    if inspect.isclass(value) and issubclass(value, BaseException):
        return {"exception": True}
    if not inspect.isclass(value):
        return {"parameters": signature(value)} if callable(value) else {"value": True}
    known = ("__aiter__", "__anext__", "__enter__", "__exit__", "__getitem__", "__setitem__", "__len__", "__or__")
    names = [name for name in dir(value) if not name.startswith("_") or (name in known and name in vars(value))]
    members = {}
    for name in sorted(names):
        member = inspect.getattr_static(value, name)
        is_call = callable(getattr(value, name)) and not isinstance(member, property)
        members[name] = signature(getattr(value, name)) if is_call else "attribute"
    return {"parameters": signature(value), "members": members}


async def surface(api: Any) -> Facts:
    """Each public name of Dynamo's modules that is Dynamo's own: a class with its members, or a function."""
    facts: Facts = {}
    for path in ("runtime", "llm", "_core", "llm.exceptions", "runtime.logging", "health_check"):
        module = importlib.import_module(f"dynamo.{path}")
        for name, value in sorted(vars(module).items()):
            home = getattr(value, "__module__", "") or ""
            if not name.startswith("_") and home.partition(".")[0] in ("dynamo", "builtins") and callable(value):
                facts[f"{path}:{name}"] = described(value)
    return facts
