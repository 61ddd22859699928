"""`FileDiscovery`: instance records as files in one directory, as Dynamo's `file` backend keeps them (runtime.md 1.3).

    <root>/v1/instances/demo%2Fbackend%2Fgenerate%2F577eb898b1f7105e      one record, compact JSON

The file's modification time is its heartbeat. The owner sets it to now every 3.3 s; every process that uses the
directory removes records of others that have not been touched for 10 s. The owner removes its record when it leaves.

Changes are told by the kernel where inotify is available (Linux, with the extra `inotify`). Elsewhere the directory's
own modification time is looked at, which a heartbeat does not move: one `stat` per look, a scan only after a change.

All of this happens in a thread of its own: a directory on a slow network, and a caller whose event loop is blocked, do
not delay each other.
"""

from __future__ import annotations

import concurrent.futures
import os
import secrets
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

from dynamo_fast.config import FileConfig
from dynamo_fast.discovery.background import BackgroundLoop, BackgroundThread
from dynamo_fast.discovery.base import Added, Discovery, DiscoveryEvent, Listener, Watch
from dynamo_fast.discovery.folder import TEMPORARY, Folder, file_name
from dynamo_fast.discovery.inotify import DirectoryChanges, watch_directory
from dynamo_fast.discovery.subscription import Subscription
from dynamo_fast.errors import InvalidRequest
from dynamo_fast.logs import get_logger
from dynamo_fast.wire.address import EndpointId
from dynamo_fast.wire.instance import Instance

__all__ = ["FileDiscovery"]

logger = get_logger(__name__)

Instances = list[Instance]

TTL = 10.0
"""Seconds without a heartbeat after which a record is removed."""
BEAT = TTL / 3
"""Seconds between heartbeats, and between looks for expired records."""
POLL = 0.05
"""Seconds between looks at the directory, if there are watches and inotify is unavailable."""
WITHDRAW_TIMEOUT = 2.0
"""Seconds that `withdraw` waits for the file system."""


class FileDiscovery(Discovery):
    """Records in `root`, by default `DYN_FILE_KV`, else `dynamo_store_kv` in the system's folder for temporary files.

    May be used from several event loops. Its thread starts on first use and ends with `close`; the thread alone touches
    the directory and the tables below.
    """

    def __init__(self, root: str | os.PathLike[str] | None = None, *, connection_id: int | None = None) -> None:
        self.connection_id = secrets.randbits(64) if connection_id is None else connection_id
        self.root = Path(root or _default_root())
        self._folder = Folder(self.root)
        self._owned: dict[str, bytes] = {}
        self._store_time: int | None = None
        self._watches: dict[Subscription, EndpointId] = {}
        self._beating: BackgroundLoop | None = None
        self._sweeping: BackgroundLoop | None = None
        self._polling: BackgroundLoop | None = None
        self._changes: DirectoryChanges | None = None
        self._withdrawn = False
        self._thread = BackgroundThread("dynamo-fast file discovery")
        weakref.finalize(self, self._thread.stop, 0.0).atexit = False  # for an object that was only asked for a list

    async def register(self, instance: Instance) -> None:
        name = file_name(instance)
        before = self._owned.get(name)
        try:
            await self._thread.run(self._register(name, instance.encode()))
        except BaseException:
            if self._thread.running:
                self._thread.submit(self._restore(name, before))
            raise

    async def unregister(self, instance: Instance) -> None:
        await self._thread.run(self._unregister(instance))

    async def list(self, endpoint: EndpointId | None = None) -> list[Instance]:
        return await self._thread.run(self._list(endpoint))

    async def watch(self, endpoint: EndpointId, listener: Listener) -> Watch:
        watch = Subscription(listener, self._unsubscribe)
        try:
            await self._thread.run(self._subscribe(endpoint, watch))
        except BaseException:
            watch.close()
            raise
        watch.deliver()
        return watch

    def withdraw(self) -> None:
        self._withdrawn = True
        if not self._thread.running:
            return
        try:
            self._thread.wait_for(self._withdraw(), WITHDRAW_TIMEOUT)
        except concurrent.futures.TimeoutError:
            logger.warning("%s does not answer: records are left to expire in %g s", self._folder.path, TTL)

    async def close(self) -> None:
        if self._thread.running:
            await self._thread.run(self._close())
        await self._thread.end()

    # What follows runs in the thread. Our own records:

    async def _register(self, name: str, content: bytes) -> None:
        if self._withdrawn:
            raise InvalidRequest("this process has left discovery: nothing can be registered any more")
        self._folder.publish(name, content)
        self._owned[name] = content
        self._thread.at_exit = self._withdraw
        if self._beating is None:
            self._beating = self._thread.keep(f"the heartbeat in {self._folder.path}", self._beat)
        self._keep_sweeping()

    async def _restore(self, name: str, content: bytes | None) -> None:
        """A registration failed or was cancelled: return to the earlier record."""
        if content is None:
            self._owned.pop(name, None)
            self._folder.remove(name)
        elif not self._withdrawn:
            self._owned[name] = content
            self._folder.publish(name, content)

    async def _unregister(self, instance: Instance) -> None:
        name = file_name(instance)
        if self._owned.pop(name, None) is not None:
            self._folder.remove(name)
        elif not self._withdrawn:
            raise InvalidRequest(f"{instance.endpoint_id} was not registered by this process: nothing to unregister")

    async def _withdraw(self) -> None:
        self._withdrawn = True
        owned, self._owned = self._owned, {}
        for name in owned:
            try:
                self._folder.remove(name)
            except OSError as error:
                logger.warning("the record %r is left to expire in %g s: %s", unquote(name), TTL, error)

    async def _close(self) -> None:
        self._watches.clear()
        await self._withdraw()

    async def _beat(self) -> float:
        troubles = []
        for name, content in list(self._owned.items()):
            try:
                self._touch(name, content)
            except OSError as error:
                troubles.append(error)
        if troubles:
            raise troubles[0]
        return BEAT

    def _touch(self, name: str, content: bytes) -> None:
        try:
            self._store_time = self._folder.touch(name)
        except FileNotFoundError:
            # Dynamo's own worker stays undiscoverable for good here: after a pause of 10 s, or a careless `rm`.
            logger.warning("the record %s was removed by another process: putting it back", unquote(name))
            self._folder.publish(name, content)

    # The records of all

    async def _list(self, endpoint: EndpointId | None) -> Instances:
        self._folder.make()
        self._scan()
        return sorted(
            (each for each in self._folder.instances() if endpoint is None or each.endpoint_id == endpoint),
            key=lambda instance: instance.endpoint_instance_id,
        )

    async def _subscribe(self, endpoint: EndpointId, watch: Subscription) -> None:
        self._folder.make()
        self._keep_looking()  # before the first look, so that nothing is missed between the two
        present = await self._list(endpoint)
        self._watches[watch] = endpoint
        self._keep_sweeping()
        for instance in present:
            watch.tell(Added(instance))

    def _unsubscribe(self, watch: Subscription) -> None:
        """On the listener's loop, or here."""
        self._watches.pop(watch, None)

    def _keep_sweeping(self) -> None:
        if self._sweeping is None:
            self._sweeping = self._thread.keep(f"the search for expired records in {self._folder.path}", self._sweep)

    async def _sweep(self) -> float:
        self._scan()
        if self._watches:
            self._keep_looking()
        now, self._store_time = self._store_time, None
        if self._folder.remove_expired(self._owned, now, TTL, 2 * BEAT):
            self._scan()
        return BEAT

    def _keep_looking(self) -> None:
        """By inotify if that is possible, else by polling."""
        if self._changes is not None and not self._changes.is_of(self._folder.path):
            self._changes.close()  # the directory was removed or moved away, and there is another one now
            self._changes = None
        if self._changes is None:
            self._thread.at_end = self._stop_looking
            self._changes = watch_directory(self._folder.path, TEMPORARY, self._changed, self._lost)
        if self._changes is None and self._polling is None:
            self._polling = self._thread.keep(f"the watch of {self._folder.path}", self._poll)
        elif self._changes is not None and self._polling is not None:
            self._thread.drop(self._polling)
            self._polling = None

    async def _stop_looking(self) -> None:
        if self._changes is not None:
            self._changes.close()
            self._changes = None

    def _changed(self, removed: Sequence[str]) -> None:
        # Files that went away and may be there again already: two events.
        self._tell(self._folder.forget(removed))
        self._scan()

    def _lost(self) -> None:
        """inotify ended; the next sweep tries it again."""
        self._changes = None
        if self._polling is None:
            self._polling = self._thread.keep(f"the watch of {self._folder.path}", self._poll)

    async def _poll(self) -> float:
        if self._watches and self._folder.changed():
            self._scan()
        return POLL

    def _scan(self) -> None:
        self._tell(self._folder.scan())

    def _tell(self, events: Sequence[DiscoveryEvent]) -> None:
        for event in events:
            for watch, endpoint in list(self._watches.items()):
                if event.instance.endpoint_id == endpoint:
                    watch.tell(event)


def _default_root() -> Path:
    return Path(FileConfig.from_env().root or Path(tempfile.gettempdir()) / "dynamo_store_kv")
