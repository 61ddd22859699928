"""`EtcdBucket`: one bucket of the etcd backend, that is one prefix of keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from dynamo_fast.discovery.buckets import BucketKind
from dynamo_fast.discovery.etcd_client import EtcdClient, Refused, encode
from dynamo_fast.discovery.etcd_lease import NOT_FOUND, EtcdLease
from dynamo_fast.discovery.etcd_messages import Done, TransactionAnswer
from dynamo_fast.discovery.etcd_watch import EtcdReader, EtcdWatch
from dynamo_fast.discovery.store import Record
from dynamo_fast.discovery.subscription import Subscription
from dynamo_fast.discovery.thread_store import ThreadBucket, ThreadStore
from dynamo_fast.logs import get_logger

__all__ = ["EtcdBucket"]

logger = get_logger(__name__)

_SETTLING_BEATS = 6
"""Two lease times."""

_T = TypeVar("_T")


class EtcdBucket(ThreadBucket[_T]):
    """One prefix of keys: the records of this process under it, and who watches it.

    Owned by an `EtcdStore`, whose heartbeat calls `repair`. It works in the store's thread and ends with it.
    """

    def __init__(
        self, kind: BucketKind[_T], store: ThreadStore, client: EtcdClient, lease: EtcdLease, silence: float
    ) -> None:
        super().__init__(kind, store)
        self._client = client
        self._lease = lease
        self._silence = silence
        """Seconds without a message after which a watch's connection is replaced."""
        self._reader = EtcdReader(kind, client)
        self._unsure: dict[str, int] = {}
        """Keys whose call failed, with the number of heartbeats that still correct them. etcd may carry out a call late,
        even after the next one."""
        self._watches: dict[str, EtcdWatch[_T]] = {}
        """By prefix."""

    # Our own records

    async def _put(self, key: str, content: bytes) -> None:
        self._store.check_present()
        try:
            await self._write(key, content)
        except Refused as refusal:
            if refusal.code != NOT_FOUND:
                raise
            await self._lease.regain()  # it was lost since the last beat
            await self._write(key, content)
        self._store.check_present()  # `withdraw` may have revoked the lease, and the key with it
        self._owned[key] = content

    async def _restore(self, key: str, content: bytes | None) -> None:
        """What etcd has now is unknown."""
        self._owned.pop(key, None)
        if content is not None and not self._store.withdrawn:
            self._owned[key] = content
        self._unsure[key] = _SETTLING_BEATS
        await self._settle(key)

    async def _remove(self, key: str) -> bool:
        if self._owned.pop(key, None) is None:
            return False
        self._unsure[key] = _SETTLING_BEATS
        await self._settle(key)
        self._unsure.pop(key, None)
        return True

    def forget_own(self) -> list[str]:
        """Own nothing any more. Returns the keys in etcd that were owned."""
        owned, self._owned = self._owned, {}
        return [self._full(key) for key in owned]

    async def repair(self) -> None:
        """Correct what is unsure, and put back what was removed. Raises CannotConnect."""
        for key, beats in list(self._unsure.items()):
            await self._settle(key)
            if beats > 1:
                self._unsure[key] = beats - 1
            else:
                self._unsure.pop(key, None)
        for key, content in list(self._owned.items()):
            await self._put_back(key, content)

    async def _settle(self, key: str) -> None:
        """Write our value of this key to etcd, or delete the key if we have none."""
        content = self._owned.get(key)
        if content is not None:
            await self._write(key, content)
        elif not self._store.withdrawn:
            await self._client.call("kv/deleterange", {"key": encode(self._full(key))}, Done)

    async def _write(self, key: str, content: bytes) -> None:
        await self._client.call("kv/put", self._put_request(key, content), Done)

    async def _put_back(self, key: str, content: bytes) -> None:
        """Put the key if it is not there."""
        absent = {"key": encode(self._full(key)), "target": "VERSION", "result": "EQUAL", "version": "0"}
        put = {"requestPut": self._put_request(key, content)}
        answer = await self._client.call("kv/txn", {"compare": [absent], "success": [put]}, TransactionAnswer)
        if answer.succeeded:
            logger.warning("the record %s had been removed: it is put back", self._full(key))

    def _put_request(self, key: str, content: bytes) -> dict[str, str]:
        return {"key": encode(self._full(key)), "value": encode(content), "lease": str(self._lease.id)}

    def _full(self, key: str) -> str:
        return f"{self.kind.name}/{key}"

    # The records of all

    async def _list(self, prefix: str) -> Sequence[Record[_T]]:
        _, entries = await self._reader.list(prefix)
        found = (Record(key, entry.value) for key, entry in entries.items() if entry.value is not None)
        return sorted(found, key=lambda record: record.key)

    async def _subscribe(self, watch: Subscription[_T]) -> None:
        if watch.prefix not in self._watches:
            self._watches[watch.prefix] = EtcdWatch(watch.prefix, self._reader, self._thread, self._silence)
        await self._watches[watch.prefix].add(watch)

    def _unsubscribe(self, watch: Subscription[Any]) -> None:
        if self._thread.running:
            self._thread.submit(self._drop(watch))

    async def _drop(self, watch: Subscription[Any]) -> None:
        """The stream from etcd ends with its last listener."""
        stream = self._watches.get(watch.prefix)
        if stream is not None and watch in stream.listeners:
            stream.listeners.remove(watch)
            if not stream.listeners:
                stream.close()
                del self._watches[watch.prefix]

    def restart_watches(self) -> None:
        """List and watch again, on other connections."""
        for each in self._watches.values():
            each.restart()

    def close_watches(self) -> None:
        for each in self._watches.values():
            each.close()
        self._watches.clear()
