from __future__ import annotations

import asyncio
import logging

import pytest

from dynamo_fast.observability.limited_log import LimitedLog
from dynamo_fast.testing import clock
from tests.waiting import happens_after

pytestmark = pytest.mark.turned_clock


@pytest.fixture
async def log() -> LimitedLog:
    return LimitedLog(asyncio.get_running_loop(), logging.getLogger("limited"))


async def test_the_first_is_told_at_once_and_the_others_together(
    log: LimitedLog, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(100):
        log.tell("full", "no room for %d", number)
    assert caplog.messages == ["no room for 0"]
    await happens_after(5, lambda: caplog.messages[1:] == ["99 more within 5 s, the last: no room for 99"])
    log.tell("full", "no room for %d", 100)
    await happens_after(5 - 0.002, lambda: len(caplog.messages) > 2)  # 5 s after the last line
    assert caplog.messages[2:] == ["1 more within 5 s, the last: no room for 100"]


async def test_after_a_while_it_is_told_at_once_again(log: LimitedLog, caplog: pytest.LogCaptureFixture) -> None:
    log.tell("full", "no room")
    await clock.advance(5)
    assert not log._causes
    log.tell("full", "no room")
    assert caplog.messages == ["no room"] * 2


async def test_each_cause_is_told(log: LimitedLog, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        log.tell("full", "no room")
        log.tell("bytes", "no frame")
    assert caplog.messages == ["no room", "no frame"]


async def test_at_the_end_the_rest_is_told(log: LimitedLog, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        log.tell("full", "no room")
    log.close()
    log.close()
    await clock.advance(60)
    assert caplog.messages == ["no room", "2 more within 5 s, the last: no room"]
