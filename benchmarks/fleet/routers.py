"""Routers of a large fleet, in one process: what they know and when, what that costs, and what they lose.

    python -m benchmarks.fleet.routers mem|file|etcd ROUTERS     then obeys commands (`Routers.commands`)

With `mem` the records are in this process, too, so it obeys the commands of `Workers` as well, under the names of
`hosted`.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import time
from collections.abc import Callable

import uvloop

from benchmarks.caller import cpu_seconds, resident_kib
from benchmarks.fleet.commands import Commands, obey
from benchmarks.fleet.workers import ENDPOINT, FIRST_MARKER, Registered, Workers
from dynamo_fast import AddressedPushRouter, DynamoError, PushRouter, RouterMode
from dynamo_fast.discovery.base import Discovery
from dynamo_fast.discovery.connect import connect
from dynamo_fast.egress.instance_table import Entry, InstanceTable

__all__ = ["RETRIES"]

PATIENCE = 120
"""Seconds that a router may take to know what it should."""
STREAM = {"items": 10, "size": 100, "pace": 10_000}
"""What a request of the load asks for: 100 ms of items."""
RETRIES = (0, 1)
"""On how many other workers a failed request is tried; each kind has half of the load."""


class Observed:
    """A table of workers, its routers, and when they heard what. Owned by `Routers`; the table tells it of changes."""

    def __init__(self, router: AddressedPushRouter) -> None:
        self._router = router
        self.table: InstanceTable
        self.routers: list[PushRouter] = []
        self.came: dict[int, float] = {}
        """When each visiting worker was known, on the monotonic clock. One that left too soon is not known at all."""
        self.went: dict[int, float] = {}
        self.left: list[float] = []
        """When each other worker was known to be gone."""
        self.outcomes: dict[int, list[tuple[float, bool]]] = {retries: [] for retries in RETRIES}
        """Of the load: when each request ended, and whether it was answered."""
        self._changed = asyncio.Event()

    async def start(self, discovery: Discovery, size: int) -> None:
        """Watch, and return when all workers are known."""
        self.table = await InstanceTable.watch(ENDPOINT, discovery, self._router.response_server)
        self.table.listen(self)
        # At random: taking turns, every router begins with the same workers, and may not come to the lost ones.
        self.routers = [
            PushRouter(self.table, self._router, mode=RouterMode.Random, retries=retries) for retries in RETRIES
        ]
        await self.until(lambda: len(self.table.entries) >= size)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until the condition holds after a change of the table. Raises TimeoutError (of asyncio)."""

        async def holds() -> None:
            while not condition():
                self._changed.clear()
                await self._changed.wait()

        await asyncio.wait_for(holds(), PATIENCE)

    def table_changed(self, gone: Entry | None) -> None:
        """See TableListener."""
        self._changed.set()
        now = time.monotonic()
        if gone is None:
            newest = self.table.entries[-1].instance.instance_id
            if newest >= FIRST_MARKER:
                self.came.setdefault(newest - FIRST_MARKER, now)
        elif gone.instance.instance_id >= FIRST_MARKER:
            self.went[gone.instance.instance_id - FIRST_MARKER] = now
        else:
            self.left.append(now)

    async def call_all(self) -> None:
        """One request to each worker, 64 at once."""
        left = iter([entry.instance.instance_id for entry in self.table])

        async def call() -> None:
            for instance_id in left:
                async for _ in await self.routers[0].direct({"items": 1, "size": 100}, instance_id):
                    pass

        await asyncio.gather(*(call() for _ in range(64)))

    async def load(self, until: float, streams: int) -> None:
        """So many streams of each kind of router, each with one request after the other."""
        kinds = zip(RETRIES, self.routers, strict=True)
        await asyncio.gather(
            *(self._stream(until, retries, router) for retries, router in kinds for _ in range(streams))
        )

    async def _stream(self, until: float, retries: int, router: PushRouter) -> None:
        while time.monotonic() < until:
            answered = True
            try:
                async for _ in await router.generate(STREAM):
                    pass
            except DynamoError:
                answered = False
            self.outcomes[retries].append((time.monotonic(), answered))


class Routers:
    """What one process has: routers of one discovery, and the commands. Times are in seconds, of the monotonic clock."""

    def __init__(self, discovery: Discovery, router: AddressedPushRouter, number: int) -> None:
        self._discovery = discovery
        self._observed = [Observed(router) for _ in range(number)]
        self._load: asyncio.Future[list[None]] | None = None

    @property
    def commands(self) -> Commands:
        return {
            "start": self.start,
            "known": self.known,
            "used": self.used,
            "call_all": self.call_all,
            "load": self.load,
            "outcome": self.outcome,
        }

    async def start(self, size: int) -> dict[str, float]:
        """All routers, one after the other: how long one took to know all workers, and the memory of one for each."""
        before, seconds = resident_kib(), []
        for each in self._observed:
            began = time.monotonic()
            await each.start(self._discovery, size)
            seconds.append(time.monotonic() - began)
        kib = (resident_kib() - before) / size / len(self._observed)
        return {"seconds": statistics.median(seconds), "kib": kib}

    async def known(self, pause: float) -> list[dict[str, list[tuple[int, float]]]]:
        """When each router knew of each worker that came and went, by their numbers; after a pause for late news."""
        await asyncio.sleep(pause)
        return [{"came": list(each.came.items()), "went": list(each.went.items())} for each in self._observed]

    async def used(self) -> dict[str, float]:
        """The CPU time of this process, and what time it is."""
        return {"cpu": cpu_seconds(), "at": time.monotonic()}

    async def call_all(self) -> dict[str, float]:
        """The connections and the memory that a worker takes that was called."""
        size = len(self._observed[0].table.entries)
        kib, descriptors = resident_kib(), _descriptors()
        for each in self._observed:  # they share one pool of connections
            await each.call_all()
        return {"kib": (resident_kib() - kib) / size, "connections": (_descriptors() - descriptors) / size}

    async def load(self, seconds: float, streams: int) -> None:
        """Begin the load; it goes on while other commands are obeyed."""
        until = time.monotonic() + seconds
        self._load = asyncio.gather(*(each.load(until, streams) for each in self._observed))

    async def outcome(self, lost_at: float) -> list[dict[str, float]]:
        """What each router lost after that time, once the load is over; the times count from then."""
        assert self._load is not None
        await self._load
        return [_outcome(each, lost_at) for each in self._observed]


def _outcome(observed: Observed, lost_at: float) -> dict[str, float]:
    result = {"forgotten": max((at - lost_at for at in observed.left if at > lost_at), default=0.0)}
    for retries, outcomes in observed.outcomes.items():
        failures = [at - lost_at for at, answered in outcomes if not answered]
        result[f"sent_{retries}"] = len(outcomes)
        result[f"lost_{retries}"] = len(failures)
        result[f"steady_{retries}"] = max(failures, default=0.0)
    return result


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def hosted(discovery: Discovery, name: str, first: int, number: int) -> Commands:
    """The commands of workers whose records are in this process."""
    workers = Workers(Registered(discovery), first, number)
    return {f"{name} {command}": act for command, act in workers.commands.items()}


async def main(backend: str, routers: int, *workers: int) -> None:
    """`workers`: with `mem`, how many live to the end, and how many are lost."""
    discovery = connect(backend)
    router = await AddressedPushRouter.create()
    commands = dict(Routers(discovery, router, routers).commands)
    if workers:
        living, doomed = workers
        commands.update(hosted(discovery, "living", 1, living))
        commands.update(hosted(discovery, "doomed", 1 + living, doomed))
    await obey(commands)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], *map(int, sys.argv[2:])))
