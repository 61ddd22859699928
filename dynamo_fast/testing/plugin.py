"""Fixtures for pytest. In a conftest.py: `pytest_plugins = ["dynamo_fast.testing.plugin"]`.

    dynamo_plane      a `Plane`; at the end of the test no request may be under way
    turned_clock      a marker: the test runs on a loop whose clock it turns (`dynamo_fast.testing.clock`)

They need `pip install 'dynamo-fast[testing]'`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping

import pytest
import pytest_asyncio

from dynamo_fast.testing.clock import TurnedEventLoop
from dynamo_fast.testing.plane import Plane

__all__ = ["dynamo_plane", "pytest_asyncio_loop_factories", "pytest_configure"]


@pytest_asyncio.fixture
async def dynamo_plane() -> AsyncIterator[Plane]:
    """A router and a worker in this process. Fails the test if it leaves a request under way."""
    async with Plane() as plane:
        yield plane
        for network in (plane.requests, plane.answers):
            network.heal()
        await plane.until_idle()


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker."""
    config.addinivalue_line("markers", "turned_clock: the test turns the clock of its loop (dynamo_fast.testing.clock)")


@pytest.hookimpl(trylast=True)
def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]] | None:
    """The loop of the tests that are marked; the others have the one of asyncio, unless a conftest.py says otherwise."""
    if item.get_closest_marker("turned_clock"):
        return {"turned": TurnedEventLoop}
    return {"asyncio": asyncio.new_event_loop}
