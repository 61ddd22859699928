"""A worker script, as a process of its own: `python script.py LIBRARY BACKEND HOW`.

LIBRARY is `ours` (the drop-in) or `native`; HOW says how the script ends.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

LIBRARY, BACKEND, HOW = sys.argv[1:4]


async def handler(request: Any) -> AsyncIterator[Any]:
    yield request


def say(text: str) -> None:
    print(text, flush=True)


async def drop_in() -> Any:
    from dynamo_fast.runtime import DistributedRuntime

    runtime = DistributedRuntime(asyncio.get_running_loop(), BACKEND, "tcp")
    endpoint = runtime.endpoint("a.b.c")
    serving = asyncio.ensure_future(endpoint.serve_endpoint(handler))
    client = await endpoint.client()
    await client.wait_for_instances()
    say("serving")
    if HOW == "cancelled":
        serving.cancel()
        await asyncio.wait([serving])
    if HOW in ("last", "cancelled"):
        runtime.shutdown()
    return runtime


async def native() -> Any:
    from dynamo_fast import serve
    from dynamo_fast.discovery.connect import connect

    worker = await serve(handler, "a.b.c", connect(BACKEND))
    say("serving")
    if HOW == "block":
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
        time.sleep(float(sys.argv[4]))  # noqa: ASYNC251  # that is the point
        say("awake")
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
        await worker.close()
    if HOW == "raise":
        raise RuntimeError("a fault of the script")
    return worker


def patch() -> None:
    """Ages of a second instead of ten."""
    from dynamo_fast.discovery import file

    file.TTL, file.BEAT = 1.0, 0.1


if HOW == "block":
    patch()
kept = asyncio.run(native() if LIBRARY == "native" else drop_in())
if HOW == "after":
    kept.shutdown()
