"""A SUB socket, as a frontend has one, and what its messages say."""

from __future__ import annotations

import asyncio
import json
from typing import Any, NamedTuple

import msgspec
import zmq

from dynamo_fast.discovery.buckets import EVENT_CHANNELS, BucketKind
from dynamo_fast.discovery.store import Store
from tests.waiting import LIMIT

__all__ = ["Message", "Subscriber", "channels", "records"]


class Message(NamedTuple):
    topic: str
    publisher_id: int
    sequence: int
    envelope: dict[str, Any]
    payload: Any


class Subscriber:
    """Connected to any number of channels. Its calls wait for at most `LIMIT` seconds."""

    def __init__(self) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RCVTIMEO, int(LIMIT * 1000))
        self._socket.subscribe(b"")

    def connect(self, address: str) -> None:
        self._socket.connect(address)

    async def receive(self) -> Message:
        return await asyncio.to_thread(self.receive_here)

    def receive_here(self) -> Message:
        return read(self._socket.recv_multipart())

    def close(self) -> None:
        self._socket.close()
        self._context.term()


def read(frames: list[bytes]) -> Message:
    topic, publisher_id, sequence, body = frames
    assert body[0] == 1
    assert int.from_bytes(body[1:5], "big") == len(body) - 5
    envelope = msgspec.msgpack.decode(body[5:])
    payload = msgspec.msgpack.decode(envelope.pop("payload"))
    numbers = int.from_bytes(publisher_id, "big"), int.from_bytes(sequence, "big")
    return Message(topic.decode(), *numbers, envelope, payload)


async def records(store: Store, kind: BucketKind[bytes]) -> dict[str, Any]:
    """Keys and contents."""
    return {each.key: json.loads(each.value) for each in await store.bucket(kind).list()}


async def channels(store: Store) -> dict[str, str]:
    """The addresses of the channels, by what stands before the publisher's id in their keys."""
    found = await records(store, EVENT_CHANNELS)
    return {key.rpartition("/")[0]: each["transport"]["config"]["endpoint"] for key, each in found.items()}
