"""A step of an engine at one end of a session, without a network: what `cost.py` counts.

    python -m benchmarks.mux_step caller|worker STREAMS STEPS

`caller`: the router's end gets an item of each stream in one read, and a task takes it. `worker`: a handler of each stream
yields an item in the same turn of the loop, and the session writes them.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import AsyncIterator
from typing import Any, cast

import uvloop

from dynamo_fast.codec import encode_mux_frame, encode_mux_items, encode_two_part
from dynamo_fast.config import ResponseServerConfig, TcpServerConfig, WorkerConfig
from dynamo_fast.context import Context
from dynamo_fast.discovery.memory import MemoryDiscovery
from dynamo_fast.egress.mux_session import MuxSession
from dynamo_fast.egress.response_server import TcpStreamServer
from dynamo_fast.egress.response_stream import ResponseStream
from dynamo_fast.ingress.worker import Worker
from dynamo_fast.observability.metrics import REQUEST_PLANE, RequestTiming
from dynamo_fast.wire.control import RequestControlMessage, TcpStreamConnectionInfo
from dynamo_fast.wire.mux import OPEN, PROLOGUE, Hello, MuxOffer
from dynamo_fast.wire.payload import PayloadCodec

CODEC = PayloadCodec.MSGPACK
ITEM = {"token": 1, "text": "x" * 40}


class Nowhere:
    """A transport that takes everything."""

    def __init__(self) -> None:
        self.writes = 0

    def write(self, data: bytes) -> None:
        self.writes += 1

    def set_protocol(self, protocol: object) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def is_closing(self) -> bool:
        return False

    def close(self) -> None: ...

    abort = close


async def caller(streams: int, steps: int) -> None:
    """An item for each stream in one read, taken by a task."""
    loop = asyncio.get_running_loop()
    server = await TcpStreamServer.create(ResponseServerConfig(host="127.0.0.1", mux="auto"))
    session = MuxSession(server, "w")
    session.begin(cast(asyncio.Transport, Nowhere()), "")
    taken = 0

    async def consume(stream: ResponseStream[Any]) -> None:
        nonlocal taken
        async for item in stream:
            item.data()
            taken += 1

    tasks = []
    for number in range(1, streams + 1):
        receiver = server.register(Context(), mux=1)
        receiver.follow(RequestTiming(REQUEST_PLANE))
        receiver.acknowledged(b"", None)
        opened = encode_mux_frame(number, OPEN, receiver.subject.encode()) + encode_mux_frame(number, PROLOGUE)
        session.data_received(opened)
        await receiver.established
        stream: ResponseStream[Any] = ResponseStream(receiver, CODEC.reader(), loop, REQUEST_PLANE, 0.0)
        tasks.append(loop.create_task(consume(stream)))
    await asyncio.sleep(0)
    step = b"".join(encode_mux_items(number, [CODEC.encode_item(ITEM)]) for number in range(1, streams + 1))
    gc.collect()
    gc.freeze()
    for _ in range(steps):
        session.data_received(step)
        await asyncio.sleep(0)
    assert taken == streams * steps, (taken, streams, steps)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await server.close()


async def worker(streams: int, steps: int) -> None:
    """A handler of each stream yields an item in one turn; the session writes them."""
    waiting: list[asyncio.Future[None]] = []
    loop = asyncio.get_running_loop()

    async def handler(request: Any) -> AsyncIterator[Any]:
        while True:
            yield ITEM
            future = loop.create_future()
            waiting.append(future)
            await future

    ours = await Worker.start(MemoryDiscovery(), WorkerConfig(mux="auto"), TcpServerConfig(host="127.0.0.1"))
    served = await ours.serve(handler, "a.b.c")
    sessions = ours.dialler.sessions
    assert sessions is not None
    offer = MuxOffer(1, "token")
    transport = Nowhere()
    session = sessions.attach("127.0.0.1:1", offer)
    session.connection_made(cast(asyncio.Transport, transport))
    session.data_received(Hello(1, 2**31 - 1, 2**31 - 1).encode())
    for number in range(streams):
        info = TcpStreamConnectionInfo("127.0.0.1:1", f"s{number}", "r").to_connection_info()
        control = RequestControlMessage("r", info, payload_codec=CODEC, mux=offer).encode()
        served.handler.accept(encode_two_part(control, CODEC.encode({})), {})
    while len(waiting) < streams:
        await asyncio.sleep(0)
    gc.collect()
    gc.freeze()
    before = transport.writes
    for _ in range(steps):
        step = waiting[:]
        waiting.clear()
        for future in step:
            future.set_result(None)
        while len(waiting) < streams:
            await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert transport.writes - before <= steps + 1, (transport.writes, before, steps)


if __name__ == "__main__":
    uvloop.run({"caller": caller, "worker": worker}[sys.argv[1]](int(sys.argv[2]), int(sys.argv[3])))
