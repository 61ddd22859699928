"""`EngineRelay`: publishes what an engine of this machine publishes itself, over ZMQ, in vLLM's form.

    topic  sequence (u64, big-endian)  MessagePack [timestamp, [event, ...], rank or nil]

    event   ["BlockStored", block_hashes, parent_block_hash, token_ids, block_size, lora_id, medium, lora_name, ...]
            ["BlockRemoved", block_hashes, medium]
            ["AllBlocksCleared"]                    each may be a map with these names and `type`, too

What Dynamo 1.6.1 and 1.3.1 make of each form was observed (tests/llm/test_engine_relay.py).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import msgspec

from dynamo_fast.errors import InvalidConfig, PayloadError
from dynamo_fast.llm.event_plane import pyzmq
from dynamo_fast.llm.kv_blocks import compute_block_hash_for_seq
from dynamo_fast.llm.kv_events import KvEventSource, blocks_of
from dynamo_fast.llm.kv_state import DEVICE, KvChange, cleared, removed, stored
from dynamo_fast.logs import get_logger

__all__ = ["EngineRelay", "changes_of"]

logger = get_logger(__name__)

_MEDIA = {
    DEVICE: (None, "", "GPU"),
    "host_pinned": ("CPU", "CPU_PINNED", "CPU_TIER1"),
    "disk": ("CPU_TIER2", "DISK", "STORAGE", "NVME"),
    "external": ("EXTERNAL",),
}
_TIERS = {medium: tier for tier, media in _MEDIA.items() for medium in media}
"""Where an engine says that blocks are, and how an event says it. Blocks elsewhere are not published."""

_STORED = ("block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id", "medium", "lora_name")
_REMOVED = ("block_hashes", "medium")
_read = msgspec.msgpack.Decoder().decode


class EngineRelay:
    """A thread that follows one engine. Owned by a publisher; ends with `close`, or when its source is closed."""

    def __init__(self, source: KvEventSource, endpoint: str, topic: str) -> None:
        """Raises InvalidConfig for an endpoint that is no ZMQ address, or if pyzmq is missing."""
        zmq = pyzmq()
        self._source = source
        self._ended = zmq.ContextTerminated
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.LINGER, 0)
        try:
            self._socket.subscribe(topic)
            self._socket.connect(endpoint)
        except zmq.ZMQError as error:
            self._socket.close()
            self._context.term()
            raise InvalidConfig(f"zmq_endpoint={endpoint!r} is not valid: {error}") from error
        self._unreadable = 0
        self._thread = threading.Thread(target=self._follow, name="dynamo-fast-engine-relay", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Follow the engine no longer. May be called twice, from any thread."""
        self._context.term()  # wakes up the thread, which closes the socket
        self._thread.join()

    def _follow(self) -> None:
        try:
            while True:
                frames = self._socket.recv_multipart()
                self._relay(frames)
        except self._ended:
            pass
        finally:
            self._socket.close()

    def _relay(self, frames: Sequence[bytes]) -> None:
        changes, problems = changes_of(frames, self._source.block_size)
        for problem in problems:
            self._unreadable += 1
            if self._unreadable & (self._unreadable - 1) == 0:  # the 1st, 2nd, 4th, 8th, ...
                logger.warning("a KV event of the engine is not published (number %d): %s", self._unreadable, problem)
        if changes:
            self._source.publish(changes)


def changes_of(frames: Sequence[bytes], block_size: int) -> tuple[list[KvChange], list[str]]:
    """What a message of an engine says, and what of it cannot be read."""
    changes: list[KvChange] = []
    problems: list[str] = []
    try:
        _, _, body = frames
        _, events, dp_rank = _read(body)
        for event in events:
            try:
                change = _change(event, dp_rank or 0, block_size)
            except (PayloadError, TypeError, ValueError, LookupError, OverflowError, AttributeError) as error:
                problems.append(f"{type(error).__name__}: {error}")
            else:
                changes += [] if change is None else [change]
    except (msgspec.DecodeError, TypeError, ValueError) as error:
        problems.append(f"no message of an engine: {error}")
    return changes, problems


def _change(event: Any, dp_rank: int, block_size: int) -> KvChange | None:
    if isinstance(event, dict):
        kind, fields = event.get("type"), event
    else:
        kind, *values = event
        fields = dict(zip(_REMOVED if kind == "BlockRemoved" else _STORED, values, strict=False))
    if kind == "AllBlocksCleared":
        return KvChange(cleared, dp_rank)
    if kind not in ("BlockStored", "BlockRemoved"):
        raise PayloadError(f"unknown variant {kind!r}, expected BlockStored, BlockRemoved or AllBlocksCleared")
    tier = _TIERS.get(fields.get("medium"))
    if tier is None:
        return None
    if kind == "BlockRemoved":
        return KvChange(removed(fields["block_hashes"]), dp_rank, tier)
    if fields["block_size"] != block_size:
        raise PayloadError(f"its blocks have {fields['block_size']} tokens, expected {block_size} (kv_block_size)")
    hashes = compute_block_hash_for_seq(fields["token_ids"], block_size, lora_name=fields.get("lora_name"))
    blocks = blocks_of(fields["block_hashes"][: len(hashes)], hashes, None)
    return KvChange(stored(blocks, fields.get("parent_block_hash")), dp_rank, tier)
