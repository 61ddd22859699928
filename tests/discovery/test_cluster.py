"""Three real members of etcd, of which one is killed, frozen or left without the others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from dynamo_fast.config import EtcdConfig
from dynamo_fast.discovery.base import Added, DiscoveryEvent
from dynamo_fast.discovery.etcd import EtcdDiscovery
from dynamo_fast.discovery.etcd_client import EtcdClient, encode, prefix_range
from dynamo_fast.errors import CannotConnect
from dynamo_fast.wire.instance import Instance
from tests.discovery.etcd_server import Etcd, cluster
from tests.discovery.records import ENDPOINT, instance
from tests.discovery.test_etcd import put_on_a_lease_that_expires

LIMIT = 30


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Etcd]]:
    with cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


def on_one_loop(test: Callable[[list[Etcd]], Coroutine[Any, Any, None]]) -> Callable[[list[Etcd]], None]:
    """Discovery talks to etcd on a loop of its own: which one the caller has is of no matter."""

    def run(members: list[Etcd]) -> None:
        asyncio.run(test(members))

    return run


def config(*members: Etcd) -> EtcdConfig:
    return EtcdConfig(endpoints=",".join(each.url for each in members), startup_timeout=10.0, lease_ttl=3)


async def insist(change: Callable[[], Awaitable[Any]]) -> Any:
    """Until etcd takes it: while a leader is elected it says no."""
    deadline = time.monotonic() + LIMIT
    while True:
        try:
            return await change()
        except CannotConnect:
            assert time.monotonic() < deadline


class Fleet:
    """A worker with a lease, a watcher, and another process that comes and goes; all know all members."""

    def __init__(self, *members: Etcd) -> None:
        self.members = members
        self.alive: set[Instance] = set()
        self.lost: list[Instance] = []
        self._changed = asyncio.Event()

    async def open(self) -> None:
        self.worker = await EtcdDiscovery.open(config(*self.members))
        self.other = await EtcdDiscovery.open(config(*self.members))
        self.watcher = await EtcdDiscovery.open(config(*self.members))
        self.client = EtcdClient(config(*reversed(self.members)))
        self.record = instance(self.worker.connection_id)
        await self.worker.register(self.record)
        await self.watcher.watch(ENDPOINT, self._hear)
        await self.see(self.record)

    async def close(self) -> None:
        for each in (self.worker, self.other, self.watcher):
            await each.close()
        await insist(lambda: self.client.call("kv/deleterange", prefix_range("v1/"), dict))
        await self.client.close()

    async def see(self, *instances: Instance) -> None:
        """Wait until the watcher knows these and no other."""
        await self._wait(lambda: self.alive == set(instances))

    async def see_lost(self, instance: Instance) -> None:
        """Wait until the watcher hears that this one is gone."""
        await self._wait(lambda: instance in self.lost)
        self.lost.remove(instance)

    async def _wait(self, condition: Callable[[], bool]) -> None:
        async def look() -> None:
            while not condition():
                self._changed.clear()
                await self._changed.wait()

        try:
            await asyncio.wait_for(look(), LIMIT)
        except asyncio.TimeoutError:
            raise AssertionError(f"alive: {[*map(str, self.alive)]}, lost: {[*map(str, self.lost)]}") from None

    async def outlast(self) -> None:
        """Longer than the lease lasts without being renewed; the record is there all the while.

        etcd's clock cannot be turned. A lease that is as long as the worker's, and is granted now, says how late it is.
        """
        late = instance(0xFFFF)
        await insist(lambda: put_on_a_lease_that_expires(self.client, ENDPOINT, late.instance_id, lease_ttl=3))
        await self.see_lost(late)
        assert self.record in self.alive
        lease: dict[str, Any] = await insist(
            lambda: self.client.call("lease/timetolive", {"ID": str(self.worker.connection_id)}, dict)
        )
        assert int(lease["TTL"]) > 0

    def watched(self) -> Etcd:
        """The member that the watcher's connections lead to."""
        (url, *_) = self.watcher.store.client._urls
        return next(each for each in self.members if each.url == url)

    async def leader(self) -> Etcd:
        for member in self.members:
            client = EtcdClient(config(member))
            status: dict[str, Any] = await client.call("maintenance/status", {}, dict)
            await client.close()
            if status["leader"] == status["header"]["member_id"]:
                return member
        raise AssertionError("no leader")

    def _hear(self, event: DiscoveryEvent) -> None:
        if isinstance(event, Added):
            self.alive.add(event.instance)
        else:
            self.alive.discard(event.instance)
            self.lost.append(event.instance)
        self._changed.set()


@asynccontextmanager
async def fleet(members: list[Etcd], first: Etcd | None = None) -> AsyncIterator[Fleet]:
    """`first` is the member that everybody asks first."""
    made = Fleet(*sorted(members, key=lambda each: each is not first))
    await made.open()
    yield made
    await made.close()


@on_one_loop
async def test_the_leader_is_killed(members: list[Etcd]) -> None:
    async with fleet(members) as probe:
        leader = await probe.leader()
    async with fleet(members, leader) as three:
        leader.stop()
        one, two = instance(1), instance(2)
        await insist(lambda: three.other.register(one))
        await three.see(three.record, one)
        await insist(lambda: three.other.register(two))
        await insist(lambda: three.other.unregister(one))
        await three.see(three.record, two)
        await three.outlast()
        assert three.lost == [one]  # and the worker's record not for a moment
        leader.start()


@on_one_loop
async def test_a_member_falls_silent_and_its_revision_is_compacted(members: list[Etcd]) -> None:
    async with fleet(members) as three:
        frozen = three.watched()
        frozen.freeze()
        try:
            one, two = instance(1), instance(2)
            await insist(lambda: three.other.register(one))
            await insist(lambda: three.other.register(two))
            await insist(lambda: three.other.unregister(one))
            answer: dict[str, Any] = await insist(lambda: three.client.call("kv/range", {"key": encode("x")}, dict))
            revision = answer["header"]["revision"]
            await insist(lambda: three.client.call("kv/compaction", {"revision": revision, "physical": True}, dict))
            await three.see(three.record, two)
            assert three.record not in three.lost
        finally:
            frozen.thaw()


@on_one_loop
async def test_a_member_is_left_without_the_others(members: list[Etcd]) -> None:
    async with fleet(members) as three:
        alone = three.watched()
        others = [each for each in members if each is not alone]
        for each in others:
            each.freeze()
        try:
            with pytest.raises((CannotConnect, asyncio.TimeoutError)):  # no leader, no answer
                await asyncio.wait_for(three.other.register(instance(1)), 4)
        finally:
            for each in others:
                each.thaw()
        for each in members:
            each.wait()
        await insist(lambda: three.other.register(instance(2)))
        # What was asked of etcd meanwhile, and is done late, does not stay. (A leader that was frozen for longer than a
        # lease takes it for expired: the record is put back.)
        await three.see(three.record, instance(2))
