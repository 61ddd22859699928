"""`KubernetesStore`: records in custom resources, as Dynamo's `kubernetes` backend keeps them (runtime.md 1.6,
kubernetes.md). `KubernetesDiscovery`: its instances.

    DynamoWorkerMetadata POD, spec.data                    one for each process, with the records of all its buckets
      endpoints    {"demo/backend/generate/2f232d726471": {...}}
      model_cards  {"demo/backend/generate/2f232d726471": {...}}

There is no lease and no heartbeat. Kubernetes knows whether the pod is ready (EndpointSlices, in container mode Pods),
and deletes the resource with the pod, which owns it. A process is seen by others once its pod is ready.

A process writes all of its records at once, by server-side apply. Where two processes have one resource, the last one
wins, and the records of the other are gone: each process of a pod needs a container of its own, and container mode.

All traffic with the API is in a thread of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from dynamo_fast.config import KubernetesConfig
from dynamo_fast.discovery.background import BackgroundLoop
from dynamo_fast.discovery.base import Discovery
from dynamo_fast.discovery.buckets import BucketKind
from dynamo_fast.discovery.kubernetes_access import SERVICE_ACCOUNT, Access
from dynamo_fast.discovery.kubernetes_bucket import FIELDS, KubernetesBucket
from dynamo_fast.discovery.kubernetes_client import KubernetesClient, Rejected
from dynamo_fast.discovery.kubernetes_identity import PODINFO, PodIdentity, instance_id
from dynamo_fast.discovery.kubernetes_members import Members
from dynamo_fast.discovery.kubernetes_objects import (
    METADATAS,
    PODS,
    SLICES,
    Data,
    EndpointSlice,
    Pod,
    WorkerMetadata,
    document,
)
from dynamo_fast.discovery.kubernetes_watch import Reflector
from dynamo_fast.discovery.store import Bucket
from dynamo_fast.discovery.thread_store import ThreadStore
from dynamo_fast.errors import CannotConnect
from dynamo_fast.logs import get_logger

__all__ = ["KubernetesDiscovery", "KubernetesStore"]

logger = get_logger(__name__)

WITHDRAW_TIMEOUT = 2.0
"""Seconds for the API to take the records of a process that leaves."""
RETRIES = (0.25, 1.0)
"""Seconds before an apply is tried again that the API refused for the moment."""
FOR_THE_MOMENT = {409, 429, 500, 502, 503, 504}
"""Such statuses of HTTP."""
IDLE, UNWATCHED = 3600.0, 10.0
"""Seconds between looks whether anything is to be written, and while the own resource is not watched."""

_T = TypeVar("_T")


class KubernetesDiscovery(Discovery):
    """The instances in the custom resources of one namespace."""

    store: KubernetesStore

    def __init__(self, config: KubernetesConfig | None = None) -> None:
        """Raises InvalidConfig if the process does not know its pod, or no way to the API."""
        super().__init__(KubernetesStore(config))


class KubernetesStore(ThreadStore):
    """The buckets in one namespace, and the custom resource of this process.

    Owned by a `KubernetesDiscovery`. Owns the client, the copies of what the API has, and the loop that writes the
    resource again after a loss. May be used from several event loops; its thread starts on first use, ends with `close`,
    and alone talks to the API.
    """

    def __init__(
        self, config: KubernetesConfig | None = None, *, podinfo: Path = PODINFO, account: Path = SERVICE_ACCOUNT
    ) -> None:
        super().__init__("dynamo-fast kubernetes discovery", WITHDRAW_TIMEOUT + 0.5)
        config = KubernetesConfig.from_env() if config is None else config
        self.identity = PodIdentity.find(config, podinfo)
        self.connection_id = instance_id(self.identity.resource)
        self._mode = config.mode
        self._access = Access.find(config, account)
        self._members = Members()
        self._reading: list[KubernetesBucket[Any]] = []
        """Those in which this process lists or watches."""
        self._starting, self._saving = asyncio.Lock(), asyncio.Lock()
        self._client: KubernetesClient | None = None
        self._reflectors: list[Reflector[Any]] = []
        self._generation = -1
        """Of the resource, as this process wrote it last; -1: it has written none."""
        self._own: Reflector[WorkerMetadata] | None = None
        self._keeping: BackgroundLoop | None = None
        self._has_written = False
        """Whether the API may have records of this process."""
        self._unsaved = False
        self._overwritten = False

    def _open(self, kind: BucketKind[_T]) -> Bucket[_T]:
        return KubernetesBucket(kind, self, self, self._members)

    def _left_behind(self) -> str:
        return (
            f"the records of {self.identity.resource} stay until its pod is deleted: the Kubernetes API does not answer"
        )

    def metadata(self) -> bytes:
        """`spec.data`, as this process writes it."""
        return msgspec.json.encode(self._data())

    # In the thread:

    async def _started(self) -> KubernetesClient:
        async with self._starting:
            if self._client is None:
                self._client = KubernetesClient(self._access, self.identity.namespace)
                self.thread.at_end = self._client.close
                self.thread.at_exit = self._withdraw
                if self._mode == "container":
                    await self._clear_predecessor(self._client)
        return self._client

    async def _clear_predecessor(self, client: KubernetesClient) -> None:
        """A container is started again in the same pod: what it wrote before it crashed is still there."""
        try:
            await client.delete(METADATAS, self.identity.resource)
        except CannotConnect as error:
            logger.warning("what an earlier process of %s wrote may still be there: %s", self.identity.resource, error)

    # What this process has

    async def save(self) -> None:
        """Write the records of this process. Raises CannotConnect."""
        client = await self._started()
        async with self._saving:
            self._unsaved = False
            try:
                await self._apply(client)
            except BaseException:
                self._unsaved = True
                raise
        if self._own is None and not self.withdrawn:
            await self._keep(client)

    async def _apply(self, client: KubernetesClient) -> None:
        body = document(self.identity, self._data())
        for pause in (*RETRIES, None):
            self.check_present()  # a process that leaves has written that it has nothing
            had_written, self._has_written = self._has_written, True
            try:
                written = await client.apply(METADATAS, self.identity.resource, body)
                break
            except Rejected as rejection:
                if pause is None or rejection.status not in FOR_THE_MOMENT:
                    self._has_written = had_written
                    raise
                await asyncio.sleep(pause)
        self._generation = written.metadata.generation

    def _data(self) -> Data:
        data: Data = {field: {} for field in FIELDS.values()}
        buckets: list[KubernetesBucket[Any]] = self._leaving()
        for bucket in buckets:
            data[bucket.field] = bucket.own
        return data

    def save_later(self) -> None:
        """Write the records until that succeeds."""
        self._unsaved = True
        if self._keeping is not None:
            self._keeping.restart()
        elif self._has_written and not self.withdrawn:
            self._keeping = self.thread.keep(f"the resource {self.identity.resource} in Kubernetes", self._catch_up)

    async def _catch_up(self) -> float:
        if self._unsaved or self._own is None:
            await self.save()
        return IDLE if self._own is not None else UNWATCHED

    async def _keep(self, client: KubernetesClient) -> None:
        """Watch the own resource from now on: it may be deleted, or another process may write it."""
        mine = replace(METADATAS, field_selector=f"metadata.name={self.identity.resource}")
        own = Reflector(client, mine, self.thread, self._own_changed)
        try:
            await own.start()
        except CannotConnect as error:
            logger.warning("the resource %s is not watched for now: %s", self.identity.resource, error)
            if self._keeping is None:
                self._keeping = self.thread.keep(f"the resource {self.identity.resource} in Kubernetes", self._catch_up)
            return
        self._own = own
        if self.identity.resource not in own.objects:
            self._own_changed(self.identity.resource, None)

    def _own_changed(self, name: str, found: WorkerMetadata | None) -> None:
        if self.withdrawn or name != self.identity.resource:
            return
        if found is None:
            logger.warning("the resource %s was deleted by another process: it is put back", name)
            self.save_later()
        elif found.metadata.generation <= self._generation or self._saving.locked():
            return
        elif _is_same(found.data, self._data()):  # the answer to our own write was lost
            self._generation = found.metadata.generation
        elif not self._overwritten:
            self._overwritten = True
            logger.error(
                "another process writes the resource %s, and its records have replaced ours: give each process of a pod a "
                "container of its own, and set DYN_KUBE_DISCOVERY_MODE=container and CONTAINER_NAME",
                name,
            )

    async def _withdraw(self) -> None:
        self.withdrawn = True
        buckets: list[KubernetesBucket[Any]] = self._leaving()
        for bucket in buckets:
            bucket.forget_own()
        if self._keeping is not None:
            self.thread.drop(self._keeping)
        if self._own is not None:
            self._own.close()
        if not self._has_written or self._client is None:
            return
        self._has_written = False
        try:
            await asyncio.wait_for(self._clear(self._client), WITHDRAW_TIMEOUT)
        except (CannotConnect, asyncio.TimeoutError) as error:
            logger.warning("%s: %s", self._left_behind(), error)

    async def _clear(self, client: KubernetesClient) -> None:
        async with self._saving:  # a write that is under way must not come after this one
            await client.apply(
                METADATAS, self.identity.resource, document(self.identity, self._data()), WITHDRAW_TIMEOUT
            )

    # What all have

    async def synchronise(self, bucket: KubernetesBucket[Any]) -> None:
        """From now on `bucket` knows what the API has. Raises CannotConnect."""
        client = await self._started()
        async with self._starting:
            if not self._reflectors:
                await self._reflect(client)
        if bucket not in self._reading:
            self._reading.append(bucket)
            bucket.refresh(self._members.names)

    async def _reflect(self, client: KubernetesClient) -> None:
        readiness: Reflector[Any] = (
            Reflector(client, SLICES, self.thread, self._source_changed)
            if self._mode == "pod"
            else Reflector(client, PODS, self.thread, self._source_changed)
        )
        reflectors = [readiness, Reflector(client, METADATAS, self.thread, self._metadata_changed)]
        try:
            for each in reflectors:
                await each.start()
        except BaseException:
            for each in reflectors:
                each.close()
            raise
        self._reflectors = reflectors

    def _source_changed(self, name: str, found: EndpointSlice | Pod | None) -> None:
        self._refresh(self._members.set_source(name, [] if found is None else found.ready()))

    def _metadata_changed(self, name: str, found: WorkerMetadata | None) -> None:
        self._members.set_metadata(name, found)
        self._refresh([name])

    def _refresh(self, names: Iterable[str]) -> None:
        for bucket in self._reading:
            bucket.refresh(names)


def _is_same(found: Data | None, ours: Data) -> bool:
    """Whether the API has what this process wrote. It writes the keys of JSON in an order of its own."""
    return found is not None and {name: _values(found.get(name, {})) for name in ours} == {
        name: _values(records) for name, records in ours.items()
    }


def _values(records: dict[str, msgspec.Raw]) -> dict[str, Any]:
    return {key: msgspec.json.decode(raw) for key, raw in records.items()}
