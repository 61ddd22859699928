"""Records for the tests of discovery."""

from __future__ import annotations

from typing import Any

from dynamo_fast.discovery.buckets import INSTANCES
from dynamo_fast.discovery.file import FileDiscovery
from dynamo_fast.discovery.file_bucket import FileBucket
from dynamo_fast.wire.address import EndpointId
from dynamo_fast.wire.instance import Instance, TransportType

ENDPOINT = EndpointId("test", "back_end", "a-b.c é")
OTHER = ENDPOINT._replace(name=ENDPOINT.name + "d")


def instance(instance_id: int, endpoint: EndpointId = ENDPOINT, address: str = "127.0.0.1:1/x") -> Instance:
    return Instance(endpoint, instance_id, TransportType("tcp", address))


def file_bucket(discovery: FileDiscovery) -> FileBucket[Any]:
    """The directory of its instances, as an object of ours."""
    bucket = discovery.store.bucket(INSTANCES)
    assert isinstance(bucket, FileBucket)
    return bucket
