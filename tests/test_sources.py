"""What is compiled: each module has its Python source too, and `DYNAMO_FAST_BACKEND` says which of both runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TRANSLATED = re.findall(r'^    "(dynamo_fast\.[\w.]+)",$', (ROOT / "setup.py").read_text("utf-8"), re.MULTILINE)
WHERE = "import importlib, sys; print(*(importlib.import_module(name).__file__ for name in sys.argv[1:]), sep='\\n')"


def test_every_translated_module_has_its_source_and_its_types() -> None:
    stems = [name.replace(".", "/") for name in TRANSLATED]
    assert [stem for stem in stems if not (ROOT / f"{stem}.py").exists() or not (ROOT / f"{stem}.pxd").exists()] == []
    assert TRANSLATED


def test_the_limit_of_coverage_leaves_out_what_is_compiled() -> None:
    """Coverage sees nothing of what C runs: it would take every line for one that no test reaches."""
    _, _, after = (ROOT / "pyproject.toml").read_text("utf-8").partition("\nomit = [\n")
    omitted = re.findall(r'"([\w/.]+)"', after.partition("]")[0])
    assert omitted == [f"{name.replace('.', '/')}.py" for name in TRANSLATED]


def test_the_python_backend_runs_the_sources() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WHERE, *TRANSLATED],
        cwd=ROOT,
        env={**os.environ, "DYNAMO_FAST_BACKEND": "python"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert [Path(line).suffix for line in done.stdout.splitlines()] == [".py"] * len(TRANSLATED)


def test_a_compiled_class_shows_what_it_holds() -> None:
    """Tests look for leaks in the attributes of objects: what they do not see, they do not miss."""
    hidden = [
        f"{types.relative_to(ROOT)}: {declared}"
        for types in sorted((ROOT / "dynamo_fast").rglob("*.pxd"))
        for declared in re.findall(
            r"^    cdef (?!readonly |public )([\w ]+ \w+)$", types.read_text("utf-8"), re.MULTILINE
        )
        if declared != "object __weakref__"
    ]
    assert not hidden
