"""What every test shares: the event loops that asynchronous tests run on.

An asynchronous test runs on asyncio's own loop and on uvloop. A test that is marked `turned_clock` runs once, on a loop
whose clock it turns (`dynamo_fast.testing.clock`).
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Mapping

import pytest

from dynamo_fast.testing.clock import TurnedEventLoop

NewLoop = Callable[[], asyncio.AbstractEventLoop]

LOOPS: dict[str, NewLoop] = {"asyncio": asyncio.new_event_loop}
if sys.platform != "win32":
    import uvloop

    LOOPS["uvloop"] = uvloop.new_event_loop


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> Mapping[str, NewLoop]:
    """See pytest-asyncio."""
    return {"turned": TurnedEventLoop} if item.get_closest_marker("turned_clock") else LOOPS
