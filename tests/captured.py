"""The captured frames of `dynamo_fast.conformance`: bytes that compiled Dynamo wrote, or accepted (see their index)."""

from __future__ import annotations

from fnmatch import fnmatchcase

from dynamo_fast.conformance.suite import Vector, vectors

__all__ = ["Vector", "captured", "name_of"]


def captured(*kinds: str) -> list[Vector]:
    """The vectors of these kinds, which may be patterns (`req_*`); all of them if none is named."""
    return [vector for vector in vectors() if not kinds or any(fnmatchcase(vector.kind, kind) for kind in kinds)]


def name_of(vector: Vector) -> str:
    """For `pytest.mark.parametrize(..., ids=name_of)`."""
    return vector.name.removesuffix(".bin")
