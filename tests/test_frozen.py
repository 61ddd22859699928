"""Programs that are frozen: what collects their modules reads import statements, and runs nothing."""

from __future__ import annotations

import modulefinder
from pathlib import Path

import dynamo_fast

ROOT = Path(dynamo_fast.__file__).parents[1]


def test_both_backends_of_the_codec_are_found_by_their_import_statements() -> None:
    finder = modulefinder.ModuleFinder([str(ROOT)])
    finder.load_file(str(ROOT / "dynamo_fast" / "codec.py"))
    found = {*finder.modules, *finder.badmodules}  # without a compiler one of the two cannot be found
    assert {"dynamo_fast._codec", "dynamo_fast._codec_py"} <= found
