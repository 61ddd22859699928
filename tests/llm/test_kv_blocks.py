"""The hashes of blocks, as Dynamo's own function computed them (`compute_block_hash_for_seq` of 1.6.1; 1.3.1 agrees)."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from dynamo_fast.errors import InvalidConfig
from dynamo_fast.llm.kv_blocks import compute_block_hash_for_seq, mm_extra_info

ONE_TO_FOUR = 14643705804678351452
FIVE_TO_EIGHT = 16777012769546811212


def objects(*hashes: int) -> dict[str, Any]:
    return {"mm_objects": [{"mm_hash": each, "offsets": [[1, 3]]} for each in hashes]}


@pytest.mark.parametrize(
    ("tokens", "options", "expected"),
    [
        ([1, 87, 85, 266], {}, [0x3A3CE26009738442]),
        (range(1, 10), {}, [ONE_TO_FOUR, FIVE_TO_EIGHT]),
        ([1, 2, 3], {}, []),
        ([], {}, []),
        ([1, 2, 3, 2**32 - 1], {}, [2318215397754998468]),
        ([1, 2, 3, 4], {"lora_name": "ad"}, [16365837591317883983]),
        ([1, 2, 3, 4], {"lora_name": "", "cache_namespace": ""}, [ONE_TO_FOUR]),
        ([1, 2, 3, 4], {"cache_namespace": "abc"}, [4513567284702542777]),
        ([1, 2, 3, 4], {"lora_name": "ad", "cache_namespace": "abc"}, [18361971333186160525]),
        (range(1, 10), {"is_eagle": True}, [1914873892905420881, 1929047464662796003]),
        (range(1, 9), {"is_eagle": True}, [1914873892905420881]),
        ([1, 2, 3, 4], {"block_mm_infos": [objects(77)]}, [17706306829523047431]),
        ([1, 2, 3, 4], {"block_mm_infos": [objects(77, 5)]}, [3794470509064787562]),
        ([1, 2, 3, 4], {"block_mm_infos": [objects(5, 77)]}, [3794470509064787562]),
        ([1, 2, 3, 4], {"block_mm_infos": [objects(5, 5)]}, [5970851182182301450]),
        ([1, 2, 3, 4], {"block_mm_infos": [None]}, [ONE_TO_FOUR]),
        (range(1, 9), {"block_mm_infos": [objects(77)]}, [17706306829523047431, FIVE_TO_EIGHT]),
        (
            [1, 2, 3, 4, 5],
            {"block_mm_infos": [objects(77)], "lora_name": "ad", "is_eagle": True, "cache_namespace": "abc"},
            [17866304873642837703],
        ),
    ],
)
def test_hashes_are_dynamos(tokens: Any, options: dict[str, Any], expected: list[int]) -> None:
    assert compute_block_hash_for_seq(tokens, 4, **options) == expected


def test_a_block_has_a_token_at_least() -> None:
    with pytest.raises(ValueError, match="kv_block_size cannot be 0"):
        compute_block_hash_for_seq([1], 0)


@pytest.mark.parametrize("token", [-1, 2**32])
def test_a_token_is_an_unsigned_32_bit_number(token: int) -> None:
    with pytest.raises(OverflowError, match="unsigned 32-bit"):
        compute_block_hash_for_seq([1, 2, 3, token], 4)
    with pytest.raises(TypeError):
        compute_block_hash_for_seq("abcd", 4)  # type: ignore[arg-type]


def test_the_info_of_an_object_names_what_is_missing() -> None:
    assert mm_extra_info(None) is None
    assert mm_extra_info(objects(7)) == {"mm_objects": [{"mm_hash": 7, "offsets": [[1, 3]]}]}
    with pytest.raises(ValueError, match="mm_objects"):
        mm_extra_info({})
    with pytest.raises(TypeError, match="dict"):
        mm_extra_info("x")
    with pytest.raises(ValueError, match="mm_objects"):
        compute_block_hash_for_seq([1, 2, 3, 4], 4, [{}])


def test_without_xxhash_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xxhash", None)
    with pytest.raises(InvalidConfig, match=r"dynamo-fast\[kv\]"):
        compute_block_hash_for_seq([1, 2, 3, 4], 4)
