"""`FileDiscovery`: instance records as files in one directory, as Dynamo's `file` backend keeps them (runtime.md 1.3).

    <root>/v1/instances/demo%2Fbackend%2Fgenerate%2F577eb898b1f7105e      one record, compact JSON

The file's modification time is its heartbeat. The owner sets it to now every 3.3 s; every process that uses the
directory deletes files that have not been touched for 10 s, whoever wrote them.

Changes are told by the kernel where inotify can be had (Linux, with the extra `inotify`). Elsewhere the directory's own
modification time is looked at, which a heartbeat does not move: one `stat` per look, a scan only after a change.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from dynamo_fast.config import env_text
from dynamo_fast.discovery.base import Added, Discovery, DiscoveryEvent, Listener, Removed, Watch
from dynamo_fast.discovery.inotify import DirectoryChanges, watch_directory
from dynamo_fast.errors import InvalidRequest, PayloadError
from dynamo_fast.logs import get_logger
from dynamo_fast.wire.address import EndpointId
from dynamo_fast.wire.instance import Instance

__all__ = ["FileDiscovery"]

logger = get_logger(__name__)

TTL = 10.0
"""Seconds without a heartbeat after which a file is deleted."""
BEAT = TTL / 3
"""Seconds between heartbeats, and between looks for expired files."""
POLL = 0.05
"""Seconds between looks at the directory while somebody watches, and the kernel does not tell."""

_TEMPORARY = ".tmp_"
# The kernel stamps files with a clock that may stand still for as long as 10 ms: a directory that changed so recently
# may have changed again since it was scanned, with the same stamp.
_CLOCK_GRAIN_NS = 20_000_000


class _Entry(NamedTuple):
    """What was read from one file; `stamp` tells whether it must be read again."""

    stamp: tuple[int, int]
    content: bytes
    instance: Instance | None


class FileDiscovery(Discovery):
    """Records in `root`, by default `DYN_FILE_KV`, else `dynamo_store_kv` in the system's folder for temporary files."""

    def __init__(self, root: str | os.PathLike[str] | None = None, *, connection_id: int | None = None) -> None:
        self.connection_id = secrets.randbits(64) if connection_id is None else connection_id
        self.root = Path(root or _default_root())
        self._directory = self.root / "v1" / "instances"
        self._owned: dict[str, bytes] = {}
        self._entries: dict[str, _Entry] = {}
        self._watches: set[_FileWatch] = set()
        self._changed_at = self._scanned_at = 0
        self._beat_timer: asyncio.TimerHandle | None = None
        self._poll_timer: asyncio.TimerHandle | None = None
        self._changes: DirectoryChanges | None = None
        self._clock = _clock_offset()
        self._trust_clock_after = 0.0
        self._trouble = ""

    async def register(self, instance: Instance) -> None:
        name, content = _file_name(instance), instance.encode()
        self._publish(name, content)
        self._owned[name] = content
        self._keep_beating()

    async def unregister(self, instance: Instance) -> None:
        name = _file_name(instance)
        if self._owned.pop(name, None) is None:
            raise InvalidRequest(f"{instance.endpoint_id} was not registered by this process: nothing to unregister")
        (self._directory / name).unlink(missing_ok=True)

    async def list(self, endpoint: EndpointId | None = None) -> list[Instance]:
        self._directory.mkdir(parents=True, exist_ok=True)
        self._scan()
        return sorted(
            (each for each in self._instances() if endpoint is None or each.endpoint_id == endpoint),
            key=lambda instance: instance.endpoint_instance_id,
        )

    async def watch(self, endpoint: EndpointId, listener: Listener) -> Watch:
        self._directory.mkdir(parents=True, exist_ok=True)
        self._keep_looking()  # before the first look, so that nothing is missed between the two
        present = await self.list(endpoint)
        watch = _FileWatch(self, endpoint, listener)
        self._watches.add(watch)
        self._keep_beating()
        for instance in present:
            watch.tell(Added(instance))
        return watch

    async def close(self) -> None:
        for timer in (self._beat_timer, self._poll_timer):
            if timer is not None:
                timer.cancel()
        self._beat_timer = self._poll_timer = None
        if self._changes is not None:
            self._changes.close()
            self._changes = None
        self._watches.clear()
        for name in self._owned:
            (self._directory / name).unlink(missing_ok=True)
        self._owned.clear()

    # Our own records

    def _publish(self, name: str, content: bytes) -> None:
        """Write beside, then rename: a watcher reads a file when its name appears, and does not look again."""
        self._directory.mkdir(parents=True, exist_ok=True)
        temporary = self._directory / f"{_TEMPORARY}{secrets.token_hex(8)}"
        try:
            temporary.write_bytes(content)
            temporary.replace(self._directory / name)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise

    def _keep_beating(self) -> None:
        if self._beat_timer is None:
            self._beat_timer = asyncio.get_running_loop().call_later(BEAT, self._beat)

    def _beat(self) -> None:
        self._beat_timer = asyncio.get_running_loop().call_later(BEAT, self._beat)
        with self._reporting_trouble():
            for name, content in self._owned.items():
                self._touch(name, content)
            if self._clock_is_steady():
                self._delete_expired()
            self._scan()
        if self._watches:
            self._keep_looking()

    def _touch(self, name: str, content: bytes) -> None:
        try:
            os.utime(self._directory / name)
        except FileNotFoundError:
            # Dynamo's own worker stays undiscoverable for good here: after a pause of 10 s, or a careless `rm`.
            logger.warning("the record %s was removed by somebody else: putting it back", unquote(name))
            self._publish(name, content)

    def _clock_is_steady(self) -> bool:
        """Whether ages can be told: after a jump of the clock every file looks old until its owner has touched it."""
        offset, before = _clock_offset(), self._clock
        self._clock = offset
        if abs(offset - before) > BEAT / 2:
            logger.warning(
                "the clock jumped by %.1f s: no record is taken for expired in the next %g s", offset - before, TTL
            )
            self._trust_clock_after = time.monotonic() + TTL
        return time.monotonic() >= self._trust_clock_after

    def _delete_expired(self) -> None:
        oldest = time.time() - TTL
        for file in self._files():
            try:
                if file.stat(follow_symlinks=False).st_mtime < oldest:
                    os.unlink(file.path)
            except FileNotFoundError:
                pass  # another process was faster

    # The records of everybody

    def _keep_looking(self) -> None:
        if self._changes is None:
            self._changes = watch_directory(self._directory, _TEMPORARY, self._changed, self._directory_gone)
        if self._changes is None and self._poll_timer is None:
            self._poll_timer = asyncio.get_running_loop().call_later(POLL, self._poll)

    def _changed(self, removed: Sequence[str]) -> None:
        """The kernel says so. What was removed, and is there again by now, is told as removed first."""
        with self._reporting_trouble():
            for name in removed:
                entry = self._entries.pop(name, None)
                if entry is not None and entry.instance is not None:
                    self._tell(Removed(entry.instance))
            self._scan()

    def _directory_gone(self) -> None:
        self._changes = None
        self._keep_looking()

    def _poll(self) -> None:
        self._poll_timer = None
        if not self._watches or self._changes is not None:
            return
        self._poll_timer = asyncio.get_running_loop().call_later(POLL, self._poll)
        with self._reporting_trouble():
            changed_at = self._directory.stat().st_mtime_ns if self._directory.exists() else 0
            if changed_at != self._changed_at or changed_at >= self._scanned_at - _CLOCK_GRAIN_NS:
                self._changed_at = changed_at
                self._scan()

    def _scan(self) -> None:
        """Read what is new or changed, and tell the watches."""
        self._scanned_at = time.time_ns()
        before, self._entries = self._entries, {}
        for file in self._files():
            entry = self._read(file, before.get(file.name))
            if entry is not None:
                self._entries[file.name] = entry
        for event in _differences(before, self._entries):
            self._tell(event)

    def _tell(self, event: DiscoveryEvent) -> None:
        for watch in list(self._watches):
            watch.tell(event)

    def _files(self) -> Iterator[os.DirEntry[str]]:
        """Every regular file, unfinished ones and left-overs included."""
        try:
            with os.scandir(self._directory) as directory:
                yield from (file for file in directory if file.is_file(follow_symlinks=False))
        except FileNotFoundError:
            return

    def _read(self, file: os.DirEntry[str], known: _Entry | None) -> _Entry | None:
        if file.name.startswith(_TEMPORARY):
            return None
        try:
            status = file.stat(follow_symlinks=False)
            # A heartbeat changes the stamp, too: reading a file now and then for nothing is cheaper than a missed one.
            stamp = (status.st_ino, status.st_ctime_ns)
            if known is not None and known.stamp == stamp:
                return known
            content = Path(file.path).read_bytes()
        except FileNotFoundError:
            return None
        if known is not None and known.content == content:
            return known._replace(stamp=stamp)
        return _Entry(stamp, content, _parse(file.name, content))

    def _instances(self) -> Iterator[Instance]:
        return (entry.instance for entry in self._entries.values() if entry.instance is not None)

    @contextlib.contextmanager
    def _reporting_trouble(self) -> Iterator[None]:
        """Log what the file system refuses, once for as long as it goes on; the next look tries again."""
        try:
            yield
        except OSError as error:
            if self._trouble != str(error):
                self._trouble = str(error)
                logger.warning("the discovery directory %s is in trouble: %s", self._directory, error)
        else:
            self._trouble = ""


class _FileWatch(Watch):
    def __init__(self, discovery: FileDiscovery, endpoint: EndpointId, listener: Listener) -> None:
        self._discovery = discovery
        self._endpoint = endpoint
        self._listener = listener

    def tell(self, event: DiscoveryEvent) -> None:
        if event.instance.endpoint_id == self._endpoint:
            self._listener(event)

    def close(self) -> None:
        self._discovery._watches.discard(self)


def _default_root() -> Path:
    return Path(env_text("DYN_FILE_KV") or Path(tempfile.gettempdir()) / "dynamo_store_kv")


def _clock_offset() -> float:
    """What the wall clock, by which files are stamped, is ahead of the one that nobody sets."""
    return time.time() - time.monotonic()


def _file_name(instance: Instance) -> str:
    """The key, with every byte that is no ASCII letter or digit percent-encoded."""
    endpoint = instance.endpoint_id
    key = f"{endpoint.namespace}/{endpoint.component}/{endpoint.name}/{instance.instance_id:x}"
    return re.sub(rb"[^0-9A-Za-z]", lambda byte: b"%%%02X" % byte[0][0], key.encode()).decode()


def _parse(name: str, content: bytes) -> Instance | None:
    """The instance of a file, or None if it is no endpoint's record.

    Which endpoint it belongs to must be what the file's name says; the id is the content's.
    """
    try:
        instance = Instance.decode(content)
    except PayloadError as error:
        logger.warning("ignoring the discovery record %s: %s", unquote(name), error)
        return None
    endpoint = instance.endpoint_id
    key, _, _ = unquote(name).rpartition("/")
    if key != f"{endpoint.namespace}/{endpoint.component}/{endpoint.name}":
        logger.warning("ignoring the discovery record %s: its content says %s", unquote(name), endpoint)
        return None
    return instance


def _differences(before: dict[str, _Entry], after: dict[str, _Entry]) -> Iterator[DiscoveryEvent]:
    """What a watch must hear; what went away comes first."""
    for name, entry in before.items():
        successor = after.get(name)
        if entry.instance is not None and (successor is None or successor.instance is None):
            yield Removed(entry.instance)
    for name, entry in after.items():
        predecessor = before.get(name)
        if entry.instance is not None and (predecessor is None or predecessor.instance != entry.instance):
            yield Added(entry.instance)
