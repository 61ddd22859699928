"""`Folder`: one directory of the file backend, in which other programs write, too (runtime.md 1.3).

Nothing here trusts a file. A file that is not regular is not opened, and one that is too long is not read. A file that
cannot be read is skipped with one warning. Only a file with a record's name and a record's content is ever removed.

A record's age is measured by the store's clock, since a file server stamps the files: "now" is the stamp of a file that
this process touched a moment ago. The local wall clock is not used.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar
from urllib.parse import unquote

from dynamo_fast.discovery.buckets import BucketKind
from dynamo_fast.discovery.record_reader import RecordReader
from dynamo_fast.discovery.store import Record, RecordEvent, RecordPut, RecordRemoved
from dynamo_fast.errors import PayloadError
from dynamo_fast.logs import get_logger

__all__ = ["TEMPORARY", "Folder", "file_name"]

logger = get_logger(__name__)

TEMPORARY = ".tmp_"
"""How the names of files begin that are still being written."""
# The kernel stamps files with a clock that may stand still for as long as 10 ms: a directory that changed so recently
# may have changed again since it was scanned, with the same stamp.
_CLOCK_GRAIN_NS = 20_000_000
_SECOND_NS = 1_000_000_000
_OPEN_FLAGS = os.O_RDONLY
for _flag in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):  # each system has some of them
    _OPEN_FLAGS |= getattr(os, _flag, 0)


_T = TypeVar("_T")


@dataclass(frozen=True)
class Entry(Generic[_T]):
    """What is known of one file."""

    key: str
    stamp: tuple[int, int]
    """Inode and change time: as long as they stay, the file need not be read again."""
    touched: int
    """The modification time, in ns of the store's clock: the heartbeat."""
    since: float
    """When this value of `touched` was first seen, on the clock of this process."""
    content: bytes = b""
    value: _T | None = None
    """None if the file has no record."""


class Folder(Generic[_T]):
    """The directory of one bucket, and what was last seen in it, by file name.

    Owned by a `FileBucket` and used in its thread; every call may block. It holds no descriptor, so it needs no end.
    `clock` gives the seconds of a clock of this process that never goes back.
    """

    def __init__(self, root: Path, kind: BucketKind[_T], clock: Callable[[], float]) -> None:
        self.path = root / kind.name
        self.entries: dict[str, Entry[_T]] = {}
        self._max_size = kind.max_size
        self._clock = clock
        self._checked = (root, *(root / each for each in reversed(Path(kind.name).parents[:-1])), self.path)
        self._reader = RecordReader(kind)
        self._warned: set[str] = set()
        self._changed_at = self._scanned_at = 0
        self._looked_at = 0.0

    # Writing

    def make(self) -> None:
        """Make the directory if it is not there. Raises OSError."""
        self.path.mkdir(parents=True, exist_ok=True)
        for each in self._checked:
            self._check(each)

    def publish(self, key: str, content: bytes) -> None:
        """Write beside, then rename: a watcher reads a file when its name appears, and does not look again."""
        self.make()
        temporary = self._temporary()
        try:
            temporary.write_bytes(content)
            temporary.replace(self._file(key))
        except OSError:
            temporary.unlink(missing_ok=True)
            raise

    def touch(self, key: str) -> int:
        """Set a file's stamp to the store's "now", and return it in ns. Raises FileNotFoundError, OSError."""
        os.utime(self._file(key))
        return os.stat(self._file(key)).st_mtime_ns

    def remove(self, key: str) -> None:
        """Remove a file of our own, if it is there. Raises OSError."""
        self._file(key).unlink(missing_ok=True)

    # Reading

    def changed(self) -> bool:
        """Whether files came or went since the last scan. A heartbeat is no change."""
        try:
            changed_at = self.path.stat().st_mtime_ns
        except FileNotFoundError:
            changed_at = 0
        changed = changed_at != self._changed_at or changed_at >= self._scanned_at - _CLOCK_GRAIN_NS
        self._changed_at = changed_at
        return changed

    def scan(self) -> list[RecordEvent[_T]]:
        """Read what is new or changed. Returns what became of the records; raises OSError for the directory alone."""
        self._scanned_at = time.time_ns()
        entries = {}
        for file in self._files():
            entry = self._look(file, self.entries.get(file.name))
            if entry is not None:
                entries[file.name] = entry
        before, self.entries = self.entries, entries
        return list(_differences(before, entries))

    def look_at(self, names: Collection[str]) -> list[RecordEvent[_T]]:
        """The same for these files alone: what one change costs does not depend on how many other files there are."""
        before = {name: entry for name in names if (entry := self.entries.pop(name, None)) is not None}
        after = {name: entry for name in names if (entry := self._look(self.path / name, before.get(name))) is not None}
        self.entries.update(after)
        return list(_differences(before, after))

    def forget(self, names: Collection[str]) -> list[RecordEvent[_T]]:
        """Files that went away and may be there again, which a scan alone cannot tell."""
        gone = [self.entries.pop(name, None) for name in names]
        return [
            RecordRemoved(entry.key, entry.value) for entry in gone if entry is not None and entry.value is not None
        ]

    def records(self) -> Iterator[Record[_T]]:
        """What the last scan found."""
        return (Record(entry.key, entry.value) for entry in self.entries.values() if entry.value is not None)

    # Expiry

    def remove_expired(self, own: Collection[str], now: int | None, ttl: float, quiet: float) -> bool:
        """Remove the expired records of other processes. Returns whether there were any.

        A record is expired if its stamp did not change for `quiet` seconds while this process looked, and is older than
        `ttl` on the store's clock. `now` is that clock's time in ns, if a file was just touched. A stamp that did not
        change for twice the `ttl` is expired whatever its value: the store's clock may have been set back.

        If this process did not look for `quiet` seconds, it was paused, and the owners may have been paused with it:
        then it begins to measure again. `own` has the keys of the records of this process.
        """
        looked_at, self._looked_at = self._looked_at, self._clock()
        if self._looked_at - looked_at > quiet:
            self.entries = {name: replace(entry, since=self._looked_at) for name, entry in self.entries.items()}
        silent = self._silent(own, quiet)
        if not silent:
            return False
        oldest = (self._now() if now is None else now) - int(ttl * _SECOND_NS)
        expired = [
            name for name, seconds in silent.items() if self.entries[name].touched < oldest or seconds >= 2 * ttl
        ]
        for name in expired:
            self._remove_record(name)
        return bool(expired)

    def _silent(self, own: Collection[str], quiet: float) -> dict[str, float]:
        """The records of others whose stamp did not change for `quiet` seconds, with these seconds."""
        silent = {
            name: self._looked_at - entry.since for name, entry in self.entries.items() if entry.value is not None
        }
        names = {file_name(key) for key in own}
        return {name: seconds for name, seconds in silent.items() if name not in names and seconds >= quiet}

    def _now(self) -> int:
        """The store's time, from the stamp of a file that is there for a moment."""
        temporary = self._temporary()
        try:
            temporary.touch(exist_ok=False)
            return temporary.stat().st_mtime_ns
        finally:
            temporary.unlink(missing_ok=True)

    def _remove_record(self, name: str) -> None:
        """Remove the file if it still is what was seen."""
        entry = self.entries[name]
        try:
            content, status = self._read(self.path / name)  # opening it makes a network file system ask its server
            if content == entry.content and status.st_mtime_ns == entry.touched:
                os.unlink(self.path / name)
        except FileNotFoundError:
            pass  # another process was faster
        except (OSError, PayloadError) as error:
            self._warn_once(f"the expired discovery record {entry.key!r} cannot be removed: {error}")

    # One file

    def _temporary(self) -> Path:
        return self.path / f"{TEMPORARY}{secrets.token_hex(8)}"

    def _files(self) -> Iterator[os.DirEntry[str]]:
        with contextlib.suppress(FileNotFoundError), os.scandir(self.path) as directory:
            yield from (file for file in directory if not file.name.startswith(TEMPORARY))

    def _file(self, key: str) -> Path:
        return self.path / file_name(key)

    def _look(self, file: os.DirEntry[str] | Path, known: Entry[_T] | None) -> Entry[_T] | None:
        """What is known of this file now; None if it is gone. It is read only if it may have changed."""
        key = unquote(file.name)
        try:
            status = file.stat(follow_symlinks=False)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._reader.skip(key, str(error))
            return None
        # A heartbeat changes the stamp, too: reading a file now and then for nothing is cheaper than a missed one.
        stamp = (status.st_ino, status.st_ctime_ns)
        if known is not None and known.stamp == stamp:
            return known
        quiet = known is not None and known.touched == status.st_mtime_ns and known.stamp[0] == stamp[0]
        since = known.since if known is not None and quiet else self._clock()
        return self._fill(file, known, Entry(key, stamp, status.st_mtime_ns, since))

    def _fill(self, file: os.DirEntry[str] | Path, known: Entry[_T] | None, entry: Entry[_T]) -> Entry[_T] | None:
        """The entry with the file's content; without a value if that is no record; None if the file is gone."""
        try:
            self._check_regular(file.stat(follow_symlinks=False))
            content, _ = self._read(self.path / file.name)
        except FileNotFoundError:
            return None
        except (OSError, PayloadError) as error:
            self._reader.skip(entry.key, str(error))
            if isinstance(error, OSError) and known is not None and known.stamp[0] == entry.stamp[0]:
                # This process may be out of descriptors: the worker is as well as before. Read again at the next look.
                return replace(entry, stamp=(entry.stamp[0], 0), content=known.content, value=known.value)
            return entry
        if known is not None and known.content == content and known.value is not None:
            return replace(entry, content=known.content, value=known.value)
        return replace(entry, content=content, value=self._reader.read(entry.key, content))

    def _read(self, path: Path) -> tuple[bytes, os.stat_result]:
        """The file's content, if it is a regular file of bounded size. Raises OSError, PayloadError."""
        descriptor = os.open(path, _OPEN_FLAGS)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            self._check_regular(status)
            return file.read(self._max_size + 1), status

    def _check_regular(self, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):
            kinds = {stat.S_IFDIR: "directory", stat.S_IFLNK: "link", stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket"}
            raise PayloadError(f"it is a {kinds.get(stat.S_IFMT(status.st_mode), 'device')}, not a regular file")
        if status.st_size > self._max_size:
            raise PayloadError(f"it has {status.st_size} bytes (the limit is {self._max_size})")

    # Warnings

    def _check(self, path: Path) -> None:
        """Warn of a directory that another user controls."""
        status = os.lstat(path)
        if stat.S_ISLNK(status.st_mode):
            self._warn_once(f"the discovery directory {path} is a link to {os.path.realpath(path)}")
        elif hasattr(os, "geteuid") and status.st_uid not in (os.geteuid(), 0):
            self._warn_once(
                f"the discovery directory {path} belongs to the user {status.st_uid}, who can change every record: set "
                "DYN_FILE_KV to a directory of your own"
            )

    def _warn_once(self, text: str) -> None:
        if text not in self._warned and len(self._warned) < 10_000:
            self._warned.add(text)
            logger.warning("%s", text)


def file_name(key: str) -> str:
    """The key, with every byte that is no ASCII letter or digit percent-encoded."""
    return re.sub(rb"[^0-9A-Za-z]", lambda byte: b"%%%02X" % byte[0][0], key.encode()).decode()


def _differences(before: dict[str, Entry[_T]], after: dict[str, Entry[_T]]) -> Iterator[RecordEvent[_T]]:
    """What a watch must hear; what went away comes first."""
    for name, entry in before.items():
        successor = after.get(name)
        if entry.value is not None and (successor is None or successor.value is None):
            yield RecordRemoved(entry.key, entry.value)
    for name, entry in after.items():
        predecessor = before.get(name)
        if entry.value is not None and (predecessor is None or predecessor.value != entry.value):
            yield RecordPut(entry.key, entry.value)
