"""`Fleet`: the instances and models that there are, what the router thinks of each instance, and what has come and gone."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

import msgspec

from dynamo_fast.gateway.routers import RouterSource
from dynamo_fast.wire.address import EndpointId, EndpointInstanceId
from dynamo_fast.wire.instance import Instance
from dynamo_fast.wire.model_card import Card

__all__ = ["Change", "Fleet", "FleetSource", "Health", "InstanceView", "Load", "ModelView", "RoutersFleet"]

MAX_SHOWN = 500
"""Instances, and models, that are shown. The rest is only counted."""
MAX_CHANGES = 50
"""Arrivals and departures that are kept."""

Health = Literal["listed", "ready", "avoided"]
"""`listed`: in discovery; no router says more. `ready`: the router sends requests there. `avoided`: it does not, for a
while, because the instance failed or is overloaded."""


class Load(NamedTuple):
    """What a router knows of an instance."""

    in_flight: int
    is_free: bool


class FleetSource(Protocol):
    """Where a fleet comes from. Asked once a second, on the event loop: it must not block."""

    def instances(self) -> Iterable[Instance]:
        """Every instance, in any order."""

    def models(self) -> Iterable[tuple[EndpointId, Card]]:
        """Each model of each endpoint. A pair may come again."""

    def loads(self, endpoint: EndpointId) -> Mapping[int, Load]:
        """What is known of the instances of an endpoint, by their ids."""


class InstanceView(msgspec.Struct, frozen=True):
    """One instance."""

    endpoint: str
    id: str
    """In hexadecimal digits, as `x-dynamo-instance-id` has it."""
    address: str
    transport: str
    since: float
    """Unix time at which it was seen first."""
    health: Health = "listed"
    in_flight: int = 0
    """Requests of this process."""


class ModelView(msgspec.Struct, frozen=True):
    """One model at one endpoint."""

    name: str
    aliases: list[str]
    endpoint: str
    types: list[str]
    """Which requests it takes: `Chat`, `Completions`, `Embedding` and the like."""
    input: str
    """`Text`: its workers take the request itself. `Tokens` and `Tensor`: they need a frontend that makes these."""
    instances: int


class Change(msgspec.Struct, frozen=True):
    """An instance or a model came or went."""

    at: float
    """Unix time, on the second."""
    what: Literal["joined", "left"]
    kind: Literal["instance", "model"]
    endpoint: str
    name: str
    """The id of the instance, in hexadecimal digits, or the name of the model."""


class Fleet:
    """What `source` lists, as `look` saw it last, and what has changed from look to look.

    Owned by the live state of a gateway, or by `dynamo-fast top`. One event loop. It holds a reference for each instance
    and each model; what it shows of them is limited.
    """

    def __init__(self, source: FleetSource) -> None:
        self.changes: deque[Change] = deque(maxlen=MAX_CHANGES)
        """The newest first."""
        self._source = source
        self._listed: list[Instance] = []
        self._instances: dict[EndpointInstanceId, tuple[Instance, float]] = {}
        self._shown: list[EndpointInstanceId] = []
        self._numbers: dict[EndpointId, int] = {}
        self._models: dict[tuple[EndpointId, str], Card] = {}

    def look(self) -> None:
        """See what there is now. Little work while the instances are those of the last look."""
        now = time.time()
        known_models = self._models
        self._models = {(endpoint, card.display_name): card for endpoint, card in self._source.models()}
        for gone in sorted(known_models.keys() - self._models.keys()):
            self._note(now, "left", gone)
        listed = list(self._source.instances())
        if listed != self._listed:  # the same objects are equal at once
            self._listed = listed
            self._take(listed, now)
        for new in sorted(self._models.keys() - known_models.keys()):
            self._note(now, "joined", new)

    def _take(self, listed: list[Instance], now: float) -> None:
        known = self._instances
        self._instances = {}
        for instance in listed:
            key = instance.endpoint_instance_id
            self._instances[key] = instance, known[key][1] if key in known else now
        for gone in sorted(known.keys() - self._instances.keys()):
            self._note(now, "left", gone)
        for new in sorted(self._instances.keys() - known.keys()):
            self._note(now, "joined", new)
        self._shown = sorted(self._instances)[:MAX_SHOWN]
        self._numbers = dict(Counter(instance.endpoint_id for instance in listed))

    def endpoints(self) -> dict[str, int]:
        """How many instances each endpoint has, by its name `NAMESPACE.COMPONENT.ENDPOINT`."""
        return {_name(endpoint): number for endpoint, number in self._numbers.items()}

    def instances(self) -> tuple[list[InstanceView], int]:
        """The first `MAX_SHOWN` instances, in the order of endpoints and ids; and how many there are."""
        loads: dict[EndpointId, Mapping[int, Load]] = {}
        views = []
        for key in self._shown:
            instance, since = self._instances[key]
            endpoint = instance.endpoint_id
            if endpoint not in loads:
                loads[endpoint] = self._source.loads(endpoint)
            views.append(_view(instance, since, loads[endpoint].get(instance.instance_id)))
        return views, len(self._instances)

    def models(self) -> list[ModelView]:
        """The first `MAX_SHOWN` models, one for each name and endpoint, in the order of their names."""
        listed = sorted(self._models.items(), key=lambda each: (each[0][1], each[0][0]))
        return [
            _model_view(endpoint, card, self._numbers.get(endpoint, 0)) for (endpoint, _), card in listed[:MAX_SHOWN]
        ]

    def _note(
        self, at: float, what: Literal["joined", "left"], key: EndpointInstanceId | tuple[EndpointId, str]
    ) -> None:
        if isinstance(key, EndpointInstanceId):
            change = Change(at, what, "instance", _name(key[:3]), f"{key.instance_id:x}")
        else:
            change = Change(at, what, "model", _name(key[0]), key[1])
        self.changes.appendleft(change)


class RoutersFleet:
    """The fleet that the routers of a gateway know: a `FleetSource`. It holds nothing but its source."""

    def __init__(self, source: RouterSource) -> None:
        self._source = source

    def instances(self) -> Iterator[Instance]:
        """See FleetSource."""
        for instances in self._source.endpoints().values():
            yield from instances

    def models(self) -> Iterator[tuple[EndpointId, Card]]:
        """See FleetSource. A model comes once for each of its names."""
        for places in self._source.models().values():
            yield from places

    def loads(self, endpoint: EndpointId) -> Mapping[int, Load]:
        """See FleetSource."""
        router = self._source.find(endpoint)
        if router is None:
            return {}
        free = set(router.free_ids())
        return {
            entry.instance.instance_id: Load(entry.in_flight, entry.instance.instance_id in free)
            for entry in router.table
        }


def _name(endpoint: Sequence[str]) -> str:
    return ".".join(endpoint)


def _view(instance: Instance, since: float, load: Load | None) -> InstanceView:
    health: Health = "listed" if load is None else "ready" if load.is_free else "avoided"
    return InstanceView(
        endpoint=_name(instance.endpoint_id),
        id=f"{instance.instance_id:x}",
        address=instance.transport.address,
        transport=instance.transport.kind,
        since=since,
        health=health,
        in_flight=0 if load is None else load.in_flight,
    )


def _model_view(endpoint: EndpointId, card: Card, instances: int) -> ModelView:
    return ModelView(
        name=card.display_name,
        aliases=list(card.aliases or ()),
        endpoint=_name(endpoint),
        types=card.flags,
        input=card.model_input,
        instances=instances,
    )
