from __future__ import annotations

import json
from typing import Any

import pytest

from dynamo_fast.inspect import abbreviated, jsonable


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"a": [1, 2.5, None, True, "é"]}, '{"a":[1,2.5,null,true,"é"]}'),
        ("x" * 80, '"' + "x" * 80 + '"'),
        ("x" * 100, '"' + "x" * 80 + '"… 20 more'),
        (list(range(12)), "[0,1,2,3,4,5,6,7,8,9,10,11]"),
        (list(range(100)), "[0,1,2,3,4,5,… 94 more]"),
        ({str(number): 0 for number in range(100)}, '{"0":0,"1":0,"2":0,"3":0,"4":0,"5":0,… 94 more}'),
        (b"\x00\xff", "h'00ff'"),
        (bytes(50), "h'" + "00" * 40 + "'… 10 more"),
        ({1: b"a", None: float("nan")}, "{1:h'61',null:nan}"),
        ("\x1b[31m\u202e\x9b\n", '"\\u001b[31m\\u202e\\u009b\\n"'),
    ],
)
def test_values_are_abbreviated(value: Any, text: str) -> None:
    assert abbreviated(value) == text


def test_values_of_great_depth() -> None:
    value: Any = 1
    for _ in range(5000):
        value = [value]
    assert len(abbreviated(value)) < 100
    assert abbreviated(value, full=True).startswith("[[[[")
    assert json.dumps(jsonable(value)).startswith("[[[[")
    while isinstance(value, list):
        value = value.pop()
