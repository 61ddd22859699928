"""A test that hangs, or leaves something open, is one failed test: its loop ends."""

from __future__ import annotations

import asyncio
import signal

import pytest

from tests.loops import LOOPS


@pytest.mark.skipif("uvloop" not in LOOPS, reason="there is no uvloop here")
@pytest.mark.parametrize("count", [1, 2], ids=["a server", "two servers"])
def test_a_uvloop_with_an_open_server_ends_and_says_so(count: int) -> None:
    loop = LOOPS["uvloop"]()
    for _ in range(count):
        loop.run_until_complete(asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0))
    with pytest.raises(ResourceWarning, match="unclosed resource <TCPServer"):
        loop.close()
    assert loop.is_closed()


@pytest.mark.skipif("uvloop" not in LOOPS, reason="there is no uvloop here")
def test_a_uvloop_that_waits_for_ever_is_stopped_by_an_outcome() -> None:
    """As pytest-timeout does it: the handler of a signal raises."""

    async def wait() -> None:
        asyncio.get_running_loop().call_soon(signal.raise_signal, signal.SIGUSR1)
        await asyncio.Event().wait()

    def give_up(number: int, frame: object) -> None:
        pytest.fail("it takes too long")

    before = signal.signal(signal.SIGUSR1, give_up)
    loop = LOOPS["uvloop"]()
    try:
        with pytest.raises(pytest.fail.Exception, match="it takes too long"):
            loop.run_until_complete(asyncio.wait_for(wait(), 20))
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.wait(tasks))
    finally:
        loop.close()
        signal.signal(signal.SIGUSR1, before)
