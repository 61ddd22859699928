"""The way of events to a listener's loop, which may be blocked."""

from __future__ import annotations

import threading
from collections import deque

import pytest

from dynamo_fast.discovery import subscription
from dynamo_fast.discovery.store import RecordEvent, RecordPut, RecordRemoved
from dynamo_fast.discovery.subscription import Subscription
from tests.discovery.waiting import until


async def test_events_that_wait_for_a_blocked_loop_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscription, "MOST_WAITING", 10)
    heard: list[RecordEvent[int]] = []
    watch = Subscription("", heard.append, lambda watch: None)

    def flap() -> None:
        for _ in range(1000):
            for key in ("1", "2"):
                watch.tell(RecordPut(key, 0))
                watch.tell(RecordRemoved(key, 0))
        watch.tell(RecordPut("1", 0))
        assert len(watch._events) <= 11

    worker = threading.Thread(target=flap)
    worker.start()
    worker.join()  # this blocks the loop
    await until(lambda: heard)
    alive: set[str] = set()
    for event in heard:
        (alive.add if isinstance(event, RecordPut) else alive.discard)(event.key)
    assert alive == {"1"}
    assert len(heard) <= 11


def test_the_last_events_of_each_record_are_kept() -> None:
    one, two = RecordPut("1", 0), RecordPut("2", 0)
    one_gone, two_gone = RecordRemoved("1", 0), RecordRemoved("2", 0)
    events: deque[RecordEvent[int]] = deque([one, one_gone, one, two, two_gone, one])
    assert subscription._last_events(events) == [two_gone, one_gone, one]
