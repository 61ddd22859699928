"""A handler that blocks the event loop is named in the log."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from dynamo_fast.ingress import watchdog
from dynamo_fast.ingress.worker import Worker
from tests.ingress.conftest import Start, address_of
from tests.ingress.requester import PATIENCE, Requester
from tests.waiting import until


class Told(logging.Handler):
    """Sets `event` at the first record, in the thread that logs it."""

    def __init__(self) -> None:
        super().__init__()
        self.event = threading.Event()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
        self.event.set()


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(watchdog.Watchdog.__init__, "__defaults__", (0.05, 0.1))
    handler = Told()
    watchdog.logger.addHandler(handler)
    yield handler
    watchdog.logger.removeHandler(handler)


def compute(until: threading.Event) -> None:
    assert until.wait(PATIENCE)


async def iterating(request: Any, until: threading.Event) -> AsyncIterator[Any]:
    yield 1
    compute(until)
    yield 2


@pytest.mark.parametrize("where", ["iterated", "called"])
async def test_a_handler_that_blocks_the_loop_is_named(start: Start, told: Told, where: str) -> None:
    def engine(request: Any) -> AsyncIterator[Any]:
        if where == "called":
            compute(told.event)
        return iterating(request, told.event)

    async with Requester(address_of(await start(engine))) as requester:
        answer = await requester.call(None)
        assert await answer.read() is not None
        assert len(await answer.items()) == 3
    (message, *_) = [record.getMessage() for record in told.records]
    assert message.startswith("the handler test_a_handler_that_blocks_the_loop_is_named.<locals>.engine of a/b/c has ")
    assert "has blocked the event loop for more than 0.05 s" in message


async def test_what_blocks_the_loop_and_is_no_handler_is_not_named(worker: Worker, told: Told) -> None:
    blocked = threading.Event()
    blocked.wait(0.2)
    assert not told.records


async def test_its_thread_ends_with_the_worker(start: Start, told: Told) -> None:
    worker = await start()
    assert "dynamo_fast watchdog" in {thread.name for thread in threading.enumerate()}
    await worker.close()
    await until(lambda: "dynamo_fast watchdog" not in {thread.name for thread in threading.enumerate()})


def test_the_thread_ends_with_the_loop_that_it_watches() -> None:
    async def watch() -> threading.Thread:
        before = set(threading.enumerate())
        watchdog.Watchdog(0.001, 0.001)
        (thread,) = set(threading.enumerate()) - before
        return thread

    loop = asyncio.new_event_loop()
    thread = loop.run_until_complete(watch())
    thread.join(0.05)
    assert thread.is_alive()  # the loop may run again
    loop.close()
    thread.join(PATIENCE)
    assert not thread.is_alive()
