"""Runs a program that was written for Dynamo's own packages on this project, without a change to the program.

`install` puts two finders into `sys.meta_path`. The modules of Dynamo's compiled binding then resolve to the modules of
this package that stand in for them, and everything else of an installed `ai-dynamo` wheel to itself:

    dynamo.runtime, dynamo.llm      dynamo_fast.runtime, dynamo_fast.llm, and what they contain
    dynamo._core                    dynamo_fast.standin.core; dynamo._core.backend is dynamo_fast.backend
    dynamo.health_check             dynamo_fast.health_check; the same for dynamo.prometheus_names
    dynamo.common, and the rest     the installed `ai-dynamo`

A module and its stand-in are one object, so a class has one identity under both names.

`dynamo-fast run` starts an interpreter with `FOLDER` in PYTHONPATH. Python imports the `sitecustomize` in it at its start,
in every child process, too, and that calls `install`. So `-m`, `-c` and scripts mean what they mean to Python itself.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

__all__ = ["FOLDER", "STAND_INS", "install"]

FOLDER = Path(__file__).parent / "site"
"""The folder for PYTHONPATH. It has nothing but a `sitecustomize`."""

STAND_INS = {
    "dynamo._core": "dynamo_fast.standin.core",
    "dynamo.health_check": "dynamo_fast.health_check",
    "dynamo.llm": "dynamo_fast.llm",
    "dynamo.prometheus_names": "dynamo_fast.prometheus_names",
    "dynamo.runtime": "dynamo_fast.runtime",
}
"""Module of Dynamo -> the module that stands in for it. What a package of the left side contains is looked for in the
package of the right side, and nowhere else."""


def install() -> None:
    """Put the finders into `sys.meta_path`. May be called again.

    Raises ImportError if a module of Dynamo's binding has been imported already: its classes would meet those of this
    package.
    """
    if any(isinstance(each, _StandIns) for each in sys.meta_path):
        return
    if "dynamo._core" in sys.modules:
        raise ImportError(
            "dynamo._core is imported already: install the stand-ins before anything of dynamo is imported"
        )
    sys.meta_path.insert(0, _StandIns())
    sys.meta_path.append(_Missing())


class _StandIns(MetaPathFinder):
    """Finds the modules of `STAND_INS` and what they contain. Stands before all other finders."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        stand_in = stand_in_of(fullname)
        if stand_in is None or importlib.util.find_spec(stand_in) is None:
            return None
        return ModuleSpec(fullname, _SameModule(stand_in), origin=stand_in)


class _SameModule(Loader):
    """Loads the module of another name, and puts this very object under the name that was asked for."""

    def __init__(self, name: str) -> None:
        self._name = name

    def create_module(self, spec: ModuleSpec) -> None:
        """Let the import system make an empty module, which `exec_module` replaces."""

    def exec_module(self, module: ModuleType) -> None:
        # The import system takes what is in `sys.modules` after this.
        sys.modules[module.__name__] = importlib.import_module(self._name)

    def get_code(self, fullname: str) -> None:
        """Nothing to run: `python -m` asks, and says that there is no code."""


class _Missing(MetaPathFinder):
    """Answers for what no other finder has found. Stands behind all other finders."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == "dynamo":  # nothing of Dynamo is installed: a namespace package without a folder
            spec = ModuleSpec(fullname, None, is_package=True)
            spec.submodule_search_locations = []
            return spec
        return ModuleSpec(fullname, _NotInstalled()) if fullname == "dynamo.common" else None


class _NotInstalled(Loader):
    """Says what is missing when it is imported. A finder that raised would break tools that ask all finders, as pytest."""

    def create_module(self, spec: ModuleSpec) -> None:
        raise ModuleNotFoundError(
            f"No module named {spec.name!r}: it is a part of ai-dynamo, which is not installed. dynamo_fast stands in for "
            "its binding, ai-dynamo-runtime, alone: pip install --no-deps ai-dynamo",
            name=spec.name,
        )

    def exec_module(self, module: ModuleType) -> None:
        """Never called."""


def stand_in_of(fullname: str) -> str | None:
    """The name of the module that stands in for a module of Dynamo; None for all others."""
    for name, stand_in in STAND_INS.items():
        if fullname == name or fullname.startswith(f"{name}."):
            return stand_in + fullname[len(name) :]
    return None
