from __future__ import annotations

import json

import pytest

from dynamo_fast.errors import InvalidAddress, PayloadError
from dynamo_fast.wire.address import EndpointId, EndpointInstanceId
from dynamo_fast.wire.instance import Instance, TransportType
from dynamo_fast.wire.payload import PayloadCodec

V131 = (
    b'{"type":"Endpoint","component":"backend","endpoint":"generate","namespace":"demo",'
    b'"instance_id":6304679494325571678,"transport":{"tcp":"127.0.0.1:45921/577eb898b1f7105e/generate"},'
    b'"device_type":"cuda"}'
)
V161 = V131[:-1] + b',"request_plane_codec":"msgpack"}'


def test_records_of_both_releases_are_written_again_byte_for_byte() -> None:
    for record in (V131, V161):
        assert Instance.decode(record).encode() == record


def test_what_a_record_says() -> None:
    instance = Instance.decode(V161)
    assert instance.endpoint_id == EndpointId("demo", "backend", "generate")
    assert instance.endpoint_instance_id == EndpointInstanceId("demo", "backend", "generate", 0x577EB898B1F7105E)
    assert instance.tcp_address == "127.0.0.1:45921/577eb898b1f7105e/generate"
    assert instance.payload_codec is PayloadCodec.MSGPACK
    assert str(instance) == "demo/backend/generate/6304679494325571678"


def test_an_older_worker_reads_json() -> None:
    assert Instance.decode(V131).payload_codec is PayloadCodec.JSON


@pytest.mark.parametrize(
    "change",
    [
        {"device_type": None},
        {"device_type": "cpu"},
        {"request_plane_codec": None},
        {"new": [1]},
        {"instance_id": 2**64 - 1},
    ],
)
def test_records_that_dynamo_takes(change: dict[str, object]) -> None:
    Instance.decode(json.dumps({**json.loads(V161), **change}, indent=2).encode())


@pytest.mark.parametrize(
    "change",
    [
        {"type": "Model"},
        {"type": None},
        {"instance_id": "7"},
        {"instance_id": -1},
        {"instance_id": 2**64},
        {"transport": {"http": "x"}},
        {"transport": {}},
        {"transport": {"tcp": "a", "nats_tcp": "b"}},
        {"transport": "tcp"},
        {"device_type": "tpu"},
        {"request_plane_codec": "cbor"},
        {"namespace": None},
    ],
)
def test_records_that_dynamo_ignores(change: dict[str, object]) -> None:
    with pytest.raises(PayloadError, match="not an endpoint's record"):
        Instance.decode(json.dumps({**json.loads(V161), **change}).encode())


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff"])
def test_what_is_no_record_at_all(data: bytes) -> None:
    with pytest.raises(PayloadError, match="not an endpoint's record"):
        Instance.decode(data)


def test_a_record_without_its_type_is_ignored() -> None:
    with pytest.raises(PayloadError, match="`type`"):
        Instance.decode(V161.replace(b'"type":"Endpoint",', b""))


def test_a_worker_on_nats_has_no_tcp_address() -> None:
    instance = Instance(EndpointId("a", "b", "c"), 1, TransportType("nats_tcp", "a_b.c-1"))
    assert Instance.decode(instance.encode()) == instance
    with pytest.raises(InvalidAddress, match=r"nats_tcp \(a_b\.c-1\), which is not offered"):
        _ = instance.tcp_address
