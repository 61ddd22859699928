"""`Discovery`: who serves what, and where. The view of a store's bucket of instances that routers and workers use.

A record is an `Instance` (`wire.instance`), keyed by namespace, component, endpoint and instance id. Workers register
theirs and keep them alive; callers list them, or watch the ones of an endpoint come and go. How that is done on files,
in etcd or in memory is the affair of the store (store.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from dynamo_fast.discovery.buckets import INSTANCES
from dynamo_fast.discovery.store import RecordEvent, RecordPut, Store, Watch
from dynamo_fast.errors import InvalidRequest
from dynamo_fast.wire.address import EndpointId
from dynamo_fast.wire.instance import Instance

__all__ = ["Added", "Discovery", "DiscoveryEvent", "Listener", "Removed", "Watch"]


@dataclass(frozen=True)
class Added:
    """An instance appeared, or its record was replaced by this one."""

    instance: Instance


@dataclass(frozen=True)
class Removed:
    """An instance went away; the record is the last one that was seen."""

    instance: Instance


DiscoveryEvent = Added | Removed
Listener = Callable[[DiscoveryEvent], None]


class Discovery:
    """The instances in one store, typed. It holds nothing but the store, which it owns and closes.

    Each listener of `watch` is called on the event loop on which it was given, in the order of the events. What it
    raises is logged, once; the watch goes on.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        """Where the records are; its other buckets hold model cards and event channels."""
        self._instances = store.bucket(INSTANCES)

    @property
    def connection_id(self) -> int:
        """The unsigned 64-bit number of this process; the instance id of every endpoint that it serves."""
        return self.store.connection_id

    async def register(self, instance: Instance) -> None:
        """Publish the record, in place of an older one of the same key, and keep it alive until it is unregistered.

        All or nothing: if this raises, or is cancelled, the older one stays. Raises InvalidRequest after `withdraw` and
        `close`, and what the store raises (OSError, CannotConnect).
        """
        await self._instances.put(_key(instance), instance)

    async def unregister(self, instance: Instance) -> None:
        """Remove the record at once; raises InvalidRequest if this object did not register it.

        Does nothing after `withdraw`, which removed it already.
        """
        if not await self._instances.remove(_key(instance)) and not self.store.withdrawn:
            raise InvalidRequest(f"{instance.endpoint_id} was not registered by this process: nothing to unregister")

    async def list(self, endpoint: EndpointId | None = None) -> list[Instance]:
        """The records of the endpoint, or of all of them, now, in the order of their names and instance ids."""
        records = await self._instances.list(_prefix(endpoint))
        found = (each.value for each in records if endpoint in (None, each.value.endpoint_id))
        return sorted(found, key=lambda instance: instance.endpoint_instance_id)

    async def watch(self, endpoint: EndpointId, listener: Listener) -> Watch:
        """Call `listener` with an event for each change, first with `Added` for each instance that is already there.

        Those first calls are made before this returns. A record that is removed and put again is two events.
        """
        return await self._instances.watch(_prefix(endpoint), partial(_tell, endpoint, listener))

    def withdraw(self) -> None:
        """Remove every record of this process at once, and take no further one; `list` and `watch` go on.

        May be called from any thread, without an event loop, and twice. Waits for at most about two seconds; a record
        that the store does not remove in that time expires. Raises nothing.
        """
        self.store.withdraw()

    async def close(self) -> None:
        """Unregister everything and end every watch; may be called twice."""
        await self.store.close()


def _key(instance: Instance) -> str:
    return f"{instance.endpoint_id}/{instance.instance_id:x}"


def _prefix(endpoint: EndpointId | None) -> str:
    return "" if endpoint is None else f"{endpoint}/"


def _tell(endpoint: EndpointId, listener: Listener, event: RecordEvent[Instance]) -> None:
    """A `/` in a name may give two endpoints the same prefix: compare the names, too."""
    if event.value.endpoint_id == endpoint:
        listener(Added(event.value) if isinstance(event, RecordPut) else Removed(event.value))
