"""JSON is written here, and nowhere else: by orjson where it is installed, else by msgspec, with the same bytes.

orjson does not run on Pythons without the global lock. It writes floats as Dynamo does, to the letter. msgspec writes other
floats from 1e16 on, and takes values that are an error in orjson (bytes, integers of more than 64 bits, sets): these are
looked for first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from dynamo_fast.wire._plain import is_plain_json

__all__ = ["Fragment", "dumps", "dumps_any", "loads"]

loads: Callable[[bytes | memoryview | str], Any] = msgspec.json.Decoder().decode
"""The value of a JSON text. Raises one of `dynamo_fast.wire.text.UNREADABLE`."""

_encode = msgspec.json.Encoder().encode
_MAX_DEPTH = 254
"""orjson's, too."""


def dumps_by_msgspec(value: Any) -> bytes:
    """`dumps` without orjson."""
    return _encode(value if is_plain_json(value) else _checked(value, 0))


def dumps_any_by_msgspec(value: Any) -> bytes:
    """`dumps_any` without orjson."""
    return dumps_by_msgspec(_with_text_keys(value, 0))


def _checked(value: Any, depth: int) -> Any:  # one type a line
    """The same value for msgspec, which then writes what orjson writes. Raises TypeError, as orjson does."""
    if depth > _MAX_DEPTH:
        raise TypeError("Recursion limit reached")
    if value is None or isinstance(value, (bool, msgspec.Raw)):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        if not -(1 << 63) <= value < 1 << 64:
            raise TypeError("Integer exceeds 64-bit range")
        return int(value)
    if type(value) is float:
        return msgspec.Raw(repr(value).encode()) if 1e16 <= abs(value) < float("inf") else value
    if isinstance(value, dict):
        if not all(type(key) is str for key in value):
            raise TypeError("Dict key must be str")
        return {key: _checked(each, depth + 1) for key, each in value.items()}
    if isinstance(value, list) or type(value) is tuple:
        return [_checked(each, depth + 1) for each in value]
    raise TypeError(f"Type is not JSON serializable: {type(value).__name__}")


def _with_text_keys(value: Any, depth: int) -> Any:
    """`value` with keys of dicts as texts, and iterables that JSON lacks as lists."""
    if depth > _MAX_DEPTH:
        raise TypeError("Recursion limit reached")
    if isinstance(value, dict):
        return {_text_key(key): _with_text_keys(each, depth + 1) for key, each in value.items()}
    if value is None or isinstance(value, (str, int, float, msgspec.Raw)):
        return value
    return [_with_text_keys(each, depth + 1) for each in value]


def _text_key(key: Any) -> str:
    if isinstance(key, str):
        return str.__str__(key)
    if key is not None and not isinstance(key, (int, float)):
        raise TypeError(f"Dict key must be str, a number or None, not {type(key).__name__}")
    return dumps_by_msgspec(key).decode()


Fragment: Callable[[str], Any]
"""A JSON text that is written as it stands, as a part of a value."""

dumps: Callable[[Any], bytes]
"""The JSON text of a value, without blanks. A float that is no number is null. Raises one of `UNWRITABLE` (`_plain.py`) for
other types, integers of more than 64 bits, texts that are not Unicode, and what is nested too deeply.
"""

dumps_any: Callable[[Any], bytes]
"""As `dumps`, for what is shown: keys that are None or numbers become texts, and iterables of other types lists."""

try:
    import orjson
except ImportError:
    Fragment, dumps, dumps_any = msgspec.Raw, dumps_by_msgspec, dumps_any_by_msgspec
else:
    Fragment, dumps = orjson.Fragment, orjson.dumps

    def dumps_any(value: Any) -> bytes:  # above
        return orjson.dumps(value, default=list, option=orjson.OPT_NON_STR_KEYS)
