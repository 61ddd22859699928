"""`ThreadStore` and `ThreadBucket`: the side of a store in a thread that the callers see.

A caller is on an event loop of its own. Each method here hands its work to the store's thread (background.py) and waits
for the result. What the work is (files, calls to etcd) is in the subclasses; those methods run in the thread alone, so
the tables of a store need no locks.
"""

from __future__ import annotations

import abc
import concurrent.futures
from collections.abc import Sequence
from typing import Any, TypeVar

from dynamo_fast.discovery.background import BackgroundThread
from dynamo_fast.discovery.buckets import BucketKind
from dynamo_fast.discovery.store import Bucket, Record, RecordListener, Store, Watch
from dynamo_fast.discovery.subscription import Subscription
from dynamo_fast.logs import get_logger

__all__ = ["ThreadBucket", "ThreadStore"]

logger = get_logger(__name__)

_T = TypeVar("_T")


class ThreadStore(Store):
    """A store whose work is done in a thread of its own, so that no blocked event loop ends a record.

    May be used from several event loops. Owns the thread, which starts on first use and ends with `close`.
    """

    def __init__(self, name: str, withdraw_timeout: float) -> None:
        super().__init__()
        self.thread = BackgroundThread(name)
        self._withdraw_timeout = withdraw_timeout

    def withdraw(self) -> None:
        self.withdrawn = True
        if not self.thread.running:
            return
        try:
            self.thread.wait_for(self._withdraw(), self._withdraw_timeout)
        except concurrent.futures.TimeoutError:
            logger.warning("%s", self._left_behind())

    async def close(self) -> None:
        if self.thread.running:
            await self.thread.run(self._close())
        await self.thread.end()

    # In the thread:

    async def _close(self) -> None:
        buckets: list[ThreadBucket[Any]] = self._leaving()
        for bucket in buckets:
            bucket.close_watches()
        await self._withdraw()

    @abc.abstractmethod
    async def _withdraw(self) -> None:
        """Remove the records of this process, in the leaving order. Logs what fails."""

    @abc.abstractmethod
    def _left_behind(self) -> str:
        """What to log if `withdraw` had no answer in time. In the caller's thread."""


class ThreadBucket(Bucket[_T]):
    """A bucket of a `ThreadStore`. Owns the records of this process in it; ends with the store."""

    def __init__(self, kind: BucketKind[_T], store: ThreadStore) -> None:
        super().__init__(kind)
        self._store = store
        self._thread = store.thread
        self._owned: dict[str, bytes] = {}
        """The records of this process: they are kept alive, and put back after a loss."""

    async def put(self, key: str, value: _T) -> None:
        content = self.kind.encode(key, value)
        before = self._owned.get(key)
        try:
            await self._thread.run(self._put(key, content))
        except BaseException:
            if self._thread.running:
                self._thread.submit(self._restore(key, before))
            raise

    async def remove(self, key: str) -> bool:
        return await self._thread.run(self._remove(key))

    async def list(self, prefix: str = "") -> Sequence[Record[_T]]:
        return await self._thread.run(self._list(prefix))

    async def watch(self, prefix: str, listener: RecordListener[_T]) -> Watch:
        watch = Subscription(prefix, listener, self._unsubscribe)
        try:
            await self._thread.run(self._subscribe(watch))
        except BaseException:
            watch.close()
            raise
        watch.deliver()
        return watch

    # In the thread:

    @abc.abstractmethod
    async def _put(self, key: str, content: bytes) -> None:
        """Store this record, and own it from then on."""

    @abc.abstractmethod
    async def _restore(self, key: str, content: bytes | None) -> None:
        """`_put` failed or was cancelled: return to the earlier record, None if there was none."""

    @abc.abstractmethod
    async def _remove(self, key: str) -> bool:
        """As `remove`."""

    @abc.abstractmethod
    async def _list(self, prefix: str) -> Sequence[Record[_T]]:
        """As `list`."""

    @abc.abstractmethod
    async def _subscribe(self, watch: Subscription[_T]) -> None:
        """Tell `watch` what is there, and of every change from then on."""

    @abc.abstractmethod
    def _unsubscribe(self, watch: Subscription[Any]) -> None:
        """Tell `watch` nothing more. From any thread."""

    @abc.abstractmethod
    def close_watches(self) -> None:
        """Tell no watch anything more."""
