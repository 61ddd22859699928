"""`MemoryDiscovery`: instance records of this one object, for workers and callers that share it (runtime.md 1.5)."""

from __future__ import annotations

import secrets

from dynamo_fast.discovery.base import Added, Discovery, DiscoveryEvent, Listener, Removed, Watch
from dynamo_fast.errors import InvalidRequest
from dynamo_fast.wire.address import EndpointId, EndpointInstanceId
from dynamo_fast.wire.instance import Instance

__all__ = ["MemoryDiscovery"]


class MemoryDiscovery(Discovery):
    """Private to this object: another one sees nothing of it. No heartbeats, no expiry."""

    def __init__(self, *, connection_id: int | None = None) -> None:
        self.connection_id = secrets.randbits(64) if connection_id is None else connection_id
        self._instances: dict[EndpointInstanceId, Instance] = {}
        self._watches: set[_MemoryWatch] = set()

    async def register(self, instance: Instance) -> None:
        self._instances[instance.endpoint_instance_id] = instance
        self._tell(Added(instance))

    async def unregister(self, instance: Instance) -> None:
        known = self._instances.pop(instance.endpoint_instance_id, None)
        if known is None:
            raise InvalidRequest(f"{instance.endpoint_id} was not registered here: nothing to unregister")
        self._tell(Removed(known))

    async def list(self, endpoint: EndpointId | None = None) -> list[Instance]:
        found = (each for each in self._instances.values() if endpoint is None or each.endpoint_id == endpoint)
        return sorted(found, key=lambda instance: instance.endpoint_instance_id)

    async def watch(self, endpoint: EndpointId, listener: Listener) -> Watch:
        watch = _MemoryWatch(self._watches, endpoint, listener)
        for instance in await self.list(endpoint):
            watch.tell(Added(instance))
        return watch

    async def close(self) -> None:
        self._watches.clear()
        self._instances.clear()

    def _tell(self, event: DiscoveryEvent) -> None:
        for watch in list(self._watches):
            watch.tell(event)


class _MemoryWatch(Watch):
    def __init__(self, watches: set[_MemoryWatch], endpoint: EndpointId, listener: Listener) -> None:
        self._watches = watches
        self._endpoint = endpoint
        self._listener = listener
        watches.add(self)

    def tell(self, event: DiscoveryEvent) -> None:
        if event.instance.endpoint_id == self._endpoint:
            self._listener(event)

    def close(self) -> None:
        self._watches.discard(self)
