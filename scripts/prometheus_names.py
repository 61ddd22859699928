"""Writes dynamo_fast/prometheus_names.py: `python -m scripts.prometheus_names`.

The names are those that Dynamo's own module has, as `python -m tests.compat.record metric_names` recorded them.
"""

from __future__ import annotations

import json
from typing import Any

from scripts.architecture import PACKAGE, ROOT

SOURCE = ROOT / "tests" / "compat" / "expected" / "1.6.1" / "metric_names.json"
TARGET = PACKAGE / "prometheus_names.py"

HEAD = '''"""The drop-in for `dynamo.prometheus_names`: the names of Dynamo's metrics and of their labels.

    from dynamo_fast.prometheus_names import labels             # was: from dynamo.prometheus_names import labels

`python -m scripts.prometheus_names` writes this file. Do not edit it.
"""

# ruff: noqa: N801, S105
'''


def tree() -> dict[str, Any]:
    """A name -> its text; a class -> its own tree."""
    root: dict[str, Any] = {}
    for path, text in json.loads(SOURCE.read_text(encoding="utf-8")).items():
        *classes, name = path.split(".")
        place = root
        for each in classes:
            place = place.setdefault(each, {})
        place[name] = text
    return root


def lines_of(members: dict[str, Any], indent: str) -> list[str]:
    """The constants in the order of their names, then the classes."""
    lines = [f"{indent}{name} = {json.dumps(text)}" for name, text in members.items() if isinstance(text, str)]
    for name, inner in members.items():
        if isinstance(inner, dict):
            between = [""] if indent and lines else [] if indent else ["", ""]
            lines += [*between, f"{indent}class {name}:", *lines_of(inner, indent + "    ")]
    return lines


def written() -> str:
    """The text of the module."""
    return HEAD + "\n".join(lines_of(tree(), "")) + "\n"


if __name__ == "__main__":
    TARGET.write_text(written(), encoding="utf-8")
