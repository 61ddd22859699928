"""`Reflector`: a copy of every object of one resource, which follows the API by a list and a watch (kubernetes.md 3).

    list (version V) --> watch from V --> the server ends it after minutes --> watch from the last version
                              |
                              +-- 410: that version is gone --> a pause --> list
                              +-- any other failure --> a pause that grows --> watch from the last version

A bookmark moves the version on while nothing changes. The API says 410 in two forms, as an event and as a status of
HTTP; both end in a list. (Dynamo repeats the watch after the second, in vain.)
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec

from dynamo_fast.discovery.background import BackgroundLoop, BackgroundThread
from dynamo_fast.discovery.kubernetes_client import Gone, KubernetesClient, Resource
from dynamo_fast.discovery.kubernetes_objects import Meta
from dynamo_fast.logs import get_logger

__all__ = ["Reflector"]

logger = get_logger(__name__)

GONE_PAUSE = 0.8
"""Seconds from a 410 to the list."""
SHORTEST_WATCH = 0.5
"""Seconds from one watch to the next, where the server ends them at once."""

_T = TypeVar("_T")


class _Object(msgspec.Struct):
    metadata: Meta


class _Bookmark(msgspec.Struct):
    class _Metadata(msgspec.Struct, rename="camel"):
        resource_version: str = ""

    metadata: _Metadata


class Reflector(Generic[_T]):
    """The objects of one resource by name, and who is told of each change.

    Owned by a `KubernetesStore`, used in its thread. Begins with `start`, ends with `close` or the thread.
    """

    def __init__(
        self,
        client: KubernetesClient,
        resource: Resource[_T],
        thread: BackgroundThread,
        changed: Callable[[str, _T | None], None],
    ) -> None:
        self.objects: dict[str, _T] = {}
        self._client = client
        self._resource = resource
        self._thread = thread
        self._changed = changed
        """Called with a name and the object, None if that was deleted."""
        self._version: str | None = None
        """Everything up to this one was told; None: it must be listed."""
        self._unreadable: set[str] = set()
        self._loop: BackgroundLoop | None = None

    async def start(self) -> None:
        """Take what is there, and follow it from then on. Raises CannotConnect; then it has not begun."""
        await self._list()
        self._loop = self._thread.keep(f"the watch of {self._resource} in Kubernetes", self._follow)

    def close(self) -> None:
        """Follow no longer; may be called twice."""
        if self._loop is not None:
            self._thread.drop(self._loop)
            self._loop = None

    async def _follow(self) -> float:
        """Until the watch ends. Returns the pause until the next one."""
        clock = asyncio.get_running_loop().time
        begun = clock()
        try:
            if self._version is None:
                await self._list()
            assert self._version is not None
            await self._watch(self._version)
        except Gone as gone:
            logger.info("%s; listing again", gone)
            self._version = None
            return GONE_PAUSE
        return max(0.0, SHORTEST_WATCH - (clock() - begun))

    async def _list(self) -> None:
        listed = await self._client.list(self._resource)
        names = {name for raw in listed.items if (name := self._take(raw)) is not None}
        for name in self.objects.keys() - names:
            self._update(name, None)
        self._version = listed.version

    async def _watch(self, version: str) -> None:
        events = self._client.watch(self._resource, version)
        async with contextlib.aclosing(events):
            async for event in events:
                if event.kind == "DELETED":
                    self._update(msgspec.json.decode(event.object, type=_Object).metadata.name, None)
                elif event.kind != "BOOKMARK":
                    self._take(event.object)
                self._version = msgspec.json.decode(event.object, type=_Bookmark).metadata.resource_version
                if self._loop is not None:
                    self._loop.working()

    def _take(self, raw: msgspec.Raw) -> str | None:
        """Keep the object. One that cannot be read keeps its last readable content, with one warning. Returns its name."""
        try:
            name = msgspec.json.decode(raw, type=_Object).metadata.name
        except msgspec.MsgspecError as error:
            logger.warning("ignoring an object of %s without a name: %s", self._resource, error)
            return None
        try:
            found = msgspec.json.decode(raw, type=self._resource.type)
        except (msgspec.MsgspecError, RecursionError) as error:
            if name not in self._unreadable:
                self._unreadable.add(name)
                kept = "its last content stays in force" if name in self.objects else "it is ignored"
                logger.warning("the %s %s cannot be read, and %s: %s", self._resource, name, kept, error)
            return name
        self._unreadable.discard(name)
        self._update(name, found)
        return name

    def _update(self, name: str, found: _T | None) -> None:
        if found is None:
            self._unreadable.discard(name)
            if self.objects.pop(name, None) is None:
                return
        else:
            self.objects[name] = found
        self._changed(name, found)
