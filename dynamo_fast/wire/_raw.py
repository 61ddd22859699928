# cython: freethreading_compatible=True, annotation_typing=False
"""`is_one_value`: whether bytes that stand where one JSON value is expected are one.

This runs for every byte of every raw item. Where there is a compiler, Cython translates this very file, with the types in
`_raw.pxd` (see setup.py).
"""

from __future__ import annotations

# Then the names that no module here defines are those of functions in C (`_scan.pxd`).
_IS_COMPILED = not __file__.endswith(".py")


def is_one_value(text: bytes) -> bool:
    """Whether `text` has no comma outside of its strings, arrays and objects, and closes what it opens, and no more.

    If one JSON value, or one and more members of the object around it, stands between two known texts, it is the former.
    Whether it is JSON at all is not looked at.
    """
    if _IS_COMPILED:
        answer = is_one_value_in_blocks(text, len(text))  # type: ignore[name-defined]  # noqa: F821  # in `_scan.pxd`
        if answer >= 0:
            return answer  # type: ignore[no-any-return]
    return _is_one_value(text)


def _is_one_value(text: bytes) -> bool:
    """The same, byte by byte."""
    depth = 0
    at, size = 0, len(text)
    chars = text
    while at < size:
        byte = chars[at]
        at += 1
        if byte == 34:  # a string begins: go behind its end
            while at < size and chars[at] != 34:
                at += 2 if chars[at] == 92 else 1
            if at >= size:
                return False
            at += 1
        elif byte == 123 or byte == 91:  # noqa: PLR1714  # in C
            depth += 1
        elif byte == 125 or byte == 93:  # noqa: PLR1714
            depth -= 1
            if depth < 0:
                return False
        elif byte == 44 and depth == 0:
            return False
    return depth == 0 and size > 0
