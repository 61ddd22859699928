"""What `DistributedRuntime.shutdown` has done when it returns."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from dynamo_fast.runtime import DistributedRuntime


async def echo(request: Any) -> AsyncIterator[Any]:
    yield request


async def test_the_records_are_gone_when_shutdown_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed at that moment leaves no address behind."""
    monkeypatch.setenv("DYN_FILE_KV", str(tmp_path))
    monkeypatch.setenv("DYNAMO_FAST_LEAVE_DELAY", "0")
    runtime = DistributedRuntime(asyncio.get_running_loop(), "file", "tcp")
    serving = asyncio.ensure_future(runtime.endpoint("a.b.c").serve_endpoint(echo))
    client = await runtime.endpoint("a.b.c").client()
    await client.wait_for_instances()
    records = tmp_path / "v1" / "instances"
    assert len(os.listdir(records)) == 1
    runtime.shutdown()
    assert os.listdir(records) == []
    await asyncio.wait_for(serving, 20)
