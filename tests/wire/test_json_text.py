"""Both writers of JSON: msgspec, in the place of orjson, writes the same bytes and refuses the same values."""

from __future__ import annotations

import enum
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from dynamo_fast.wire import _plain
from dynamo_fast.wire._plain import UNWRITABLE
from dynamo_fast.wire.json_text import Fragment, dumps_any_by_msgspec, dumps_by_msgspec, loads
from tests.interpreted import interpreted

orjson = pytest.importorskip("orjson", reason="orjson is not installed: there is nothing to compare msgspec with")

EDGES = [2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 1e15, 1e16, -1e16, 1e17, 1e-5, 1.5e300, 5e-324]
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(st.characters()), st.binary(), st.sampled_from(EDGES)
)
VALUES = st.recursive(
    SCALARS,
    lambda each: st.one_of(
        st.lists(each), st.dictionaries(st.text(), each), st.dictionaries(SCALARS, each), st.tuples(each, each)
    ),
    max_leaves=12,
)


class Name(str):
    __slots__ = ()


class Ratio(float):
    __slots__ = ()


class Pair(NamedTuple):
    first: int
    second: int


class Number(enum.IntEnum):
    ONE = 1


def keys_differ(value: Any) -> bool:
    """Whether no two keys of a dict become the same text: orjson writes both then, and msgspec the last one."""
    if isinstance(value, dict):
        texts = [outcome(orjson_any, {key: 0}) for key in value]
        return len(set(texts)) == len(texts) and all(map(keys_differ, value.values()))
    return all(map(keys_differ, value)) if isinstance(value, (list, tuple)) else True


def orjson_any(value: Any) -> bytes:
    text: bytes = orjson.dumps(value, default=list, option=orjson.OPT_NON_STR_KEYS)
    return text


def outcome(write: Callable[[Any], bytes], value: Any) -> bytes | str:
    """The bytes, or that it cannot be written."""
    try:
        return write(value)
    except UNWRITABLE:
        return "refused"


@settings(max_examples=400, deadline=None)
@given(VALUES)
@example({"name": Name("value"), "number": Number.ONE})
@example({Name("key"): 1})
@example([Ratio(0.5)])
@example(Pair(1, 2))
@example({1, 2})
@example(bytearray(b"x"))
@example(object())
@example("\ud800")
@example([float("nan"), float("inf"), -0.0])
def test_both_write_the_same(value: Any) -> None:
    assert outcome(dumps_by_msgspec, value) == outcome(orjson.dumps, value)


@settings(max_examples=200, deadline=None)
@given(VALUES)
@example({None: 1, True: 2, 3: 4, 1e17: 5, Name("key"): 6})
@example({(1, 2): 3})
@example([{1}, range(3), b"xy"])
def test_both_write_the_same_for_a_terminal(value: Any) -> None:
    assume(keys_differ(value))
    assert outcome(dumps_any_by_msgspec, value) == outcome(orjson_any, value)


@pytest.mark.parametrize("depth", [50, 101, 200, 1000])
def test_a_depth_that_one_writes_the_other_writes(depth: int) -> None:
    value: Any = "x"
    for _ in range(depth):
        value = [value]
    assert outcome(dumps_by_msgspec, value) == outcome(orjson.dumps, value)


def test_a_value_that_contains_itself_is_refused() -> None:
    value: list[Any] = []
    value.append(value)
    for write in (dumps_by_msgspec, dumps_any_by_msgspec, orjson.dumps):
        assert outcome(write, value) == "refused"


def test_a_fragment_is_written_as_it_stands() -> None:
    digits = "1" * 40
    assert orjson.dumps([Fragment(digits)]) == dumps_by_msgspec([msgspec.Raw(digits)]) == f"[{digits}]".encode()
    assert loads(f"[{digits}]") == [int(digits)]


def test_the_check_is_the_same_without_a_compiler() -> None:
    module = interpreted(_plain)
    for value in (*EDGES, "x", None, True, b"x", {1: 2}, {"a": [1, (2.5, {"b": None})]}, {"a": {1}}, float("nan")):
        assert module.is_plain_json(value) == _plain.is_plain_json(value)


WITHOUT = """
import sys
sys.modules["orjson"] = None
import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""
PARTS = (
    "tests/wire",
    "tests/inspect",
    "tests/runtime/test_runtime.py",
    "tests/ingress/test_answers.py",
    "tests/ingress/test_cork.py",
    "tests/egress/test_push_router.py",
    "tests/llm/test_kv_events.py",
)


@pytest.mark.timeout(300)
def test_the_planes_work_without_orjson() -> None:
    """Both ends of the planes, the recorded bytes of Dynamo among what they are compared with."""
    command = [sys.executable, "-c", WITHOUT, "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", *PARTS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
