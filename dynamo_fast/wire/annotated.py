# cython: freethreading_compatible=True, annotation_typing=False
# cython: binding=False, embedsignature=True, embedsignature.format=clinic
"""`Annotated`: one item of an answer, as the caller gets it.

One is made for every item, and asked for its data. Where there is a compiler, Cython translates this very file, with the
types in `annotated.pxd` (see setup.py): making, asking and freeing one then costs a fraction.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeVar

from dynamo_fast.errors import DynamoError, RemoteError
from dynamo_fast.wire.error import decode_error

if TYPE_CHECKING:
    from typing import Generic

    import cython
    from typing_extensions import TypeVar as AnyTypeVar

    Data = AnyTypeVar("Data", default=Any)  # so that the bare name of the class goes on to mean any data
else:
    from dynamo_fast._native import Generic, cython

    Data = TypeVar("Data")

__all__ = ["Annotated", "Data", "with_data"]


@cython.no_gc
@cython.freelist(64)
@cython.cclass
class Fields:
    """What an item is made of: the data, and what the worker may have put beside it.

    The base of `Annotated`, as only a class without a base keeps the memory of its freed objects. It holds what was
    decoded, and that does not refer back to it: the garbage collector has nothing to find.
    """

    __slots__ = ("_comment", "_data", "_error", "_event", "_id")

    def __init__(
        self,
        _data: Any = None,
        _id: str | None = None,
        _event: str | None = None,
        _comment: list[str] | None = None,
        _error: Any = None,
    ) -> None:
        self._data = _data
        self._id = _id
        self._event = _event
        self._comment = _comment
        self._error = _error


@cython.no_gc
@cython.cclass
class Annotated(Fields, Generic[Data]):
    """One item of an answer: the data, and what the worker may have put beside it. The methods are Dynamo's.

    It is generic in its data, for type checkers: `Annotated[bytes]` for raw items, `Annotated[T]` for typed ones.
    """

    __slots__ = ()
    __match_args__ = ("_data", "_id", "_event", "_comment", "_error")

    def data(self) -> Data:
        """What the handler yielded; None for an item that has none (an event, a comment)."""
        return self._data  # type: ignore[no-any-return]

    def id(self) -> str | None:
        """The item's id, if it was given one."""
        return self._id

    def event(self) -> str | None:
        """The kind of event that the item is, if any; `error` for errors."""
        return self._event

    def comments(self) -> list[str] | None:
        """The comments, if it was given any."""
        return self._comment

    def is_error(self) -> bool:
        """Whether the item is an error: its event says so, and nothing else does."""
        return self._event == "error"

    def error(self) -> DynamoError | None:
        """The error that the item is; None if it is none."""
        if self._event != "error":
            return None
        if self._error is not None:
            return decode_error(self._error)
        return RemoteError(", ".join(self._comment or ()) or "unknown error")

    def __eq__(self, other: object) -> bool:
        return _fields(self) == _fields(other) if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash(_fields(self))

    def __reduce__(self) -> Any:
        return type(self), _fields(self)

    def __repr__(self) -> str:
        data = "<no_data>" if self._data is None else repr(self._data)
        comment = json.dumps(self._comment or [], ensure_ascii=False)
        return f"Annotated(data={data}, event={self._event}, comment={comment}, id={self._id})"


def _fields(item: Any) -> tuple[Any, ...]:
    return item._data, item._id, item._event, item._comment, item._error


def with_data(data: Any) -> Annotated[Any]:
    """The item that has nothing but `data`, which nearly every one is."""
    item: Annotated[Any] = Annotated.__new__(Annotated)
    item._data = data
    if not _IS_COMPILED:  # in C a new object has None everywhere
        item._id = item._event = item._comment = item._error = None
    return item


_IS_COMPILED = not __file__.endswith(".py")
