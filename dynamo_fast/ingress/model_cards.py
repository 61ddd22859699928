"""`ModelCards`: the model cards of one worker, from their first record to their removal (model_card.md 2 and 3).

A frontend lists a model while there is a card and an instance of its endpoint. It never takes a changed card: the old one
stays in force until it is removed. And it refuses an instance whose card differs from the cards that other instances of the
endpoint have for the model; a frontend of Dynamo 1.3 compares all endpoints of the namespace. So a card that would be
refused is an error here, and nothing is published. With the card of another process at another endpoint it is a warning,
as frontends of Dynamo 1.6 serve both.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import quote, unquote, urlsplit

import msgspec

from dynamo_fast.discovery.base import Discovery
from dynamo_fast.discovery.buckets import MODEL_CARDS
from dynamo_fast.errors import Disconnected, DynamoError, InvalidRequest, PayloadError
from dynamo_fast.logs import get_logger
from dynamo_fast.observability.status_server import METADATA_PATH
from dynamo_fast.observability.system_status import SystemStatus
from dynamo_fast.wire.address import EndpointId
from dynamo_fast.wire.model_card import Card, CardFile, ModelRecord
from dynamo_fast.wire.text import printable

__all__ = ["Model", "ModelCards"]

logger = get_logger(__name__)


class Model(Protocol):
    """What an endpoint serves, for frontends to list: `dynamo_fast.llm.ModelCard` is one."""

    @property
    def cards(self) -> Sequence[Card]:
        """The card of the model, or of a LoRA adapter, or of both, with local files."""

    @property
    def self_host(self) -> bool | None:
        """Whether the worker serves the files over HTTP; None: if its status server is on, as the environment says."""


@dataclass(frozen=True)
class _Published:
    """A card that is in discovery, or is being put there."""

    record: ModelRecord
    paths: list[str]
    """The URL paths of its files at the status server."""


class ModelCards:
    """What this worker has published in the bucket of model cards.

    Owned by a `Worker`; used on its event loop. A record ends with `remove`, or with the discovery, which removes the
    cards of a process that leaves before its instances. One change runs at a time: a card that is being removed must not
    be put back.
    """

    def __init__(self, discovery: Discovery, status: SystemStatus) -> None:
        self._bucket = discovery.store.bucket(MODEL_CARDS)
        self._instance_id = discovery.connection_id
        self._status = status
        self._published: dict[str, _Published] = {}
        self._left: set[EndpointId] = set()
        """Endpoints that have no cards any more, until they are served again."""
        self._changing = asyncio.Lock()

    def of(self, endpoint: EndpointId) -> list[ModelRecord]:
        """The records of an endpoint that are published."""
        return [each.record for each in self._published.values() if each.record.endpoint_id == endpoint]

    def served(self, endpoint: EndpointId) -> None:
        """The endpoint is being served, maybe again after it has left: `publish` takes its cards."""
        self._left.discard(endpoint)

    async def check(self, endpoint: EndpointId, model: Model) -> None:
        """Raises InvalidRequest for a model that `publish` refuses; publishes nothing."""
        for record, _ in self._prepare(endpoint, model):
            await self._check_conflicts(record)

    async def publish(self, endpoint: EndpointId, model: Model) -> None:
        """Put the cards of the model under the endpoint. Cards that are there already stay as they are.

        All or nothing. Raises InvalidRequest for a card that a frontend refuses: a faulty field, or a card that differs
        from the one that this worker, or another instance of the endpoint, has for the model. Raises Disconnected if the
        endpoint has left, and what the store raises.
        """
        async with self._changing:
            if endpoint in self._left:
                raise Disconnected(f"{endpoint} has left discovery: no model card is published")
            await self._publish(self._prepare(endpoint, model))

    async def remove(self, endpoint: EndpointId, suffix: str | None = None) -> bool:
        """Remove the card of the model, or of the LoRA adapter with that suffix. Returns False if there is none."""
        async with self._changing:
            found = [each for each in self.of(endpoint) if (each.model_suffix or None) == suffix]
            for record in found:
                await self._remove(record.key)
            return bool(found)

    async def remove_all(self, endpoint: EndpointId) -> None:
        """The endpoint leaves: remove every card of it, adapters first. `publish` refuses more, until `served`.

        What cannot be removed expires; it is logged.
        """
        self._left.add(endpoint)
        async with self._changing:
            for record in sorted(self.of(endpoint), key=lambda each: not each.model_suffix):
                try:
                    await self._remove(record.key)
                except (DynamoError, OSError) as error:
                    logger.warning("the model card %s could not be removed: %s", printable(record.key), error)

    async def update(self, endpoint: EndpointId, change: Callable[[Card], Card]) -> None:
        """Replace the card of the endpoint's model by `change` of it. Frontends follow a change of the taints only.

        Raises InvalidRequest if the endpoint has no card of a model.
        """
        async with self._changing:
            records = [each for each in self.of(endpoint) if not each.model_suffix]
            if not records:
                raise InvalidRequest(f"{endpoint} has no card of a model: nothing to update")
            for record in records:
                changed = record.with_card(change(record.card))
                await self._bucket.put(changed.key, changed.encode())
                self._published[changed.key] = _Published(changed, self._published[changed.key].paths)

    async def _publish(self, prepared: Sequence[tuple[ModelRecord, dict[str, Path]]]) -> None:
        for record, _ in prepared:
            await self._check_conflicts(record)
        put: list[str] = []
        try:
            for record, files in prepared:
                if record.key not in self._published:
                    put.append(record.key)
                    await self._put(record, files)
        except BaseException:
            for key in put:
                with contextlib.suppress(DynamoError, OSError):
                    await self._bucket.remove(key)
                self._forget(key)
            raise

    def _prepare(self, endpoint: EndpointId, model: Model) -> list[tuple[ModelRecord, dict[str, Path]]]:
        prepared = []
        for card in model.cards:
            card.check()
            record = ModelRecord.of(card, endpoint, self._instance_id)
            prepared.append(self._hosted(record) if self._is_hosting(model) else (_local(record), {}))
        return prepared

    def _is_hosting(self, model: Model) -> bool:
        wanted = self._status.config.self_host_metadata if model.self_host is None else model.self_host
        return wanted and self._status.files is not None

    def _hosted(self, record: ModelRecord) -> tuple[ModelRecord, dict[str, Path]]:
        """The record with the URLs of the status server, and the files behind the paths of these URLs."""
        card = record.card
        folder = "/".join((*record.endpoint_id, card.slug, record.model_suffix or "_base"))
        files: dict[str, Path] = {}

        def host(file: CardFile) -> CardFile:
            if (local := _local_path(file)) is None:
                return file
            path = f"{METADATA_PATH}{folder}/{local.name}"
            if files.get(path, local) != local:  # a template from elsewhere, which has the name of another file
                path = f"{METADATA_PATH}{folder}/{file.checksum[-8:]}-{local.name}"
            files[path] = local
            return msgspec.structs.replace(file, path=f"{self._status.url}{quote(path)}")

        return record.with_card(card.with_files(host)), files

    async def _check_conflicts(self, record: ModelRecord) -> None:
        """Raises InvalidRequest if a frontend would refuse the card because of one that it has already."""
        mine = self._published.get(record.key)
        if mine is not None and mine.record != record:
            raise InvalidRequest(
                f"{record.endpoint_id} has a card of the model {printable(mine.record.card.display_name)!r} already, with "
                f"another {_differences(mine.record.card, record.card)}: a frontend takes no changed card, so remove the "
                "old one, and put the new one then"
            )
        for other in _read(each.value for each in await self._bucket.list(f"{record.namespace}/")):
            if other.key == record.key or not other.must_match(record) or _are_equal(other.card, record.card):
                continue
            where = f"the instance {other.instance_id:x} of {other.endpoint_id}"
            what = f"{printable(record.card.display_name)!r} with another {_differences(other.card, record.card)}"
            if other.endpoint_id == record.endpoint_id or other.instance_id == self._instance_id:
                raise InvalidRequest(
                    f"{where} has the model {what}: a frontend refuses the second card, so give it another name or "
                    "endpoint and namespace, or stop that instance first (the record of a killed one expires)"
                )
            logger.warning("%s has the model %s: a frontend of Dynamo 1.3 refuses the second card", where, what)

    async def _put(self, record: ModelRecord, files: dict[str, Path]) -> None:
        self._published[record.key] = _Published(record, list(files))
        if files and self._status.files is not None:
            self._status.files.update(files)  # a frontend reads them as soon as there is a record
        await self._bucket.put(record.key, record.encode())

    async def _remove(self, key: str) -> None:
        await self._bucket.remove(key)
        self._forget(key)

    def _forget(self, key: str) -> None:
        published = self._published.pop(key, None)
        if published is not None and self._status.files is not None:
            for path in published.paths:
                self._status.files.pop(path, None)


def _local(record: ModelRecord) -> ModelRecord:
    """The record without the further files: a frontend that reads local files finds them beside the others."""
    if not record.card.extra_files:
        return record
    return record.with_card(msgspec.structs.replace(record.card, extra_files=msgspec.UNSET))


def _local_path(file: CardFile) -> Path | None:
    """Where the file is on this machine; None for another URL than `file`."""
    url = urlsplit(file.path)
    if url.scheme == "file":
        return Path(unquote(url.path))
    return None if "://" in file.path else Path(file.path)


def _read(contents: Iterable[bytes]) -> Iterable[ModelRecord]:
    """The records that can be read: a frontend skips the others, too."""
    for content in contents:
        with contextlib.suppress(PayloadError):
            yield ModelRecord.decode(content)


def _are_equal(one: Card, other: Card) -> bool:
    """Whether a frontend takes both. Cards that are the same need no checksum, and so no package for it."""
    return one == other or one.mdc_sum() == other.mdc_sum()


def _differences(one: Card, other: Card) -> str:
    """The names of the fields in which the cards differ."""
    fields = [name for name in one.__struct_fields__ if getattr(one, name) != getattr(other, name)]
    return ", ".join(fields) or "content"
