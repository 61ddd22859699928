"""`MemoryStore`: records of this one object, for workers and callers that share it (runtime.md 1.5)."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any, TypeVar

from dynamo_fast.discovery.base import Discovery
from dynamo_fast.discovery.buckets import BucketKind
from dynamo_fast.discovery.store import (
    Bucket,
    Record,
    RecordEvent,
    RecordListener,
    RecordPut,
    RecordRemoved,
    Store,
    Watch,
)
from dynamo_fast.discovery.subscription import Subscription

__all__ = ["MemoryDiscovery", "MemoryStore"]

_T = TypeVar("_T")


class MemoryDiscovery(Discovery):
    """The instances in a `MemoryStore` of its own."""

    def __init__(self, *, connection_id: int | None = None) -> None:
        super().__init__(MemoryStore(connection_id=connection_id))


class MemoryStore(Store):
    """Private to this object: another one sees nothing of it. No thread, no heartbeats, no expiry.

    Owned by a `MemoryDiscovery`; used from one event loop; ends with `close`.
    """

    def __init__(self, *, connection_id: int | None = None) -> None:
        super().__init__()
        self.connection_id = secrets.randbits(64) if connection_id is None else connection_id

    def withdraw(self) -> None:
        self.withdrawn = True
        buckets: list[_MemoryBucket[Any]] = self._leaving()
        for bucket in buckets:
            bucket.remove_all()

    async def close(self) -> None:
        buckets: list[_MemoryBucket[Any]] = self._leaving()
        for bucket in buckets:
            bucket.forget_all()

    def _open(self, kind: BucketKind[_T]) -> Bucket[_T]:
        return _MemoryBucket(kind, self)


class _MemoryBucket(Bucket[_T]):
    """A dict, and who watches it. Owned by a `MemoryStore`, used on its event loop, ends with it."""

    def __init__(self, kind: BucketKind[_T], store: MemoryStore) -> None:
        super().__init__(kind)
        self._store = store
        self._values: dict[str, _T] = {}
        self._watches: dict[Subscription[_T], None] = {}

    async def put(self, key: str, value: _T) -> None:
        self._store.check_present()
        self.kind.encode(key, value)  # so that a record that is too long fails here as it does elsewhere
        self._values[key] = value
        self._tell(RecordPut(key, value))

    async def remove(self, key: str) -> bool:
        if key not in self._values:
            return False
        self._tell(RecordRemoved(key, self._values.pop(key)))
        return True

    async def list(self, prefix: str = "") -> Sequence[Record[_T]]:
        return [Record(key, self._values[key]) for key in sorted(self._values) if key.startswith(prefix)]

    async def watch(self, prefix: str, listener: RecordListener[_T]) -> Watch:
        watch = Subscription(prefix, listener, self._unsubscribe)
        self._watches[watch] = None
        for record in await self.list(prefix):
            watch.tell(RecordPut(record.key, record.value))
        return watch

    def remove_all(self) -> None:
        """Remove every record, and tell the watches."""
        values, self._values = self._values, {}
        for key, value in values.items():
            self._tell(RecordRemoved(key, value))

    def forget_all(self) -> None:
        """Forget the records and the watches."""
        self._watches.clear()
        self._values.clear()

    def _unsubscribe(self, watch: Subscription[Any]) -> None:
        self._watches.pop(watch, None)

    def _tell(self, event: RecordEvent[_T]) -> None:
        for watch in list(self._watches):
            if event.key.startswith(watch.prefix):
                watch.tell(event)
