"""Decoded values as text of limited length, and as values that JSON has."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from dynamo_fast.wire.json_text import Fragment, dumps
from dynamo_fast.wire.text import printable, printable_json

__all__ = ["abbreviated", "json_line", "jsonable"]

_MAX_TEXT = 80
_MAX_ENTRIES = 12
_MAX_DEPTH = 12
_MAX_FULL_DEPTH = 200


def abbreviated(value: Any, full: bool = False, depth: int = 0) -> str:
    """`value` as JSON-like text of limited length; the whole value with `full`. Bytes are h'hex', as in CBOR's notation.

    Texts are cut at 80 characters, bytes at 40, and of more than 12 entries the first 6 are shown; the rest is counted.
    """
    if isinstance(value, str):
        return _text(value, full)
    if isinstance(value, bytes):
        return _bytes(value, full)
    if isinstance(value, dict):
        entries = [
            f"{_key(key, full)}:{abbreviated(each, full, depth + 1)}"
            for key, each in _first(value.items(), full, depth)
        ]
        return "{" + _joined(entries, len(value)) + "}"
    if isinstance(value, (list, tuple)):
        entries = [abbreviated(each, full, depth + 1) for each in _first(value, full, depth)]
        return "[" + _joined(entries, len(value)) + "]"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    text = str(value)
    return printable(text, len(text) if full else _MAX_TEXT)


def _first(entries: Iterable[Any], full: bool, depth: int) -> list[Any]:
    if depth > (_MAX_FULL_DEPTH if full else _MAX_DEPTH):
        return []
    limit = math.inf if full else _MAX_ENTRIES
    shown = list(entries)
    return shown if len(shown) <= limit else shown[: int(limit) // 2]


def _joined(entries: list[str], count: int) -> str:
    left = count - len(entries)
    return ",".join([*entries, f"… {left} more"] if left else entries)


def _key(key: Any, full: bool) -> str:
    return _text(key, full) if isinstance(key, str) else abbreviated(key, full, _MAX_DEPTH)


def _text(text: str, full: bool) -> str:
    left = len(text) - _MAX_TEXT
    shown = text if full or left <= 0 else text[:_MAX_TEXT]
    quoted = json_line(shown)
    return quoted if shown is text else f"{quoted}… {left} more"


def _bytes(data: bytes, full: bool) -> str:
    left = len(data) - _MAX_TEXT // 2
    return f"h'{data.hex()}'" if full or left <= 0 else f"h'{data[: _MAX_TEXT // 2].hex()}'… {left} more"


def json_line(value: Any) -> str:
    """`value`, of what JSON has, as one line of JSON of printable characters."""
    return printable_json(dumps(value).decode())


def jsonable(value: Any, depth: int = 0) -> Any:
    """`value` with what JSON lacks in forms that JSON has: bytes become {"hex": "..."}, keys become texts.

    A number that does not fit in 64 bits is written in full. What is nested more than 200 levels deep is abbreviated.
    """
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, (dict, list, tuple)) and depth > _MAX_FULL_DEPTH:
        return abbreviated(value)
    if isinstance(value, dict):
        return {_json_key(key): jsonable(each, depth + 1) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(each, depth + 1) for each in value]
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
        return Fragment(str(value))
    return value if isinstance(value, (str, int, float, bool)) or value is None else str(value)


def _json_key(key: Any) -> str:
    return key if isinstance(key, str) else abbreviated(key)
