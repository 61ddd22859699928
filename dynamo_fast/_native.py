# cython: freethreading_compatible=True, annotation_typing=False
"""Bases of classes that Cython compiles: a compiled class has a compiled first base, and no base with a subscript.

    class Deadlines(Native, Generic[Key]): ...      types in `deadlines.pxd`

And its decorators of classes, which it looks for in the Python source only:

    if TYPE_CHECKING:
        import cython                               Cython reads this line, wherever it stands
    else:
        from dynamo_fast._native import cython

The same file runs without a compiler.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

__all__ = ["Generic", "Native", "cython"]

_Class = TypeVar("_Class")


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


class cython:  # noqa: N801  # as the module is called
    """The decorators of Cython, where nothing is compiled: they do nothing."""

    @staticmethod
    def cclass(kind: _Class) -> _Class:
        """Compile the class with its types, which stand in the `.pxd`; the other two need to be told."""
        return kind

    @staticmethod
    def freelist(_: int) -> Callable[[_Class], _Class]:
        """Keep the memory of that many freed objects for new ones."""
        return _unchanged

    @staticmethod
    def no_gc(kind: _Class) -> _Class:
        """Do not have the garbage collector look at the objects."""
        return kind


def _unchanged(kind: _Class) -> _Class:
    return kind
