"""The objects of the Kubernetes API that discovery reads, as far as it reads them (kubernetes.md 2, 3)."""

from __future__ import annotations

import msgspec

from dynamo_fast.discovery.kubernetes_client import Resource
from dynamo_fast.discovery.kubernetes_identity import PodIdentity, resource_name

__all__ = [
    "METADATAS",
    "PODS",
    "SLICES",
    "Data",
    "EndpointSlice",
    "Pod",
    "WorkerMetadata",
    "document",
]

DISCOVERY_LABEL = "nvidia.com/dynamo-discovery-enabled=true"
API_VERSION = "nvidia.com/v1alpha1"
KIND = "DynamoWorkerMetadata"

Data = dict[str, dict[str, msgspec.Raw]]
"""`spec.data`: for each kind of record (`endpoints`, `model_cards`, ...) the records by their keys, as JSON."""


class OwnerReference(msgspec.Struct):
    uid: str = ""


class Meta(msgspec.Struct, rename="camel"):
    name: str
    uid: str = ""
    generation: int = 0
    owner_references: list[OwnerReference] | None = None


class _Conditions(msgspec.Struct):
    ready: bool | None = None


class _TargetRef(msgspec.Struct):
    name: str = ""
    uid: str = ""


class _SliceEndpoint(msgspec.Struct, rename="camel"):
    conditions: _Conditions | None = None
    target_ref: _TargetRef | None = None


class EndpointSlice(msgspec.Struct):
    """The pods behind a Service, and whether they are ready."""

    metadata: Meta
    endpoints: list[_SliceEndpoint] | None = None

    def ready(self) -> list[tuple[str, str]]:
        """The resources (here the pods) that are ready, each with the uid of its pod."""
        return [
            (each.target_ref.name, each.target_ref.uid)
            for each in self.endpoints or []
            if each.conditions is not None and each.conditions.ready and each.target_ref and each.target_ref.name
        ]


class _ContainerStatus(msgspec.Struct):
    name: str
    ready: bool = False


class _PodStatus(msgspec.Struct, rename="camel"):
    container_statuses: list[_ContainerStatus] | None = None


class Pod(msgspec.Struct):
    """The containers of a pod, and whether they are ready."""

    metadata: Meta
    status: _PodStatus | None = None

    def ready(self) -> list[tuple[str, str]]:
        """The resources of the containers that are ready, each with the uid of the pod."""
        statuses = (self.status.container_statuses if self.status is not None else None) or []
        return [(resource_name(self.metadata.name, each.name), self.metadata.uid) for each in statuses if each.ready]


class _Spec(msgspec.Struct):
    data: dict[str, dict[str, msgspec.Raw] | None] | None = None


class WorkerMetadata(msgspec.Struct):
    """The custom resource with the records of one process."""

    metadata: Meta
    spec: _Spec | None = None

    @property
    def owner(self) -> str:
        """The uid of its pod; empty if it has no owner."""
        owners = self.metadata.owner_references or []
        return owners[0].uid if owners else ""

    @property
    def data(self) -> Data | None:
        """Its records; None while it has none to say."""
        if self.spec is None or self.spec.data is None:
            return None
        return {name: records or {} for name, records in self.spec.data.items()}


SLICES = Resource("apis/discovery.k8s.io/v1", "endpointslices", EndpointSlice, DISCOVERY_LABEL)
PODS = Resource("api/v1", "pods", Pod, DISCOVERY_LABEL)
METADATAS = Resource(f"apis/{API_VERSION}", "dynamoworkermetadatas", WorkerMetadata)


def document(identity: PodIdentity, data: Data) -> bytes:
    """The custom resource of this process, for `apply`. Kubernetes deletes it with the pod, its owner."""
    owner = {
        "apiVersion": "v1",
        "kind": "Pod",
        "name": identity.pod,
        "uid": identity.uid,
        "controller": identity.is_whole_pod,
        "blockOwnerDeletion": False,
    }
    return msgspec.json.encode(
        {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {"name": identity.resource, "ownerReferences": [owner]},
            "spec": {"data": data},
        }
    )
