"""`Routers`: the endpoints and models that discovery knows, and a `PushRouter` for each endpoint that is called."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from types import TracebackType
from typing import NamedTuple, Protocol

from dynamo_fast.config import ANY_PART
from dynamo_fast.discovery.base import Added, Discovery, Removed
from dynamo_fast.discovery.buckets import INSTANCES, MODEL_CARDS
from dynamo_fast.discovery.store import Record, RecordPut, Watch
from dynamo_fast.egress.instance_table import InstanceTable
from dynamo_fast.egress.push_router import PushRouter, RouterMode
from dynamo_fast.egress.router import AddressedPushRouter
from dynamo_fast.errors import PayloadError
from dynamo_fast.logs import get_logger
from dynamo_fast.wire.address import EndpointId
from dynamo_fast.wire.instance import Instance
from dynamo_fast.wire.model_card import Card, ModelRecord
from dynamo_fast.wire.payload import PayloadCodec

__all__ = ["PermittedRouters", "RouterSource", "Routers", "ServedModel"]

logger = get_logger(__name__)


class ServedModel(NamedTuple):
    """A model at one endpoint; all instances of the endpoint have the same card."""

    endpoint: EndpointId
    card: Card


class RouterSource(Protocol):
    """Where the gateway gets its routers from. `Routers` is one; a program may have another."""

    def find(self, endpoint: EndpointId) -> PushRouter | None:
        """The router of an endpoint; None if it has no instance."""

    def find_model(self, name: str) -> Sequence[ServedModel]:
        """Where a model of that name, or with that alias, is served; empty if nowhere."""

    def endpoints(self) -> Mapping[EndpointId, Sequence[Instance]]:
        """The endpoints that have instances, and these."""

    def models(self) -> Mapping[str, Sequence[ServedModel]]:
        """The models by their names, aliases included."""


class PermittedRouters:
    """A `RouterSource` that shows of another one only what clients may call. It holds nothing but that one."""

    def __init__(self, source: RouterSource, patterns: Collection[tuple[str, ...]]) -> None:
        """`patterns`: namespace, component and endpoint; each part is a name, or `*` for every name."""
        self._source = source
        self._patterns = patterns

    def find(self, endpoint: EndpointId) -> PushRouter | None:
        """See RouterSource."""
        return self._source.find(endpoint) if self._permits(endpoint) else None

    def find_model(self, name: str) -> Sequence[ServedModel]:
        """See RouterSource."""
        return self._served(self._source.find_model(name))

    def endpoints(self) -> Mapping[EndpointId, Sequence[Instance]]:
        """See RouterSource."""
        return {
            endpoint: instances for endpoint, instances in self._source.endpoints().items() if self._permits(endpoint)
        }

    def models(self) -> Mapping[str, Sequence[ServedModel]]:
        """See RouterSource."""
        models = self._source.models().items()
        return {name: served for name, places in models if (served := self._served(places))}

    def _served(self, places: Sequence[ServedModel]) -> Sequence[ServedModel]:
        return [each for each in places if self._permits(each.endpoint)]

    def _permits(self, endpoint: EndpointId) -> bool:
        return any(
            all(wanted in (ANY_PART, part) for wanted, part in zip(pattern, endpoint, strict=True))
            for pattern in self._patterns
        )


class Routers:
    """Follows two buckets of a discovery: instances and model cards. Made with `open`, on one event loop.

    Owns its watches, one table and one router for each endpoint that has instances; `close` ends them. The discovery and
    the addressed router belong to the caller.
    """

    def __init__(
        self, router: AddressedPushRouter, *, mode: RouterMode = RouterMode.RoundRobin, retries: int = 0
    ) -> None:
        """`mode` and `retries`: see `PushRouter`."""
        self._router = router
        self._mode = mode
        self._retries = retries
        self._tables: dict[EndpointId, InstanceTable] = {}
        self._routers: dict[EndpointId, PushRouter] = {}
        self._records: dict[str, ModelRecord] = {}
        self._models: dict[str, list[ServedModel]] | None = None
        self._watches: list[Watch] = []

    @classmethod
    async def open(
        cls,
        discovery: Discovery,
        router: AddressedPushRouter,
        *,
        mode: RouterMode = RouterMode.RoundRobin,
        retries: int = 0,
    ) -> Routers:
        """Routers that know what `discovery` lists now. Raises what the discovery backend raises."""
        routers = cls(router, mode=mode, retries=retries)
        try:
            instances = discovery.store.bucket(INSTANCES)
            routers._watches.append(await instances.watch("", routers._instance_changed))
            cards = discovery.store.bucket(MODEL_CARDS)
            routers._watches.append(await cards.watch("", routers._card_changed))
        except BaseException:
            routers.close()
            raise
        return routers

    def close(self) -> None:
        """Stop following discovery. Answers under way go on. May be called again."""
        for watch in self._watches:
            watch.close()
        for router in self._routers.values():
            router.close()
        self._watches.clear()
        self._routers.clear()

    async def __aenter__(self) -> Routers:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def find(self, endpoint: EndpointId) -> PushRouter | None:
        """See RouterSource."""
        known = self._routers.get(endpoint)
        if known is None:
            table = self._tables.get(endpoint)
            if table is None:
                return None
            known = PushRouter(table, self._router, mode=self._mode, retries=self._retries)
            self._routers[endpoint] = known
        return known

    def find_model(self, name: str) -> Sequence[ServedModel]:
        """See RouterSource."""
        return self.models().get(name, ())

    def endpoints(self) -> Mapping[EndpointId, Sequence[Instance]]:
        """See RouterSource."""
        return {endpoint: [entry.instance for entry in table] for endpoint, table in sorted(self._tables.items())}

    def models(self) -> Mapping[str, Sequence[ServedModel]]:
        """See RouterSource."""
        if self._models is None:
            self._models = {}
            for _, record in sorted(self._records.items()):
                served = ServedModel(record.endpoint_id, record.card)
                for name in (record.card.display_name, *(record.card.aliases or ())):
                    places = self._models.setdefault(name, [])
                    if all(each.endpoint != served.endpoint for each in places):
                        places.append(served)
        return self._models

    def _instance_changed(self, event: Record[Instance]) -> None:
        instance = event.value
        endpoint = instance.endpoint_id
        table = self._tables.get(endpoint)
        if isinstance(event, RecordPut):
            if table is None:
                table = self._tables[endpoint] = InstanceTable(endpoint, self._router.response_server)
            # Items pass on as they come, and HTTP wants JSON, which every worker writes if it is asked for it.
            table.apply(Added(dataclasses.replace(instance, request_plane_codec=PayloadCodec.JSON)))
        elif table is not None:
            table.apply(Removed(instance))
            if not table.entries:
                self._forget(endpoint)

    def _forget(self, endpoint: EndpointId) -> None:
        del self._tables[endpoint]
        router = self._routers.pop(endpoint, None)
        if router is not None:
            router.close()

    def _card_changed(self, event: Record[bytes]) -> None:
        self._models = None
        if not isinstance(event, RecordPut):
            self._records.pop(event.key, None)
            return
        try:
            self._records[event.key] = ModelRecord.decode(event.value)
        except PayloadError as error:
            self._records.pop(event.key, None)
            logger.warning("the model card %s is ignored: %s", event.key, error)
