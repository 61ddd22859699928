"""What every test shares: the event loops that asynchronous tests run on, and the time that tests have.

An asynchronous test runs on asyncio's own loop and, where there is one, on uvloop (`tests/loops.py`). A test that is marked
`turned_clock` runs once, on a loop whose clock it turns (`dynamo_fast.testing.clock`).
"""

from __future__ import annotations

import faulthandler
import signal
from collections.abc import Generator, Mapping, Sequence

import pytest

from dynamo_fast.testing.clock import TurnedEventLoop
from tests.loops import LOOPS, NewLoop

FRONTEND_TIMEOUT = 300
"""Seconds for a test with a real frontend: it starts several processes, which import much, on a machine that is busy."""

TEARDOWN_TIMEOUT = 60
"""Seconds for what ends a test that has failed."""


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> Mapping[str, NewLoop]:
    """See pytest-asyncio."""
    return {"turned": TurnedEventLoop} if item.get_closest_marker("turned_clock") else LOOPS


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """See pytest."""
    for item in items:
        if item.get_closest_marker("frontend") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(FRONTEND_TIMEOUT))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    """See pytest. A failure ends the limits of pytest-timeout and of the fault handler, and what it has left may hang."""
    if not hasattr(signal, "SIGALRM") or signal.getitimer(signal.ITIMER_REAL) != (0.0, 0.0):
        return (yield)

    def give_up(number: int, frame: object) -> None:
        pytest.fail(f"what ends the test took more than {TEARDOWN_TIMEOUT} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, TEARDOWN_TIMEOUT, TEARDOWN_TIMEOUT)  # again for each of its fixtures
    faulthandler.dump_traceback_later(5 * TEARDOWN_TIMEOUT, exit=True, file=2)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
