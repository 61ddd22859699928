"""`EtcdWatch`: what etcd says about the keys under one prefix, for all who watch them.

A list, then every change since then. A connection may be dead without an error: after some silence it is replaced, and
the new watch starts after the last revision that was told, so no event is lost. If a watch fails, or etcd has compacted
that revision, the keys are listed again, and the listeners get the difference.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from dynamo_fast.discovery.background import BackgroundLoop, BackgroundThread
from dynamo_fast.discovery.buckets import BucketKind
from dynamo_fast.discovery.etcd_client import EtcdClient, Silent, prefix_range
from dynamo_fast.discovery.etcd_messages import Change, KeyValue, RangeAnswer, WatchAnswer
from dynamo_fast.discovery.record_reader import RecordReader
from dynamo_fast.discovery.store import RecordEvent, RecordPut, RecordRemoved
from dynamo_fast.discovery.subscription import Subscription
from dynamo_fast.errors import CannotConnect

__all__ = ["Entry", "EtcdReader", "EtcdWatch"]

_T = TypeVar("_T")


@dataclass(frozen=True)
class Entry(Generic[_T]):
    """A key's value, None if it cannot be read. Another `created` revision: the key was deleted in between."""

    created: int
    value: _T | None


class EtcdReader(Generic[_T]):
    """Reads the keys of one bucket, here without the bucket's name. Owned by an `EtcdBucket`, shared by its watches."""

    def __init__(self, kind: BucketKind[_T], client: EtcdClient) -> None:
        self.client = client
        self._root = f"{kind.name}/"
        self._records = RecordReader(kind)

    async def list(self, prefix: str) -> tuple[int, Mapping[str, Entry[_T]]]:
        """etcd's revision, and what it has under `prefix`. Raises CannotConnect."""
        answer = await self.client.call("kv/range", prefix_range(self.full(prefix)), RangeAnswer)
        return answer.header.revision, {self.key(pair): self.entry(pair) for pair in answer.kvs}

    def stream(self, prefix: str, after: int, silence: float) -> AsyncGenerator[WatchAnswer, None]:
        """The changes under `prefix` after the revision `after`. Raises what `EtcdClient.stream` raises."""
        request = {**prefix_range(self.full(prefix)), "start_revision": str(after + 1), "progress_notify": True}
        return self.client.stream("watch", {"create_request": request}, WatchAnswer, silence)

    def key(self, pair: KeyValue) -> str:
        """The key, relative to the bucket."""
        return pair.key.decode("utf-8", "replace").removeprefix(self._root)

    def entry(self, pair: KeyValue) -> Entry[_T]:
        """The value; a key that has no readable record has none."""
        return Entry(pair.create_revision, self._records.read(self.key(pair), pair.value))

    def full(self, prefix: str) -> str:
        """As etcd knows it."""
        return self._root + prefix


class EtcdWatch(Generic[_T]):
    """One prefix and its listeners: the keys as they were last told, and the stream of changes from etcd.

    Owned by an `EtcdBucket`, used in the store's thread; ends with `close`.
    """

    def __init__(self, prefix: str, reader: EtcdReader[_T], thread: BackgroundThread, silence: float) -> None:
        self.listeners: list[Subscription[_T]] = []
        self._prefix = prefix
        self._reader = reader
        self._thread = thread
        self._silence = silence
        self._entries: dict[str, Entry[_T]] = {}
        self._revision: int | None = None
        """Everything up to this one was told; None: it must be listed."""
        self._listing = asyncio.Lock()
        self._loop: BackgroundLoop | None = None

    async def add(self, listener: Subscription[_T]) -> None:
        """Tell `listener` what is there, and of every change from then on. Raises CannotConnect."""
        async with self._listing:
            if self._loop is None:
                await self._list()
                what = self._reader.full(self._prefix).rstrip("/")
                self._loop = self._thread.keep(f"the watch of {what} in etcd", self._follow)
        self.listeners.append(listener)
        for key, entry in self._entries.items():
            if entry.value is not None:
                listener.tell(RecordPut(key, entry.value))

    def close(self) -> None:
        """No more events; may be called twice."""
        self.listeners.clear()
        if self._loop is not None:
            self._thread.drop(self._loop)

    def restart(self) -> None:
        """List and watch again, on another connection."""
        if self._loop is not None:
            self._loop.restart()

    async def _follow(self) -> float:
        """Until the watch fails."""
        try:
            if self._revision is None:
                await self._list()
                assert self._revision is not None
            await self._watch(self._revision)
        except Silent:
            pass
        except BaseException:
            self._reader.client.forget_token()  # which may be what is wrong
            self._revision = None
            raise
        return 0.0

    async def _list(self) -> None:
        self._revision, entries = await self._reader.list(self._prefix)
        for key, entry in list(self._entries.items()):
            if key not in entries or entries[key].created != entry.created:
                self._update(key, None)
        for key, entry in entries.items():
            self._update(key, entry)

    async def _watch(self, revision: int) -> None:
        """Take the changes after `revision`. Raises CannotConnect, when the connection or the watch ends."""
        answers = self._reader.stream(self._prefix, revision, self._silence)
        async with contextlib.aclosing(answers):
            async for answer in answers:
                self._read(answer, revision)

    def _read(self, answer: WatchAnswer, revision: int) -> None:
        if answer.canceled:
            reason = answer.cancel_reason or f"everything before revision {answer.compact_revision} is compacted"
            raise CannotConnect(f"etcd ended the watch: {reason}")
        if answer.created:
            self._check_revision(answer.header.revision, revision)
        elif not answer.events:  # a notification of progress
            self._revision = max(self._revision or 0, answer.header.revision)
        for change in answer.events:
            self._take(change)

    def _check_revision(self, revision: int, known: int) -> None:
        """A watch from a revision that is yet to come would be silent until etcd has got there once more."""
        if revision < known:
            raise CannotConnect(
                f"etcd's revision went back from {known} to {revision}: it was emptied or restored, or this server is "
                "behind"
            )
        if self._loop is not None:
            self._loop.working()

    def _take(self, change: Change) -> None:
        self._update(self._reader.key(change.kv), None if change.type == "DELETE" else self._reader.entry(change.kv))
        self._revision = max(self._revision or 0, change.kv.mod_revision)

    def _update(self, key: str, entry: Entry[_T] | None) -> None:
        before = self._entries.pop(key, None)
        if before is not None and before.value is not None and (entry is None or entry.value is None):
            self._tell(RecordRemoved(key, before.value))
        if entry is None:
            return
        self._entries[key] = entry
        if entry.value is not None and (before is None or before.value != entry.value):
            self._tell(RecordPut(key, entry.value))

    def _tell(self, event: RecordEvent[_T]) -> None:
        for listener in list(self.listeners):
            listener.tell(event)
