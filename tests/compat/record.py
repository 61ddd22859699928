"""Asks the real Dynamo again: `python -m tests.compat.record` writes expected/VERSION/SCENARIO.json.

Words after it are the versions and the scenarios to record; without any, it records all of them.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.compat.pairs import ALONE, EXPECTED, WITH_WORKER, Side, call, worker
from tests.interop.peers import VERSIONS, interpreter

#: 1.3.1 has no such thing.
SINCE_1_6 = {
    *("unary", "records", "binding", "exceptions", "push", "metrics", "runtime_data", "first_tokens", "media"),
    *("parsers", "whole_answers"),
}
#: What tests/compat/test_surface.py compares in its own way.
NAMES = ["surface"]


def record(version: str, scenarios: Sequence[str]) -> None:
    side = Side(interpreter(version), "dynamo.runtime")
    folder = EXPECTED / version
    folder.mkdir(parents=True, exist_ok=True)
    for scenario in scenarios:
        if version < "1.6" and scenario in SINCE_1_6:
            continue
        with tempfile.TemporaryDirectory() as temporary, worker(side, Path(temporary)):
            facts = call(side, Path(temporary), [scenario])[scenario]
        lines = (f"{json.dumps(case)}: {json.dumps(fact, ensure_ascii=False)}" for case, fact in facts.items())
        text = "{\n" + ",\n".join(lines) + "\n}\n"
        (folder / f"{scenario}.json").write_text(text, encoding="utf-8")
        print(f"{version} {scenario}: {len(facts)} facts", flush=True)


if __name__ == "__main__":
    words = sys.argv[1:]
    for each in [word for word in words if word in VERSIONS] or VERSIONS:
        record(each, [word for word in words if word not in VERSIONS] or WITH_WORKER + ALONE + NAMES)
