# cython: freethreading_compatible=True
"""`is_plain`: whether a value may go straight to the fast writers.

A module of its own because it looks at every part of every item: where there is a compiler, Cython translates this very
file (see setup.py), and the look costs a tenth.
"""

from __future__ import annotations

_SCALARS = frozenset({str, int, float, bool, type(None), bytes})
_MAX_DEPTH = 100


def is_plain(value: object, depth: int = _MAX_DEPTH) -> bool:
    """Whether `value` is made of None, bool, int, float, str, bytes, lists, tuples and dicts with str keys only.

    Subclasses do not count, and neither does what is nested deeper than `depth` (or contains itself): somebody slower
    has a look at those.
    """
    kind = type(value)
    if kind is dict:
        for key, each in value.items():  # type: ignore[attr-defined]  # mypy does not follow `kind`
            if type(key) is not str:
                return False
            if type(each) not in _SCALARS and (depth == 0 or not is_plain(each, depth - 1)):
                return False
        return True
    if kind is list or kind is tuple:
        for each in value:  # type: ignore[attr-defined]  # the same  # noqa: SIM110  # a generator would cost more
            if type(each) not in _SCALARS and (depth == 0 or not is_plain(each, depth - 1)):
                return False
        return True
    return kind in _SCALARS
