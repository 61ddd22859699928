"""`Discovery`: who serves what, and where. The interface that every backend implements.

A backend holds *instance records* (`wire.instance.Instance`), keyed by namespace, component, endpoint and instance id.
Workers register theirs and keep them alive; callers list them, or watch the ones of an endpoint come and go.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass

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


class Watch(abc.ABC):
    """The life of one `Discovery.watch`."""

    @abc.abstractmethod
    def close(self) -> None:
        """No further event reaches the listener; may be called twice."""


class Discovery(abc.ABC):
    """One backend.

    Each listener of `watch` is called on the event loop on which it was given, in the order of the events. What it
    raises is logged, once; the watch goes on.
    """

    connection_id: int
    """The unsigned 64-bit number of this process; the instance id of every endpoint that it serves."""

    @abc.abstractmethod
    async def register(self, instance: Instance) -> None:
        """Publish the record, in place of an older one of the same key, and keep it alive until it is unregistered.

        All or nothing: if this raises, or is cancelled, the older one stays. Raises InvalidRequest after `withdraw` and
        `close`, and what the store raises (OSError, CannotConnect).
        """

    @abc.abstractmethod
    async def unregister(self, instance: Instance) -> None:
        """Take the record out at once; raises InvalidRequest if this object did not register it.

        Does nothing after `withdraw`, which took it out already.
        """

    @abc.abstractmethod
    async def list(self, endpoint: EndpointId | None = None) -> list[Instance]:
        """The records of the endpoint, or of all of them, now, in the order of their names and instance ids."""

    @abc.abstractmethod
    async def watch(self, endpoint: EndpointId, listener: Listener) -> Watch:
        """Call `listener` with an event for each change, first with `Added` for each instance that is already there.

        Those first calls are made before this returns. A record that is removed and put again is two events.
        """

    def withdraw(self) -> None:  # noqa: B027  # a backend that expires nothing may do without
        """Take every record of this process out at once, and take no further one; `list` and `watch` go on.

        May be called from any thread, without an event loop, and twice. Waits for at most about two seconds; a record
        that the store does not remove in that time expires. Raises nothing.
        """

    @abc.abstractmethod
    async def close(self) -> None:
        """Unregister everything and end every watch; may be called twice."""
