"""What every test shares: each asynchronous test runs on asyncio's own event loop and on uvloop."""

from __future__ import annotations

import asyncio
import sys

import pytest

POLICIES = [asyncio.DefaultEventLoopPolicy]
if sys.platform != "win32":
    import uvloop

    POLICIES.append(uvloop.EventLoopPolicy)


@pytest.fixture(params=POLICIES, ids=["asyncio", "uvloop"][: len(POLICIES)])
def event_loop_policy(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoopPolicy:
    policy: asyncio.AbstractEventLoopPolicy = request.param()
    return policy
