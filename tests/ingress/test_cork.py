"""`Cork`, compiled and interpreted: which items it holds, and when they are due."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dynamo_fast.ingress import _cork
from dynamo_fast.wire.json_text import dumps
from tests.interpreted import interpreted

BOTH = pytest.mark.parametrize("module", [_cork, interpreted(_cork)], ids=["imported", "interpreted"])


class Text(str):
    __slots__ = ()


class Clock:
    """Seconds, as the test says."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def corks(module: Any, clock: Callable[[], float] = Clock()) -> Any:  # noqa: B008  # it is never turned
    """A cork of 3 items, 10 bytes, or 0.5 s."""
    cork = module.Cork(dumps, clock, 3, 10, 0.5)
    cork.restart()
    return cork


def test_what_is_compiled_has_the_types_that_stand_beside_it() -> None:
    is_compiled = not str(_cork.__file__).endswith(".py")
    assert hasattr(corks(_cork), "__dict__") != is_compiled


@BOTH
def test_plain_items_are_held_and_others_are_not(module: Any) -> None:
    cork = module.Cork(dumps, Clock(), 100, 100, 0.5)
    cork.restart()
    for value in ({"a": 1}, None, [1.5]):
        assert cork.add(value) is False
    odd: list[Any] = [Text(), {1: 2}, {"_dynamo_annotated": True}, 1 << 70, b"no JSON", "\ud800"]
    for value in odd:
        assert cork.add(value) is None
    assert cork.data == [b'{"a":1}', b"null", b"[1.5]"]
    assert cork.bytes == 7 + 4 + 5


@BOTH
def test_items_are_due_when_they_are_many_or_large(module: Any) -> None:
    many, large = corks(module), corks(module)
    assert [many.add(1), many.add(2), many.add(3)] == [False, False, True]
    assert [large.add("x" * 6), large.add("")] == [False, True]
    assert [many.is_due(2), many.is_due(3)] == [False, True]


@BOTH
def test_items_are_due_when_they_are_old(module: Any) -> None:
    clock = Clock()
    cork = corks(module, clock)
    clock.now += 0.499
    assert cork.add(1) is False
    clock.now += 0.001
    assert cork.add(2) is True
    cork.restart()
    assert cork.is_due(2) is False


@BOTH
def test_a_cork_that_was_never_started_holds_nothing_back(module: Any) -> None:
    assert module.Cork(dumps, Clock(), 3, 10, 0.5).add(1) is True


@BOTH
def test_while_nothing_can_be_written_the_handler_must_wait(module: Any) -> None:
    cork = corks(module)
    cork.paused = True
    assert cork.add(1) is True
    cork.paused = False
    assert cork.add(2) is False


@BOTH
def test_an_error_of_the_clock_is_not_lost(module: Any) -> None:
    def broken() -> float:
        raise RuntimeError("no clock")

    cork = module.Cork(dumps, broken, 3, 10, 0.5)
    with pytest.raises(RuntimeError, match="no clock"):
        cork.restart()
    with pytest.raises(RuntimeError, match="no clock"):
        cork.add(1)
