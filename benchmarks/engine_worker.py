"""A real worker with a small engine, for timing both ends: `python engine_worker.py ours|peer`, settings as usual."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

ENDPOINT = "bench.replay.generate"


async def generate(request: dict[str, int]) -> AsyncIterator[Any]:
    text = "x" * max(0, request["size"] - 60)
    for number in range(request["items"]):
        yield {"token": number, "text": text}


async def ours() -> None:
    from dynamo_fast import serve

    await serve(generate, ENDPOINT)
    print("ready", flush=True)
    await asyncio.Event().wait()


async def peer() -> None:
    from dynamo.runtime import DistributedRuntime

    runtime = DistributedRuntime(asyncio.get_running_loop(), "file", "tcp")
    serving = runtime.endpoint(ENDPOINT).serve_endpoint(generate)
    await asyncio.sleep(1)
    print("ready", flush=True)
    await serving


if __name__ == "__main__":
    import uvloop

    uvloop.run({"ours": ours, "peer": peer}[sys.argv[1]]())
