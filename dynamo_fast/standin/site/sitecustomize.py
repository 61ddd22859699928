"""Imported by Python at its start, in the processes of `dynamo-fast run`: installs the stand-ins (`dynamo_fast.standin`).

Then it gives way to the `sitecustomize` that Python would have imported without it, if there is one.
"""

import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path

try:
    from dynamo_fast.standin import install
except ImportError:  # a child process in an environment of its own
    pass
else:
    install()


def _give_way() -> None:
    here = Path(__file__).resolve().parent
    spec = PathFinder.find_spec(__name__, [entry for entry in sys.path if Path(entry).resolve() != here])
    if spec is not None and spec.loader is not None:
        module = sys.modules[__name__] = module_from_spec(spec)
        spec.loader.exec_module(module)


_give_way()
