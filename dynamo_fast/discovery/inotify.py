"""What the kernel tells about one directory, through the library inotify-simple (Linux, the extra `inotify`)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

try:
    import inotify_simple  # type: ignore[import-untyped, import-not-found, unused-ignore]
except (ImportError, OSError):  # not installed, or not Linux
    inotify_simple = None

from dynamo_fast.logs import get_logger

__all__ = ["DirectoryChanges", "inotify_simple", "watch_directory"]

logger = get_logger(__name__)

OnChange = Callable[[Sequence[str], Collection[str] | None], None]


class DirectoryChanges:
    """Tells of files that appear, vanish or are written to; not of those that are only touched, nor of ignored names.

    `on_change(removed, named)` is called on the event loop with the names that went away, in order, and with all names
    to look at, those included; `named` is None if the kernel lost events, and the whole directory is to be scanned.
    `on_end()` is called once, if the directory itself went away or anything failed.

    Owns an inotify descriptor. Owned by a `FileBucket`; made and used on the event loop of the store's thread; ends with
    `close`, or by itself before `on_end`.
    """

    def __init__(
        self,
        inotify: Any,
        directory: Path,
        ignored_prefix: str,
        on_change: OnChange,
        on_end: Callable[[], None],
    ) -> None:
        self._inotify = inotify
        self._inode = _identity(directory)
        self._ignored_prefix = ignored_prefix
        self._on_change = on_change
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(inotify.fileno(), self._read)

    def close(self) -> None:
        """No more calls; may be called twice."""
        if not self._inotify.closed:
            self._loop.remove_reader(self._inotify.fileno())
            self._inotify.close()

    def is_of(self, directory: Path) -> bool:
        """Whether this is still the directory of that name."""
        return self._inode == _identity(directory)

    def _read(self) -> None:
        try:
            self._take_events()
        except Exception as error:  # or the event loop would call this again and again
            logger.warning("inotify failed, the directory is polled for now: %s: %s", type(error).__name__, error)
            self.close()
            self._on_end()

    def _take_events(self) -> None:
        flags = inotify_simple.flags
        events = [event for event in self._inotify.read(timeout=0) if not event.name.startswith(self._ignored_prefix)]
        gone = flags.DELETE | flags.MOVED_FROM
        ended = any(event.mask & flags.IGNORED for event in events)
        if ended:
            self.close()
        if events:
            removed = [event.name for event in events if event.mask & gone]
            lost = any(event.mask & (flags.Q_OVERFLOW | flags.IGNORED) for event in events)
            self._on_change(removed, None if lost else dict.fromkeys(event.name for event in events))
        if ended:
            self._on_end()


def watch_directory(
    directory: Path, ignored_prefix: str, on_change: OnChange, on_end: Callable[[], None]
) -> DirectoryChanges | None:
    """The changes of `directory`; None if inotify is unavailable, and the directory must be polled."""
    if inotify_simple is None:
        return None
    flags = inotify_simple.flags
    mask = flags.CREATE | flags.DELETE | flags.MOVED_FROM | flags.MOVED_TO | flags.CLOSE_WRITE | flags.ONLYDIR
    inotify = None
    try:
        inotify = inotify_simple.INotify(nonblocking=True)
        inotify.add_watch(directory, mask)
        return DirectoryChanges(inotify, directory, ignored_prefix, on_change, on_end)
    except (OSError, NotImplementedError) as error:  # out of watches, gone, or a loop that cannot watch descriptors
        logger.info("polling %s: inotify unavailable (%s)", directory, error)
        if inotify is not None:
            inotify.close()
        return None


def _identity(directory: Path) -> tuple[int, int] | None:
    try:
        status = directory.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
