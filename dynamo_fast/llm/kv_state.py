"""`KvState`: the KV events of one worker, numbered, and what a frontend gets that missed some (model_card.md 7.3).

A frontend follows the events. One that comes late, or sees a gap in the numbers, asks for the events from a number on
(`recover`). If these are no longer kept, it gets the whole state: the blocks that are stored now, as events.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from enum import Enum
from typing import Any, NamedTuple

import msgspec

from dynamo_fast.config import KvEventConfig
from dynamo_fast.logs import get_logger

__all__ = ["DEVICE", "KvChange", "KvDialect", "KvEvent", "KvState", "cleared", "removed", "stored"]

logger = get_logger(__name__)

DEVICE = "device"
_MASK = (1 << 64) - 1
_write = msgspec.msgpack.Encoder().encode

Block = dict[str, Any]
Data = dict[str, Any] | str


class KvChange(NamedTuple):
    """What happened to blocks, on one rank and in one tier of memory."""

    data: Data
    dp_rank: int = 0
    tier: str = DEVICE


class KvEvent(NamedTuple):
    """A change with its number, from 1."""

    event_id: int
    change: KvChange


def stored(blocks: Sequence[Block], parent_hash: int | None) -> Data:
    """The data of a change: `blocks` follow each other, the first follows the block `parent_hash`."""
    parent = None if parent_hash is None else block_hash(parent_hash)
    return {"stored": {"parent_hash": parent, "start_position": None, "blocks": list(blocks)}}


def removed(block_hashes: Sequence[int]) -> Data:
    """The data of a change: these blocks are gone."""
    return {"removed": {"block_hashes": [block_hash(each) for each in block_hashes]}}


cleared: Data = "cleared"
"""The data of a change: all blocks of the rank are gone."""


def block_hash(value: int) -> int:
    """An engine's hash, signed or unsigned, as the u64 of an event. Raises OverflowError, TypeError."""
    if not isinstance(value, int):
        raise TypeError(f"a block hash is a number, not {type(value).__name__}")
    if not -(1 << 63) <= value <= _MASK:
        raise OverflowError(f"the block hash {value} has more than 64 bits")
    return value & _MASK


class KvDialect(Enum):
    """How a release of Dynamo writes events: since 1.6 many to a message, before one."""

    SINCE_1_6 = "1.6"
    UNTIL_1_5 = "1.3"

    def event(self, worker_id: int, event: KvEvent) -> dict[str, Any]:
        """The event with the worker whose it is."""
        number, (data, dp_rank, tier) = event
        domain = {"residency_domain": "worker"} if self is KvDialect.SINCE_1_6 else {}
        body = {"event_id": number, "data": data, "dp_rank": dp_rank}
        return {"worker_id": worker_id, "storage_tier": tier, **domain, "event": body}

    def payloads(self, worker_id: int, events: Sequence[KvEvent]) -> list[bytes]:
        """The payloads of the messages that publish `events`."""
        written = [self.event(worker_id, event) for event in events]
        return [_write(written)] if self is KvDialect.SINCE_1_6 else [_write(each) for each in written]

    def dump(self, answer: dict[str, Any]) -> dict[str, Any]:
        """The answer with all blocks."""
        return {**answer, "reset_scope": "all"} if self is KvDialect.SINCE_1_6 else answer


class KvState:
    """The newest events and the stored blocks of one publisher, which owns it.

    `add` is called by any thread that holds the publisher's lock; `recover` takes it itself.
    """

    def __init__(self, worker_id: int, dp_rank: int, config: KvEventConfig) -> None:
        self.worker_id = worker_id
        self._dp_rank = dp_rank
        self._max_blocks = config.max_blocks
        self._last = 0
        self._history: deque[KvEvent] = deque(maxlen=config.history)
        self._blocks: dict[_Place, _Stored] = {}
        self._forgetful = False

    def add(self, change: KvChange) -> KvEvent:
        """Number a change, and remember it."""
        self._last += 1
        event = KvEvent(self._last, change)
        self._history.append(event)
        self._apply(change)
        return event

    def recover(self, request: Any, dialect: KvDialect, lock: threading.Lock) -> dict[str, Any]:
        """The answer to a frontend that asks for what it missed. Raises nothing: a wrong request gets an `Error`."""
        try:
            asked = msgspec.convert(request, _Query)
        except msgspec.ValidationError as error:
            return {"Error": f"not a query of KV events: {error}"}
        for name, mine in (("worker_id", self.worker_id), ("dp_rank", self._dp_rank)):
            if (theirs := getattr(asked, name)) != mine:
                text = f"WorkerKvQueryEngine::generate {name} mismatch: request.{name}={theirs} this.{name}={mine}"
                return {"Error": text}
        start, end = asked.start_event_id or 0, asked.end_event_id
        if end is not None and end < start:
            return {"InvalidRange": {"start_id": start, "end_id": end}}
        with lock:
            last, events = self._last, list(self._history)
            first = events[0].event_id if events else 0
            blocks = list(self._blocks.items()) if start == 0 or start < first or not events else []
        if events and start > last:
            end = last if end is None else end
            return {"TooNew": {"requested_start": start, "requested_end": end, "newest_available": last}}
        if start == 0 or start < first or not events:
            found = [dialect.event(self.worker_id, each) for each in _as_events(blocks)]
            return {"TreeDump": dialect.dump({"events": found, "last_event_id": last})}
        found = [dialect.event(self.worker_id, each) for each in events[start - first :]]
        return {"Events": {"events": found, "last_event_id": last}}

    def _apply(self, change: KvChange) -> None:
        data, dp_rank, tier = change
        blocks = self._blocks
        if isinstance(data, str):
            self._blocks = {place: each for place, each in blocks.items() if place.dp_rank != dp_rank}
        elif "removed" in data:
            for each in data["removed"]["block_hashes"]:
                blocks.pop(_Place(dp_rank, tier, each), None)
        else:
            parent = data["stored"]["parent_hash"]
            for block in data["stored"]["blocks"]:
                number = block["block_hash"]
                blocks[_Place(dp_rank, tier, number)] = _Stored(parent, block)
                parent = number
            self._forget()

    def _forget(self) -> None:
        """Keep the number of blocks within its limit."""
        while len(self._blocks) > self._max_blocks:
            if not self._forgetful:
                self._forgetful = True
                logger.warning(
                    "more than %d KV blocks are stored (DYNAMO_FAST_MAX_KV_BLOCKS): the oldest are forgotten, and a "
                    "frontend that comes late does not hear of them",
                    self._max_blocks,
                )
            del self._blocks[next(iter(self._blocks))]


class _Query(msgspec.Struct):
    worker_id: int
    dp_rank: int
    start_event_id: int | None = None
    end_event_id: int | None = None


class _Place(NamedTuple):
    dp_rank: int
    tier: str
    block_hash: int


class _Stored(NamedTuple):
    parent_hash: int | None
    block: Block


def _as_events(blocks: Sequence[tuple[_Place, _Stored]]) -> list[KvEvent]:
    """Events that store `blocks`, a parent before its children; runs of blocks without a fork are one event.

    A block whose parent is gone cannot be reached by a prompt: it is left out, unless its parent may be in another tier.
    """
    groups: dict[tuple[int, str], dict[int, _Stored]] = {}
    for (dp_rank, tier, number), each in blocks:
        groups.setdefault((dp_rank, tier), {})[number] = each
    changes = []
    for dp_rank, tier in sorted(groups, key=lambda place: (place[1] != DEVICE, place[0])):
        group = groups[dp_rank, tier]
        changes += [KvChange(data, dp_rank, tier) for data in _runs(group, orphans=tier != DEVICE)]
    return [KvEvent(number, change) for number, change in enumerate(changes)]


def _runs(group: dict[int, _Stored], *, orphans: bool) -> list[Data]:
    children: dict[int | None, list[int]] = {}
    for number, (parent, _) in group.items():
        children.setdefault(parent, []).append(number)
    starts = [parent for parent in children if parent is None or (orphans and parent not in group)]
    roots = [number for parent in starts for number in children[parent]]
    runs = []
    waiting = roots[::-1]
    while waiting:
        number = waiting.pop()
        parent, block = group[number]
        run, following = [block], children.get(number, [])
        while len(following) == 1:
            number = following[0]
            run.append(group[number].block)
            following = children.get(number, [])
        runs.append(stored(run, parent))
        waiting += following[::-1]
    return runs
