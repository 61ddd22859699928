"""Names of a package that are loaded when they are first used (PEP 562), so that one of them does not cost the others.

    __getattr__, __dir__ = lazy(__name__, {"dynamo_fast.wire.address": "EndpointId EndpointInstanceId", ...})

The package repeats these imports under `if TYPE_CHECKING`: type checkers read them, and tools that freeze programs find the
modules by them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module

__all__ = ["lazy"]


def lazy(package: str, modules: Mapping[str, str]) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of `package`. `modules` has the names that each module offers; those of `package` itself
    are modules.
    """
    places = {name: module for module, names in modules.items() for name in names.split()}
    namespace = vars(sys.modules[package])

    def find(name: str) -> object:
        module = places.get(name)
        if module is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}", name=name, obj=sys.modules[package])
        found = import_module(f"{package}.{name}") if module == package else getattr(import_module(module), name)
        namespace[name] = found  # the next time it is an attribute
        return found

    return find, lambda: sorted({*namespace, *places})
