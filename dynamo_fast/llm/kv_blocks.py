"""The hashes by which a frontend finds the blocks of a prompt (model_card.md 7.3).

A block is `block_size` tokens. Its `tokens_hash` is XXH3 (64 bits) over the tokens, each a little-endian u32. What else
tells cached blocks apart is mixed in: the LoRA adapter and the cache salt into the seed, multimodal objects after the
tokens. (Its `block_hash` is the engine's own, and opaque.)
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from typing import Any

from dynamo_fast.errors import InvalidConfig

__all__ = ["compute_block_hash_for_seq", "mm_extra_info"]

_SEED = 1337
_MASK = (1 << 64) - 1
MmInfos = Sequence[Any]
"""For each block None, or `{"mm_objects": [{"mm_hash": u64, "offsets": [[start, end], ...]}, ...]}`."""


def compute_block_hash_for_seq(  # noqa: PLR0917  # as Dynamo has it
    tokens: Sequence[int],
    kv_block_size: int,
    block_mm_infos: MmInfos | None = None,
    lora_name: str | None = None,
    is_eagle: bool | None = None,
    cache_namespace: str | None = None,
) -> list[int]:
    """The hash of each whole block of `tokens`; tokens beyond the last whole block are ignored.

    The name and the arguments are Dynamo's. With `is_eagle` the hash of a block covers the first token of the next block
    too. Raises ValueError for a block size below 1, OverflowError and TypeError for a token that is no unsigned 32-bit
    number, InvalidConfig if xxhash is missing.
    """
    if kv_block_size < 1:
        raise ValueError("kv_block_size cannot be 0")
    xxh3 = _xxh3()
    packed = _packed(tokens)
    window = kv_block_size + bool(is_eagle)
    seed = _SEED
    if lora_name:
        seed += xxh3(lora_name.encode(), 0)
    if cache_namespace:
        seed += xxh3(cache_namespace.encode(), 1)
    seed &= _MASK
    hashes = []
    for number, start in enumerate(range(0, len(tokens) - window + 1, kv_block_size)):
        block = packed[4 * start : 4 * (start + window)]
        if block_mm_infos is not None and number < len(block_mm_infos):
            block += _mm_bytes(block_mm_infos[number])
        hashes.append(xxh3(block, seed))
    return hashes


def mm_extra_info(info: Any) -> dict[str, Any] | None:
    """The multimodal objects of a block as an event has them. Raises TypeError or ValueError for another form."""
    if info is None:
        return None
    if not isinstance(info, dict):
        raise TypeError(f"the multimodal info of a block is a dict, not {type(info).__name__}")
    try:
        found = [
            {"mm_hash": each["mm_hash"], "offsets": [list(pair) for pair in each["offsets"]]}
            for each in info["mm_objects"]
        ]
    except KeyError as error:
        raise ValueError(f"the multimodal info of a block: missing field `{error.args[0]}`") from None
    return {"mm_objects": found}


def _packed(tokens: Sequence[int]) -> bytes:
    try:
        packed = array("I", tokens)
    except OverflowError as error:
        raise OverflowError(f"token ids are unsigned 32-bit numbers: {error}") from None
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def _mm_bytes(info: Any) -> bytes:
    if info is None:
        return b""
    try:
        hashes = sorted(each["mm_hash"] for each in info["mm_objects"])
    except KeyError as error:
        raise ValueError(f"the multimodal info of a block: missing field `{error.args[0]}`") from None
    return b"".join(each.to_bytes(8, "little") for each in hashes)


def _xxh3() -> Any:
    try:
        from xxhash import xxh3_64_intdigest
    except ImportError as error:
        raise InvalidConfig("KV events need xxhash: pip install 'dynamo-fast[kv]'") from error
    return xxh3_64_intdigest
