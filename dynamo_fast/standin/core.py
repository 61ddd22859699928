"""What stands in for `dynamo._core`: the names of `dynamo_fast.runtime` and `dynamo_fast.llm` in one module.

Dynamo's `_core` is one compiled module, from which `dynamo.runtime` and `dynamo.llm` take their names.
"""

from __future__ import annotations

import sys
from typing import Any

from dynamo_fast import backend, llm, runtime
from dynamo_fast.runtime.logging import log_message

__all__ = ["backend", "log_message"]

sys.modules["dynamo._core.backend"] = backend  # `_core` is no package, so an import of it looks here alone


def __getattr__(name: str) -> Any:
    for package in (runtime, llm):
        try:
            return getattr(package, name)
        except AttributeError:
            continue
    raise AttributeError(f"module 'dynamo._core' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *runtime.__all__, *llm.__all__})
