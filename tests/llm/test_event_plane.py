"""The bytes of the event plane, beside those that real workers published; a real SUB socket."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import msgspec
import pytest
import zmq

from dynamo_fast.config import EventPlaneConfig
from dynamo_fast.errors import InvalidConfig
from dynamo_fast.llm.event_plane import ChannelScope, EventChannel, EventPlane, new_publisher_id
from dynamo_fast.wire.address import EndpointId
from tests.llm import captured
from tests.llm.subscriber import Subscriber

ENDPOINT = EndpointId("nskv", "comp", "generate")


class Sent:
    """In place of a socket: keeps what is sent."""

    events = 0

    def __init__(self) -> None:
        self.messages: list[list[bytes]] = []

    def send_multipart(self, frames: list[bytes]) -> None:
        self.messages.append(frames)


@pytest.mark.parametrize("version", ["161", "131"])
@pytest.mark.parametrize("topic", [captured.EVENTS, captured.LOAD])
def test_messages_are_dynamos_to_the_byte(version: str, topic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    messages = captured.frames(version, topic)
    assert messages
    sent: Any = Sent()
    channel = EventChannel(sent, topic, int.from_bytes(messages[0][1], "big"), "tcp://127.0.0.1:1")
    for frames in messages:
        envelope = msgspec.msgpack.decode(frames[3][5:])
        monkeypatch.setattr(time, "time_ns", lambda at=envelope["published_at"]: at * 1_000_000)
        channel.send(envelope["payload"])
    assert sent.messages == messages


@pytest.mark.parametrize(("version", "scope"), [("161", ChannelScope.ENDPOINT), ("131", ChannelScope.COMPONENT)])
def test_records_are_dynamos(version: str, scope: ChannelScope) -> None:
    told = {key: each for key, each in captured.records(version).items() if each["type"] == "EventChannel"}
    assert len(told) == 2
    for key, record in told.items():
        component = record.get("component", ENDPOINT.component)
        endpoint = ENDPOINT._replace(component=component)
        address = record["transport"]["config"]["endpoint"]
        unused: Any = None
        channel = EventChannel(unused, record["topic"], record["instance_id"], address)
        assert f"v1/event_channels/{scope.key(endpoint, record['topic'], record['instance_id'])}" == key
        assert channel.record(scope, endpoint).decode() == json.dumps(record, separators=(",", ":"))


async def test_a_subscriber_gets_messages(subscriber: Subscriber) -> None:
    plane = EventPlane(EventPlaneConfig(host="127.0.0.1"))
    try:
        channel = plane.channel("kv-events", 0xABC)
        assert channel.address.startswith("tcp://127.0.0.1:")
        subscriber.connect(channel.address)
        while not channel._has_news():
            pass
        channel.send(msgspec.msgpack.encode(["first"]))  # which also reads the subscription, and welcomes it
        channel.send(msgspec.msgpack.encode(["second"]))
        first, again, second = [await subscriber.receive() for _ in range(3)]
        assert (first.topic, first.publisher_id, first.sequence, first.payload) == ("kv-events", 0xABC, 0, ["first"])
        assert (again.sequence, again.payload) == (1, ["first"])
        assert (second.sequence, second.payload) == (2, ["second"])
        assert second.envelope.keys() == {"publisher_id", "sequence", "published_at", "topic"}
    finally:
        plane.close()
    plane.close()


async def test_the_last_message_is_sent_again_to_a_late_subscriber(subscriber: Subscriber) -> None:
    plane = EventPlane(EventPlaneConfig(host="127.0.0.1"))
    try:
        channel = plane.channel("kv-events", 1)
        channel.send(msgspec.msgpack.encode("missed"))
        channel.send(msgspec.msgpack.encode("last"))
        subscriber.connect(channel.address)
        while not channel._has_news():
            pass
        channel.welcome()
        assert (await subscriber.receive()).payload == "last"
    finally:
        plane.close()


def test_a_subscriber_that_reads_nothing_holds_up_nobody() -> None:
    plane = EventPlane(EventPlaneConfig(host="127.0.0.1", queue=10))
    context = zmq.Context()
    silent = context.socket(zmq.SUB)
    try:
        channel = plane.channel("kv-events", 1)
        silent.setsockopt(zmq.RCVHWM, 1)
        silent.subscribe(b"")
        silent.connect(channel.address)
        while not channel._has_news():
            pass
        for _ in range(2000):
            channel.send(bytes(10_000))
    finally:
        silent.close(linger=0)
        context.term()
        plane.close()


def test_ipv6_is_bound_and_advertised_in_brackets() -> None:
    plane = EventPlane(EventPlaneConfig(host="::1"))
    try:
        channel = plane.channel("kv-events", 1)
        assert channel.address.startswith("tcp://[::1]:")
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    finally:
        plane.close()


def test_a_host_of_another_machine_cannot_be_bound() -> None:
    plane = EventPlane(EventPlaneConfig(host="192.0.2.77"))
    with pytest.raises(OSError, match=r"192\.0\.2\.77"):
        plane.channel("kv-events", 1)


@pytest.mark.parametrize(
    ("variable", "value"),
    [("DYN_EVENT_PLANE", "nats"), ("DYN_ZMQ_BROKER_ENABLED", "1"), ("DYN_ZMQ_BROKER_URL", "xsub=tcp://h:1")],
)
def test_what_is_not_offered_is_refused(variable: str, value: str) -> None:
    with pytest.raises(InvalidConfig, match=f"{variable}=.* is not offered"):
        EventPlane(EventPlaneConfig.from_env({variable: value}))
    with pytest.raises(InvalidConfig, match="DYN_EVENT_PLANE"):
        EventPlaneConfig.from_env({"DYN_EVENT_PLANE": "kafka"})


def test_without_pyzmq_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zmq", None)
    with pytest.raises(InvalidConfig, match=r"pip install 'dynamo-fast\[kv\]'"):
        EventPlane(EventPlaneConfig())


def test_ids_of_publishers_have_53_bits_and_differ() -> None:
    drawn = {new_publisher_id() for _ in range(100)}
    assert len(drawn) == 100
    assert max(drawn) < 1 << 53
