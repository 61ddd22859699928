"""Workers that fall silent in mid-answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from dynamo_fast.config import ResponseServerConfig
from dynamo_fast.context import Context
from dynamo_fast.egress import response_stream
from dynamo_fast.egress.response_stream import ResponseStream
from dynamo_fast.egress.router import AddressedPushRouter, AddressedRequest
from dynamo_fast.errors import ResponseTimeout
from tests.egress.conftest import make_router
from tests.egress.raw_worker import FINAL, LIMIT, RawStream, RawWorker
from tests.egress.test_generate import data_of
from tests.egress.test_streams import establish, fails_after

SHORT = 0.05


@pytest.fixture
async def hasty() -> AsyncIterator[AddressedPushRouter]:
    """A router whose answers may be silent for a short time only."""
    async with await make_router(ResponseServerConfig(host="127.0.0.1", inactivity_timeout=SHORT)) as router:
        yield router
        assert router.metrics.inflight == 0


async def begin(router: AddressedPushRouter, worker: RawWorker, **fields: float) -> tuple[ResponseStream, RawStream]:
    call = asyncio.ensure_future(router.generate(AddressedRequest({}, worker.address, **fields)))  # type: ignore[arg-type]
    request = await worker.request()
    request.acknowledge()
    stream = await request.dial()
    return await asyncio.wait_for(call, LIMIT), stream


async def test_an_answer_is_over_after_its_final_item_without_a_sentinel(
    router: AddressedPushRouter, worker: RawWorker
) -> None:
    answer, stream = await establish(router, worker)
    stream.items(1)
    stream.send(data=FINAL)
    assert await data_of(answer) == [1]
    assert (await stream.received())[-1] == b""


async def test_a_sentinel_in_time_needs_no_timer(
    router: AddressedPushRouter, worker: RawWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(response_stream, "_SENTINEL_SECONDS", 60.0)
    answer, stream = await establish(router, worker)
    stream.send(data=FINAL)
    consumer = asyncio.ensure_future(data_of(answer))
    await asyncio.sleep(0)
    stream.send(b'"sentinel"')
    assert await consumer == []
    assert await stream.received() == [b""]


async def test_no_item_for_too_long(hasty: AddressedPushRouter, worker: RawWorker) -> None:
    answer, stream = await begin(hasty, worker)
    stream.items(1, 2)
    error = await fails_after(answer, [1, 2], ResponseTimeout)
    assert str(error) == "backend response inactivity timeout"
    assert error.migratable
    assert await stream.received() == [b'"kill"', b""]


async def test_no_first_item(hasty: AddressedPushRouter, worker: RawWorker) -> None:
    answer, _ = await begin(hasty, worker)
    await fails_after(answer, [], ResponseTimeout)


async def test_empty_frames_are_no_items(hasty: AddressedPushRouter, worker: RawWorker) -> None:
    answer, stream = await begin(hasty, worker)
    failed = asyncio.ensure_future(fails_after(answer, [], ResponseTimeout))
    while not failed.done():
        stream.send()
        await asyncio.wait([failed], timeout=SHORT / 5)
    await failed


async def test_a_wait_that_is_given_up_and_begun_again_is_one_wait(
    hasty: AddressedPushRouter, worker: RawWorker
) -> None:
    answer, _ = await begin(hasty, worker)

    async def keep_asking() -> None:
        while True:
            try:
                await asyncio.wait_for(answer.__anext__(), SHORT / 5)
            except ResponseTimeout:
                raise
            except asyncio.TimeoutError:
                pass

    with pytest.raises(ResponseTimeout):
        await asyncio.wait_for(keep_asking(), LIMIT)


async def test_a_slow_consumer_is_not_a_silent_worker(hasty: AddressedPushRouter, worker: RawWorker) -> None:
    answer, stream = await begin(hasty, worker)
    stream.items(1, 2)
    assert (await answer.__anext__()).data() == 1
    over = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(3 * SHORT, over.set_result, None)
    await over  # the consumer is busy for longer than the worker may be silent
    stream.items(3)
    stream.end()
    assert await data_of(answer) == [2, 3]


async def test_after_a_stop_silence_is_a_clean_end(worker: RawWorker) -> None:
    async with await make_router(ResponseServerConfig(host="127.0.0.1", inactivity_timeout=SHORT)) as router:
        context = Context()
        answer, _ = await establish(router, worker, context)
        context.stop_generating()
        assert await data_of(answer) == []


@pytest.mark.parametrize("where", ["request", "router", "environment"])
async def test_where_the_limit_is_set(worker: RawWorker, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if where == "environment":
        monkeypatch.setenv("DYN_HTTP_BACKEND_STREAM_TIMEOUT_SECS", str(SHORT))
    monkeypatch.setenv("DYN_TCP_RESPONSE_STREAM_HOST", "127.0.0.1")
    limit = SHORT if where == "router" else None
    async with await AddressedPushRouter.create(inactivity_timeout=limit) as router:
        answer, _ = await begin(router, worker, **({"inactivity_timeout": SHORT} if where == "request" else {}))
        await fails_after(answer, [], ResponseTimeout)
