"""`Members`: which custom resources count, from who is ready and who wrote what (kubernetes.md 3). No I/O.

    EndpointSlices or Pods                      DynamoWorkerMetadata
    name -> [(resource, uid of the pod)]        resource -> owner uid, data
                     \\                          /
                      the resource is a member if exactly one uid is ready for it, and that uid owns it

Why the uids: a pod that was deleted and made again under its name must not lend its readiness to the records of the
earlier one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from dynamo_fast.discovery.kubernetes_objects import Data, WorkerMetadata
from dynamo_fast.logs import get_logger

__all__ = ["Members"]

logger = get_logger(__name__)


class Members:
    """The join of two tables. Owned by a `KubernetesStore`, used in its thread; needs no end."""

    def __init__(self) -> None:
        self._sources: dict[str, list[tuple[str, str]]] = {}
        """What each slice or pod says is ready."""
        self._ready: dict[str, Counter[str]] = {}
        """For each resource the uids that are ready, each with how many say so."""
        self._metadatas: dict[str, WorkerMetadata] = {}
        self._data: dict[str, Data] = {}
        """The last data that each resource had."""

    def set_source(self, name: str, ready: Iterable[tuple[str, str]]) -> set[str]:
        """This slice or pod says that these are ready. Returns the resources that this concerns."""
        before, now = self._sources.pop(name, []), list(ready)
        if now:
            self._sources[name] = now
        for resource, uid in before:
            counts = self._ready[resource]
            counts[uid] -= 1
            if counts[uid] == 0:
                del counts[uid]
            if not counts:
                del self._ready[resource]
        for resource, uid in now:
            self._ready.setdefault(resource, Counter())[uid] += 1
        concerned = {resource for resource, _ in [*before, *now]}
        for resource in concerned:
            uids = self._ready.get(resource, Counter())
            if len(uids) > 1:
                logger.warning(
                    "%s is not used: %d pods of that name are ready, %s", resource, len(uids), ", ".join(uids)
                )
        return concerned

    def set_metadata(self, name: str, metadata: WorkerMetadata | None) -> None:
        """The custom resource `name` is so now; None: it was deleted. Without data, the last data stays."""
        if metadata is None:
            self._metadatas.pop(name, None)
            self._data.pop(name, None)
            return
        self._metadatas[name] = metadata
        if metadata.data is not None:
            self._data[name] = metadata.data

    def data(self, name: str) -> tuple[str, Data] | None:
        """The uid of the resource and its records, None if it does not count."""
        metadata, uids = self._metadatas.get(name), self._ready.get(name, Counter())
        if metadata is None or list(uids) != [metadata.owner] or name not in self._data:
            return None
        return metadata.metadata.uid, self._data[name]

    @property
    def names(self) -> Iterable[str]:
        """The custom resources that are there, whether they count or not."""
        return list(self._metadatas)
