"""`EtcdDiscovery`: instance records as keys in etcd, as Dynamo's `etcd` backend keeps them (runtime.md 1.4).

    v1/instances/demo/backend/generate/577eb898b1f7105e      one record, compact JSON, attached to the process's lease

The id of the lease is the connection id. etcd deletes the keys when a lease is not renewed for its TTL. A process that
lost its lease (or its keys, or the whole etcd with everything in it) asks for the same lease again and puts its keys
back; Dynamo's own worker ends then.

All traffic with etcd is in a thread of its own, so the lease is kept while the caller's event loop is blocked.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import time

import msgspec

from dynamo_fast.config import EtcdConfig
from dynamo_fast.discovery.background import FIRST_RETRY, BackgroundLoop, BackgroundThread
from dynamo_fast.discovery.base import Discovery, Listener, Watch
from dynamo_fast.discovery.etcd_client import CALL_TIMEOUT, EtcdClient, Refused, encode
from dynamo_fast.discovery.etcd_watch import ROOT, EtcdWatch, Header, prefix, read_entries
from dynamo_fast.discovery.record_reader import RecordReader
from dynamo_fast.discovery.subscription import Subscription
from dynamo_fast.errors import CannotConnect, InvalidRequest
from dynamo_fast.logs import get_logger
from dynamo_fast.wire.address import EndpointId
from dynamo_fast.wire.instance import Instance

__all__ = ["EtcdDiscovery"]

logger = get_logger(__name__)

WITHDRAW_TIMEOUT = 2.0
"""Seconds for etcd to revoke the lease of a process that leaves."""
_SETTLING_BEATS = 6
"""Two lease times."""
_NOT_FOUND = 5

Instances = list[Instance]


class _LeaseAnswer(msgspec.Struct):
    ID: int
    TTL: int = 0


class _Done(msgspec.Struct):
    """To `kv/put` and `kv/deleterange`."""

    header: Header


class _TransactionAnswer(msgspec.Struct):
    header: Header
    succeeded: bool = False


class EtcdDiscovery(Discovery):
    """Records in etcd, on a lease of this process. Made with `connect` or `open`.

    May be used from several event loops. Its thread starts with it and ends with `close`; the thread alone talks to
    etcd and touches the tables below.
    """

    def __init__(self, config: EtcdConfig) -> None:
        self.connection_id = 0
        self._config = config
        self._owned: dict[str, bytes] = {}
        self._unsure: dict[str, int] = {}
        """Keys whose call failed, with the number of heartbeats that still correct them. etcd may carry out a call late,
        even after the next one."""
        self._watches: dict[EndpointId, EtcdWatch] = {}
        self._reader = RecordReader()
        self._client: EtcdClient | None = None
        self._beating: BackgroundLoop | None = None
        self._away = False
        self._withdrawn = False
        self._thread = BackgroundThread("dynamo-fast etcd discovery")

    @classmethod
    def connect(cls, config: EtcdConfig | None = None) -> EtcdDiscovery:
        """With a new lease. Blocks until etcd has granted it, for `startup_timeout` at most; then CannotConnect.

        Raises InvalidConfig for a setting.
        """
        discovery = cls(EtcdConfig.from_env() if config is None else config)
        try:
            discovery._thread.submit(discovery._start()).result()
        except BaseException:
            discovery._thread.stop()
            raise
        return discovery

    @classmethod
    async def open(cls, config: EtcdConfig | None = None) -> EtcdDiscovery:
        """The same as `connect`, for an event loop, which goes on meanwhile; may be cancelled."""
        discovery = cls(EtcdConfig.from_env() if config is None else config)
        try:
            await discovery._thread.run(discovery._start())
        except BaseException:
            discovery._thread.stop()
            raise
        return discovery

    async def register(self, instance: Instance) -> None:
        key = _key(instance)
        before = self._owned.get(key)
        try:
            await self._thread.run(self._register(key, instance.encode()))
        except BaseException:
            if self._thread.running:
                self._thread.submit(self._restore(key, before))
            raise

    async def unregister(self, instance: Instance) -> None:
        await self._thread.run(self._unregister(instance))

    async def list(self, endpoint: EndpointId | None = None) -> list[Instance]:
        return await self._thread.run(self._list(endpoint))

    async def watch(self, endpoint: EndpointId, listener: Listener) -> Watch:
        watch = Subscription(listener, self._unsubscribe)
        try:
            await self._thread.run(self._subscribe(endpoint, watch))
        except BaseException:
            watch.close()
            raise
        watch.deliver()
        return watch

    def withdraw(self) -> None:
        self._withdrawn = True
        if not self._thread.running:
            return
        try:
            self._thread.wait_for(self._withdraw(), WITHDRAW_TIMEOUT + 0.5)
        except concurrent.futures.TimeoutError:
            logger.warning("the lease %x is left to expire: etcd does not answer", self.connection_id)

    async def close(self) -> None:
        if self._thread.running:
            await self._thread.run(self._close())
        await self._thread.end()

    # What follows runs in the thread. Our lease and our keys:

    async def _start(self) -> None:
        self._client = EtcdClient(self._config)
        self._thread.at_end = self._client.close
        self.connection_id = await self._first_lease()
        self._thread.at_exit = self._withdraw
        self._beating = self._thread.keep(f"the renewal of the lease {self.connection_id:x} in etcd", self._beat)

    async def _first_lease(self) -> int:
        deadline = time.monotonic() + self._config.startup_timeout
        while True:
            try:
                remaining = max(0.1, deadline - time.monotonic())
                request = {"TTL": str(self._config.lease_ttl)}
                return (await self._etcd.call("lease/grant", request, _LeaseAnswer, min(CALL_TIMEOUT, remaining))).ID
            except Refused:
                raise
            except CannotConnect as error:
                if time.monotonic() + FIRST_RETRY >= deadline:
                    raise CannotConnect(
                        f"etcd startup connection timed out after {self._config.startup_timeout:g} seconds"
                    ) from error
            await asyncio.sleep(FIRST_RETRY)

    async def _register(self, key: str, value: bytes) -> None:
        self._check_present()
        try:
            await self._put(key, value)
        except Refused as refusal:
            if refusal.code != _NOT_FOUND:
                raise
            await self._grant()  # the lease was lost since the last beat
            await self._put(key, value)
        self._check_present()  # `withdraw` may have revoked the lease, and the key with it
        self._owned[key] = value

    def _check_present(self) -> None:
        if self._withdrawn:
            raise InvalidRequest("this process has left discovery: nothing can be registered any more")

    async def _restore(self, key: str, value: bytes | None) -> None:
        """A registration failed or was cancelled: return to the earlier value. What etcd has now is unknown."""
        self._owned.pop(key, None)
        if value is not None and not self._withdrawn:
            self._owned[key] = value
        self._unsure[key] = _SETTLING_BEATS
        await self._settle(key)

    async def _unregister(self, instance: Instance) -> None:
        key = _key(instance)
        if self._owned.pop(key, None) is None:
            if self._withdrawn:
                return
            raise InvalidRequest(f"{instance.endpoint_id} was not registered by this process: nothing to unregister")
        self._unsure[key] = _SETTLING_BEATS
        await self._settle(key)
        self._unsure.pop(key, None)

    async def _settle(self, key: str) -> None:
        """Write our value of this key to etcd, or delete the key if we have none."""
        value = self._owned.get(key)
        if value is not None:
            await self._put(key, value)
        elif not self._withdrawn:
            await self._etcd.call("kv/deleterange", {"key": encode(key)}, _Done)

    async def _withdraw(self) -> None:
        already, self._withdrawn = self._beating is None, True
        self._owned.clear()
        if already:
            return
        if self._beating is not None:
            self._thread.drop(self._beating)
            self._beating = None
        try:
            await self._etcd.call("lease/revoke", {"ID": str(self.connection_id)}, dict, timeout=WITHDRAW_TIMEOUT)
        except Refused as refusal:
            if refusal.code != _NOT_FOUND:  # it expired
                logger.warning("the lease %x is left to expire: %s", self.connection_id, refusal)
        except CannotConnect as error:
            logger.warning("the lease %x is left to expire: %s", self.connection_id, error)

    async def _close(self) -> None:
        for watch in self._watches.values():
            watch.close()
        self._watches.clear()
        await self._withdraw()

    async def _beat(self) -> float:
        try:
            await self._renew()
        except BaseException:
            self._away = True
            raise
        if self._away:
            self._away = False
            for watch in self._watches.values():
                watch.restart()  # its connection may be dead, without an error
        return self._config.lease_ttl / 3

    async def _renew(self) -> None:
        request = {"ID": str(self.connection_id)}
        timeout = min(CALL_TIMEOUT, self._config.lease_ttl / 3)
        answer = await self._etcd.call("lease/keepalive", request, _LeaseAnswer, timeout)
        if answer.TTL <= 0:
            logger.warning("the lease %x was lost: asking for it again", self.connection_id)
            await self._grant()
        for key, beats in list(self._unsure.items()):
            await self._settle(key)
            if beats > 1:
                self._unsure[key] = beats - 1
            else:
                self._unsure.pop(key, None)
        for key, value in list(self._owned.items()):
            await self._put_back(key, value)

    async def _grant(self) -> None:
        request = {"ID": str(self.connection_id), "TTL": str(self._config.lease_ttl)}
        try:
            await self._etcd.call("lease/grant", request, _LeaseAnswer)
        except Refused as refusal:
            if "already exists" not in str(refusal):
                raise

    async def _put(self, key: str, value: bytes) -> None:
        await self._etcd.call("kv/put", self._put_request(key, value), _Done)

    async def _put_back(self, key: str, value: bytes) -> None:
        """Put the key if it is not there."""
        absent = {"key": encode(key), "target": "VERSION", "result": "EQUAL", "version": "0"}
        put = {"requestPut": self._put_request(key, value)}
        answer = await self._etcd.call("kv/txn", {"compare": [absent], "success": [put]}, _TransactionAnswer)
        if answer.succeeded:
            logger.warning("the record %s had been removed: it is put back", key)

    def _put_request(self, key: str, value: bytes) -> dict[str, str]:
        return {"key": encode(key), "value": encode(value), "lease": str(self.connection_id)}

    @property
    def _etcd(self) -> EtcdClient:
        assert self._client is not None, "made by _start"
        return self._client

    # The records of all

    async def _list(self, endpoint: EndpointId | None) -> Instances:
        _, entries = await read_entries(self._etcd, ROOT if endpoint is None else prefix(endpoint), self._reader)
        instances = (entry.instance for entry in entries.values() if entry.instance is not None)
        return sorted(instances, key=lambda instance: instance.endpoint_instance_id)

    async def _subscribe(self, endpoint: EndpointId, listener: Subscription) -> None:
        watch = self._watches.get(endpoint)
        if watch is None:
            watch = self._watches[endpoint] = EtcdWatch(
                endpoint, self._etcd, self._thread, self._reader, self._config.lease_ttl / 2
            )
        await watch.add(listener)

    def _unsubscribe(self, listener: Subscription) -> None:
        """From any thread."""
        if self._thread.running:
            self._thread.submit(self._remove(listener))

    async def _remove(self, listener: Subscription) -> None:
        for endpoint, watch in list(self._watches.items()):
            if listener in watch.listeners:
                watch.listeners.remove(listener)
                if not watch.listeners:
                    watch.close()
                    del self._watches[endpoint]


def _key(instance: Instance) -> str:
    return f"{prefix(instance.endpoint_id)}{instance.instance_id:x}"
