"""What every test shares: each asynchronous test runs on asyncio's own event loop and on uvloop."""

from __future__ import annotations

import asyncio
import inspect
import sys

import pytest

POLICIES = {"asyncio": asyncio.DefaultEventLoopPolicy}
if sys.platform != "win32":
    import uvloop

    POLICIES["uvloop"] = uvloop.EventLoopPolicy


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if inspect.iscoroutinefunction(metafunc.function):
        metafunc.parametrize("event_loop_policy", POLICIES, indirect=True)


@pytest.fixture
def event_loop_policy(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoopPolicy:
    """See pytest-asyncio."""
    return POLICIES[getattr(request, "param", "asyncio")]()
