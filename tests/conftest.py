"""What every test shares: the event loops that asynchronous tests run on, and the time that tests have.

An asynchronous test runs on asyncio's own loop and on uvloop (`tests/loops.py`). A test that is marked `turned_clock` runs
once, on a loop whose clock it turns (`dynamo_fast.testing.clock`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from dynamo_fast.testing.clock import TurnedEventLoop
from tests.loops import LOOPS, NewLoop

FRONTEND_TIMEOUT = 300
"""Seconds for a test with a real frontend: it starts several processes, which import much, on a machine that is busy."""


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> Mapping[str, NewLoop]:
    """See pytest-asyncio."""
    return {"turned": TurnedEventLoop} if item.get_closest_marker("turned_clock") else LOOPS


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """See pytest."""
    for item in items:
        if item.get_closest_marker("frontend") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(FRONTEND_TIMEOUT))
