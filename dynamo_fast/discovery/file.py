"""`FileStore`: records as files, as Dynamo's `file` backend keeps them (runtime.md 1.3). `FileDiscovery`: its instances.

    <root>/v1/instances/demo%2Fbackend%2Fgenerate%2F577eb898b1f7105e      one record, compact JSON
    <root>/v1/mdc/demo%2Fbackend%2Fgenerate%2F577eb898b1f7105e            a model card

Each bucket is a directory. A file's modification time is its heartbeat: the owner sets it to now every 3.3 s, and every
process that uses the directory removes records of others that have not been touched for 10 s. The owner removes its
records when it leaves.

All of this happens in a thread of its own: a directory on a slow network, and a caller whose event loop is blocked, do
not delay each other.
"""

from __future__ import annotations

import os
import secrets
import tempfile
import weakref
from pathlib import Path
from typing import Any, TypeVar

from dynamo_fast.config import FileConfig
from dynamo_fast.discovery.background import BackgroundLoop
from dynamo_fast.discovery.base import Discovery
from dynamo_fast.discovery.buckets import BucketKind
from dynamo_fast.discovery.file_bucket import FileBucket
from dynamo_fast.discovery.store import Bucket
from dynamo_fast.discovery.thread_store import ThreadStore

__all__ = ["FileDiscovery", "FileStore"]

TTL = 10.0
"""Seconds without a heartbeat after which a record is removed."""
BEAT = TTL / 3
"""Seconds between heartbeats, and between looks for expired records."""
WITHDRAW_TIMEOUT = 2.0
"""Seconds that `withdraw` waits for the file system."""

_T = TypeVar("_T")


class FileDiscovery(Discovery):
    """The instances in the directory `root`, by default `DYN_FILE_KV`, else `dynamo_store_kv` in the system's folder for
    temporary files.
    """

    store: FileStore

    def __init__(self, root: str | os.PathLike[str] | None = None, *, connection_id: int | None = None) -> None:
        super().__init__(FileStore(root, connection_id=connection_id))

    @property
    def root(self) -> Path:
        """The directory in which the buckets are."""
        return self.store.root


class FileStore(ThreadStore):
    """The buckets in the directory `root`, and the one heartbeat that they share.

    Owned by a `FileDiscovery`. May be used from several event loops; its thread starts on first use, ends with `close`,
    and alone touches the directories.
    """

    def __init__(self, root: str | os.PathLike[str] | None = None, *, connection_id: int | None = None) -> None:
        super().__init__("dynamo-fast file discovery", WITHDRAW_TIMEOUT)
        self.connection_id = secrets.randbits(64) if connection_id is None else connection_id
        self.root = Path(root or _default_root())
        self._in_use: list[FileBucket[Any]] = []
        """Those in which this process has put or watched something."""
        self._beating: BackgroundLoop | None = None
        # For an object that was only asked for a list, and dropped without `close`.
        weakref.finalize(self, self.thread.stop, 0.0).atexit = False

    def use(self, bucket: FileBucket[Any]) -> None:
        """Keep the records of this bucket alive, and remove expired ones. Called in the thread, by the bucket."""
        if bucket not in self._in_use:
            self._in_use.append(bucket)
        if self._beating is None:
            self.thread.at_exit = self._withdraw
            self.thread.at_end = self._stop_looking
            self._beating = self.thread.keep(f"the heartbeat in {self.root}", self._beat)

    def _open(self, kind: BucketKind[_T]) -> Bucket[_T]:
        return FileBucket(kind, self, self.root, self.use)

    # In the thread:

    async def _beat(self) -> float:
        """Every bucket has its turn, whatever another one raises; then the first OSError is raised."""
        errors = []
        for bucket in self._in_use:
            errors += bucket.touch_own()
            try:
                bucket.sweep(TTL, 2 * BEAT)
            except OSError as error:
                errors.append(error)
        if errors:
            raise errors[0]
        return BEAT

    async def _withdraw(self) -> None:
        self.withdrawn = True
        buckets: list[FileBucket[Any]] = self._leaving()
        for bucket in buckets:
            bucket.remove_own(TTL)

    async def _stop_looking(self) -> None:
        for bucket in self._in_use:
            bucket.stop_looking()

    def _left_behind(self) -> str:
        return f"{self.root} does not answer: records are left to expire in {TTL:g} s"


def _default_root() -> Path:
    return Path(FileConfig.from_env().root or Path(tempfile.gettempdir()) / "dynamo_store_kv")
