# cython: freethreading_compatible=True, annotation_typing=False
"""`InstanceTable`: the instances of one endpoint that discovery lists, and how many requests each has in flight."""

from __future__ import annotations

import asyncio
import weakref
from bisect import bisect_left, insort
from collections.abc import Collection, Iterator
from operator import attrgetter
from typing import Protocol

from dynamo_fast.discovery.base import Added, Discovery, DiscoveryEvent, Watch
from dynamo_fast.wire.address import EndpointId, EndpointInstanceId
from dynamo_fast.wire.instance import Instance

__all__ = ["Entry", "InstanceTable", "LoadQueue"]


class Entry:
    """One instance, from its appearance in discovery to its removal. One that comes back gets a new entry.

    Owned by the table. Calls count themselves in and out; a call may outlive the removal.
    """

    __slots__ = ("address", "codec", "id", "in_flight", "instance", "kind", "mux", "queue")

    def __init__(self, instance: Instance, queue: LoadQueue) -> None:
        self.instance = instance
        # What each request needs of the record is looked up once.
        self.kind, self.address = instance.transport.kind, instance.transport.address
        self.id, self.codec, self.mux = instance.endpoint_instance_id, instance.payload_codec, instance.mux
        self.queue = queue
        self.in_flight = 0
        """Requests that all routers of this table have sent there, and whose answers have not ended."""

    def begin(self) -> None:
        """A request goes there."""
        self.queue.shift(self, 1)

    def end(self) -> None:
        """Its answer has ended."""
        self.queue.shift(self, -1)


class LoadQueue:
    """Entries in the order of their requests in flight. The cost of each operation does not depend on their number.

    Among equals, the entry that has had this number for longest comes first, so that they take turns.
    """

    __slots__ = ("_levels", "_lowest", "size", "total")

    def __init__(self) -> None:
        self._levels: list[dict[Entry, None]] = [{}]
        self._lowest = 0  # no entry is below this level
        self.size = 0
        """Entries."""
        self.total = 0
        """Requests in flight at all of them."""

    def add(self, entry: Entry) -> None:
        self._levels[entry.in_flight][entry] = None
        self._lowest = min(self._lowest, entry.in_flight)
        self.size += 1
        self.total += entry.in_flight

    def remove(self, entry: Entry) -> None:
        del self._levels[entry.in_flight][entry]
        self.size -= 1
        self.total -= entry.in_flight

    def shift(self, entry: Entry, by: int) -> None:
        """`entry` has one request more or one less. A removed entry only keeps its own count."""
        levels, before, after = self._levels, entry.in_flight, entry.in_flight + by
        entry.in_flight = after
        if after == len(levels):
            levels.append({})
        level: dict[Entry, None] = levels[before]
        if entry in level:
            del level[entry]
            level = levels[after]
            level[entry] = None
            self.total += by
            self._lowest = min(self._lowest, after)

    def least(self, out: Collection[Entry] = ()) -> Entry | None:
        """The entry with the fewest requests in flight that is not in `out`; None if there is none."""
        levels = self._levels
        while self.size and not levels[self._lowest]:
            self._lowest += 1
        for number in range(self._lowest, len(levels)):
            for entry in levels[number]:
                if entry not in out:
                    return entry
        return None


_id_of = attrgetter("instance.instance_id")


class TableListener(Protocol):
    """What a table tells of its changes."""

    def table_changed(self, gone: Entry | None) -> None:
        """The table has changed; `gone`, if not None, has left it."""


class WaitingCalls(Protocol):
    """What a table asks of the response server, which knows the calls that wait for an instance to dial back."""

    def cancel_instance_streams(self, instance: EndpointInstanceId) -> int:
        """The instance was removed: fail the calls that wait for it."""

    def clear_instance_tombstone(self, instance: EndpointInstanceId) -> None:
        """The instance is there again."""


class InstanceTable:
    """The instances of one endpoint that discovery lists now. Made with `watch`.

    Owns its watch, which `close` ends. One event loop; any number of push routers share it. When an instance is removed,
    the calls that wait for it fail; when it comes back, nothing is remembered of it.
    """

    def __init__(self, endpoint: EndpointId, response_server: WaitingCalls) -> None:
        self.endpoint = endpoint
        self.entries: list[Entry] = []
        """In ascending order of their ids."""
        self.cpu = LoadQueue()
        """The instances without an accelerator; `other` has the rest."""
        self.other = LoadQueue()
        self._response_server = response_server
        self._by_id: dict[int, Entry] = {}
        self._listeners: weakref.WeakSet[TableListener] = weakref.WeakSet()
        self._filled = asyncio.Event()
        self._watch: Watch | None = None

    @classmethod
    async def watch(cls, endpoint: EndpointId, discovery: Discovery, response_server: WaitingCalls) -> InstanceTable:
        """A table that follows `discovery` and holds what is listed already. Raises what the backend raises."""
        table = cls(endpoint, response_server)
        table._watch = await discovery.watch(endpoint, table.apply)
        return table

    def close(self) -> None:
        """Stop following discovery. The entries stay."""
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def clear(self) -> None:
        """Remove every instance, as if discovery had removed it."""
        for entry in list(self.entries):
            self._remove(entry)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def find(self, instance_id: int) -> Entry | None:
        """The entry of that id."""
        return self._by_id.get(instance_id)

    async def filled(self) -> None:
        """Wait until there is an instance. Without limit: put a timeout around it."""
        while not self.entries:
            await self._filled.wait()

    def listen(self, listener: TableListener) -> None:
        """Tell `listener` of changes. The reference is weak."""
        self._listeners.add(listener)

    def apply(self, event: DiscoveryEvent) -> None:
        """Apply one event of discovery."""
        known = self._by_id.get(event.instance.instance_id)
        if isinstance(event, Added):
            self._response_server.clear_instance_tombstone(event.instance.endpoint_instance_id)
            if known is None or known.instance != event.instance:
                self._replace(known, event.instance)
        elif known is not None:
            self._remove(known)

    def _replace(self, known: Entry | None, instance: Instance) -> None:
        if known is not None:
            self._take_out(known)
        entry = Entry(instance, self.cpu if instance.device_type == "cpu" else self.other)
        insort(self.entries, entry, key=_id_of)
        self._by_id[instance.instance_id] = entry
        entry.queue.add(entry)
        self._filled.set()
        self._tell(known)

    def _remove(self, entry: Entry) -> None:
        self._take_out(entry)
        if not self.entries:
            self._filled.clear()
        self._tell(entry)
        self._response_server.cancel_instance_streams(entry.instance.endpoint_instance_id)

    def _take_out(self, entry: Entry) -> None:
        place = bisect_left(self.entries, entry.instance.instance_id, key=_id_of)
        del self.entries[place]  # ids are unique; `remove` would compare them one by one
        del self._by_id[entry.instance.instance_id]
        entry.queue.remove(entry)

    def _tell(self, gone: Entry | None) -> None:
        for listener in list(self._listeners):
            listener.table_changed(gone)
