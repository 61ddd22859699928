# cython: freethreading_compatible=True, annotation_typing=False
"""Bases of classes that Cython compiles: a compiled class has a compiled first base, and no base with a subscript.

    class Deadlines(Native, Generic[Key]): ...      types in `deadlines.pxd`

The same file runs without a compiler.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["Generic", "Native"]


class Native:
    """The first base of a compiled class whose other bases are Python's."""

    __slots__ = ()


if TYPE_CHECKING:
    from typing import Generic
else:

    class Generic:
        """`typing.Generic` as far as a class needs it that runs: its subscript is the class itself."""

        __slots__ = ()

        def __class_getitem__(cls, kind: Any) -> Any:
            return cls
