"""A process that ends with streams open at both sides: `python ends.py native|drop-in asyncio|uvloop run|closed|left`.

The last says what becomes of the event loop: a runner cancels its tasks and closes it (`run`), it is closed as it is, or
left as it is. Nothing may be written to standard error.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

from dynamo_fast import AddressedPushRouter, AddressedRequest, FileDiscovery, PushRouter, Worker
from dynamo_fast.runtime import DistributedRuntime

held: list[Any] = []
"""What a program keeps in its globals until its end."""


async def endless(request: Any) -> AsyncIterator[Any]:
    number = 0
    while True:
        yield number
        number += 1
        await asyncio.sleep(0.001)


async def native() -> None:
    discovery = FileDiscovery()
    worker = await Worker.start(discovery)
    served = await worker.serve(endless, "a.b.c")
    router = await AddressedPushRouter.create()
    calls = await PushRouter.create("a.b.c", discovery, router)
    for _ in range(3):
        held.append(await router.generate(AddressedRequest.new(None, served.address)))
        held.append(await calls.generate(None))
    for stream in held:
        assert (await stream.__anext__()).data() == 0
    held.extend([worker, router, calls])
    local = await calls.generate(None)
    await local.__anext__()


async def drop_in() -> None:
    runtime = DistributedRuntime(asyncio.get_running_loop(), "file", "tcp")
    held.append(runtime.endpoint("a.b.c").serve_endpoint(endless))
    client = await runtime.endpoint("a.b.c").client()
    await client.wait_for_instances()
    for _ in range(3):
        stream = await client.round_robin(None)
        assert (await stream.__anext__()).data() == 0
        held.append(stream)
    held.append(runtime)


def main() -> None:
    program, kind, end = sys.argv[1:]
    if kind == "uvloop":
        import uvloop

        new_loop: Any = uvloop.new_event_loop
    else:
        new_loop = asyncio.new_event_loop
    coroutine = native() if program == "native" else drop_in()
    if end == "run":
        if kind == "uvloop":
            uvloop.run(coroutine)
        else:
            asyncio.run(coroutine)
    else:
        loop = new_loop()
        loop.run_until_complete(coroutine)
        if end == "closed":
            loop.close()
        held.append(loop)
    print("end", flush=True)


main()
