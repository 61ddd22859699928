"""`EtcdStore`: records as keys in etcd, as Dynamo's `etcd` backend keeps them (runtime.md 1.4). `EtcdDiscovery`: its
instances.

    v1/instances/demo/backend/generate/577eb898b1f7105e      one record, compact JSON, attached to the process's lease
    v1/mdc/demo/backend/generate/577eb898b1f7105e            a model card, on the same lease

The id of the lease is the connection id. etcd deletes the keys when a lease is not renewed for its TTL. A process that
lost its lease (or its keys, or the whole etcd with everything in it) asks for the same lease again and puts its keys
back; Dynamo's own worker ends then.

All traffic with etcd is in a thread of its own, so the lease is kept while the caller's event loop is blocked.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, TypeVar

from dynamo_fast.config import EtcdConfig
from dynamo_fast.discovery.background import BackgroundLoop
from dynamo_fast.discovery.base import Discovery
from dynamo_fast.discovery.buckets import BucketKind
from dynamo_fast.discovery.etcd_bucket import EtcdBucket
from dynamo_fast.discovery.etcd_client import EtcdClient
from dynamo_fast.discovery.etcd_lease import EtcdLease
from dynamo_fast.discovery.store import Bucket
from dynamo_fast.discovery.thread_store import ThreadStore
from dynamo_fast.errors import CannotConnect
from dynamo_fast.logs import get_logger

__all__ = ["EtcdDiscovery", "EtcdStore"]

logger = get_logger(__name__)

WITHDRAW_TIMEOUT = 2.0
"""Seconds for etcd to delete the keys and the lease of a process that leaves."""

_T = TypeVar("_T")


class EtcdDiscovery(Discovery):
    """The instances in etcd. Made with `connect` or `open`."""

    store: EtcdStore

    @classmethod
    def connect(cls, config: EtcdConfig | None = None) -> EtcdDiscovery:
        """With a new lease. Blocks until etcd has granted it, for `startup_timeout` at most; then CannotConnect.

        Raises InvalidConfig for a setting.
        """
        return cls(EtcdStore.connect(config))

    @classmethod
    async def open(cls, config: EtcdConfig | None = None) -> EtcdDiscovery:
        """The same as `connect`, for an event loop, which goes on meanwhile; may be cancelled."""
        return cls(await EtcdStore.open(config))


class EtcdStore(ThreadStore):
    """The buckets in etcd, on one lease of this process. Made with `connect` or `open`.

    Owned by an `EtcdDiscovery`. Owns the client and the lease. May be used from several event loops; its thread starts
    with it, ends with `close`, and alone talks to etcd.
    """

    client: EtcdClient
    lease: EtcdLease

    def __init__(self, config: EtcdConfig) -> None:
        super().__init__("dynamo-fast etcd discovery", WITHDRAW_TIMEOUT + 0.5)
        self.config = config
        self._beating: BackgroundLoop | None = None
        self._away = False
        """Whether the last renewal of the lease failed."""

    @classmethod
    def connect(cls, config: EtcdConfig | None = None) -> EtcdStore:
        """As `EtcdDiscovery.connect`."""
        store = cls(EtcdConfig.from_env() if config is None else config)
        try:
            store.thread.submit(store._start()).result()
        except BaseException:
            store.thread.stop()
            raise
        return store

    @classmethod
    async def open(cls, config: EtcdConfig | None = None) -> EtcdStore:
        """As `EtcdDiscovery.open`."""
        store = cls(EtcdConfig.from_env() if config is None else config)
        try:
            await store.thread.run(store._start())
        except BaseException:
            store.thread.stop()
            raise
        return store

    def _open(self, kind: BucketKind[_T]) -> Bucket[_T]:
        return EtcdBucket(kind, self, self.client, self.lease, self.config.lease_ttl / 2)

    def _left_behind(self) -> str:
        return f"the lease {self.connection_id:x} is left to expire: etcd does not answer"

    # In the thread:

    async def _start(self) -> None:
        self.client = EtcdClient(self.config)
        self.thread.at_end = self.client.close
        self.lease = EtcdLease(self.client, self.config)
        await self.lease.begin()
        self.connection_id = self.lease.id
        self.thread.at_exit = self._withdraw
        self._beating = self.thread.keep(f"the renewal of the lease {self.lease.id:x} in etcd", self._beat)

    async def _beat(self) -> float:
        buckets: list[EtcdBucket[Any]] = self._leaving()
        try:
            await self.lease.renew()
            for bucket in buckets:
                await bucket.repair()
        except BaseException:
            self._away = True
            raise
        if self._away:
            self._away = False
            for bucket in buckets:
                bucket.restart_watches()  # their connections may be dead, without an error
        return self.config.lease_ttl / 3

    async def _withdraw(self) -> None:
        already, self.withdrawn = self._beating is None, True
        buckets: list[EtcdBucket[Any]] = self._leaving()
        owned = [keys for bucket in buckets if (keys := bucket.forget_own())]
        if self._beating is not None:
            self.thread.drop(self._beating)
            self._beating = None
        if already:
            return
        try:
            await self._remove_in_order(owned)
        except CannotConnect as error:
            logger.warning("the lease %x is left to expire: %s", self.connection_id, error)

    async def _remove_in_order(self, owned: list[list[str]]) -> None:
        """The keys of one bucket after those of another; the last ones go with the lease.

        If etcd deletes no keys, the lease is revoked all the same: it takes every key with it, in etcd's own order.
        """
        clock = asyncio.get_running_loop().time
        deadline = clock() + WITHDRAW_TIMEOUT
        with contextlib.suppress(CannotConnect):
            for keys in owned[:-1]:
                await self.client.delete(keys, max(0.1, deadline - clock()))
        await self.lease.revoke(max(0.1, deadline - clock()))
