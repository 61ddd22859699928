"""Many workers as routers see them: records in discovery, and one program that answers at all their addresses.

    python -m benchmarks.fleet.workers file|etcd FIRST COUNT     then obeys commands (`Workers.commands`)

Worker 300 is at 127.1.1.44: the whole of 127.0.0.0/8 is this machine, so `replay.c` answers at every address of it on one
port, and needs a descriptor for each connection only. Killing the process is the loss of all its workers at once: their
connections are reset, their ports are closed, and their records stay until discovery finds them too old.
"""

from __future__ import annotations

import abc
import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import count

from benchmarks.fleet.commands import Commands, obey
from benchmarks.replay_worker import compiled
from dynamo_fast.config import EtcdConfig
from dynamo_fast.discovery.base import Discovery
from dynamo_fast.discovery.buckets import INSTANCES
from dynamo_fast.discovery.etcd_client import EtcdClient, encode
from dynamo_fast.discovery.etcd_lease import EtcdLease
from dynamo_fast.discovery.etcd_messages import Done
from dynamo_fast.discovery.file import FileDiscovery
from dynamo_fast.wire.address import EndpointId
from dynamo_fast.wire.instance import Instance, TransportType
from dynamo_fast.wire.payload import PayloadCodec

__all__ = ["ENDPOINT", "FIRST_MARKER", "Records", "Registered", "Workers"]

ENDPOINT = EndpointId("bench", "fleet", "generate")
FIRST_MARKER = 1_000_000_000
"""The instance ids from here on are those of workers that come, and go again, for `Workers.visit`."""
_SUCCESSOR = 1_000_000
"""What a worker's id grows by when another one takes its place."""
_AT_ONCE = 128
"""Operations of one transaction: etcd's default limit."""


class Records(abc.ABC):
    """Where the records of the workers go, and who keeps them alive."""

    @abc.abstractmethod
    async def put(self, instances: Sequence[Instance]) -> None: ...

    @abc.abstractmethod
    async def remove(self, instances: Sequence[Instance]) -> None: ...


class Registered(Records):
    """By a `Discovery` of ours, one by one."""

    def __init__(self, discovery: Discovery) -> None:
        self._discovery = discovery

    async def put(self, instances: Sequence[Instance]) -> None:
        for each in instances:
            await self._discovery.register(each)

    async def remove(self, instances: Sequence[Instance]) -> None:
        for each in instances:
            await self._discovery.unregister(each)


class Leased(Records):
    """In etcd, on one lease, many in each transaction: our store asks after each record of its own process with every
    renewal, which is right for the few that a worker has, and not for thousands."""

    def __init__(self, client: EtcdClient, lease: EtcdLease) -> None:
        self._client = client
        self._lease = lease
        self._renewals = asyncio.get_running_loop().create_task(self._renew(EtcdConfig.from_env().lease_ttl / 3))

    @classmethod
    async def begin(cls) -> Leased:
        """With a lease of its own, which is renewed until the process ends."""
        client = EtcdClient(EtcdConfig.from_env())
        lease = EtcdLease(client, EtcdConfig.from_env())
        await lease.begin()
        return cls(client, lease)

    async def _renew(self, pause: float) -> None:
        while True:
            await asyncio.sleep(pause)
            await self._lease.renew()

    async def put(self, instances: Sequence[Instance]) -> None:
        lease = str(self._lease.id)
        await self._all([
            {"requestPut": {"key": self._key(each), "value": encode(each.encode()), "lease": lease}}
            for each in instances
        ])  # fmt: skip

    async def remove(self, instances: Sequence[Instance]) -> None:
        await self._all([{"requestDeleteRange": {"key": self._key(each)}} for each in instances])

    async def _all(self, operations: Sequence[object]) -> None:
        for first in range(0, len(operations), _AT_ONCE):
            await self._client.call("kv/txn", {"success": operations[first : first + _AT_ONCE]}, Done)

    @staticmethod
    def _key(instance: Instance) -> str:
        return encode(f"{INSTANCES.name}/{instance.endpoint_id}/{instance.instance_id:x}")


class Workers:
    """Some workers of the fleet. Owns the program that answers for them, and their records; ends with its process."""

    def __init__(self, records: Records, first: int, number: int) -> None:
        self._records = records
        with tempfile.TemporaryDirectory() as folder:
            self._program = subprocess.Popen(
                [compiled("replay", folder), "everywhere"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            assert self._program.stdout is not None
            self._port = int(self._program.stdout.readline())
        self._present = {place: self._instance(place, place) for place in range(first, first + number)}
        self._markers = count(FIRST_MARKER)

    @property
    def commands(self) -> Commands:
        return {"appear": self.appear, "visit": self.visit, "change": self.change, "lose": self.lose}

    async def appear(self) -> float:
        """Put all the records; the seconds that it took."""
        began = time.monotonic()
        await self._records.put(list(self._present.values()))
        return time.monotonic() - began

    async def visit(self, number: int, pause: float) -> dict[str, list[float]]:
        """That many workers come and go again, one at a time; when each began to come, and to go (monotonic clock)."""
        came, went = [], []
        for _ in range(number):
            instance = self._instance(next(self._markers), 1)
            came.append(time.monotonic())
            await self._records.put([instance])
            await asyncio.sleep(pause)
            went.append(time.monotonic())
            await self._records.remove([instance])
            await asyncio.sleep(pause)
        return {"came": came, "went": went}

    async def change(self, per_second: float, seconds: float) -> int:
        """Workers go, and others come in their places: so many changes a second, evenly; how many there were."""
        places = list(self._present)
        began, done = time.monotonic(), 0
        while (passed := time.monotonic() - began) < seconds:
            while done < passed * per_second:
                await self._replace(places[done // 2 % len(places)])
                done += 2
            await asyncio.sleep(0.005)
        return done

    async def lose(self) -> None:
        """The workers are gone, and their records with them: for a store that does not find them too old."""
        self._program.kill()
        self._program.wait()
        await self._records.remove(list(self._present.values()))

    async def _replace(self, place: int) -> None:
        gone = self._present[place]
        self._present[place] = self._instance(gone.instance_id + _SUCCESSOR, place)
        await self._records.remove([gone])
        await self._records.put([self._present[place]])

    def _instance(self, instance_id: int, place: int) -> Instance:
        host = f"127.{1 + (place >> 16)}.{place >> 8 & 255}.{place & 255}"
        address = f"{host}:{self._port}/{instance_id:x}/{'/'.join(ENDPOINT)}"
        return Instance(ENDPOINT, instance_id, TransportType("tcp", address), "cuda", PayloadCodec.MSGPACK)


async def main(backend: str, first: int, number: int) -> None:
    records = await Leased.begin() if backend == "etcd" else Registered(FileDiscovery())
    await obey(Workers(records, first, number).commands)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
