"""What real workers published, with the records that they put: docs/spec/model_card/kv-real-*.txt."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

__all__ = ["EVENTS", "LOAD", "frames", "records"]

_FOLDER = Path(__file__).parents[2] / "docs" / "spec" / "model_card"
EVENTS, LOAD = "kv-events", "kv_metrics"


def frames(version: str, topic: str) -> list[list[bytes]]:
    """The frames of each message of a topic, of a worker of a release (`161`, `131`)."""
    marked = [line.removeprefix(f"ZMQ {topic} ") for line in _lines(version) if line.startswith(f"ZMQ {topic} ")]
    return [[bytes.fromhex(each) for each in ast.literal_eval(line)] for line in marked]


def records(version: str) -> dict[str, Any]:
    """Its records, by their whole keys."""
    found = (line.split(" ", 2) for line in _lines(version) if line.startswith("REC "))
    return {key: json.loads(content) for _, key, content in found}


def _lines(version: str) -> list[str]:
    return (_FOLDER / f"kv-real-{version}.txt").read_text(encoding="utf-8").splitlines()
