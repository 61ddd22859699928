"""The turned clock: timers fire in their order without a wait, and never before what a socket brings."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Coroutine

import pytest

from dynamo_fast.deadlines import Deadlines
from dynamo_fast.testing import clock

DAY = 86_400.0
GENEROUS = 30.0
"""Real seconds that none of this takes."""


def now() -> float:
    return asyncio.get_running_loop().time()


def quickly(main: Coroutine[object, object, None]) -> None:
    began = time.monotonic()
    clock.run(main)
    assert time.monotonic() - began < GENEROUS


def test_a_day_passes_at_once() -> None:
    async def main() -> None:
        began = now()
        await asyncio.sleep(DAY)
        assert now() - began == pytest.approx(DAY)

    quickly(main())


def test_timers_fire_in_their_order_and_at_their_time() -> None:
    async def main() -> None:
        began, fired = now(), []
        for seconds in (30.0, 10.0, 20.0):
            asyncio.get_running_loop().call_later(seconds, lambda: fired.append(round(now() - began, 6)))
        await asyncio.sleep(25)
        assert fired == [10.0, 20.0]
        await asyncio.sleep(5)
        assert fired == [10.0, 20.0, 30.0]

    quickly(main())


def test_a_deadline_of_the_package_expires() -> None:
    async def main() -> None:
        expired: list[tuple[str, float]] = []
        began = now()
        deadlines: Deadlines[str] = Deadlines(
            asyncio.get_running_loop(), 120.0, lambda key: expired.append((key, round(now() - began, 3)))
        )
        deadlines.add("a")
        await asyncio.sleep(50)
        deadlines.add("b")
        await asyncio.sleep(DAY)
        assert expired == [("a", 120.0), ("b", 170.0)]

    quickly(main())


def test_what_a_socket_brings_comes_before_a_timer() -> None:
    async def main() -> None:
        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readexactly(1))
            writer.close()

        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        for _ in range(50):
            began = now()
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(b"x")
            assert await asyncio.wait_for(reader.read(), 0.001) == b"x"
            assert now() == began
            writer.close()
        server.close()

    quickly(main())


def test_the_clock_stands_still_while_a_function_runs_in_the_executor() -> None:
    async def main() -> None:
        may_go = threading.Event()
        began = now()
        timer = asyncio.get_running_loop().call_later(1.0, may_go.set)  # would let it go, if the clock went on
        work = asyncio.get_running_loop().run_in_executor(None, may_go.wait, 0.05)
        assert not await work
        assert now() == began
        timer.cancel()

    quickly(main())


def test_names_are_resolved_without_a_jump() -> None:
    async def main() -> None:
        began = now()
        listener = socket.create_server(("127.0.0.1", 0))
        _, writer = await asyncio.wait_for(asyncio.open_connection("localhost", listener.getsockname()[1]), 1.0)
        assert now() == began
        writer.close()
        listener.close()

    quickly(main())


def test_tasks_that_are_left_are_cancelled() -> None:
    ended = []

    async def left() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.append(True)

    async def main() -> None:
        task = asyncio.create_task(left())
        await asyncio.sleep(1)
        assert not task.done()

    quickly(main())
    assert ended == [True]


def test_what_the_coroutine_raises_is_raised() -> None:
    async def main() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        clock.run(main())
