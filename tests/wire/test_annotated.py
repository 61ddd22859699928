"""`Annotated`, compiled and interpreted: it behaves as a value, and is nothing to the garbage collector where compiled."""

from __future__ import annotations

import copy
import gc
import inspect
import pickle
from typing import Any

import pytest

from dynamo_fast.wire import annotated
from tests.interpreted import interpreted

BOTH = pytest.mark.parametrize("module", [annotated, interpreted(annotated)], ids=["imported", "interpreted"])


@BOTH
def test_the_item_of_plain_data_is_as_one_that_is_made_with_it(module: Any) -> None:
    item = module.with_data({"a": 1})
    assert type(item) is module.Annotated
    assert item == module.Annotated({"a": 1})
    assert (item.data(), item.id(), item.event(), item.comments(), item.error()) == ({"a": 1}, None, None, None, None)


@BOTH
def test_items_are_equal_and_hashed_by_what_they_hold(module: Any) -> None:
    item = module.Annotated(b"1", "7", "e", ["c"])
    assert item == module.Annotated(b"1", "7", "e", ["c"])
    assert item != module.Annotated(b"1", "7", "e")
    assert item != (b"1", "7", "e", ["c"], None)
    assert hash(module.Annotated(1, _event="e")) == hash(module.Annotated(_data=1, _event="e"))


@BOTH
def test_an_item_matches_a_pattern_of_its_fields(module: Any) -> None:
    Annotated = module.Annotated  # noqa: N806  # a pattern names a class
    match Annotated(1, None, "e"):
        case Annotated(data, None, event):
            assert (data, event) == (1, "e")
        case _:
            pytest.fail("no match")


@BOTH
def test_a_subscript_is_for_type_checkers(module: Any) -> None:
    assert module.Annotated[bytes] is module.Annotated


def test_an_item_is_copied_and_pickled() -> None:
    item = annotated.Annotated({"a": 1}, "7", "e", ["c"], {"message": "m"})
    assert copy.copy(item) == copy.deepcopy(item) == pickle.loads(pickle.dumps(item)) == item


def test_a_compiled_item_is_not_tracked_and_cannot_be_changed() -> None:
    if str(annotated.__file__).endswith(".py"):
        pytest.skip("it is not compiled")
    item: Any = annotated.Annotated([1])
    assert not gc.is_tracked(item)
    with pytest.raises(AttributeError):
        item._data = 2
    assert str(inspect.signature(annotated.Annotated.data)) == "(self, /)"
