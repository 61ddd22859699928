"""What a frontend gets that comes late, or missed events. The answers of real publishers have these forms."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from dynamo_fast.config import KvEventConfig
from dynamo_fast.llm.kv_state import KvChange, KvDialect, KvState, block_hash, cleared, removed, stored

NEW, OLD = KvDialect.SINCE_1_6, KvDialect.UNTIL_1_5


def state(**limits: int) -> KvState:
    return KvState(worker_id=7, dp_rank=0, config=KvEventConfig(**limits))


def block(number: int) -> dict[str, Any]:
    return {"block_hash": number, "tokens_hash": number + 1000, "mm_extra_info": None}


def store(*numbers: int, parent: int | None = None, rank: int = 0, tier: str = "device") -> KvChange:
    return KvChange(stored([block(each) for each in numbers], parent), rank, tier)


def ask(kept: KvState, start: int | None = None, end: int | None = None, dialect: KvDialect = NEW) -> dict[str, Any]:
    request = {"worker_id": 7, "dp_rank": 0, "start_event_id": start, "end_event_id": end, "kind": "recovery"}
    return kept.recover(request, dialect, threading.Lock())


def dumped(kept: KvState) -> list[tuple[int | None, list[int]]]:
    """The parent and the blocks of each event of a dump."""
    events = [each["event"]["data"]["stored"] for each in ask(kept)["TreeDump"]["events"]]
    return [(each["parent_hash"], [number["block_hash"] for number in each["blocks"]]) for each in events]


def test_events_from_a_number_on() -> None:
    kept = state()
    for number in range(1, 6):
        kept.add(store(number))
    answer = ask(kept, 4)["Events"]
    assert answer["last_event_id"] == 5
    assert [each["event"]["event_id"] for each in answer["events"]] == [4, 5]
    # Dynamo looks at the end only to refuse a range.
    assert ask(kept, 4, 4) == ask(kept, 4)
    assert answer["events"][0] == {
        "worker_id": 7,
        "storage_tier": "device",
        "residency_domain": "worker",
        "event": {
            "event_id": 4,
            "data": {"stored": {"parent_hash": None, "start_position": None, "blocks": [block(4)]}},
            "dp_rank": 0,
        },
    }


def test_a_range_that_ends_before_it_begins_and_one_that_is_not_there_yet() -> None:
    kept = state()
    kept.add(store(1))
    assert ask(kept, 3, 1) == {"InvalidRange": {"start_id": 3, "end_id": 1}}
    assert ask(kept, 9, 99) == {"TooNew": {"requested_start": 9, "requested_end": 99, "newest_available": 1}}
    assert ask(kept, 9) == {"TooNew": {"requested_start": 9, "requested_end": 1, "newest_available": 1}}


@pytest.mark.parametrize("start", [None, 0, 1, 2])
def test_without_a_number_or_with_one_too_old_all_blocks_are_told(start: int | None) -> None:
    kept = state(history=2)
    for number in range(1, 5):
        kept.add(store(number, parent=number - 1 or None))
    answer = ask(kept, start)["TreeDump"]
    assert (answer["last_event_id"], answer["reset_scope"]) == (4, "all")
    assert dumped(kept) == [(None, [1, 2, 3, 4])]
    assert "Events" in ask(kept, 3)


def test_each_release_gets_its_form() -> None:
    kept = state()
    kept.add(store(1))
    (event,) = ask(kept, dialect=OLD)["TreeDump"]["events"]
    assert "reset_scope" not in ask(kept, dialect=OLD)["TreeDump"]
    assert "residency_domain" not in event
    assert "residency_domain" not in ask(kept, 1, dialect=OLD)["Events"]["events"][0]


def test_nothing_was_published_yet() -> None:
    assert ask(state()) == {"TreeDump": {"events": [], "last_event_id": 0, "reset_scope": "all"}}
    assert ask(state(), 5) == {"TreeDump": {"events": [], "last_event_id": 0, "reset_scope": "all"}}


def test_a_dump_tells_parents_before_children_and_forks() -> None:
    kept = state()
    kept.add(store(1, 2))
    kept.add(store(3, 4, parent=2))
    kept.add(store(5, parent=2))
    kept.add(store(6, parent=5))
    assert dumped(kept) == [(None, [1, 2]), (2, [3, 4]), (2, [5, 6])]
    assert [each["event"]["event_id"] for each in ask(kept)["TreeDump"]["events"]] == [0, 1, 2]


def test_removed_blocks_and_what_hangs_on_them_are_not_told() -> None:
    kept = state()
    kept.add(store(1, 2, 3))
    kept.add(store(4))
    kept.add(KvChange(removed([2, 99])))
    assert dumped(kept) == [(None, [1]), (None, [4])]
    kept.add(store(2, parent=1))
    assert dumped(kept) == [(None, [4]), (None, [1, 2, 3])] or dumped(kept) == [(None, [1, 2, 3]), (None, [4])]


def test_cleared_empties_one_rank() -> None:
    kept = state()
    kept.add(store(1))
    kept.add(store(2, tier="disk"))
    kept.add(store(3, rank=1))
    kept.add(KvChange(cleared))
    assert dumped(kept) == [(None, [3])]
    assert ask(kept, 4)["Events"]["events"][0]["event"] == {"event_id": 4, "data": "cleared", "dp_rank": 0}


def test_tiers_are_apart_and_the_device_comes_first() -> None:
    kept = state()
    kept.add(store(9, parent=1, tier="disk"))
    kept.add(store(1))
    events = ask(kept)["TreeDump"]["events"]
    assert [each["storage_tier"] for each in events] == ["device", "disk"]
    kept.add(KvChange(removed([9])))  # of the device
    assert len(ask(kept)["TreeDump"]["events"]) == 2


def test_blocks_that_are_each_others_parents_do_not_hang_it() -> None:
    kept = state()
    kept.add(store(1, parent=2))
    kept.add(store(2, parent=1))
    kept.add(store(3, parent=3, tier="disk"))
    assert dumped(kept) == []


def test_blocks_beyond_the_limit_are_forgotten(caplog: pytest.LogCaptureFixture) -> None:
    kept = state(max_blocks=2)
    kept.add(store(1))
    kept.add(store(2))
    kept.add(store(3))
    kept.add(store(4))
    assert dumped(kept) == [(None, [3]), (None, [4])]
    assert caplog.text.count("DYNAMO_FAST_MAX_KV_BLOCKS") == 1


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        ({"worker_id": 5, "dp_rank": 0}, "worker_id mismatch: request.worker_id=5 this.worker_id=7"),
        ({"worker_id": 7, "dp_rank": 1}, "dp_rank mismatch: request.dp_rank=1 this.dp_rank=0"),
        ({"worker_id": 7}, "dp_rank"),
        ({"worker_id": 7, "dp_rank": 0, "start_event_id": "x"}, "start_event_id"),
        (None, "not a query"),
    ],
)
def test_a_wrong_request_gets_an_error(request_: Any, text: str) -> None:
    answer = state().recover(request_, NEW, threading.Lock())
    assert list(answer) == ["Error"]
    assert text in answer["Error"]


def test_hashes_are_64_bits_with_or_without_a_sign() -> None:
    assert block_hash(-3) == 2**64 - 3
    assert block_hash(2**64 - 1) == 2**64 - 1
    for wrong in (2**64, -(2**63) - 1):
        with pytest.raises(OverflowError, match="64 bits"):
            block_hash(wrong)
    with pytest.raises(TypeError, match="str"):
        block_hash("1")  # type: ignore[arg-type]
