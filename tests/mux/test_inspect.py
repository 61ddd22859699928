"""The inspector reads a session: its frames in both directions, in one piece and byte by byte, and through a relay."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from dynamo_fast.codec import encode_mux_frame, encode_mux_items, encode_two_part
from dynamo_fast.config import ResponseServerConfig, TcpServerConfig, WorkerConfig
from dynamo_fast.discovery.memory import MemoryDiscovery
from dynamo_fast.egress.router import AddressedRequest
from dynamo_fast.ingress.worker import Worker
from dynamo_fast.inspect import Conversation, Plane, frames
from dynamo_fast.inspect.events import Failed, FrameSeen
from dynamo_fast.inspect.relay import Relay
from dynamo_fast.wire.mux import (
    CLOSE,
    CUT,
    END,
    KILL,
    OPEN,
    PING,
    PROLOGUE,
    STOP,
    Hello,
    MuxHandshake,
    credit_frame,
    seen_frame,
)
from dynamo_fast.wire.payload import PayloadCodec
from tests.egress.conftest import make_router

HANDSHAKE = encode_two_part(MuxHandshake(1, "token", "worker").encode(), b"")
LONG = '{"data":{"data":"%s"},"complete_final":false}' % ("x" * 40_000)
WORKER = b"".join(
    (
        HANDSHAKE,
        encode_mux_frame(1, OPEN, b"subject"),
        encode_mux_frame(1, PROLOGUE),
        encode_mux_items(1, [b'{"data":{"data":1},"complete_final":false}', LONG.encode()]),
        encode_mux_items(1, [PayloadCodec.MSGPACK.final]),
        encode_mux_frame(1, END),
        encode_mux_frame(2, OPEN, b"other"),
        encode_mux_frame(2, PROLOGUE, b'{"error":"no"}'),
        encode_mux_frame(2, CUT),
        encode_mux_frame(0, CLOSE, b"bye"),
    )
)
KINDS = [
    "session",
    "open",
    "prologue",
    "item",
    "part",
    "part",
    "item",
    "final",
    "end",
    "open",
    "prologue",
    "cut",
    "close",
]
ROUTER = b"".join(
    (
        Hello(1, 262144, 4194304).encode(),
        credit_frame(1, 5),
        seen_frame(9),
        encode_mux_frame(2, STOP),
        encode_mux_frame(2, KILL),
        encode_mux_frame(0, PING, b"12345678"),
    )
)


def test_what_a_worker_writes() -> None:
    seen = frames(WORKER)
    assert [frame.kind for frame in seen] == KINDS
    assert {frame.direction for frame in seen} == {"<"}
    assert sum(frame.size for frame in seen) == len(WORKER)
    assert not [frame for frame in seen if frame.problems]
    assert seen[1].content == {"stream": 1, "subject": "subject"}
    assert seen[3].content["data"]["data"] == {"data": 1}
    assert seen[6].content["data"]["data"] == {"data": "x" * 40_000}
    assert seen[10].content == {"stream": 2, "header": {"error": "no"}}
    assert seen[12].content == {"stream": 0, "reason": "bye"}


def test_what_a_router_writes() -> None:
    seen = frames(ROUTER)
    assert [(frame.direction, frame.kind) for frame in seen] == [
        (">", kind) for kind in ("hello", "credit", "seen", "stop", "kill", "ping")
    ]
    assert seen[0].content == {"stream": 0, "version": 1, "stream_window": 262144, "connection_window": 4194304}
    assert seen[1].content == {"stream": 1, "bytes": 5}
    assert seen[2].content == {"stream": 0, "last": 9}


@pytest.mark.parametrize("plane", [None, Plane.RESPONSE])
@pytest.mark.parametrize("piece", [1, 7, 30, 1000, 100_000])
def test_a_conversation_in_pieces(plane: Plane | None, piece: int) -> None:
    conversation = Conversation(plane)
    seen = conversation.feed(True, HANDSHAKE)
    for from_dialler, data in ((False, ROUTER), (True, WORKER[len(HANDSHAKE) :])):
        for at in range(0, len(data), piece):
            seen += conversation.feed(from_dialler, data[at : at + piece])
    seen += conversation.close()
    assert [frame.kind for frame in seen if frame.direction == "<"] == KINDS
    assert [frame.kind for frame in seen if frame.direction == ">"] == [
        "hello",
        "credit",
        "seen",
        "stop",
        "kill",
        "ping",
    ]


def test_a_session_that_is_damaged() -> None:
    *_, damage = frames(WORKER[: len(HANDSHAKE) + 20])
    assert (damage.kind, damage.problems) == (
        "damage",
        [f"byte {len(HANDSHAKE) + 15}: the connection ends within a frame, of which there are 5 bytes"],
    )


async def count(request: Any) -> AsyncIterator[Any]:
    for number in range(3):
        yield number


async def test_a_relay_between_both_ends_shows_the_session() -> None:
    events: list[Any] = []
    worker = await Worker.start(
        MemoryDiscovery(), WorkerConfig(leave_delay=0.0, mux="auto"), TcpServerConfig(host="127.0.0.1")
    )
    served = await worker.serve(count, "a.b.c")
    host, _, path = served.address.partition("/")
    relay = Relay(host, events.append, answers=True)
    await relay.start()
    try:
        async with await make_router(ResponseServerConfig(host="127.0.0.1", mux="auto")) as router:
            for _ in range(2):
                request = AddressedRequest({}, f"{relay.address}/{path}", mux=1)
                stream = await asyncio.wait_for(router.generate(request), 10)
                assert [item.data() async for item in stream] == [0, 1, 2]
            assert len(router.response_server.sessions) == 1
    finally:
        await relay.close()
        await worker.close()
    kinds = [event.frame.kind for event in events if isinstance(event, FrameSeen)]
    assert not [event for event in events if isinstance(event, Failed)]
    assert kinds.count("session") == 1
    assert kinds.count("hello") == 1
    assert kinds.count("open") == kinds.count("end") == kinds.count("final") == 2
    assert kinds.count("item") == 6
