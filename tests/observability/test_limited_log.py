from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, cast

import pytest

from dynamo_fast.observability.limited_log import LimitedLog


class Clock:
    """The timers of a loop, which the test lets expire."""

    def __init__(self) -> None:
        self.timers: list[Timer] = []

    def call_later(self, seconds: float, callback: Callable[..., None], *args: Any) -> Timer:
        timer = Timer(callback, args)
        self.timers.append(timer)
        return timer

    def turn(self) -> None:
        """All timers that there are now expire."""
        timers, self.timers = self.timers, []
        for timer in timers:
            if not timer.cancelled:
                timer.callback(*timer.args)


class Timer:
    def __init__(self, callback: Callable[..., None], args: tuple[Any, ...]) -> None:
        self.callback, self.args, self.cancelled = callback, args, False

    def cancel(self) -> None:
        self.cancelled = True


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log(clock: Clock) -> LimitedLog:
    return LimitedLog(cast(asyncio.AbstractEventLoop, clock), logging.getLogger("limited"))


def test_the_first_is_told_at_once_and_the_others_together(
    log: LimitedLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(100):
        log.tell("full", "no room for %d", number)
    assert caplog.messages == ["no room for 0"]
    clock.turn()
    assert caplog.messages[1:] == ["99 more within 5 s, the last: no room for 99"]
    log.tell("full", "no room for %d", 100)
    assert len(caplog.messages) == 2  # less than 5 s after the last line
    clock.turn()
    assert caplog.messages[2:] == ["1 more within 5 s, the last: no room for 100"]


def test_after_a_while_it_is_told_at_once_again(
    log: LimitedLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    log.tell("full", "no room")
    clock.turn()
    assert not clock.timers
    log.tell("full", "no room")
    assert caplog.messages == ["no room"] * 2


def test_each_cause_is_told(log: LimitedLog, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        log.tell("full", "no room")
        log.tell("bytes", "no frame")
    assert caplog.messages == ["no room", "no frame"]


def test_at_the_end_the_rest_is_told(log: LimitedLog, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        log.tell("full", "no room")
    log.close()
    log.close()
    clock.turn()
    assert caplog.messages == ["no room", "2 more within 5 s, the last: no room"]
