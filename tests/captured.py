"""The captured frames of `tests/vectors/`: bytes that compiled Dynamo wrote, or accepted (see the index)."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

_FOLDER = Path(__file__).parent / "vectors"


class Vector(NamedTuple):
    """One captured piece of a connection; `facts` is its entry of the index."""

    name: str
    kind: str
    plane: str
    data: bytes
    facts: dict[str, Any]


def captured(*kinds: str) -> list[Vector]:
    """The vectors of these kinds, which may be patterns (`req_*`); all of them if none is named.

    Those whose `facts["emitter"]` is `synthetic` were not written by Dynamo, but taken by it.
    """
    index = json.loads((_FOLDER / "index.json").read_text(encoding="utf-8"))["vectors"]
    vectors = [
        Vector(entry["file"], entry["kind"], entry["plane"], (_FOLDER / entry["file"]).read_bytes(), entry)
        for entry in index
    ]
    return [vector for vector in vectors if not kinds or any(fnmatchcase(vector.kind, kind) for kind in kinds)]


def name_of(vector: Vector) -> str:
    """For `pytest.mark.parametrize(..., ids=name_of)`."""
    return vector.name.removesuffix(".bin")
