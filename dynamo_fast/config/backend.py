"""Which backend the codec has. A module of its own, as the codec alone shall load no more than it needs."""

from __future__ import annotations

import os
from collections.abc import Mapping

from dynamo_fast.errors import InvalidConfig

__all__ = ["BACKENDS", "VARIABLE", "backend"]

VARIABLE = "DYNAMO_FAST_BACKEND"
BACKENDS = ("cython", "python")


def backend(environ: Mapping[str, str] = os.environ) -> str:
    """`CodecConfig.backend`, read without what the other settings need. Raises InvalidConfig."""
    text = environ.get(VARIABLE, "")
    if text and text not in BACKENDS:
        accepted = ", ".join(map(repr, BACKENDS))
        raise InvalidConfig(f"{VARIABLE}={text!r} is not valid: expected one of {accepted}")
    return text
