from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref

import pytest

from dynamo_fast.runtime.eager import start
from tests.waiting import LIMIT


async def test_what_need_not_wait_is_done_at_once() -> None:
    async def answer() -> int:
        return 7

    future = start(answer(), asyncio.get_running_loop())
    assert future.done()
    assert await future == 7


@pytest.mark.parametrize("error", [ValueError("no"), StopAsyncIteration("end"), asyncio.CancelledError()])
@pytest.mark.parametrize("waits", [False, True])
async def test_an_error_is_the_futures(error: BaseException, waits: bool) -> None:
    async def fail() -> None:
        if waits:
            await asyncio.sleep(0)
        raise error

    future = start(fail(), asyncio.get_running_loop())
    with pytest.raises(type(error)):
        await future


async def test_an_error_leaves_nothing_for_the_garbage_collector() -> None:
    class Held:
        """What the future holds."""

    async def fail(value: object) -> None:
        raise StopAsyncIteration(value)

    held = Held()
    alive = weakref.ref(held)
    gc.collect()
    gc.disable()
    try:
        future = start(fail(held), asyncio.get_running_loop())
        with contextlib.suppress(StopAsyncIteration):
            await future
        del held, future
        assert alive() is None
    finally:
        gc.enable()


async def test_what_waits_goes_on_in_a_task() -> None:
    first, second = (asyncio.get_running_loop().create_future() for _ in range(2))

    async def add() -> int:
        try:
            total: int = await first
        except ValueError:
            total = 40
        await asyncio.sleep(0)
        return total + int(await second)

    future = start(add(), asyncio.get_running_loop())
    assert not future.done()
    first.set_exception(ValueError("no"))
    second.set_result(2)
    assert await asyncio.wait_for(future, LIMIT) == 42


@pytest.mark.parametrize("turns", [0, 1])
async def test_cancelling_the_future_ends_the_coroutine(turns: int) -> None:
    waited = asyncio.get_running_loop().create_future()
    cleaned = []

    async def wait() -> None:
        try:
            await waited
        finally:
            cleaned.append(True)

    future = start(wait(), asyncio.get_running_loop())
    for _ in range(turns):
        await asyncio.sleep(0)
    future.cancel()
    with pytest.raises(asyncio.CancelledError):
        await future
    await asyncio.sleep(0)
    assert cleaned == [True]
