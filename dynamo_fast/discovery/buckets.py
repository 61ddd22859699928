"""The buckets of a discovery store: their names, how large a record may be, and how a record is read (runtime.md 1.2).

    v1/instances        NS/COMPONENT/ENDPOINT/ID            who serves an endpoint, and where
    v1/mdc              NS/COMPONENT/ENDPOINT/ID[/SUFFIX]   model cards (model_card.md 2)
    v1/event_channels   .../TOPIC/ID                        where a process publishes events (model_card.md 7.2)
    v1/event_sources    .../TOPIC/ID                        which worker's state these events describe; since Dynamo 1.6

The shape of a key is the affair of the bucket: a store only asks whether a key begins with a prefix.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import msgspec

from dynamo_fast.errors import InvalidRequest, PayloadError
from dynamo_fast.wire.instance import MAX_RECORD_SIZE, Instance
from dynamo_fast.wire.text import UNREADABLE, reason

__all__ = ["EVENT_CHANNELS", "EVENT_SOURCES", "INSTANCES", "LEAVING_ORDER", "MODEL_CARDS", "BucketKind"]

MAX_CARD_SIZE = 512 * 1024
"""Bytes of the longest model card. Dynamo's own have 2 to 3 KB, and more with data of the user. etcd takes at most 1.5 MiB
in a request, in which a card has 4/3 of its size."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class BucketKind(Generic[_T]):
    """What tells one bucket from another. The four kinds that Dynamo has are constants of this module."""

    name: str
    """As Dynamo spells it: `v1/instances`."""
    max_size: int
    """Bytes of the longest record."""
    read: Callable[[str, bytes], _T]
    """From the key and the content to the value. Raises PayloadError for what is no record of this bucket."""
    write: Callable[[_T], bytes]
    """From the value to the content."""

    def encode(self, key: str, value: _T) -> bytes:
        """The content to store. Raises InvalidRequest if it is too long for the readers."""
        content = self.write(value)
        if len(content) > self.max_size:
            raise InvalidRequest(
                f"the record {self.name}/{key} has {len(content)} bytes (the limit is {self.max_size}): make it shorter"
            )
        return content


def _read_instance(key: str, content: bytes) -> Instance:
    """The key and the content must name the same endpoint. The id is the content's, as in Dynamo."""
    instance = Instance.decode(content)
    if key.rpartition("/")[0] != str(instance.endpoint_id):
        raise PayloadError(f"its content says {str(instance.endpoint_id)!r}")
    return instance


def _json_kind(name: str, max_size: int, record: type[msgspec.Struct], what: str) -> BucketKind[bytes]:
    """A bucket of JSON objects that are handed on as they are; the type of the record is all that is checked."""
    decoder = msgspec.json.Decoder(record)

    def read(_: str, content: bytes) -> bytes:
        if len(content) > max_size:
            raise PayloadError(f"not {what}: more than {max_size} bytes ({len(content)} bytes were read)")
        try:
            decoder.decode(content)
        except UNREADABLE as error:
            raise PayloadError(f"not {what}: {reason(error)}") from None
        return content

    return BucketKind(name, max_size, read, bytes)


class _Model(msgspec.Struct):
    type: Literal["Model"]


class _EventChannel(msgspec.Struct):
    type: Literal["EventChannel"]


class _EventSource(msgspec.Struct):
    type: Literal["EventSource"]


INSTANCES: BucketKind[Instance] = BucketKind("v1/instances", MAX_RECORD_SIZE, _read_instance, Instance.encode)
MODEL_CARDS = _json_kind("v1/mdc", MAX_CARD_SIZE, _Model, "a model's record")
EVENT_CHANNELS = _json_kind("v1/event_channels", MAX_RECORD_SIZE, _EventChannel, "an event channel's record")
EVENT_SOURCES = _json_kind("v1/event_sources", MAX_RECORD_SIZE, _EventSource, "an event source's record")

LEAVING_ORDER = (MODEL_CARDS.name, EVENT_SOURCES.name, EVENT_CHANNELS.name, INSTANCES.name)
"""The order in which the records of a process that leaves are removed. A frontend must not see a model without its
instance: it answers 503 then (model_card.md 3.1)."""
