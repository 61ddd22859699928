from __future__ import annotations

import asyncio

from dynamo_fast.deadlines import Deadlines
from tests.waiting import LIMIT


async def test_keys_expire_in_order_and_only_those_that_stayed() -> None:
    loop = asyncio.get_running_loop()
    expired: list[str] = []
    done = loop.create_future()

    def expire(key: str) -> None:
        expired.append(key)
        if key == "last":
            done.set_result(None)

    deadlines = Deadlines(loop, 0.02, expire)
    for key in ("first", "gone", "second"):
        deadlines.add(key)
    deadlines.discard("gone")
    deadlines.discard("never there")
    assert len(deadlines) == 2
    assert "gone" not in deadlines
    deadlines.add("last")
    await asyncio.wait_for(done, LIMIT)
    assert expired == ["first", "second", "last"]
    assert len(deadlines) == 0


async def test_a_key_may_be_added_while_another_expires() -> None:
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def expire(key: int) -> None:
        if key == 3:
            done.set_result(loop.time())
        else:
            deadlines.add(key + 1)

    deadlines = Deadlines(loop, 0.02, expire)
    began = loop.time()
    deadlines.add(1)
    assert await asyncio.wait_for(done, LIMIT) - began >= 0.05


async def test_an_error_of_one_key_leaves_the_others_waiting_for_their_time() -> None:
    loop = asyncio.get_running_loop()
    errors: list[object] = []
    loop.set_exception_handler(lambda _, context: errors.append(context["exception"]))
    done = loop.create_future()
    error = ValueError("of the first")

    def expire(key: int) -> None:
        if key == 1:
            raise error
        done.set_result(key)

    deadlines = Deadlines(loop, 0.02, expire)
    deadlines.add(1)
    deadlines.add(2)
    assert await asyncio.wait_for(done, LIMIT) == 2
    assert errors == [error]


async def test_nothing_expires_after_closing() -> None:
    loop = asyncio.get_running_loop()
    expired: list[str] = []
    deadlines = Deadlines(loop, 0.01, expired.append)
    deadlines.add("key")
    deadlines.close()
    later = loop.create_future()
    loop.call_later(0.05, later.set_result, None)
    await later
    assert expired == []
