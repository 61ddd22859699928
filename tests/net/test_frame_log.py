from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import asyncio
from dynamo_fast import AddressedPushRouter, AddressedRequest, serve

async def echo(request):
    yield request

async def main():
    worker = await serve(echo, "a.b.c")
    (served,) = worker.endpoints.values()
    async with await AddressedPushRouter.create() as router:
        stream = await router.generate(AddressedRequest.new({"n": 1}, served.address))
        async for item in stream:
            print(item.data())
    await worker.close()

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("level", "shown"),
    [("", False), ("info", False), ("info,tracing=off", False), ("trace", True), ("info,dynamo_fast=trace", True)],
)
def test_frames_are_logged_only_when_they_are_asked_for(tmp_path: Path, level: str, shown: bool) -> None:
    settings = {
        **os.environ,
        "DYN_LOG": level,
        "DYN_FILE_KV": str(tmp_path),
        "DYN_TCP_RPC_HOST": "127.0.0.1",
        "DYN_TCP_RESPONSE_STREAM_HOST": "127.0.0.1",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=settings, capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout == "{'n': 1}\n"
    words = ("TcpRequestMessage(endpoint_path=", "TcpResponseMessage(data=b'')", "stream_type", "sentinel", '"n":1')
    assert all((word in done.stderr) == shown for word in words)
