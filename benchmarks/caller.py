"""One caller under test, in a process of its own: `python caller.py KIND WORK ROUNDS [counted]`, settings from the
environment.

    ours     the router of this project
    raw      as `ours`, with raw items
    sink     as `raw`, into a sink
    bare     as `sink`, by the drop-in, without what stands beside the data
    dropin   the client of `dynamo_fast.runtime`, the drop-in for `dynamo.runtime`
    peer     the client of `dynamo.runtime`; run by a peer's interpreter, and imports nothing of this project
    grpc     grpc.aio, server streaming, against `grpc_worker.py` (GRPC_TARGET)
    asyncio  as `ours`, on asyncio's own loop; all others run on uvloop
    floor    blocking sockets and a tight loop: receive, take the frames apart, decode every item, nothing else
    wake     uvloop, and a task that is woken for each read, nothing else

Each caller reads an answer in the fastest way that it has: `data()` of our router's items, bare items of the others.
Prints one JSON object per round: the event loop, items, requests, seconds, CPU seconds of this process (all threads, user
and system) and of the workers if WORKER_PID names them, the times to the first item, and the median and the 99th
percentile of the time between items where they come one by one (once every stream has begun).
With `counted` (see `cost.py`) it prints nothing, since writing the times of 300 requests costs instructions, too; and the
garbage collector leaves alone what was made before the rounds, since a full collection falls into some runs and not into
others.
"""

from __future__ import annotations

import asyncio
import gc
import glob
import itertools
import json
import os
import resource
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

ENDPOINT = os.environ.get("BENCH_ENDPOINT", "bench.worker.run")
WORKERS = int(os.environ.get("BENCH_WORKERS", "1"))
"""Processes that serve it, which get requests by turns."""
Call = Callable[[dict[str, Any]], Awaitable[AsyncIterator[Any]]]


@dataclass(frozen=True)
class Work:
    """`requests` requests of `items` items each, `concurrent` at once; `pace` is in microseconds between items."""

    requests: int
    concurrent: int
    items: int
    size: int = 100
    pace: int = 0

    def request(self) -> dict[str, int]:
        """What a worker is asked for: the replay worker goes by the size of an item, the others by that of its text."""
        return {"items": self.items, "size": self.size, "pace": self.pace, "text": max(0, self.size - 60)}


WORKS = {
    "burst": Work(1, 1, 20_000),
    "packet": Work(1, 1, 2_000, pace=250),
    "32x100": Work(32, 32, 100),
    "sequential": Work(300, 1, 1),
    "concurrent": Work(1_500, 32, 1),
    "4 KiB": Work(1, 1, 5_000, size=4096),
    "1 MiB": Work(1, 1, 64, size=1 << 20),
    **{f"{streams:,} at 20 ms": Work(streams, streams, 100, pace=20_000) for streams in (64, 256, 1_024, 4_096)},
    **{f"{streams:,} at once": Work(max(200, streams), streams, 100) for streams in (1, 100, 1_000, 10_000)},
}
IDLE = Work(2_000, 2_000, 1)
"""Streams that have had their first item, and wait for the next."""


async def ours(**how: Any) -> Any:
    from dynamo_fast import AddressedPushRouter, AddressedRequest, EndpointId, FileDiscovery

    discovery = FileDiscovery()
    while len(instances := await discovery.list(EndpointId.parse(ENDPOINT))) < WORKERS:
        await asyncio.sleep(0.05)
    router = await AddressedPushRouter.create()
    turns = itertools.cycle(instances)

    async def call(request: dict[str, Any], **more: Any) -> Any:
        return await router.generate(AddressedRequest.for_instance(request, next(turns)), **how, **more)

    return call


async def raw() -> Call:
    call: Call = await ours(raw=True)
    return call


class Collecting:
    """A sink that keeps the items and does nothing else: what is counted is the way of an item there."""

    began = 0.0

    def __init__(self) -> None:
        self.items: list[Any] = []
        self.item = self.items.append
        self.times: list[float] = []

    def begin(self, delivery: Any) -> None:
        self.began = time.perf_counter()

    def end(self, error: BaseException | None) -> None:
        assert error is None, error


class Timed(Collecting):
    """One that notes when each item came, too."""

    def __init__(self) -> None:
        super().__init__()
        self.item = self._take

    def _take(self, item: Any) -> None:
        self.times.append(time.perf_counter())
        self.items.append(item)


async def sink() -> Call:
    deliver = await ours(raw=True)

    async def call(request: dict[str, Any]) -> Any:
        kept = Timed() if request["pace"] else Collecting()
        await (await deliver(request, sink=kept)).wait_ended()
        return kept

    return call


async def dropin() -> Call:
    from dynamo_fast.runtime import DistributedRuntime

    return await runtime_client(DistributedRuntime)


async def bare() -> Call:
    """The drop-in's client, whose sinks may take the data alone."""
    from dynamo_fast.runtime import DistributedRuntime

    client = await DistributedRuntime(asyncio.get_running_loop(), "file", "tcp").endpoint(ENDPOINT).client()
    await client.wait_for_instances()

    async def call(request: dict[str, Any]) -> Any:
        kept = Timed() if request["pace"] else Collecting()
        await (await client.round_robin(request, annotated=False, raw=True, sink=kept)).wait_ended()
        return kept

    return call


async def peer() -> Call:
    from dynamo.runtime import DistributedRuntime

    return await runtime_client(DistributedRuntime)


async def runtime_client(runtime: Any) -> Call:
    """The same calls for Dynamo and for the drop-in, with the `DistributedRuntime` of either."""
    client = await runtime(asyncio.get_running_loop(), "file", "tcp").endpoint(ENDPOINT).client()
    await client.wait_for_instances()
    await asyncio.sleep(0.2)  # 1.3.1 knows the instance a moment before it may use it

    async def call(request: dict[str, Any]) -> AsyncIterator[Any]:
        stream: AsyncIterator[Any] = await client.round_robin(request, annotated=False)
        return stream

    return call


async def grpc() -> Call:
    import grpc.aio
    import msgspec

    channel = grpc.aio.insecure_channel(os.environ["GRPC_TARGET"])
    method = channel.unary_stream(
        "/bench/generate",
        request_serializer=msgspec.msgpack.Encoder().encode,
        response_deserializer=msgspec.msgpack.Decoder().decode,
    )

    async def call(request: dict[str, Any]) -> AsyncIterator[Any]:
        stream: AsyncIterator[Any] = aiter(method(request))
        return stream

    return call


class Floor:
    """One stream at a time, and nothing that is not needed for it."""

    def __init__(self) -> None:
        (name,) = glob.glob(f"{os.environ['DYN_FILE_KV']}/v1/instances/b*")
        with open(name, encoding="utf-8") as file:
            record = json.load(file)
        host, port = record["transport"]["tcp"].partition("/")[0].split(":")
        self._requests = socket.create_connection((host, int(port)))
        self._listener = socket.create_server(("127.0.0.1", 0))

    def ask(self, work: Work) -> socket.socket:
        """The connection on which the answer comes."""
        from benchmarks.replay_worker import request_frame

        self._requests.sendall(request_frame(work.request(), self._listener.getsockname()[1]))
        stream, _ = self._listener.accept()
        self._requests.recv(4)
        return stream

    def do(self, work: Work) -> dict[str, Any]:
        """The work, once: every item is decoded."""
        from dynamo_fast.codec import TwoPartDecoder
        from dynamo_fast.wire.payload import PayloadCodec

        feed, decode_item = TwoPartDecoder().feed, PayloadCodec.MSGPACK.decode_item
        count = 0
        cpu, began = cpu_seconds(), time.perf_counter()
        stream = self.ask(work)
        first_item = 0.0
        while data := stream.recv(1 << 17):  # more would be fetched from the kernel, and given back, each time
            messages = feed(data)
            for message in messages:
                if message.data and decode_item(message.data).data is not None:
                    count += 1
            if count and not first_item:
                first_item = time.perf_counter() - began
            if messages and messages[-1].header == b'"sentinel"':
                break
        stream.close()
        assert count == work.items, (count, work.items)
        return self._result(work, began, cpu, [first_item])

    async def wake(self, work: Work) -> dict[str, Any]:
        """The work, once: no item is looked at, but a task is woken for each read."""
        loop = asyncio.get_running_loop()
        woken = loop.create_future()
        ended = False

        class Reads(asyncio.Protocol):
            def data_received(self, data: bytes) -> None:
                nonlocal ended
                ended = data.endswith(b'"sentinel"')
                if not woken.done():
                    woken.set_result(None)

        cpu, began = cpu_seconds(), time.perf_counter()
        transport, _ = await loop.connect_accepted_socket(Reads, self.ask(work))
        while not ended:
            await woken
            woken = loop.create_future()
        transport.close()
        return self._result(work, began, cpu, [])

    @staticmethod
    def _result(work: Work, began: float, cpu: float, first_item: list[float]) -> dict[str, Any]:
        return {
            "items": work.items,
            "requests": 1,
            "seconds": time.perf_counter() - began,
            "cpu": cpu_seconds() - cpu,
            "first_item": first_item,
            "gap_p99": None,
            "peak_kib": peak_kib("self"),
        }


def between_items(times: list[list[float]]) -> list[float]:
    """Seconds between the items of a stream, in ascending order. `times`: when the items of each stream came.

    They count from when every stream has begun: before that, the caller is busy with thousands of requests.
    """
    since = max((each[0] for each in times if each), default=0.0)
    return sorted(after - before for each in times for before, after in itertools.pairwise(each) if before >= since)


async def do(call: Call, work: Work, wrapped: bool) -> dict[str, Any]:
    """The work, once. `wrapped`: the data of an item is what its `data` method returns."""
    request = work.request()
    left = iter(range(work.requests))
    first_items: list[float] = []
    times: list[list[float]] = []
    count = 0

    async def one() -> None:
        nonlocal count
        for _ in left:
            began = time.perf_counter()
            got = 0
            came: list[float] = []
            answer = await call(request)
            if isinstance(answer, Collecting):
                first_items.append(answer.began - began)  # the first item comes with it, or soon after
                times.append(answer.times)
                count += len(answer.items)
                continue
            async for item in answer:
                if work.pace:
                    came.append(time.perf_counter())
                elif not got:
                    first_items.append(time.perf_counter() - began)
                if wrapped:
                    item.data()
                got += 1
            assert got == work.items, (got, work.items)
            count += got
            if came:
                first_items.append(came[0] - began)
                times.append(came)

    worker_cpu = worker_seconds()
    cpu, began = cpu_seconds(), time.perf_counter()
    await asyncio.gather(*(one() for _ in range(work.concurrent)))
    seconds, cpu = time.perf_counter() - began, cpu_seconds() - cpu
    worker_cpu = worker_seconds() - worker_cpu
    gaps = between_items(times)
    return {
        "loop": type(asyncio.get_running_loop()).__module__,
        "items": count,
        "requests": work.requests,
        "seconds": seconds,
        "cpu": cpu,
        "worker_cpu": worker_cpu if WORKER_PIDS else None,
        "first_item": sorted(first_items),
        "gap_p50": gaps[len(gaps) // 2] if gaps else None,
        "gap_p99": gaps[int(len(gaps) * 0.99)] if gaps else None,
        "peak_kib": peak_kib("self"),
    }


async def idle(call: Call) -> dict[str, float]:
    """What an open stream takes of this process's memory."""

    async def opened() -> AsyncIterator[Any]:
        stream = await call({**IDLE.request(), "hold": 1})
        await anext(aiter(stream))
        return stream

    async def opened_by_turns(count: int) -> list[AsyncIterator[Any]]:
        """A hundred at a time: what the calls take while they are made, all at once, would be counted, too."""
        streams: list[AsyncIterator[Any]] = []
        while len(streams) < count:
            streams += await asyncio.gather(*(opened() for _ in range(100)))
        return streams

    kept = await opened_by_turns(200)  # warm up
    before = resident_kib()
    kept += await opened_by_turns(IDLE.concurrent)
    return {"kib_per_stream": (resident_kib() - before) / IDLE.concurrent}


def resident_kib() -> float:
    gc.collect()
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 1024


def peak_kib(process: int | str) -> int:
    """The most memory that a process has had. (What getrusage says is inherited from the process that started it.)"""
    with open(f"/proc/{process}/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))


WORKER_PIDS = [int(text) for text in os.environ.get("WORKER_PID", "").split(",") if text]


def worker_seconds() -> float:
    """User and system time of all threads of the workers: each process's clock, as clock_getcpuclockid(3) names it."""
    return sum(time.clock_gettime((~pid << 3) | 2) for pid in WORKER_PIDS)


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def main() -> None:
    kind, name, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
    kinds = {"ours": ours, "raw": raw, "sink": sink, "bare": bare, "asyncio": ours, "dropin": dropin, "peer": peer}
    call = await {**kinds, "grpc": grpc}[kind]()
    wrapped = kind in ("ours", "raw", "asyncio")
    if name == "idle":
        print(json.dumps(await idle(call)), flush=True)
        return
    work = WORKS[name]
    warm_up = Work(min(work.requests, 32), min(work.concurrent, 32), min(work.items, 100), work.size)
    await do(call, warm_up, wrapped)
    if sys.argv[4:] == ["counted"]:
        gc.collect()
        gc.freeze()
        for _ in range(rounds):
            await do(call, work, wrapped)
        return
    for _ in range(rounds):
        print(json.dumps(await do(call, work, wrapped)), flush=True)


async def wake(work: Work, rounds: int) -> None:
    """The floor of `Floor.wake`, as `main`."""
    floor = Floor()
    await floor.wake(Work(1, 1, 100, pace=100))  # warm up
    for _ in range(rounds):
        print(json.dumps(await floor.wake(work)), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "floor":
        floor = Floor()
        floor.do(Work(1, 1, 100))  # warm up
        for _ in range(int(sys.argv[3])):
            print(json.dumps(floor.do(WORKS[sys.argv[2]])), flush=True)
    elif sys.argv[1] == "asyncio":
        asyncio.run(main())
    else:
        import uvloop

        uvloop.run(wake(WORKS[sys.argv[2]], int(sys.argv[3])) if sys.argv[1] == "wake" else main())
