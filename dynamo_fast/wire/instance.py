"""`Instance`: what discovery knows about one process that serves an endpoint (runtime.md 1.2)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import msgspec

from dynamo_fast.errors import InvalidAddress, PayloadError
from dynamo_fast.wire.address import EndpointId, EndpointInstanceId
from dynamo_fast.wire.json_text import dumps
from dynamo_fast.wire.mux import offered_version
from dynamo_fast.wire.payload import PayloadCodec
from dynamo_fast.wire.text import UNREADABLE, reason

__all__ = ["MAX_RECORD_SIZE", "Instance", "TransportType", "not_offered"]

MAX_RECORD_SIZE = 64 * 1024
"""Bytes of the longest record that is read; Dynamo's own have about 250."""

DeviceType = Literal["cuda", "cpu"]


@dataclass(frozen=True, slots=True)
class TransportType:
    """How an instance is reached: `kind` is `tcp` or `nats_tcp`, `address` is `IP:PORT/PATH` or a NATS subject."""

    kind: str
    address: str


@dataclass(frozen=True)
class Instance:
    """One record. `request_plane_codec` is None for workers older than Dynamo 1.6, which read JSON.

    `mux` is the newest version of the multiplexed response plane that the worker speaks; None: none (mux.md 2).
    """

    endpoint_id: EndpointId
    instance_id: int
    transport: TransportType
    device_type: DeviceType | None = None
    request_plane_codec: PayloadCodec | None = None
    mux: int | None = None

    @cached_property
    def endpoint_instance_id(self) -> EndpointInstanceId:
        """Which process's instance of which endpoint this is."""
        return EndpointInstanceId(*self.endpoint_id, self.instance_id)

    @property
    def tcp_address(self) -> str:
        """Where its requests go, `IP:PORT/PATH`. Raises InvalidAddress if it is reached by another transport."""
        if self.transport.kind != "tcp":
            raise not_offered(self, self.transport)
        return self.transport.address

    @property
    def payload_codec(self) -> PayloadCodec:
        """What a request to it is to be encoded with."""
        return self.request_plane_codec or PayloadCodec.JSON

    def __str__(self) -> str:
        return str(self.endpoint_instance_id)

    def encode(self) -> bytes:
        """The record as Dynamo writes it: compact JSON, keys in its order."""
        record: dict[str, object] = {
            "type": "Endpoint",
            "component": self.endpoint_id.component,
            "endpoint": self.endpoint_id.name,
            "namespace": self.endpoint_id.namespace,
            "instance_id": self.instance_id,
            "transport": {self.transport.kind: self.transport.address},
            "device_type": self.device_type,
        }
        if self.request_plane_codec is not None:
            record["request_plane_codec"] = self.request_plane_codec.value
        if self.mux is not None:
            record["dynamo_fast_mux"] = self.mux
        return dumps(record)

    @classmethod
    def decode(cls, data: bytes) -> Instance:
        """Read a record; extra keys are ignored. Raises PayloadError, whatever is wrong: Dynamo ignores the record then."""
        if len(data) > MAX_RECORD_SIZE:
            raise PayloadError(
                f"not an endpoint's record: more than {MAX_RECORD_SIZE} bytes ({len(data)} bytes were read)"
            )
        try:
            record = _decoder.decode(data)
        except UNREADABLE as error:
            raise PayloadError(f"not an endpoint's record: {reason(error)}") from None
        if len(record.transport) != 1:
            raise PayloadError(f"not an endpoint's record: {len(record.transport)} transports, expected 1")
        ((kind, address),) = record.transport.items()
        codec = record.request_plane_codec
        return cls(
            endpoint_id=EndpointId(record.namespace, record.component, record.endpoint),
            instance_id=record.instance_id,
            transport=TransportType(kind, address),
            device_type=record.device_type,
            request_plane_codec=None if codec is None else PayloadCodec(codec),
            mux=offered_version(record.mux),
        )


def not_offered(worker: object, transport: TransportType) -> InvalidAddress:
    """The error of a request to `worker`, which is reached by a transport that is not offered."""
    return InvalidAddress(
        f"{worker} is reached by {transport.kind} ({transport.address}), which is not offered: start the worker with "
        "the request plane 'tcp' or 'nats'"
    )


class _Record(msgspec.Struct):
    type: Literal["Endpoint"]
    component: str
    endpoint: str
    namespace: str
    instance_id: int
    transport: dict[Literal["tcp", "nats_tcp"], str]
    device_type: DeviceType | None = None
    request_plane_codec: Literal["json", "msgpack"] | None = None
    mux: Any = msgspec.field(default=None, name="dynamo_fast_mux")

    def __post_init__(self) -> None:
        if not 0 <= self.instance_id < 1 << 64:
            raise ValueError(f"the instance id {self.instance_id} is not an unsigned 64-bit number")


_decoder = msgspec.json.Decoder(_Record)
