"""Texts of a peer, made safe to show: in an error, in a log line, on a terminal.

A peer chooses its request ids, endpoint names and error texts. A line feed in one forges a log line, an escape sequence
drives the terminal, a bidirectional override shows another text than the one that is there. Each function here escapes
every character that `str.isprintable` does not accept, and shows a limited number of characters.
"""

from __future__ import annotations

import re
import reprlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "MAX_SHOWN",
    "UNREADABLE",
    "needs_no_escape",
    "printable",
    "printable_json",
    "printable_lines",
    "reason",
    "shown",
]

MAX_SHOWN = 500
"""Characters of one text that a log line or an error shows by default; what is left is counted."""
_MAX_REASON = 200
_MAX_REPR = 80

UNREADABLE = (ValueError, TypeError, OverflowError, RecursionError, MemoryError)
"""What a parser raises at bytes that it does not take. Each decoder of `wire` turns these into its documented error.

ValueError is msgspec's DecodeError, a text that is not UTF-8, and a number with more digits than Python converts;
TypeError is a MessagePack key that cannot be one; RecursionError is a value that is nested too deeply for the stack.
"""

_NOT_PRINTABLE = re.compile(r"[^ -~]")
_repr = reprlib.Repr()
_repr.maxlevel = 4
_repr.maxstring = _repr.maxother = _MAX_REPR
_repr.maxlong = 40


def needs_no_escape(text: str) -> bool:
    """Whether `text` stands in JSON as it is."""
    return text.isascii() and text.isprintable() and '"' not in text and "\\" not in text


def printable(text: str, limit: int = MAX_SHOWN) -> str:
    """The first `limit` characters of `text` on one line, without anything that a terminal obeys.

    Other characters are escaped as in a Python literal (`\\n`, `\\x1b`, `\\u202e`); how many are left out is added.
    """
    left = len(text) - limit
    if left > 0:
        return f"{_escaped(text[:limit], _python_escape)}... ({left} more characters)"
    return _escaped(text, _python_escape)


def printable_lines(text: str) -> str:
    """Each line of `text` as `printable` shows it, whole: for texts of several lines, as tracebacks are."""
    return "\n".join(printable(each, len(each)) for each in text.split("\n"))


def printable_json(text: str) -> str:
    """A JSON text on one line, the same value, in which every character that is not printable is a JSON escape."""
    return _escaped(text, _json_escape)


def shown(value: object) -> str:
    """A short repr of any value, however deep or large it is. Never raises."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        head = bytes(value[:_MAX_REPR])
        return repr(head) if len(value) <= _MAX_REPR else f"{head!r}... of {len(value)} bytes"
    if isinstance(value, str):
        left = len(value) - _MAX_REPR
        return (
            printable(repr(value)) if left <= 0 else printable(f"{value[:_MAX_REPR]!r}... of {len(value)} characters")
        )
    try:
        return printable(_repr.repr(value))
    except Exception:  # a number with more digits than Python converts; a `__repr__` that raises
        return f"<{type(value).__name__}>"


def reason(error: BaseException) -> str:
    """Why a parser did not take its bytes, on one line of limited length."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return printable(str(error) or type(error).__name__, _MAX_REASON)


def _escaped(text: str, escape: Callable[[re.Match[str]], str]) -> str:
    return text if text.isprintable() else _NOT_PRINTABLE.sub(escape, text)


def _python_escape(match: re.Match[str]) -> str:
    character = match[0]
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")


def _json_escape(match: re.Match[str]) -> str:
    character = match[0]
    if character.isprintable():
        return character
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))
