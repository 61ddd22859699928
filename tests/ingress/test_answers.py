"""What a requester and the metrics see of an answer, where a small slip in the worker would show."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.ingress.conftest import Start, address_of
from tests.ingress.requester import PATIENCE, Requester, request_frame, two_part
from tests.ingress.test_push_handler import begun, data_of


async def test_bytes_after_the_message_of_a_request_are_passed_over(start: Start) -> None:
    """As Dynamo's own worker does."""
    async with Requester(address_of(await start())) as requester:
        control = json.dumps(requester.control()).encode()
        requester.writer.write(request_frame(requester.path, two_part(control, b"[1]") + b"more"))
        assert await requester.ack() == ""
        answer = await requester.dialled()
        assert await answer.read() is not None
        assert await data_of(answer) == [1]


async def test_a_half_close_is_no_cancellation_for_a_handler_that_waits(start: Start) -> None:
    """The end of file is read while the handler waits, so that a cancellation would reach it there."""
    waiting, gate = asyncio.Event(), asyncio.Event()

    async def handler(request: Any) -> AsyncIterator[Any]:
        yield 1
        waiting.set()
        await gate.wait()
        yield 2

    worker = await start(handler)
    async with Requester(address_of(worker)) as requester:
        answer = await begun(requester, None)
        answer.writer.write_eof()
        assert await answer.read() is not None
        await asyncio.wait_for(waiting.wait(), PATIENCE)
        # Another request goes and comes meanwhile: the end of file has been read by then.
        for _ in range(3):
            requester.send(requester.control(), path="nowhere")
            assert "unknown endpoint" in await requester.ack()
        gate.set()
        second = await answer.read()
        assert second is not None
        assert second.item["data"]["data"] == 2
        assert (await answer.rest()).endswith(two_part(b'"sentinel"', b""))


@pytest.mark.parametrize("pause", [False, True])
async def test_items_are_written_together_after_a_pause_as_well(start: Start, pause: bool) -> None:
    """How often the loop turns meanwhile tells how often the worker stops to write: each item alone would be 100 times."""
    turns: list[int] = []

    async def handler(request: Any) -> AsyncIterator[Any]:
        yield "first"
        if pause:
            await asyncio.sleep(0.01)
        count = 0

        def turned() -> None:
            nonlocal count
            count += 1
            turning[0] = loop.call_soon(turned)

        loop = asyncio.get_running_loop()
        turning = [loop.call_soon(turned)]
        for number in range(100):
            yield number
        turning[0].cancel()
        turns.append(count)

    async with Requester(address_of(await start(handler))) as requester:
        assert await data_of(await begun(requester, None)) == ["first", *range(100)]
    assert turns[0] <= 50


@pytest.mark.parametrize(
    "item", [1, {"_dynamo_annotated": True, "data": 1, "event": "an event"}], ids=["plain", "annotated"]
)
async def test_items_of_each_kind_are_counted(start: Start, caplog: pytest.LogCaptureFixture, item: Any) -> None:
    async def handler(request: Any) -> AsyncIterator[Any]:
        for _ in range(3):
            yield item

    async with Requester(address_of(await start(handler))) as requester:
        answer = await begun(requester, None, request_id="the-id")
        assert len(await answer.items()) == 4
        await answer.rest()
    (line,) = [record.message for record in caplog.records if "the-id" in record.message]
    assert "after 3 items, " in line


async def test_a_whole_answer_to_a_real_request_shows_that_an_endpoint_is_well(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DYN_HEALTH_CHECK_ENABLED", "true")
    monkeypatch.setenv("DYN_CANARY_WAIT_TIME", "3600")
    worker = await start()

    async def handler(request: Any) -> AsyncIterator[Any]:
        yield 1

    served = await worker.serve(handler, "x.y.z", health_check_payload={})
    assert not served.ready
    async with Requester(served.address) as requester:
        answer = await begun(requester, None)
        assert await data_of(answer) == [1]
        await answer.rest()
    assert served.handler.metrics.inflight == 0
    assert served.ready
