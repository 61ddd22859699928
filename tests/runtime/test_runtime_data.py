"""Waits for runtime data, beside what tests/compat compares with Dynamo's own."""

from __future__ import annotations

import asyncio

import pytest

from dynamo_fast import errors
from dynamo_fast.runtime import DistributedRuntime

LIMIT = 30


async def test_a_wait_without_a_limit_ends_with_the_runtime() -> None:
    runtime = DistributedRuntime(asyncio.get_running_loop(), "mem", "tcp")
    client = await runtime.endpoint("data.test.generate").client()
    waiting = client.wait_for_instance_by_runtime_data("key", "value")
    await asyncio.wait([waiting], timeout=0)
    runtime.shutdown()
    with pytest.raises(errors.Disconnected, match="Watch on bucket 'v1/mdc' was cancelled"):
        await asyncio.wait_for(waiting, LIMIT)
    await asyncio.wait_for(runtime.ended(), LIMIT)


async def test_a_wait_that_is_cancelled_leaves_nothing_behind() -> None:
    runtime = DistributedRuntime(asyncio.get_running_loop(), "mem", "tcp")
    client = await runtime.endpoint("data.test.generate").client()
    before = asyncio.all_tasks()
    waiting = client.wait_for_instances_by_runtime_data("key", "value", 1)
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert asyncio.all_tasks() <= before
    runtime.shutdown()
    await asyncio.wait_for(runtime.ended(), LIMIT)
