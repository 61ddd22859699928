"""One caller under test, in a process of its own: `python caller.py ours|peer WORK ROUNDS`, settings from the environment.

`peer` is run by a peer's interpreter and imports `dynamo.runtime`, and nothing of this project. Prints one JSON object
per round: items, requests, seconds, CPU seconds of this process (all threads, user and system), and the times to the
first item.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

ENDPOINT = "bench.replay.generate"
Call = Callable[[dict[str, Any]], Awaitable[AsyncIterator[Any]]]


@dataclass(frozen=True)
class Work:
    """`requests` requests of `items` items each, `concurrent` at once."""

    requests: int
    concurrent: int
    items: int
    size: int = 100
    pace: int = 0


WORKS = {
    "burst": Work(1, 1, 20_000),
    "packet": Work(1, 1, 2_000, pace=250),
    "32x100": Work(32, 32, 100),
    "sequential": Work(300, 1, 1),
    "concurrent": Work(1_500, 32, 1),
    "4 KiB": Work(1, 1, 5_000, size=4096),
    "1 MiB": Work(1, 1, 64, size=1 << 20),
}


async def ours() -> Call:
    from dynamo_fast import AddressedPushRouter, AddressedRequest, EndpointId, FileDiscovery

    discovery = FileDiscovery()
    while not (instances := await discovery.list(EndpointId.parse(ENDPOINT))):
        await asyncio.sleep(0.05)
    router = await AddressedPushRouter.create()
    instance = instances[0]

    async def call(request: dict[str, Any]) -> AsyncIterator[Any]:
        return await router.generate(AddressedRequest.for_instance(request, instance))

    return call


async def peer() -> Call:
    from dynamo.runtime import DistributedRuntime

    runtime = DistributedRuntime(asyncio.get_running_loop(), "file", "tcp")
    client = await runtime.endpoint(ENDPOINT).client()
    await client.wait_for_instances()
    await asyncio.sleep(0.2)  # 1.3.1 knows the instance a moment before it may use it

    async def call(request: dict[str, Any]) -> AsyncIterator[Any]:
        stream: AsyncIterator[Any] = await client.round_robin(request)
        return stream

    return call


async def do(call: Call, work: Work) -> dict[str, Any]:
    """The work, once."""
    request = {"items": work.items, "size": work.size, "pace": work.pace}
    left = iter(range(work.requests))
    first_items: list[float] = []
    gaps: list[float] = []
    count = 0

    async def one() -> None:
        nonlocal count
        for _ in left:
            began = last = time.perf_counter()
            got = 0
            async for item in await call(request):
                if not got:
                    first_items.append(time.perf_counter() - began)
                elif work.pace:
                    now = time.perf_counter()
                    gaps.append(now - last)
                    last = now
                item.data()
                got += 1
            assert got == work.items, (got, work.items)
            count += got

    cpu, began = cpu_seconds(), time.perf_counter()
    await asyncio.gather(*(one() for _ in range(work.concurrent)))
    seconds, cpu = time.perf_counter() - began, cpu_seconds() - cpu
    return {
        "items": count,
        "requests": work.requests,
        "seconds": seconds,
        "cpu": cpu,
        "first_item": sorted(first_items),
        "gap_p99": sorted(gaps)[int(len(gaps) * 0.99)] if gaps else None,
        "peak_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def main() -> None:
    kind, name, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
    call = await {"ours": ours, "peer": peer}[kind]()
    work = WORKS[name]
    await do(call, Work(min(work.requests, 32), min(work.concurrent, 32), min(work.items, 100), work.size))  # warm up
    for _ in range(rounds):
        print(json.dumps(await do(call, work)), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "ours":
        import uvloop

        uvloop.run(main())
    else:
        asyncio.run(main())
