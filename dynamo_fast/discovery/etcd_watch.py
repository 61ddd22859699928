"""`EtcdWatch`: what etcd says about one endpoint, for all who watch it.

A list, then every change since then. A connection may be deaf: after some silence it is replaced, and the new watch
starts after the last revision that was told, so no event is lost. If a watch fails, or etcd has compacted that revision,
the endpoint is listed again, and the listeners get the difference.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from dynamo_fast.discovery.background import BackgroundLoop, BackgroundThread
from dynamo_fast.discovery.base import Added, DiscoveryEvent, Removed
from dynamo_fast.discovery.etcd_client import EtcdClient, Silent, prefix_range
from dynamo_fast.discovery.record_reader import RecordReader
from dynamo_fast.discovery.subscription import Subscription
from dynamo_fast.errors import CannotConnect
from dynamo_fast.logs import get_logger
from dynamo_fast.wire.address import EndpointId
from dynamo_fast.wire.instance import Instance

__all__ = ["ROOT", "Entry", "EtcdWatch", "Header", "prefix", "read_entries"]

logger = get_logger(__name__)

ROOT = "v1/instances/"


class Header(msgspec.Struct):
    """Of every answer about keys."""

    revision: int


class WatchHeader(msgspec.Struct, frozen=True):
    """Of a watch's answers; that a watch is refused comes without a revision."""

    revision: int = 0


class KeyValue(msgspec.Struct):
    """One key; its value is empty in the news that it was deleted."""

    key: bytes
    value: bytes = b""
    create_revision: int = 0
    mod_revision: int = 0


class RangeAnswer(msgspec.Struct):
    """To `kv/range`."""

    header: Header
    kvs: list[KeyValue] = []


class Change(msgspec.Struct):
    """One event of a watch."""

    kv: KeyValue
    type: str = "PUT"


class WatchAnswer(msgspec.Struct):
    """One message of `watch`."""

    header: WatchHeader = WatchHeader()
    created: bool = False
    canceled: bool = False
    cancel_reason: str = ""
    compact_revision: int = 0
    events: list[Change] = []


class Entry(NamedTuple):
    """A key's value. Another `created` revision under the same key: it was deleted in between."""

    created: int
    instance: Instance | None


class EtcdWatch:
    """One endpoint and its listeners. Owned by an `EtcdDiscovery`, used in its thread, ends with `close`."""

    def __init__(
        self,
        endpoint: EndpointId,
        client: EtcdClient,
        thread: BackgroundThread,
        reader: RecordReader,
        silence: float,
    ) -> None:
        self.listeners: list[Subscription] = []
        self._endpoint = endpoint
        self._client = client
        self._thread = thread
        self._reader = reader
        self._silence = silence
        self._entries: dict[str, Entry] = {}
        self._revision: int | None = None
        """Everything up to this one was told; None: it must be listed."""
        self._listing = asyncio.Lock()
        self._loop: BackgroundLoop | None = None

    async def add(self, listener: Subscription) -> None:
        """Tell `listener` what is there, and of every change from then on. Raises CannotConnect."""
        async with self._listing:
            if self._loop is None:
                await self._list()
                self._loop = self._thread.keep(f"the watch of {self._endpoint} in etcd", self._follow)
        self.listeners.append(listener)
        for entry in self._entries.values():
            if entry.instance is not None:
                listener.tell(Added(entry.instance))

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
            self._client.forget_token()  # which may be what is wrong
            self._revision = None
            raise
        return 0.0

    async def _list(self) -> None:
        self._revision, entries = await read_entries(self._client, prefix(self._endpoint), self._reader)
        for key, entry in list(self._entries.items()):
            if key not in entries or entries[key].created != entry.created:
                self._update(key, None)
        for key, entry in entries.items():
            self._update(key, entry)

    async def _watch(self, revision: int) -> None:
        """Take the changes after `revision`. Raises CannotConnect, when the connection or the watch ends."""
        request = {
            **prefix_range(prefix(self._endpoint)),
            "start_revision": str(revision + 1),
            "progress_notify": True,
        }
        answers = self._client.stream("watch", {"create_request": request}, WatchAnswer, self._silence)
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
        key = change.kv.key.decode("utf-8", "replace")
        self._update(key, None if change.type == "DELETE" else read_entry(change.kv, self._reader))
        self._revision = max(self._revision or 0, change.kv.mod_revision)

    def _update(self, key: str, entry: Entry | None) -> None:
        before = self._entries.pop(key, None)
        if before is not None and before.instance is not None and (entry is None or entry.instance is None):
            self._tell(Removed(before.instance))
        if entry is None:
            return
        self._entries[key] = entry
        if entry.instance is not None and (before is None or before.instance != entry.instance):
            self._tell(Added(entry.instance))

    def _tell(self, event: DiscoveryEvent) -> None:
        for listener in list(self.listeners):
            listener.tell(event)


def prefix(endpoint: EndpointId) -> str:
    """With what the keys of an endpoint begin."""
    return f"{ROOT}{endpoint}/"


async def read_entries(client: EtcdClient, start: str, reader: RecordReader) -> tuple[int, Mapping[str, Entry]]:
    """etcd's revision, and what it has under the prefix `start`, by key. Raises CannotConnect."""
    answer = await client.call("kv/range", prefix_range(start), RangeAnswer)
    entries = {pair.key.decode("utf-8", "replace"): read_entry(pair, reader) for pair in answer.kvs}
    return answer.header.revision, entries


def read_entry(pair: KeyValue, reader: RecordReader) -> Entry:
    """A key that has no readable record has no instance."""
    key = pair.key.decode("utf-8", "replace").removeprefix(ROOT)
    return Entry(pair.create_revision, reader.read(key, pair.value))
