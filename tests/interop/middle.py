"""A process in the middle: it serves and calls. `python middle.py drop-in|native`.

Each request is answered with "begun", and then, once a line has come on standard input, by what `peer.worker.generate`
says to it. SIGTERM ends the process in order.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from typing import Any

from dynamo_fast import AddressedPushRouter, FileDiscovery, PushRouter, Worker
from dynamo_fast.runtime import DistributedRuntime

SERVED, CALLED = "middle.worker.generate", "peer.worker.generate"


async def drop_in(gate: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    runtime = DistributedRuntime(loop, "file", "tcp")
    loop.add_signal_handler(signal.SIGTERM, runtime.shutdown)
    early = await runtime.endpoint(CALLED).client()
    await early.wait_for_instances()

    async def generate(request: dict[str, Any]) -> AsyncIterator[Any]:
        yield "begun"
        await gate.wait()
        client = await runtime.endpoint(CALLED).client() if request.get("late") else early
        await client.wait_for_instances()
        async for item in await client.round_robin(request, annotated=False):
            yield item

    serving = runtime.endpoint(SERVED).serve_endpoint(generate)
    print("ready", flush=True)
    await serving


async def native(gate: asyncio.Event) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    discovery = FileDiscovery()
    router = await AddressedPushRouter.create()
    early = await PushRouter.create(CALLED, discovery, router)
    await early.wait_for_instances()

    async def generate(request: dict[str, Any]) -> AsyncIterator[Any]:
        yield "begun"
        await gate.wait()
        calls = await PushRouter.create(CALLED, discovery, router) if request.get("late") else early
        await calls.wait_for_instances()
        async for item in await calls.generate(request):
            yield item.data()

    worker = await Worker.start(discovery)
    await worker.serve(generate, SERVED)
    print("ready", flush=True)
    await stop.wait()
    await worker.close()  # first: what was accepted still calls
    early.close()
    await router.close()


async def main() -> None:
    gate = asyncio.Event()
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)

    async def wait_for_line() -> None:
        await reader.readline()
        gate.set()

    waiting = asyncio.ensure_future(wait_for_line())
    await (drop_in if sys.argv[1] == "drop-in" else native)(gate)
    waiting.cancel()
    print("ended", flush=True)


asyncio.run(main())
