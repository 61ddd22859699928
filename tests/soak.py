"""A soak: many mixed calls between a router and a worker in two processes, and what they leave behind.

    python -m tests.soak [REQUESTS] [--seed N] [--at-once N] [--mux auto|off]      (`make soak`: 300,000)

Calls come in rounds. After each round both processes must be as they were: no call in flight, every table as large as
after the first rounds, no socket and no task more. Then both count their memory. It fails if

* an answer was not what it should be;
* a table, the tasks or the sockets did not come back within SETTLE_SECONDS after a round;
* memory grew with the calls: resident bytes, or blocks of Python's allocator, beyond LIMITS by the median slope over the
  rounds after the warm-up.

The smallest leak of one object a call is one block and at least 32 bytes; the limits are a twentieth and a quarter of that.
What grows once and not with the calls (caches, the allocator's arenas) is allowed. A few thousand calls show a leak in the
blocks, which are exact; resident bytes are looked at from BYTES_SHOW calls on, when caches and arenas have grown.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import logging
import os
import random
import socket
import statistics
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

from dynamo_fast.config import ResponseServerConfig, TcpClientConfig, TcpServerConfig, WorkerConfig
from dynamo_fast.context import Context
from dynamo_fast.discovery.memory import MemoryDiscovery
from dynamo_fast.egress.request_sender import ManyIn
from dynamo_fast.egress.response_server import TcpStreamServer
from dynamo_fast.egress.response_stream import ResponseStream
from dynamo_fast.egress.router import AddressedPushRouter, AddressedRequest
from dynamo_fast.egress.tcp_client import TcpRequestClient
from dynamo_fast.errors import (
    Cancelled,
    CannotConnect,
    Disconnected,
    DynamoError,
    RemoteError,
    RequestTooLarge,
    Unavailable,
)
from dynamo_fast.ingress.worker import Worker
from dynamo_fast.observability.metrics import RequestPlaneMetrics
from dynamo_fast.wire.payload import PayloadCodec
from tests.faults.tables import open_sockets, other_tasks, tables
from tests.waiting import until

LIMITS = {"bytes": (8.0, 3 << 20), "blocks": (0.05, 500)}
"""Growth for each call, and what may come at once whatever the number of calls."""
BYTES_SHOW = 40_000
SETTLE_SECONDS = 30.0
ROUNDS, FEWEST_ROUNDS, ROUNDS_OF = 40, 10, 1000
WARM_UP = 5
"""One round of so many comes before the first that is looked at."""
HOST = "127.0.0.1"
LIMIT = 60.0
"""Seconds after which a call hangs."""
MESSAGE_LIMIT = 1 << 20

logger = logging.getLogger(__name__)


@dataclass
class Sample:
    """What one process holds while no call is in flight."""

    rss: int
    blocks: int
    sockets: int
    tasks: int
    tables: dict[str, int]

    @classmethod
    def take(cls, collect: bool, **roots: Any) -> Sample:
        if collect:
            gc.collect()
        with open("/proc/self/statm", encoding="ascii") as statm:
            pages = int(statm.read().split()[1])
        return cls(
            rss=pages * os.sysconf("SC_PAGE_SIZE"),
            blocks=sys.getallocatedblocks(),
            sockets=open_sockets(),
            tasks=len(other_tasks()),
            tables=tables(**roots),
        )

    def __str__(self) -> str:
        return f"{self.rss / 1e6:6.1f} MB {self.blocks:>9,} blocks {self.sockets} sockets {self.tasks} tasks"

    def more_than(self, base: Sample) -> list[str]:
        """What is here and was not in `base`."""
        grown = [
            f"{path}: {size}, not {base.tables.get(path, 0)}"
            for path, size in self.tables.items()
            if size > base.tables.get(path, 0)
        ]
        if self.sockets > base.sockets:
            grown.append(f"{self.sockets} sockets, not {base.sockets}")
        if self.tasks > base.tasks:
            grown.append(f"{self.tasks} tasks, not {base.tasks}")
        return grown


# The worker -----------------------------------------------------------------------------------------------------------


async def answer(request: dict[str, Any], context: Context) -> AsyncIterator[Any]:
    """`count` items of `size` bytes, a pause before each; raises in place of the item number `fail`."""
    for number in range(request["count"] + 1):
        if request.get("fail") == number:
            raise ValueError("soaked")
        if number == request["count"]:
            return
        if request.get("pause"):
            await asyncio.sleep(request["pause"])
        yield object() if request.get("odd") else {"n": number, "pad": "x" * request.get("size", 0)}


async def converse(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
    async for request in requests:
        yield {"got": request}


async def serve() -> None:
    """Serve until standard input ends."""
    config = WorkerConfig(cancel_grace=0.05, leave_delay=0.0)
    worker = await Worker.start(MemoryDiscovery(), config, TcpServerConfig(host=HOST))

    async def measure(request: dict[str, Any]) -> AsyncIterator[Any]:
        yield asdict(Sample.take(request["collect"], worker=worker))

    addresses = {
        "answer": (await worker.serve(answer, "soak.worker.answer")).address,
        "converse": (await worker.serve(converse, "soak.worker.converse", bidirectional=True)).address,
        "measure": (await worker.serve(measure, "soak.worker.measure")).address,
    }
    print(json.dumps(addresses), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await worker.close()


# The calls ------------------------------------------------------------------------------------------------------------


class Wrong(Exception):
    """An answer that is not what it should be."""


class Calls:
    """One method for each kind of call; each raises Wrong, or an error that is not the call's."""

    def __init__(self, router: AddressedPushRouter, addresses: dict[str, str], choose: random.Random) -> None:
        self.router = router
        self.addresses = addresses
        self.mux = 1 if router.response_server.offer is not None else None
        self.choose = choose
        self.address, _, self.path = addresses["answer"].partition("/")
        # Bound and not listening: whatever dials it is refused, and no other program can take it meanwhile.
        self._taken = socket.socket()
        self._taken.bind((HOST, 0))
        self.dead = f"{HOST}:{self._taken.getsockname()[1]}/{self.path}"

    def close(self) -> None:
        self._taken.close()

    async def open(self, context: Context | None = None, **request: Any) -> ResponseStream:
        codec = self.choose.choice([PayloadCodec.JSON, PayloadCodec.MSGPACK])
        return await self.router.generate(
            AddressedRequest(request, self.addresses["answer"], payload_codec=codec, mux=self.mux), context
        )

    async def plain(self) -> None:
        await self._all(count=1)

    async def many_items(self) -> None:
        await self._all(count=self.choose.randrange(2, 200), size=self.choose.choice([0, 100, 2000]))

    async def large_items(self) -> None:
        await self._all(count=3, size=300_000)

    async def paused_items(self) -> None:
        await self._all(count=4, pause=0.002)

    async def handler_raises(self) -> None:
        fail = self.choose.randrange(3)
        stream = await self.open(count=5, fail=fail)
        for number in range(fail):
            check((await anext(stream)).data()["n"] == number, f"item {number}")
        try:
            item = await anext(stream)
        except RemoteError as error:
            check("soaked" in str(error), str(error))
        else:
            raise Wrong(f"the handler's error did not come, but {item}")

    async def item_cannot_be_sent(self) -> None:
        await self._fails(RemoteError, count=1, odd=True)

    async def item_is_too_large(self) -> None:
        await self._fails(Disconnected, count=1, size=MESSAGE_LIMIT + 1)

    async def request_is_too_large(self) -> None:
        await self._fails(RequestTooLarge, count=1, pad="x" * MESSAGE_LIMIT)

    async def stopped(self) -> None:
        await self._ended_early(Context.stop_generating)

    async def killed(self) -> None:
        await self._ended_early(Context.kill)

    async def killed_before(self) -> None:
        context = Context()
        context.kill()
        await self._fails(Cancelled, context=context, count=1)

    async def abandoned(self) -> None:
        """Cancelled after a few turns of the loop: before the acknowledgement, the call home, the prologue or an item."""
        task = asyncio.ensure_future(self._all(count=3, pause=0.01))
        for _ in range(self.choose.randrange(40)):
            await asyncio.sleep(0)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            pass
        finally:
            del (
                task
            )  # it may hold the error, and the error this frame: an answer in it would live until it is collected

    async def closed_early(self) -> None:
        async with await self.open(count=100, pause=0.01) as stream:
            check((await anext(stream)).data()["n"] == 0, "the first item")

    async def dropped(self) -> None:
        """Nobody closes it: the last reference goes."""
        stream = await self.open(count=100, pause=0.01)
        check((await anext(stream)).data()["n"] == 0, "the first item")

    async def dead_address(self) -> None:
        await self._fails(CannotConnect, address=self.dead, count=1)

    async def unknown_endpoint(self) -> None:
        await self._fails(Unavailable, address=f"{self.address}/nowhere", count=1)

    async def bidirectional(self) -> None:
        async def items() -> AsyncIterator[Any]:
            for number in range(5):
                yield number

        got = [item.data()["got"] async for item in await self._converse(items())]
        check(got == list(range(5)), f"{got}")

    async def input_raises(self) -> None:
        async def items() -> AsyncIterator[Any]:
            yield 0
            raise KeyError("soaked")

        try:
            async for _ in await self._converse(items()):
                pass
        except KeyError:
            return
        raise Wrong("the error of the input did not come")

    async def stranger_at_the_worker(self) -> None:
        await self._stranger(self.address, b"\x00\x10half a path")

    async def stranger_at_the_router(self) -> None:
        await self._stranger(
            self.router.response_server.address, self.choose.choice([b"", b"GET / HTTP/1.1\r\n", bytes(24)])
        )

    async def _all(self, **request: Any) -> None:
        items = [item.data()["n"] async for item in await self.open(**request)]
        check(items == list(range(request["count"])), f"{items}")

    async def _fails(
        self, error: type[DynamoError], context: Context | None = None, address: str = "", **request: Any
    ) -> None:
        target = AddressedRequest(request, address or self.addresses["answer"], mux=self.mux)
        try:
            items = [item.data() async for item in await self.router.generate(target, context)]
        except error:
            return
        raise Wrong(f"{error.__name__} did not come, but {len(items)} items")

    async def _ended_early(self, end: Callable[[Context], None]) -> None:
        context, items = Context(), []
        async for item in await self.open(context, count=100, pause=0.005):
            items.append(item.data()["n"])
            if len(items) == 2:
                end(context)
        check(items == list(range(len(items))) and 2 <= len(items) < 100, f"{items}")

    async def _converse(self, items: AsyncIterator[Any]) -> ResponseStream:
        return await self.router.generate(AddressedRequest(ManyIn(items), self.addresses["converse"], mux=self.mux))

    async def _stranger(self, address: str, data: bytes) -> None:
        host, _, port = address.rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(data)
        await asyncio.sleep(0)
        writer.transport.abort()


WEIGHTS = {
    "plain": 40,
    "many_items": 10,
    "large_items": 0.2,
    "paused_items": 8,
    "handler_raises": 6,
    "item_cannot_be_sent": 2,
    "item_is_too_large": 0.2,
    "request_is_too_large": 0.5,
    "stopped": 4,
    "killed": 4,
    "killed_before": 1,
    "abandoned": 8,
    "closed_early": 4,
    "dropped": 4,
    "dead_address": 2,
    "unknown_endpoint": 2,
    "bidirectional": 5,
    "input_raises": 2,
    "stranger_at_the_worker": 1,
    "stranger_at_the_router": 1,
}


def check(is_right: bool, what: str) -> None:
    if not is_right:
        raise Wrong(what)


# The soak -------------------------------------------------------------------------------------------------------------


class Soak:
    """Rounds of calls, and the samples after each."""

    def __init__(self, router: AddressedPushRouter, addresses: dict[str, str], seed: int, at_once: int) -> None:
        self.router = router
        self.addresses = addresses
        self.choose = random.Random(seed)
        self.calls = Calls(router, addresses, self.choose)
        self.at_once = at_once
        self.done: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.memory: list[tuple[int, dict[str, int]]] = []
        """Calls so far, and what the two processes hold after them."""

    async def run(self, requests: int) -> list[str]:
        """All rounds. Returns what was wrong."""
        began = said = time.monotonic()
        rounds = min(ROUNDS, max(FEWEST_ROUNDS, requests // ROUNDS_OF))
        base: tuple[Sample, Sample] | None = None
        for number in range(rounds):
            await self._round(requests // rounds)
            ours, theirs = await self._settled(base)
            if number >= rounds // WARM_UP:
                base = base or (ours, theirs)
                self.memory.append((self.done.total(), _memory(ours, theirs)))
            if time.monotonic() - said > 5 or number == rounds - 1:
                said = time.monotonic()
                self._say(said - began, ours, theirs)
            if self.wrong:
                break
        return self.wrong or self._slopes()

    async def _round(self, count: int) -> None:
        kinds = iter(self.choose.choices(list(WEIGHTS), list(WEIGHTS.values()), k=count))

        async def work() -> None:
            for kind in kinds:
                call: Callable[[], Awaitable[None]] = getattr(self.calls, kind)
                try:
                    await asyncio.wait_for(call(), LIMIT)
                except Exception as error:
                    self.wrong.append(f"{kind}: {type(error).__name__}: {error}")
                self.done[kind] += 1

        await asyncio.gather(*(work() for _ in range(self.at_once)))

    async def _settled(self, base: tuple[Sample, Sample] | None) -> tuple[Sample, Sample]:
        """Both processes once nothing is under way any more; what is left after SETTLE_SECONDS is wrong."""
        deadline = time.monotonic() + SETTLE_SECONDS
        collect = False
        while True:
            ours, theirs = await self._sample(collect)
            left = _in_flight(ours, theirs)
            if base is not None:
                left += ours.more_than(base[0]) + theirs.more_than(base[1])
            if not left and collect:
                return ours, theirs
            if left and time.monotonic() > deadline:
                self.wrong += [f"left after a round: {each}" for each in left]
                return ours, theirs
            collect = not left  # what the collector would remove must have gone before
            await asyncio.sleep(0.02)

    async def _sample(self, collect: bool) -> tuple[Sample, Sample]:
        request = AddressedRequest({"collect": collect}, self.addresses["measure"])
        (theirs,) = [item.data() async for item in await self.router.generate(request)]
        with contextlib.suppress(asyncio.TimeoutError):  # this answer's own connection may close after its last item
            await until(lambda: not self.router.response_server.connections)
        ours = Sample.take(
            collect, client=self.router.client, server=self.router.response_server, metrics=self.router.metrics
        )
        return ours, Sample(**theirs)

    def _slopes(self) -> list[str]:
        """What grew with the calls, after the warm-up."""
        wrong = []
        calls = self.memory[-1][0] - self.memory[0][0]
        for name in self.memory[0][1]:
            limit, allowed = LIMITS[name.split()[1]]
            points = [(done, memory[name]) for done, memory in self.memory]
            slope = statistics.median((b[1] - a[1]) / (b[0] - a[0]) for a, b in combinations(points, 2))
            is_judged = "blocks" in name or calls >= BYTES_SHOW
            note = f"limit {limit:g}" if is_judged else "too few calls to judge"
            print(f"{name:14} {slope:+.4f} a call ({note}), {slope * calls:+,.0f} in {calls:,} calls")
            if is_judged and slope > limit and slope * calls > allowed:
                wrong.append(f"the {name} grow by {slope:.3f} a call; the limit is {limit:g}")
        return wrong

    def _say(self, seconds: float, ours: Sample, theirs: Sample) -> None:
        total = self.done.total()
        print(
            f"{total:>9,} calls {total / seconds:6,.0f}/s   router {ours}   worker {theirs}",
            flush=True,
        )


def _memory(ours: Sample, theirs: Sample) -> dict[str, int]:
    return {
        "router bytes": ours.rss,
        "router blocks": ours.blocks,
        "worker bytes": theirs.rss,
        "worker blocks": theirs.blocks,
    }


def _in_flight(ours: Sample, theirs: Sample) -> list[str]:
    """What there is only while a call is under way. (One request is: the one that asks.)"""
    of_calls = ("metrics.inflight", "server.pending", "server.connections")
    left = [f"{path}: {size}" for path, size in ours.tables.items() if path.endswith(of_calls)]
    running = theirs.tables.get("worker.admission.running", 0)
    return left + ([f"the worker runs {running} requests"] if running > 1 else [])


async def soak(requests: int, seed: int, at_once: int, mux: str) -> int:
    """The router's side. Returns the exit status."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.soak", "worker", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        addresses = json.loads(await process.stdout.readline())
        metrics = RequestPlaneMetrics()
        client = TcpRequestClient(
            TcpClientConfig(max_message_size=MESSAGE_LIMIT, request_timeout=LIMIT), metrics=metrics
        )
        server = await TcpStreamServer.create(ResponseServerConfig(host=HOST, max_message_size=MESSAGE_LIMIT, mux=mux))
        async with AddressedPushRouter(client, server, metrics=metrics) as router:
            run = Soak(router, addresses, seed, at_once)
            wrong = await run.run(requests)
            run.calls.close()
        print(f"seed {seed}: " + ", ".join(f"{count} {kind}" for kind, count in run.done.most_common()))
    finally:
        process.stdin.close()
        await asyncio.wait_for(process.wait(), LIMIT)
    for line in wrong[:50]:
        print(f"WRONG {line}")
    if process.returncode:
        print(f"WRONG the worker ended with {process.returncode}")
    return 1 if wrong or process.returncode else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak")
    parser.add_argument("requests", nargs="?", default="300000", help="how many calls")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--at-once", type=int, default=64, help="calls in flight")
    parser.add_argument("--mux", choices=("auto", "off"), default="auto", help="all answers on one connection, or not")
    arguments = parser.parse_args()
    logging.disable(logging.ERROR)  # refusals, errors and lost callers are meant
    import uvloop

    if arguments.requests == "worker":
        uvloop.run(serve())
        return 0
    return uvloop.run(soak(int(arguments.requests), arguments.seed, arguments.at_once, arguments.mux))


if __name__ == "__main__":
    sys.exit(main())
