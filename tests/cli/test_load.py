"""The load of `dynamo-fast call --repeat` and `bench`: when requests are due, and what is said of their times."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from dynamo_fast.cli.load import Load
from dynamo_fast.context import Context
from dynamo_fast.errors import Unavailable

ANSWER = 0.02
"""Seconds that an answer takes at least."""


@contextlib.asynccontextmanager
async def answer() -> AsyncIterator[AsyncIterator[int]]:
    async def items() -> AsyncIterator[int]:
        yield 1
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), ANSWER)
        yield 2

    yield items()


class Worker:
    """Answers, or refuses."""

    def __init__(self, refuses: bool = False) -> None:
        self.requests = 0
        self._refuses = refuses

    async def send(self, context: Context) -> Any:
        self.requests += 1
        if self._refuses:
            raise Unavailable("no")
        return answer()


async def test_the_time_of_a_request_counts_from_when_it_was_due() -> None:
    """One at a time, five due within 4 ms: the last one has waited for the four before it."""
    load = Load(Worker().send, {})
    await load.run(5, 1, rate=1_000)
    figures = load.figures()
    assert (figures["requests"], figures["items"], figures["failed"]) == (5, 10, 0)
    assert figures["answer"]["max"] > 5 * ANSWER - 0.005 - 0.01
    assert figures["answer"]["p50"] < figures["answer"]["max"]


async def test_a_rate_is_kept_until_the_time_is_over() -> None:
    worker = Worker()
    load = Load(worker.send, {})
    await load.run(None, 100, seconds=0.1, rate=100)
    assert worker.requests == 10  # those that were due, however late the machine was
    assert load.figures()["seconds"] > 0.09


async def test_without_a_rate_requests_follow_each_other_until_the_time_is_over() -> None:
    worker = Worker()
    load = Load(worker.send, {})
    await load.run(None, 3, seconds=0.05)
    assert 3 <= worker.requests <= 9
    assert load.figures()["seconds"] > 0.05


async def test_the_histogram_has_a_bar_for_each_step_between_the_fastest_and_the_slowest() -> None:
    load = Load(Worker().send, {})
    load._answers = [0.001, 0.0011, 0.004, 9_000.0]
    bars = list(load._bars())
    assert (bars[:3], bars[-1]) == ([(0.001, 1), (0.002, 1), (0.005, 1)], (None, 1))
    first, *_, last = load.histogram()
    assert first.split() == ["1", "ms", "#" * 40, "1"]
    assert last.split() == ["more", "#" * 40, "1"]


async def test_failures_are_counted_and_have_no_time() -> None:
    load = Load(Worker(refuses=True).send, {})
    await load.run(4, 2)
    figures = load.figures()
    assert (figures["failed"], figures["errors"], figures["answer"]) == (4, {"Unavailable: no": 4}, {})
    assert list(load.histogram()) == []
