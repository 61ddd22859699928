"""What two ends hold: the length of every container and the value of every count that our objects own."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
from collections import deque
from collections.abc import Iterator
from typing import Any

from dynamo_fast.deadlines import Deadlines
from dynamo_fast.observability.histogram import Histogram

IGNORED = {"errors", "_causes", "labels", "_avoided"}
"""Counts by kind of error, kinds of warnings that were logged a moment ago, labels: as many as there are kinds. And the
routers with which no session could be opened of late."""
COUNTS = ("inflight", "running", "queued", "pending", "multiplexed")
_CONTAINERS = (dict, set, frozenset, list, deque, Deadlines)


def tables(**roots: Any) -> dict[str, int]:
    """The size of every table that `roots` own, by its path; empty ones are left out.

    It looks at attributes, not at names that it knows: a table that is added to the package later is looked at, too.
    """
    seen: set[int] = set()
    return {path: size for name, root in roots.items() for path, size in _sizes(name, root, seen) if size}


def _sizes(path: str, value: Any, seen: set[int]) -> Iterator[tuple[str, int]]:
    if id(value) in seen or isinstance(value, (Histogram, asyncio.AbstractEventLoop, type)):
        return
    seen.add(id(value))
    if isinstance(value, _CONTAINERS):
        yield path, len(value)
        members = value.values() if isinstance(value, dict) else () if isinstance(value, Deadlines) else value
        for number, member in enumerate(list(members)):
            yield from _sizes(f"{path}[{number}]", member, seen)
    elif type(value).__module__.startswith("dynamo_fast.") and not type(value).__module__.startswith(
        "dynamo_fast.wire"
    ):
        for name, attribute in _attributes(value):
            if name in COUNTS and isinstance(attribute, int):
                yield f"{path}.{name}", attribute
            else:
                yield from _sizes(f"{path}.{name}", attribute, seen)


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    names = list(getattr(value, "__dict__", ()))
    for cls in type(value).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        names += [slots] if isinstance(slots, str) else slots
        names += [name for name, each in vars(cls).items() if inspect.isgetsetdescriptor(each)]  # of a compiled class
    names += [name for name in COUNTS if isinstance(getattr(type(value), name, None), property)]
    for name in names:
        if name not in ("__weakref__", "__dict__", *IGNORED) and hasattr(value, name):
            yield name, getattr(value, name)


def open_sockets() -> int:
    """Sockets of this process; 0 where the system does not say. (uvloop keeps a descriptor of /dev/null besides.)"""
    count = 0
    for descriptor in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else ():
        with contextlib.suppress(FileNotFoundError):  # the one that listed them
            count += os.readlink(f"/proc/self/fd/{descriptor}").startswith("socket:")
    return count


def other_tasks() -> list[asyncio.Task[Any]]:
    """The tasks of the running loop besides the current one."""
    return [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
