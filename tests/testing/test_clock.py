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


# Turned by the test


@pytest.mark.turned_clock
async def test_advancing_fires_what_is_due_until_then_and_nothing_later() -> None:
    fired: list[tuple[float, float]] = []
    for seconds in (2.0, 1.0, 3.0):
        asyncio.get_running_loop().call_later(seconds, lambda after: fired.append((after, clock.now())), seconds)
    began = clock.now()
    await clock.advance(2)
    assert fired == [(1.0, began + 1), (2.0, began + 2)]
    assert clock.now() == began + 2
    await clock.advance(0.999)
    assert len(fired) == 2
    await clock.advance(0.001)
    assert len(fired) == 3


@pytest.mark.turned_clock
async def test_advancing_waits_for_what_follows_over_sockets() -> None:
    closed: list[float] = []

    class Closes(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            asyncio.get_running_loop().call_later(10, transport.close)

    class Notes(asyncio.Protocol):
        def connection_lost(self, error: Exception | None) -> None:
            closed.append(clock.now())

    loop = asyncio.get_running_loop()
    server = await loop.create_server(Closes, "127.0.0.1", 0)
    await loop.create_connection(Notes, *server.sockets[0].getsockname())
    await clock.settle()
    began = clock.now()
    await clock.advance(9.999)
    assert closed == []
    await clock.advance(0.001)
    assert closed == [began + 10]
    server.close()


@pytest.mark.turned_clock
async def test_settling_turns_no_clock() -> None:
    fired: list[bool] = []
    timer = asyncio.get_running_loop().call_later(0.001, fired.append, True)
    began = clock.now()
    await asyncio.gather(clock.settle(), clock.settle())
    assert (clock.now(), fired) == (began, [])
    timer.cancel()
    await clock.settle()  # without any timer


@pytest.mark.turned_clock
async def test_a_settling_that_is_given_up_disturbs_no_other() -> None:
    given_up = asyncio.ensure_future(clock.settle())
    await asyncio.sleep(0)
    given_up.cancel()
    await clock.settle()
    assert given_up.cancelled()


async def test_another_loop_is_refused() -> None:
    for wait in (clock.settle, lambda: clock.advance(1)):
        with pytest.raises(TypeError, match="^a turned clock needs a TurnedEventLoop, and .*Loop runs: see docs/"):
            await wait()


def test_the_executor_ends_without_a_jump() -> None:
    """A runner of Python 3.12 gives its threads five minutes to end."""
    ended: list[float] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(300, lambda: ended.append(clock.now()))
        may_end = threading.Event()
        work = loop.run_in_executor(None, may_end.wait, 0.05)
        work.cancel()
        await loop.shutdown_default_executor()
        assert ended == []

    quickly(main())


@pytest.fixture
async def loop_of_a_fixture() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


@pytest.mark.turned_clock
async def test_fixtures_run_on_the_loop_of_the_test(loop_of_a_fixture: asyncio.AbstractEventLoop) -> None:
    assert asyncio.get_running_loop() is loop_of_a_fixture
    assert isinstance(loop_of_a_fixture, clock.TurnedEventLoop)
