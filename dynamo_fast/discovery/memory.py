"""`MemoryDiscovery`: instance records of this one object, for workers and callers that share it (runtime.md 1.5)."""

from __future__ import annotations

import secrets

from dynamo_fast.discovery.base import Added, Discovery, DiscoveryEvent, Listener, Removed, Watch
from dynamo_fast.discovery.subscription import Subscription
from dynamo_fast.errors import InvalidRequest
from dynamo_fast.wire.address import EndpointId, EndpointInstanceId
from dynamo_fast.wire.instance import Instance

__all__ = ["MemoryDiscovery"]


class MemoryDiscovery(Discovery):
    """Private to this object: another one sees nothing of it. No heartbeats, no expiry. Used from one event loop."""

    def __init__(self, *, connection_id: int | None = None) -> None:
        self.connection_id = secrets.randbits(64) if connection_id is None else connection_id
        self._instances: dict[EndpointInstanceId, Instance] = {}
        self._watches: dict[Subscription, EndpointId] = {}
        self._withdrawn = False

    async def register(self, instance: Instance) -> None:
        if self._withdrawn:
            raise InvalidRequest("this process has left discovery: nothing can be registered any more")
        self._instances[instance.endpoint_instance_id] = instance
        self._tell(Added(instance))

    async def unregister(self, instance: Instance) -> None:
        known = self._instances.pop(instance.endpoint_instance_id, None)
        if known is not None:
            self._tell(Removed(known))
        elif not self._withdrawn:
            raise InvalidRequest(f"{instance.endpoint_id} was not registered here: nothing to unregister")

    async def list(self, endpoint: EndpointId | None = None) -> list[Instance]:
        found = (each for each in self._instances.values() if endpoint is None or each.endpoint_id == endpoint)
        return sorted(found, key=lambda instance: instance.endpoint_instance_id)

    async def watch(self, endpoint: EndpointId, listener: Listener) -> Watch:
        watch = Subscription(listener, self._unsubscribe)
        self._watches[watch] = endpoint
        for instance in await self.list(endpoint):
            watch.tell(Added(instance))
        return watch

    def withdraw(self) -> None:
        self._withdrawn = True
        instances, self._instances = self._instances, {}
        for instance in instances.values():
            self._tell(Removed(instance))

    async def close(self) -> None:
        self._watches.clear()
        self._instances.clear()

    def _unsubscribe(self, watch: Subscription) -> None:
        self._watches.pop(watch, None)

    def _tell(self, event: DiscoveryEvent) -> None:
        for watch, endpoint in list(self._watches.items()):
            if event.instance.endpoint_id == endpoint:
                watch.tell(event)
