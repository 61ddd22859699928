"""Values and exceptions that both sides of a scenario can make from a name. Standard library only."""

from __future__ import annotations

import asyncio
import builtins
import dataclasses
import datetime
import decimal
import enum
from typing import Any


class Colour(enum.Enum):
    RED = 1


@dataclasses.dataclass
class Point:
    x: int = 1


class WithStatus(Exception):
    """What web frameworks raise."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Homemade(Exception):
    pass


#: Each is made anew, since some can be used only once.
VALUES: dict[str, Any] = {
    "None": lambda: None,
    "True": lambda: True,
    "7": lambda: 7,
    "1.5": lambda: 1.5,
    "2.0": lambda: 2.0,
    "-0.0": lambda: -0.0,
    "nan": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "i64 min": lambda: -(1 << 63),
    "u64 max": lambda: (1 << 64) - 1,
    "beyond u64": lambda: 1 << 64,
    "beyond i64": lambda: -(1 << 63) - 1,
    "text": lambda: "aé\U0001f600",
    "empty text": lambda: "",
    "lone surrogate": lambda: "\ud800",
    "bytes": lambda: b"\x00\xffab",
    "bytearray": lambda: bytearray(b"ab"),
    "memoryview": lambda: memoryview(b"ab"),
    "list": lambda: [1, "x", None],
    "empty list": list,
    "tuple": lambda: (1, 2),
    "set": lambda: {1},
    "frozenset": lambda: frozenset([1]),
    "range": lambda: range(3),
    "nested": lambda: {"a": {"b": [1, {2}]}},
    "keys int": lambda: {1: "a"},
    "keys bool": lambda: {True: "a"},
    "keys None": lambda: {None: "a"},
    "keys tuple": lambda: {(1, 2): "a"},
    "datetime": lambda: datetime.datetime(2024, 1, 1),
    "Decimal": lambda: decimal.Decimal("1.5"),
    "complex": lambda: 1j,
    "object": object,
    "enum": lambda: Colour.RED,
    "dataclass": Point,
    "generator": lambda: (each for each in [1]),
}

EXCEPTIONS = [
    *("RuntimeError", "ValueError", "TypeError", "KeyError", "OSError", "AssertionError", "StopAsyncIteration"),
    *("TimeoutError", "ConnectionError", "ConnectionRefusedError", "ConnectionResetError", "BrokenPipeError"),
    *("GeneratorExit", "CancelledError", "Homemade", "status 400", "status 404", "status 429", "status 503"),
    *(
        f"dynamo {name}"
        for name in (
            *("DynamoException", "Unknown", "InvalidArgument", "CannotConnect", "Disconnected", "ConnectionTimeout"),
            *("Cancelled", "EngineShutdown", "StreamIncomplete", "WorkerUnavailable"),
        )
    ),
]


def exception(name: str, api: Any) -> BaseException:
    """The exception of that name; `api` has Dynamo's own."""
    kind, _, rest = name.partition(" ")
    if kind == "status":
        return WithStatus(int(rest), "oh no")
    if kind == "dynamo":
        made: BaseException = getattr(api, rest)("oh no")
        return made
    if name == "CancelledError":
        return asyncio.CancelledError("oh no")
    if name == "Homemade":
        return Homemade("oh no")
    raised: BaseException = getattr(builtins, name)("oh no")
    return raised
