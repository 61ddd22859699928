"""`DYNAMO_FAST_BACKEND=python` holds for all that is compiled: modules that Cython has translated run from their source.

`import dynamo_fast` imports this before anything that may be compiled. The codec chooses its own backend (`codec.py`).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import SOURCE_SUFFIXES, FileFinder, ModuleSpec, SourceFileLoader
from types import ModuleType

from dynamo_fast.config.backend import backend

__all__ = ["PreferSources"]


class PreferSources:
    """A finder for `sys.meta_path`: finds the modules of this package by their Python files; other finders follow it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See importlib.abc.MetaPathFinder."""
        if not fullname.startswith("dynamo_fast."):
            return None
        for folder in path or ():
            spec = FileFinder(folder, (SourceFileLoader, SOURCE_SUFFIXES)).find_spec(fullname, target)
            if spec is not None:
                return spec
        return None


if backend() == "python":
    sys.meta_path.insert(0, PreferSources())
