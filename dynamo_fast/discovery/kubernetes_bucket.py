"""`KubernetesBucket`: one kind of record in the custom resources of all processes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, TypeVar

import msgspec

from dynamo_fast.discovery.buckets import BucketKind
from dynamo_fast.discovery.kubernetes_members import Members
from dynamo_fast.discovery.record_reader import RecordReader
from dynamo_fast.discovery.store import Record, RecordEvent, RecordPut, RecordRemoved
from dynamo_fast.discovery.subscription import Subscription
from dynamo_fast.discovery.thread_store import ThreadBucket, ThreadStore

__all__ = ["FIELDS", "KubernetesBucket"]

FIELDS = {
    "v1/instances": "endpoints",
    "v1/mdc": "model_cards",
    "v1/event_channels": "event_channels",
    "v1/event_sources": "event_sources",
}
"""Where in `spec.data` the records of a bucket are. The keys are the same as in the other backends."""

_T = TypeVar("_T")


class OwnResource(Protocol):
    """What a bucket asks of its store, in the store's thread."""

    async def save(self) -> None:
        """Write the records of this process. Raises CannotConnect."""

    def save_later(self) -> None:
        """Write the records until that succeeds."""

    async def synchronise(self, bucket: KubernetesBucket[Any]) -> None:
        """From now on `bucket` knows what the API has. Raises CannotConnect."""


class KubernetesBucket(ThreadBucket[_T]):
    """The records of this process of one kind, those of all members, and who watches them.

    Owned by a `KubernetesStore`, which says which resources have changed (`refresh`). It
    works in the store's thread, and ends with it.
    """

    def __init__(self, kind: BucketKind[_T], store: ThreadStore, resource: OwnResource, members: Members) -> None:
        super().__init__(kind, store)
        self.field = FIELDS[kind.name]
        self._resource = resource
        self._members = members
        self._reader = RecordReader(kind)
        self._seen: dict[str, tuple[str, dict[str, _T]]] = {}
        """For each resource its uid and its readable records, as they were told."""
        self._watches: dict[Subscription[_T], None] = {}

    # Our own records

    @property
    def own(self) -> dict[str, msgspec.Raw]:
        """The records of this process, for `spec.data`."""
        return {key: msgspec.Raw(content) for key, content in sorted(self._owned.items())}

    def forget_own(self) -> None:
        """Own nothing any more."""
        self._owned.clear()

    async def _put(self, key: str, content: bytes) -> None:
        self._store.check_present()
        self._owned[key] = content
        await self._resource.save()
        self._store.check_present()

    async def _restore(self, key: str, content: bytes | None) -> None:
        """What the API has now is unknown."""
        self._owned.pop(key, None)
        if content is not None and not self._store.withdrawn:
            self._owned[key] = content
        self._resource.save_later()

    async def _remove(self, key: str) -> bool:
        if self._owned.pop(key, None) is None:
            return False
        try:
            await self._resource.save()
        except BaseException:
            self._resource.save_later()
            raise
        return True

    # The records of all

    async def _list(self, prefix: str) -> Sequence[Record[_T]]:
        await self._resource.synchronise(self)
        return self._records(prefix)

    async def _subscribe(self, watch: Subscription[_T]) -> None:
        await self._resource.synchronise(self)
        self._watches[watch] = None
        for record in self._records(watch.prefix):
            watch.tell(RecordPut(record.key, record.value))

    def _unsubscribe(self, watch: Subscription[Any]) -> None:
        """On the listener's loop, or here."""
        self._watches.pop(watch, None)

    def close_watches(self) -> None:
        self._watches.clear()

    def refresh(self, names: Iterable[str]) -> None:
        """These resources, or who is ready, have changed: tell what follows."""
        for name in names:
            before_uid, before = self._seen.pop(name, ("", {}))
            member = self._members.data(name)
            uid, now = ("", {}) if member is None else (member[0], self._read(member[1]))
            if member is not None:
                self._seen[name] = uid, now
            is_new = uid != before_uid
            for key, value in before.items():
                if is_new or key not in now:
                    self._tell(RecordRemoved(key, value))
            for key, value in now.items():
                if is_new or before.get(key) != value:
                    self._tell(RecordPut(key, value))

    def _read(self, data: dict[str, dict[str, msgspec.Raw]]) -> dict[str, _T]:
        read = ((key, self._reader.read(key, bytes(raw))) for key, raw in data.get(self.field, {}).items())
        return {key: value for key, value in read if value is not None}

    def _records(self, prefix: str) -> Sequence[Record[_T]]:
        found = [
            Record(key, value)
            for _, records in self._seen.values()
            for key, value in records.items()
            if key.startswith(prefix)
        ]
        return sorted(found, key=lambda record: record.key)

    def _tell(self, event: RecordEvent[_T]) -> None:
        for watch in list(self._watches):
            if event.key.startswith(watch.prefix):
                watch.tell(event)
