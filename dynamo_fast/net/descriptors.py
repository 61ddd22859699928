# cython: freethreading_compatible=True, annotation_typing=False
"""The file descriptors of this process: how many are in use, and how many are promised to requests.

Both ends promise a descriptor before they open it. A worker that acknowledges a request will dial the router (twice if
the endpoint is bidirectional). A router that sends a request will accept the worker's connection. A promise that cannot
be kept makes the caller wait for its call-home limit, so both ends ask `PROCESS` first, and refuse.

    in use + promised + what is asked for  <=  RLIMIT_NOFILE - reserve

What is in use is counted for the whole process (an engine's files and sockets too), at intervals: between two counts each
promise is added to the last one. What is promised is asked of those who promised it, at each count. So nothing has to be
given back, and no error in the bookkeeping outlives the next count.
"""

from __future__ import annotations

import errno
import os
import sys
import weakref
from collections.abc import Callable
from time import monotonic
from typing import Protocol

if sys.platform != "win32":
    import resource

__all__ = ["PROCESS", "Descriptors", "Promiser"]

_MOST_RESERVED = 128
# A count may take this share of the time; and however fast it is, so many seconds lie between two of them.
_SHARE_OF_TIME, _SHARE_WHEN_SHORT = 0.01, 0.1
_SHORTEST_INTERVAL, _LONGEST_INTERVAL = 0.1, 1.0
_OPEN_FILES = "/proc/self/fd"


class Promiser(Protocol):
    """One end of the request plane: a worker's admission, or a router's response server."""

    def descriptors(self) -> tuple[int, int]:
        """How many descriptors it has promised and not opened yet, and how many it has opened for requests."""


class Descriptors:
    """Promises descriptors. There is one for the process, `PROCESS`; tests make their own.

    Used by every event loop of the process. A race between two threads can cost a few descriptors of the reserve until
    the next count; a lock is not worth its price here.
    """

    def __init__(self, limit: Callable[[], int] | None = None, in_use: Callable[[int], int] | None = None) -> None:
        self._read_limit = limit or _soft_limit
        self._read_in_use = in_use or _count
        self.usable = 0
        """RLIMIT_NOFILE as last seen, minus the reserve."""
        self.forget()

    def forget(self) -> None:
        """Forget all promises and counts: in a forked child they are the parent's."""
        self._promisers: list[tuple[weakref.ref[Promiser], bool]] = []
        self._in_use = self._committed = 0
        self._next_look = self._earliest_look = 0.0
        self._see_limit()
        self._share = self.usable

    def add(self, promiser: Promiser, *, calls: bool) -> None:
        """Ask `promiser` at each count from now on, for as long as it lives. `calls`: it is a router's, not a worker's."""
        alive = [each for each in self._promisers if each[0]() is not None]
        self._promisers = [*alive, (weakref.ref(promiser), calls)]
        self._see_limit()
        self._next_look = 0.0

    def promise(self, count: int = 1, requests: int = 0) -> bool:
        """Whether `count` descriptors more may be promised; if so, the promiser counts them as its own from now on.

        A worker says how many `requests` it has accepted that have not ended: in a process that also calls, they get at
        most half of what there is, since each will probably make a call of its own.
        """
        committed = self._committed + count
        if committed <= self.usable and requests < self._share and monotonic() < self._next_look:
            self._committed = committed
            return True
        return self._look_and_promise(count, requests)

    def shortage(self) -> str:
        """Why `promise` said no, with both numbers and what to do."""
        return (
            f"{self._in_use} of {self._limit} open files are in use and {self._committed - self._in_use} more promised "
            f"to requests, {self._limit - self.usable} are a reserve: raise the limit (ulimit -n)"
        )

    def _look_and_promise(self, count: int, requests: int) -> bool:
        now = monotonic()
        if now >= self._earliest_look:
            self._look(now)
        if self._committed + count > self.usable or requests >= self._share:
            return False
        self._committed += count
        return True

    def _see_limit(self) -> None:
        self._limit = self._read_limit()
        self.usable = self._limit - min(_MOST_RESERVED, self._limit // 4)

    def _look(self, began: float) -> None:
        self._see_limit()
        self._in_use = self._read_in_use(self._limit)
        promised = opened = 0
        has_router = False
        for reference, calls in self._promisers:
            promiser = reference()
            if promiser is not None:
                counts = promiser.descriptors()
                promised += counts[0]
                opened += counts[1]
                has_router |= calls
        self._committed = self._in_use + promised
        others = max(0, self._in_use - opened)
        self._share = (self.usable - others) // 2 if has_router else self.usable
        took = monotonic() - began
        self._next_look = began + min(max(took / _SHARE_OF_TIME, _SHORTEST_INTERVAL), _LONGEST_INTERVAL)
        self._earliest_look = began + took / _SHARE_WHEN_SHORT


def _soft_limit() -> int:
    """RLIMIT_NOFILE, which can be changed at run time."""
    if sys.platform == "win32":  # where sockets are no files
        return sys.maxsize
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if files == resource.RLIM_INFINITY else files


def _count(limit: int) -> int:
    """Open descriptors of this process; on systems without /proc a lower bound."""
    if limit == sys.maxsize:
        return 0
    try:
        # Linux 6.2 and later say it in the size of the folder, which costs 2 us; reading it costs 0.4 us an entry.
        return os.stat(_OPEN_FILES).st_size or len(os.listdir(_OPEN_FILES)) - 1
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            return limit
        return _lowest_free(limit)


def _lowest_free(limit: int) -> int:
    """The number that the next descriptor gets: all below it are in use."""
    try:
        number = os.open(os.devnull, os.O_RDONLY)
    except OSError:
        return limit
    os.close(number)
    return number


PROCESS = Descriptors()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=PROCESS.forget)
