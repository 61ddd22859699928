"""`FileBucket`: one bucket of the file backend, that is one directory.

Changes are told by the kernel where inotify is available (Linux, with the extra `inotify`). Elsewhere the directory's
own modification time is looked at, which a heartbeat does not move: one `stat` per look, a scan only after a change.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar

from dynamo_fast.discovery.background import BackgroundLoop
from dynamo_fast.discovery.buckets import BucketKind
from dynamo_fast.discovery.folder import TEMPORARY, Folder
from dynamo_fast.discovery.inotify import DirectoryChanges, watch_directory
from dynamo_fast.discovery.store import Record, RecordEvent, RecordPut
from dynamo_fast.discovery.subscription import Subscription
from dynamo_fast.discovery.thread_store import ThreadBucket, ThreadStore
from dynamo_fast.logs import get_logger

__all__ = ["FileBucket"]

logger = get_logger(__name__)

POLL = 0.05
"""Seconds between looks at the directory, if there are watches and inotify is unavailable."""

_T = TypeVar("_T")


class FileBucket(ThreadBucket[_T]):
    """One directory: the records of this process in it, and who watches it.

    Owned by a `FileStore`, whose heartbeat calls `touch_own` and `sweep` once the bucket has said `in_use(self)`. It
    works in the store's thread, and ends with it; `stop_looking` then closes the inotify descriptor.
    """

    def __init__(
        self, kind: BucketKind[_T], store: ThreadStore, root: Path, in_use: Callable[[FileBucket[Any]], None]
    ) -> None:
        super().__init__(kind, store)
        self.folder = Folder(root, kind, store.thread.time)
        self._say_in_use = in_use
        self._store_time: int | None = None
        """The store's "now" of the last heartbeat, in ns, until the next search for expired records."""
        self._watches: dict[Subscription[_T], None] = {}
        self._polling: BackgroundLoop | None = None
        self._changes: DirectoryChanges | None = None

    # Our own records

    async def _put(self, key: str, content: bytes) -> None:
        self._store.check_present()
        self.folder.publish(key, content)
        self._owned[key] = content
        self._say_in_use(self)

    async def _restore(self, key: str, content: bytes | None) -> None:
        if content is None:
            self._owned.pop(key, None)
            self.folder.remove(key)
        elif not self._store.withdrawn:
            self._owned[key] = content
            self.folder.publish(key, content)

    async def _remove(self, key: str) -> bool:
        if self._owned.pop(key, None) is None:
            return False
        self.folder.remove(key)
        return True

    def remove_own(self, ttl: float) -> None:
        """Remove the records of this process. Logs what fails."""
        owned, self._owned = self._owned, {}
        for key in owned:
            try:
                self.folder.remove(key)
            except OSError as error:
                logger.warning("the record %r is left to expire in %g s: %s", key, ttl, error)

    def touch_own(self) -> list[OSError]:
        """Touch the records of this process, and put back those that were removed. Returns what went wrong."""
        errors = []
        for key, content in list(self._owned.items()):
            try:
                self._touch(key, content)
            except OSError as error:
                errors.append(error)
        return errors

    def _touch(self, key: str, content: bytes) -> None:
        try:
            self._store_time = self.folder.touch(key)
        except FileNotFoundError:
            # Dynamo's own worker stays undiscoverable for good here: after a pause of 10 s, or a careless `rm`.
            logger.warning("the record %s was removed by another process: putting it back", key)
            self.folder.publish(key, content)

    # The records of all

    async def _list(self, prefix: str) -> Sequence[Record[_T]]:
        self.folder.make()
        self._scan()
        found = (record for record in self.folder.records() if record.key.startswith(prefix))
        return sorted(found, key=lambda record: record.key)

    async def _subscribe(self, watch: Subscription[_T]) -> None:
        self.folder.make()
        self._say_in_use(self)
        self._keep_looking()  # before the first look, so that nothing is missed between the two
        present = await self._list(watch.prefix)
        self._watches[watch] = None
        for record in present:
            watch.tell(RecordPut(record.key, record.value))

    def _unsubscribe(self, watch: Subscription[Any]) -> None:
        """On the listener's loop, or here."""
        self._watches.pop(watch, None)

    def close_watches(self) -> None:
        self._watches.clear()

    def sweep(self, ttl: float, quiet: float) -> None:
        """Look at every record, and remove the expired ones: see `Folder.remove_expired`. Raises OSError."""
        self._scan()
        if self._watches:
            self._keep_looking()
        now, self._store_time = self._store_time, None
        if self.folder.remove_expired(self._owned, now, ttl, quiet):
            self._scan()

    def _scan(self) -> None:
        self._tell(self.folder.scan())

    def _tell(self, events: Sequence[RecordEvent[_T]]) -> None:
        for event in events:
            for watch in list(self._watches):
                if event.key.startswith(watch.prefix):
                    watch.tell(event)

    # Changes

    def _keep_looking(self) -> None:
        """By inotify if that is possible, else by polling."""
        if self._changes is not None and not self._changes.is_of(self.folder.path):
            self.stop_looking()  # the directory was removed or moved away, and there is another one now
        if self._changes is None:
            self._changes = watch_directory(self.folder.path, TEMPORARY, self._changed, self._lost)
        if self._changes is None:
            self._start_polling()
        elif self._polling is not None:
            self._thread.drop(self._polling)
            self._polling = None

    def stop_looking(self) -> None:
        """Close the inotify descriptor; may be called twice."""
        if self._changes is not None:
            self._changes.close()
            self._changes = None

    def _changed(self, removed: Sequence[str], named: Collection[str] | None) -> None:
        # Files that went away and may be there again already: two events.
        self._tell(self.folder.forget(removed))
        self._tell(self.folder.scan() if named is None else self.folder.look_at(named))

    def _lost(self) -> None:
        """inotify ended; the next sweep tries it again."""
        self._changes = None
        self._start_polling()

    def _start_polling(self) -> None:
        if self._polling is None:
            self._polling = self._thread.keep(f"the watch of {self.folder.path}", self._poll)

    async def _poll(self) -> float:
        if self._watches and self.folder.changed():
            self._scan()
        return POLL
