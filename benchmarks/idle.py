"""What an open stream of a session that is idle holds of memory at each end, object by object.

    python -m benchmarks.idle [caller|worker|bare] [--streams 2000] [--json]

Each stream has had its first item, and waits for the next:

    caller    the answer, as `AddressedPushRouter.generate` returns it
    worker    the request, with a handler that waits for a future of its own
    bare      the same handler, and an asyncio task that iterates over it: what a worker holds without this package

Bytes are those that were asked of Python's allocator (`tracemalloc`), so a count is the same each time. No network is
needed: a transport that takes everything stands for the session's connection. What the process holds in pages is a
little more; `python -m benchmarks.router growth worker` measures it.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import json
import sys
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, NamedTuple, cast

from benchmarks.mux_step import CODEC, ITEM, Nowhere
from dynamo_fast.codec import encode_mux_frame, encode_mux_items, encode_two_part
from dynamo_fast.config import ResponseServerConfig, TcpServerConfig, WorkerConfig
from dynamo_fast.context import Context
from dynamo_fast.discovery.memory import MemoryDiscovery
from dynamo_fast.egress.mux_session import MuxSession
from dynamo_fast.egress.request_client import Ack, RequestPlaneClient
from dynamo_fast.egress.response_server import TcpStreamServer
from dynamo_fast.egress.router import AddressedPushRouter, AddressedRequest
from dynamo_fast.ingress.worker import Worker
from dynamo_fast.wire.control import RequestControlMessage, TcpStreamConnectionInfo
from dynamo_fast.wire.mux import OPEN, PROLOGUE, Hello, MuxOffer

__all__ = ["ENDS", "Held", "held_by"]

WARM_UP = 200
_LARGEST = 2**31 - 1
Open = Callable[[int], Awaitable[None]]


class Held(NamedTuple):
    """What one stream holds."""

    bytes: float
    objects: dict[str, tuple[float, float]]
    """By type: how many, and their bytes. Texts are there as far as the garbage collector finds them."""


def census() -> tuple[Counter[str], Counter[str]]:
    """How many objects there are of each type, and their bytes."""
    seen: set[int] = set()
    count: Counter[str] = Counter()
    size: Counter[str] = Counter()

    def add(found: object) -> None:
        if id(found) not in seen:
            seen.add(id(found))
            name = type(found).__name__
            count[name] += 1
            size[name] += sys.getsizeof(found)

    for each in gc.get_objects():
        add(each)
        for part in gc.get_referents(each):
            if not gc.is_tracked(part) and not isinstance(part, type):
                add(part)
    return count, size


async def measured(open_streams: Open, streams: int) -> Held:
    """Open some, then `streams` more, which are counted."""
    await open_streams(WARM_UP)
    gc.collect()
    count, size = census()
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    await open_streams(streams)
    gc.collect()
    held = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    count_after, size_after = census()
    objects = {
        name: ((count_after[name] - count[name]) / streams, (size_after[name] - size[name]) / streams)
        for name in size_after
    }
    objects = {name: each for name, each in objects.items() if each[1] >= 8}
    return Held(held / streams, dict(sorted(objects.items(), key=lambda each: -each[1][1])))


class Acknowledging(RequestPlaneClient):
    """A client whose requests are taken by a worker that is not there."""

    def send_request(self, address: str, payload: bytes, headers: Mapping[str, str]) -> asyncio.Future[Ack]:
        """See RequestPlaneClient."""
        acknowledged: asyncio.Future[Ack] = asyncio.get_running_loop().create_future()
        acknowledged.set_result(Ack(b""))
        return acknowledged

    async def close(self) -> None:
        """There is nothing to close."""


async def caller(streams: int) -> Held:
    """See the top."""
    server = await TcpStreamServer.create(ResponseServerConfig(host="127.0.0.1", mux="auto"))
    router = AddressedPushRouter(Acknowledging(), server)
    session = MuxSession(server, "w")
    session.begin(cast(asyncio.Transport, Nowhere()), "")
    numbers = itertools.count(1)
    kept: list[Any] = [None] * (WARM_UP + streams)

    async def open_streams(count: int) -> None:
        for number in itertools.islice(numbers, count):
            request = AddressedRequest({}, "127.0.0.1:1/a", payload_codec=CODEC, mux=1)
            exchange = router.begin(request, CODEC.reader(), Context())
            subject = exchange.receiver.subject
            opened = encode_mux_frame(number, OPEN, subject.encode()) + encode_mux_frame(number, PROLOGUE)
            session.data_received(opened + encode_mux_items(number, [CODEC.encode_item(ITEM)]))
            kept[number - 1] = stream = await exchange.answer()
            await anext(stream)

    held = await measured(open_streams, streams)
    kept.clear()
    await router.close()
    return held


async def waits(request: Any) -> AsyncIterator[Any]:
    """A handler that waits after its first item, as cheaply as one can."""
    yield ITEM
    await asyncio.get_running_loop().create_future()


async def worker(streams: int) -> Held:
    """See the top."""
    ours = await Worker.start(MemoryDiscovery(), WorkerConfig(mux="auto"), TcpServerConfig(host="127.0.0.1"))
    served = await ours.serve(waits, "a.b.c")
    sessions = ours.dialler.sessions
    assert sessions is not None
    offer = MuxOffer(1, "token")
    session = sessions.attach("127.0.0.1:1", offer)
    session.connection_made(cast(asyncio.Transport, Nowhere()))
    session.data_received(Hello(1, _LARGEST, _LARGEST).encode())
    numbers = itertools.count(1)

    async def open_streams(count: int) -> None:
        for number in itertools.islice(numbers, count):
            name = f"{number:036}"  # as long as a UUID
            info = TcpStreamConnectionInfo("127.0.0.1:1", name, name).to_connection_info()
            control = RequestControlMessage(name, info, payload_codec=CODEC, mux=offer).encode()
            served.handler.accept(encode_two_part(control, CODEC.encode({"prompt": 1})), {})
            await asyncio.sleep(0)
        assert len(session.output.senders) == number

    return await measured(open_streams, streams)


async def bare(streams: int) -> Held:
    """See the top."""
    tasks = set()

    async def iterate(request: Any) -> None:
        async for _ in waits(request):
            pass

    async def open_streams(count: int) -> None:
        for _ in range(count):
            tasks.add(asyncio.create_task(iterate({"prompt": 1})))
            await asyncio.sleep(0)

    held = await measured(open_streams, streams)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return held


ENDS = {"caller": caller, "worker": worker, "bare": bare}
"""What can be measured, by name."""


def held_by(end: str, streams: int = 2_000) -> Held:
    """What one idle stream holds there."""
    return asyncio.run(ENDS[end](streams))


def table(end: str, held: Held) -> str:
    """For people."""
    lines = [f"{end}: {held.bytes:,.0f} bytes a stream", f"{'type':34}{'objects':>9}{'bytes':>9}"]
    lines += [f"{name:34}{count:9.2f}{size:9.1f}" for name, (count, size) in held.objects.items()]
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="benchmarks.idle", description="What an idle stream holds of memory.")
    parser.add_argument("end", nargs="?", choices=ENDS, help="which end (default: all)")
    parser.add_argument("--streams", type=int, default=2_000, help="how many are counted (default: 2000)")
    parser.add_argument("--json", action="store_true", help="print the bytes alone, by end")
    options = parser.parse_args()
    found = {end: held_by(end, options.streams) for end in ([options.end] if options.end else ENDS)}
    if options.json:
        print(json.dumps({end: held.bytes for end, held in found.items()}))
    else:
        print("\n\n".join(table(end, held) for end, held in found.items()))


if __name__ == "__main__":
    main()
