"""Choosing among 1 to 1,000 workers: one pick of each mode of `PushRouter`, with requests in flight at all of them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from benchmarks.timing import measure
from dynamo_fast import AddressedPushRouter, EndpointId, PushRouter, RouterMode
from dynamo_fast.config import ResponseServerConfig
from dynamo_fast.discovery.memory import MemoryDiscovery
from dynamo_fast.egress.response_server import TcpStreamServer
from dynamo_fast.wire.instance import Instance, TransportType

__all__ = ["measure_all", "show"]

ENDPOINT = EndpointId("bench", "pick", "generate")
SIZES = (1, 10, 100, 1_000)
MODES = (
    RouterMode.RoundRobin,
    RouterMode.Random,
    RouterMode.PowerOfTwoChoices,
    RouterMode.LeastLoaded,
    RouterMode.DeviceAwareWeighted,
)
Seconds = dict[str, dict[str, float]]


def measure_all(rounds: int) -> Seconds:
    """Seconds for one pick and what the end of its request costs, by number of workers and mode."""
    return asyncio.run(_measure(rounds))


async def _measure(rounds: int) -> Seconds:
    server = await TcpStreamServer.create(ResponseServerConfig(host="127.0.0.1"))
    async with await AddressedPushRouter.create(response_server=server) as router:
        return {f"{size:,} workers": await _picks_among(size, router, 10 * rounds) for size in SIZES}


async def _picks_among(size: int, router: AddressedPushRouter, rounds: int) -> dict[str, float]:
    discovery = MemoryDiscovery()
    for number in range(size):
        transport = TransportType("tcp", f"127.0.0.1:{number + 1}/{number:x}/{ENDPOINT}")
        await discovery.register(Instance(ENDPOINT, number, transport, "cpu" if number % 4 == 0 else "cuda"))
    async with await PushRouter.create(ENDPOINT, discovery, router) as push_router:
        await push_router.wait_for_instances()
        for entry in push_router.table.entries:
            for _ in range(random.randrange(8)):
                entry.begin()

        def picker(mode: RouterMode) -> Callable[[], None]:
            choose = push_router.selection.choosers[mode]  # what `generate` does first

            def pick() -> None:
                entry = choose()
                entry.begin()
                entry.end()

            return pick

        return measure({mode.value: picker(mode) for mode in MODES}, rounds)


def show(seconds: Seconds) -> None:
    """Print the table."""
    print(f"{'us a pick':16}" + "".join(f"{mode.value:>24}" for mode in MODES))
    for size, row in seconds.items():
        print(f"{size:16}" + "".join(f"{row[mode.value] * 1e6:24.2f}" for mode in MODES))
