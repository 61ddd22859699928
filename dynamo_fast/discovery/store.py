"""`Store` and `Bucket`: the interface that a discovery backend implements.

A store is one place that processes share: a directory, an etcd, the memory of one process. It has buckets, and a bucket
has records: a key and a value. A process puts records, and the store keeps them alive until they are removed or the
process ends. Every process lists the records of all, and watches them come and go.

`Discovery` (base.py) is the view of the bucket of instances that routers and workers use.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from dynamo_fast.discovery.buckets import LEAVING_ORDER, BucketKind
from dynamo_fast.errors import InvalidRequest

__all__ = ["Bucket", "Record", "RecordEvent", "RecordListener", "RecordPut", "RecordRemoved", "Store", "Watch"]

_T = TypeVar("_T")


@dataclass(frozen=True)
class Record(Generic[_T]):
    """A key, relative to its bucket, and the value that the bucket's kind read there."""

    key: str
    value: _T


@dataclass(frozen=True)
class RecordPut(Record[_T]):
    """A record appeared, or its value was replaced by this one."""


@dataclass(frozen=True)
class RecordRemoved(Record[_T]):
    """A record was removed, or can no longer be read; the value is the last one that was seen."""


RecordEvent = RecordPut[_T] | RecordRemoved[_T]
RecordListener = Callable[[RecordEvent[_T]], None]


class Watch(abc.ABC):
    """The life of one `watch`."""

    @abc.abstractmethod
    def close(self) -> None:
        """No further event reaches the listener; may be called twice."""


class Bucket(abc.ABC, Generic[_T]):
    """The records of one kind, of all processes. Made by `Store.bucket`, and ends with the store.

    Each listener of `watch` is called on the event loop on which it was given, in the order of the events. What it
    raises is logged, once; the watch goes on. A record that cannot be read is skipped with one warning.
    """

    def __init__(self, kind: BucketKind[_T]) -> None:
        self.kind = kind

    @abc.abstractmethod
    async def put(self, key: str, value: _T) -> None:
        """Store the record, in place of an older one of the same key, and keep it alive until it is removed.

        If another process removes it, it is put back. All or nothing: if this raises, or is cancelled, the older record
        stays. Raises InvalidRequest for a value that is too long, and after `withdraw` and `close`; and what the store
        raises (OSError, CannotConnect).
        """

    @abc.abstractmethod
    async def remove(self, key: str) -> bool:
        """Remove a record of this process at once. Returns False if this process has none of that key."""

    @abc.abstractmethod
    async def list(self, prefix: str = "") -> Sequence[Record[_T]]:
        """The records whose keys begin with `prefix`, now, in the order of their keys."""

    @abc.abstractmethod
    async def watch(self, prefix: str, listener: RecordListener[_T]) -> Watch:
        """Call `listener` for each change of a record whose key begins with `prefix`.

        First it is called with `RecordPut` for each record that is already there, before this returns. A record that is
        removed and put again is two events.
        """


class Store(abc.ABC):
    """One backend, and what this process has in it. The buckets share one heartbeat, and leave in `LEAVING_ORDER`.

    Owned by the `Discovery` that it was given to, or by the code that made it; ends with `close`.
    """

    connection_id: int
    """The unsigned 64-bit number of this process; the instance id of every endpoint that it serves."""
    withdrawn = False
    """Whether this process has left: it has no records, and can put none."""

    def __init__(self) -> None:
        self._buckets: dict[str, Any] = {}  # of the backend's own class of bucket

    def bucket(self, kind: BucketKind[_T]) -> Bucket[_T]:
        """The bucket of that kind: the same object each time, from any thread."""
        if kind.name not in self._buckets:
            self._buckets.setdefault(kind.name, self._open(kind))
        bucket: Bucket[_T] = self._buckets[kind.name]
        return bucket

    @abc.abstractmethod
    def withdraw(self) -> None:
        """Remove every record of this process at once, and take no further one; `list` and `watch` go on.

        May be called from any thread, without an event loop, and twice. Waits for at most about two seconds; a record
        that the store does not remove in that time expires. Raises nothing.
        """

    @abc.abstractmethod
    async def close(self) -> None:
        """Remove every record of this process and end every watch; may be called twice."""

    @abc.abstractmethod
    def _open(self, kind: BucketKind[_T]) -> Bucket[_T]:
        """Make the bucket of that kind. It does no I/O yet."""

    def metadata(self) -> bytes | None:
        """The records of this process in one JSON document, if the backend keeps them so; else None. From any thread."""
        return None

    def check_present(self) -> None:
        """Raises InvalidRequest after `withdraw`."""
        if self.withdrawn:
            raise InvalidRequest("this process has left discovery: nothing can be registered any more")

    def _leaving(self) -> list[Any]:
        """The buckets that were asked for, in the order in which their records must go."""
        return [self._buckets[name] for name in LEAVING_ORDER if name in self._buckets]
