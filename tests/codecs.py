"""The backends of the codec that are installed: tests of the codec run on each, and some compare the two."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from dynamo_fast import _codec_py
from dynamo_fast.config.backend import backend

__all__ = ["BACKENDS", "both", "cpython"]

cpython = pytest.mark.skipif(sys.implementation.name != "cpython", reason="it is how CPython counts memory and starts")


def _installed() -> dict[str, Any]:
    """By name. Raises ImportError if the compiled one is missing, unless the tests are of a package without it."""
    try:
        from dynamo_fast import _codec
    except ImportError:
        if backend() != "python" and sys.implementation.name == "cpython":
            raise
        return {"python": _codec_py}
    return {"cython": _codec, "python": _codec_py}


BACKENDS = _installed()

both = pytest.mark.skipif("cython" not in BACKENDS, reason="this package has no compiled codec")
"""For tests that compare the backends, or choose one."""
