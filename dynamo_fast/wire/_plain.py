# cython: freethreading_compatible=True, annotation_typing=False
"""`is_plain`: whether a value may go straight to the fast writers; `encode_plain` sends it there. `is_plain_json`: whether
both writers of JSON write it alike.

This runs for every item, and for every part of it. Where there is a compiler, Cython translates this very file, with the
types in `_plain.pxd` (see setup.py): the check then costs a tenth.
"""

from __future__ import annotations

from collections.abc import Callable

ENVELOPE_MARK = "_dynamo_annotated"
"""The key of a dict that is an annotated item itself."""
UNWRITABLE = (TypeError, ValueError, OverflowError, RecursionError)
"""What a fast writer raises at a plain value with an integer of more than 64 bits, a text that is not Unicode, or (in
JSON) bytes."""

_SCALARS = frozenset({str, int, float, bool, type(None), bytes})
_MAX_DEPTH = 100
_MIN_INT, _MAX_INT = -(1 << 63), (1 << 64) - 1


def is_plain(value: object, depth: int = _MAX_DEPTH) -> bool:
    """Whether `value` is made of None, bool, int, float, str, bytes, lists, tuples and dicts with str keys only.

    Subclasses do not count, and neither does what is nested deeper than `depth` (or contains itself): the full
    encoder takes these.
    """
    kind = type(value)
    if kind is dict:
        for key, each in value.items():  # type: ignore[attr-defined]  # mypy does not follow `kind`
            if type(key) is not str:
                return False
            part = type(each)
            if part is str or part is int:  # most are, and a look at the set costs more
                continue
            if part not in _SCALARS and (depth == 0 or not is_plain(each, depth - 1)):
                return False
        return True
    if kind is list or kind is tuple:
        for each in value:  # type: ignore[attr-defined]  # the same  # noqa: SIM110  # a generator would cost more
            if type(each) not in _SCALARS and (depth == 0 or not is_plain(each, depth - 1)):
                return False
        return True
    return kind in _SCALARS


def encode_plain(write: Callable[[object], bytes], value: object) -> bytes | None:
    """What `write` makes of a plain `value`; None if the full encoder must take it."""
    if not is_plain(value) or (type(value) is dict and ENVELOPE_MARK in value):
        return None
    try:
        return write(value)
    except UNWRITABLE:
        return None


def is_plain_json(value: object, depth: int = _MAX_DEPTH) -> bool:
    """Whether `value` is made of None, bool, int of 64 bits, float below 1e16, str, lists, tuples and dicts with str keys.

    Subclasses do not count, and neither does what is nested deeper than `depth` (or contains itself).
    """
    kind = type(value)
    if kind is dict and depth > 0:
        for key, each in value.items():  # type: ignore[attr-defined]  # mypy does not follow `kind`  # noqa: SIM110
            if type(key) is not str or not is_plain_json(each, depth - 1):
                return False
        return True
    if (kind is list or kind is tuple) and depth > 0:
        for each in value:  # type: ignore[attr-defined]  # the same  # noqa: SIM110
            if not is_plain_json(each, depth - 1):
                return False
        return True
    if kind is int:
        return _MIN_INT <= value <= _MAX_INT  # type: ignore[operator]  # the same
    return kind is str or value is None or kind is bool or (kind is float and -1e16 < value < 1e16)  # type: ignore[operator]
