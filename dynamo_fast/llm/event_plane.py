"""`EventPlane`: ZMQ sockets on which a worker publishes events, and the records by which frontends find them.

One message has four frames (model_card.md 7.3):

    topic           UTF-8
    publisher id    u64, big-endian
    sequence        u64, big-endian, from 0
    body            the byte 1; a u32, big-endian: the length of the rest; a MessagePack map whose `payload` is MessagePack

Dynamo 1.6 and 1.3 look for the record of a channel under different keys (`ChannelScope`), so a worker can serve both at
once. pyzmq is optional: `pip install 'dynamo-fast[kv]'`.
"""

from __future__ import annotations

import secrets
import time
from enum import Enum
from typing import TYPE_CHECKING, Any

import msgspec

from dynamo_fast.config import EventPlaneConfig
from dynamo_fast.errors import InvalidConfig
from dynamo_fast.net.addresses import resolve
from dynamo_fast.wire.address import EndpointId, join_host_port
from dynamo_fast.wire.json_text import dumps

if TYPE_CHECKING:
    import zmq

__all__ = ["ChannelScope", "EventChannel", "EventPlane", "endpoint_fields", "new_publisher_id", "pyzmq"]

_VERSION = b"\x01"
_SUBSCRIBED = b"\x01"
_POLLIN = 1
_write = msgspec.msgpack.Encoder().encode


class ChannelScope(Enum):
    """How the record of a channel says what the events are about: an endpoint since Dynamo 1.6, a component before."""

    ENDPOINT = "1.6"
    COMPONENT = "1.3"

    def key(self, endpoint: EndpointId, topic: str, publisher_id: int) -> str:
        """The key in the buckets of event channels and event sources."""
        namespace, component, name = endpoint
        if self is ChannelScope.ENDPOINT:
            scope = f"namespace/{namespace}/component/{component}/endpoint/{name}/topic"
        else:
            scope = f"{namespace}/{component}"
        return f"{scope}/{topic}/{publisher_id:x}"

    def fields(self, endpoint: EndpointId) -> dict[str, Any]:
        """The fields of the record."""
        if self is ChannelScope.ENDPOINT:
            return {"scope": {"kind": "endpoint", "endpoint": endpoint_fields(endpoint)}}
        return {"namespace": endpoint.namespace, "component": endpoint.component}


def endpoint_fields(endpoint: EndpointId) -> dict[str, str]:
    """An endpoint as the records of events name it."""
    return {"namespace": endpoint.namespace, "component": endpoint.component, "name": endpoint.name}


def new_publisher_id() -> int:
    """A random number of 53 bits, as Dynamo 1.6 draws."""
    return secrets.randbits(53)


class EventPlane:
    """The ZMQ context of one publisher. It owns the sockets of its channels; it ends with `close`.

    ZMQ's own threads write to the network, so nothing here waits for a frontend.
    """

    def __init__(self, config: EventPlaneConfig | None = None) -> None:
        """Raises InvalidConfig for a setting that is not offered, and if pyzmq is missing."""
        self._config = config or EventPlaneConfig.from_env()
        self._config.check_offered()
        self._zmq = pyzmq()
        self._listening = resolve(self._config.host, "DYN_EVENT_PLANE_HOST")
        self._context = self._zmq.Context()
        self.channels: list[EventChannel] = []

    def channel(self, topic: str, publisher_id: int) -> EventChannel:
        """A socket of its own, bound to a port that the system chooses. Raises OSError if the host cannot be bound."""
        socket = self._context.socket(self._zmq.XPUB)  # a PUB that tells of its subscribers
        socket.setsockopt(self._zmq.XPUB_VERBOSE, True)
        socket.setsockopt(self._zmq.LINGER, 0)
        socket.setsockopt(self._zmq.SNDHWM, self._config.queue)
        bind_ip, advertised_ip = self._listening
        try:
            socket.setsockopt(self._zmq.IPV6, ":" in bind_ip)
            socket.bind(f"tcp://{join_host_port(bind_ip, 0)}")
            port = int(socket.last_endpoint.rpartition(b":")[2])
        except self._zmq.ZMQError as error:
            socket.close()
            self.close()
            raise OSError(error.errno, f"the event plane cannot bind {bind_ip}: {error}") from error
        channel = EventChannel(socket, topic, publisher_id, f"tcp://{join_host_port(advertised_ip, port)}")
        self.channels.append(channel)
        return channel

    def close(self) -> None:
        """Close the sockets and end ZMQ's threads; what was not sent is dropped. May be called twice."""
        for channel in self.channels:
            channel.close()
        self.channels.clear()
        self._context.term()  # all its sockets are closed, and none lingers: this does not wait


class EventChannel:
    """One socket and its sequence. Made by `EventPlane.channel`, which closes it.

    Any thread may call `send` and `welcome`, one at a time: the publisher has the lock.

    A frontend that has found the record asks for the state, and connects; what is published between the two does not
    reach it. So the last message is sent again to all when a frontend subscribes: from it the frontend sees what it
    missed, and the others know it already.
    """

    def __init__(self, socket: zmq.Socket[bytes], topic: str, publisher_id: int, address: str) -> None:
        self.topic = topic
        self.publisher_id = publisher_id
        self.address = address
        """Where frontends connect: `tcp://IP:PORT`."""
        self._socket = socket
        self._head = [topic.encode(), publisher_id.to_bytes(8, "big")]
        self._sequence = 0
        self._last: bytes | None = None

    @property
    def fd(self) -> int:
        """A descriptor that becomes readable when `welcome` may have something to do."""
        return int(self._socket.fd)

    def send(self, payload: bytes) -> None:
        """Publish a MessagePack value. Does not wait: frontends that do not keep up lose messages."""
        self._last = payload
        self._send(payload)
        self.welcome()  # `fd` is silent about what came before a call of the socket

    def welcome(self) -> None:
        """Publish the last value again if a frontend has subscribed."""
        while self._has_news():
            is_new = self._socket.recv().startswith(_SUBSCRIBED)
            if is_new and self._last is not None:
                self._send(self._last)

    def _send(self, payload: bytes) -> None:
        self._socket.send_multipart([*self._head, *self._rest(payload)])
        self._sequence += 1

    def _has_news(self) -> bool:
        return bool(int(self._socket.events) & _POLLIN)

    def record(self, scope: ChannelScope, endpoint: EndpointId) -> bytes:
        """The record of the channel for discovery."""
        return dumps(
            {
                "type": "EventChannel",
                **scope.fields(endpoint),
                "topic": self.topic,
                "instance_id": self.publisher_id,
                "transport": {"kind": "Zmq", "config": {"endpoint": self.address}},
            }
        )

    def close(self) -> None:
        """May be called twice."""
        self._socket.close()

    def _rest(self, payload: bytes) -> list[bytes]:
        message = {
            "publisher_id": self.publisher_id,
            "sequence": self._sequence,
            "published_at": time.time_ns() // 1_000_000,
            "topic": self.topic,
            "payload": payload,
        }
        body = _write(message)
        return [self._sequence.to_bytes(8, "big"), _VERSION + len(body).to_bytes(4, "big") + body]


def pyzmq() -> Any:
    try:
        import zmq
    except ImportError as error:
        raise InvalidConfig("events for frontends need pyzmq: pip install 'dynamo-fast[kv]'") from error
    return zmq
