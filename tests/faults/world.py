"""A router and a worker of ours on one event loop, a proxy between them on each plane, and one call that meets a fault.

bystander    a stream that is open before the fault, on the same worker and the same request connection; it must go on,
             unless it is on the session (mux.md) that the fault ends: then it is lost at once
victim       the call that the fault strikes
afterwards   one more call, which must succeed
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from dynamo_fast.config import ResponseServerConfig, TcpClientConfig, TcpServerConfig, WorkerConfig
from dynamo_fast.context import Context
from dynamo_fast.discovery.memory import MemoryDiscovery
from dynamo_fast.egress.request_sender import ManyIn
from dynamo_fast.egress.response_server import TcpStreamServer
from dynamo_fast.egress.router import AddressedPushRouter, AddressedRequest
from dynamo_fast.egress.tcp_client import TcpRequestClient
from dynamo_fast.errors import DynamoError
from dynamo_fast.ingress.worker import Worker
from dynamo_fast.observability.metrics import RequestPlaneMetrics
from tests.faults.frames import Plane, Side
from tests.faults.proxy import SETTLE, Fault, Place, Proxy
from tests.faults.tables import open_sockets, other_tasks, tables

ITEMS = [{"n": 10}, {"n": 11}, {"n": 12}]
INPUT = ["x", "y"]
OUTPUT = [{"got": "x"}, {"got": "y"}, {"got": "end"}]


@dataclass(frozen=True)
class Times:
    """How long things take, in seconds of the loop's clock."""

    step: float
    """A handler's work for one item, and a caller's for one item of its input."""
    limit: float
    """After this time without an end, a caller waits for ever."""
    server: ResponseServerConfig
    client: TcpClientConfig
    worker: WorkerConfig
    requests: TcpServerConfig


_HOST = "127.0.0.1"
#: The defaults of the package, on a turned clock. A step is longer than the grace of a cancelled handler (1 s), longer
#: than the grace of a call whose request connection was lost (1 s), and shorter than every other deadline.
TURNED = Times(
    step=3.0,
    limit=3600.0,
    server=ResponseServerConfig(host=_HOST),
    client=TcpClientConfig(),
    worker=WorkerConfig(leave_delay=0.0),
    requests=TcpServerConfig(host=_HOST),
)
#: The same order of things on a real clock. Tens of worlds share one process: a deadline that a busy machine could miss
#: without a fault is in seconds.
REAL = Times(
    step=0.7,
    limit=20.0,
    server=ResponseServerConfig(host=_HOST, handshake_timeout=1.2, call_home_timeout=4.0, call_home_grace=0.1),
    client=TcpClientConfig(request_timeout=2.0, connect_timeout=2.0),
    worker=WorkerConfig(connect_timeout=2.0, close_timeout=1.2, stall_timeout=4.0, cancel_grace=0.05, leave_delay=0.0),
    requests=TcpServerConfig(host=_HOST, frame_timeout=4.0),
)


@dataclass
class Handled:
    """What became of the victim's handler."""

    end: str = "-"
    """`-` (never called), `runs`, `done`, `cancelled`, or the class of what it was ended by."""
    context: str = ""
    """`running`, `stopped` or `killed`, when it ended."""
    at: float = 0.0


@dataclass
class Seen:
    """One victim, from both sides."""

    end: str = ""
    """`ok`, `waits`, or the class of the error."""
    items: list[Any] = field(default_factory=list)
    migratable: bool | None = None
    after: float = 0.0
    """Seconds from the fault to the end of the call."""
    handler: str = ""
    """`-`, `done`, or `cancelled` and the state of its context."""
    handler_after: float = 0.0
    settled_after: float = 0.0
    """Seconds from the fault until every table is as before."""
    bystander: str = "ok"
    """`ok`, or the class of the error."""
    trouble: list[str] = field(default_factory=list)
    """What was wrong besides: each one fails the test."""


class World:
    """Made for one fault. `async with World(times) as world`. `mux`: the setting of both ends, `auto` or `off`."""

    def __init__(self, times: Times, mux: str = "off") -> None:
        self.times = replace(times, server=replace(times.server, mux=mux), worker=replace(times.worker, mux=mux))
        self.loop = asyncio.get_running_loop()
        self.handled = Handled()
        self.calls = 0
        self.goes_on = asyncio.Event()

    async def __aenter__(self) -> World:
        times = self.times
        self._stack = AsyncExitStack()
        metrics = RequestPlaneMetrics()
        self.router = AddressedPushRouter(
            TcpRequestClient(times.client, metrics=metrics), await TcpStreamServer.create(times.server), metrics=metrics
        )
        self._stack.push_async_callback(self.router.close)
        self.worker = await Worker.start(MemoryDiscovery(), times.worker, times.requests)
        self._stack.push_async_callback(self.worker.close)
        await self.worker.serve(self._bystander, "faults.worker.bystander")
        await self.worker.serve(self._answer, "faults.worker.answer")
        await self.worker.serve(self._converse, "faults.worker.converse", bidirectional=True)
        self._paths = {str(each).split(".")[-1].split("/")[-1]: served.address.partition("/")[2]
                       for each, served in self.worker.endpoints.items()}  # fmt: skip
        request_port = _port(self.worker.server.transport("").address)
        self.requests = await self._stack.enter_async_context(Proxy(Side.WORKER, request_port))
        response_port = _port(self.router.response_server.address)
        self.responses = await self._stack.enter_async_context(Proxy(Side.ROUTER, response_port))
        # The worker dials where its request says: the proxy. Both ports have five digits, so no length changes.
        told, proxied = b"%s:%d" % (_HOST.encode(), response_port), b"%s:%d" % (_HOST.encode(), self.responses.port)
        assert len(told) == len(proxied), (told, proxied)
        self.requests.rewrite = lambda frame: frame.replace(told, proxied)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    # Handlers -----------------------------------------------------------------------------------------------------

    async def _bystander(self, request: Any, context: Context) -> AsyncIterator[Any]:
        yield "first"
        await self.goes_on.wait()
        yield "second"

    async def _answer(self, request: Any, context: Context) -> AsyncIterator[Any]:
        async with _Watched(self, context):
            for item in ITEMS:
                await asyncio.sleep(self.times.step)
                yield item
            await asyncio.sleep(self.times.step)

    async def _converse(self, requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        async with _Watched(self, context):
            async for request in requests:
                yield {"got": request}
            await asyncio.sleep(self.times.step)
            yield {"got": "end"}

    # Calls --------------------------------------------------------------------------------------------------------

    async def _input(self) -> AsyncIterator[Any]:
        for item in INPUT:
            await asyncio.sleep(self.times.step)
            yield item
        await asyncio.sleep(self.times.step)

    def request(self, endpoint: str, mux: int | None = 1) -> AddressedRequest:
        """`mux`: what the worker's record says of the multiplexed plane."""
        path = self._paths.get(endpoint, "nowhere")
        data = ManyIn(self._input()) if endpoint == "converse" else {"prompt": "hi"}
        return AddressedRequest(data, f"{_HOST}:{self.requests.port}/{path}", mux=mux)

    async def call(self, endpoint: str, then: str, seen: Seen) -> None:
        """One call to its end. At its first item it stops or kills its context, if `then` says so."""
        context = Context()
        try:
            async with await self.router.generate(self.request(endpoint), context) as stream:
                async for item in stream:
                    seen.items.append(item.data())
                    if len(seen.items) == 1 and then == "stop":
                        context.stop_generating()
                    elif len(seen.items) == 1 and then == "kill":
                        context.kill()
            seen.end = "ok"
        except DynamoError as error:
            seen.end, seen.migratable = type(error).__name__, error.migratable

    def sizes(self) -> dict[str, int]:
        return tables(
            client=self.router.client,
            server=self.router.response_server,
            metrics=self.router.metrics,
            worker=self.worker,
        )


class _Watched:
    """Around a handler: notes how it ends."""

    def __init__(self, world: World, context: Context) -> None:
        self._world, self._context = world, context

    async def __aenter__(self) -> None:
        self._world.calls += 1
        self._world.handled.end = "runs"

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        handled, context = self._world.handled, self._context
        handled.at = self._world.loop.time()
        handled.end = "done" if kind is None else "cancelled" if kind is asyncio.CancelledError else kind.__name__
        handled.context = "killed" if context.is_killed() else "stopped" if context.is_stopped() else "running"


async def together(*calls: Coroutine[Any, Any, Seen]) -> tuple[list[Seen], list[str]]:
    """Await `calls` on a loop of their own; also says what the loop was told of, and what they leave behind in it."""
    loop = asyncio.get_running_loop()
    trouble: list[str] = []
    loop.set_exception_handler(
        lambda _, what: trouble.append(f"the loop got: {what.get('message')} {what.get('exception')!r}")
    )
    before = open_sockets()
    results = await asyncio.gather(*calls)
    for _ in range(100):
        if not other_tasks() and open_sockets() <= before:
            break
        await asyncio.sleep(SETTLE)
    trouble += [f"a task is left: {task!r}" for task in other_tasks()]
    if (now := open_sockets()) > before:
        trouble.append(f"{now - before} sockets are left")
    return results, trouble


async def strike(
    times: Times, endpoint: str, then: str, place: Place, fault: Fault, mux: str = "off", alone: bool = False
) -> Seen:
    """What a call to `endpoint` comes to when `fault` strikes at `place`. `alone`: the bystander is not on the session."""
    async with World(times, mux) as world:
        bystander = world.request("bystander", None if alone else 1)
        return await _strike(world, bystander, endpoint, then, place, fault)


async def _strike(world: World, other: AddressedRequest, endpoint: str, then: str, place: Place, fault: Fault) -> Seen:
    seen, loop, times = Seen(), world.loop, world.times
    bystander = await world.router.generate(other)
    first = await anext(bystander)
    before = world.sizes()

    proxy = world.requests if place.plane is Plane.REQUEST else world.responses
    world.responses.new_planes = [Plane.INPUT] if endpoint == "converse" else []
    world.responses.mark()
    proxy.arm(place, fault)
    try:
        await asyncio.wait_for(world.call(endpoint, then, seen), times.limit)
    except asyncio.TimeoutError:
        seen.end = "waits"
    ended_at = loop.time()
    await _settle(world, seen, before)
    struck_at = proxy.struck_at
    if struck_at is None:
        seen.trouble.append("the fault did not strike")
        struck_at = ended_at
    seen.after, seen.settled_after = ended_at - struck_at, seen.settled_after - struck_at
    handled = world.handled
    seen.handler = handled.end if handled.end in ("-", "done", "runs") else f"{handled.end} {handled.context}"
    seen.handler_after = handled.at - struck_at if handled.at else 0.0
    if world.calls > 1:
        seen.trouble.append(f"the handler was called {world.calls} times")

    for each in (world.requests, world.responses):
        each.disarm()
    await asyncio.sleep(times.step)
    world.goes_on.set()
    # A session that waits for the rest of a frame which a fault has made longer: only the next frames, or its end, show it.
    giving_up = loop.call_later(times.limit, world.responses.reset)
    try:
        rest = [first.data(), *[item.data() async for item in bystander]]
        if rest != ["first", "second"]:
            seen.trouble.append(f"the bystander got {rest}")
    except DynamoError as error:
        seen.bystander = type(error).__name__
    giving_up.cancel()
    afterwards = Seen()
    await asyncio.wait_for(world.call("bystander", "", afterwards), times.limit)
    if (afterwards.end, afterwards.items) != ("ok", ["first", "second"]):
        seen.trouble.append(f"the call afterwards: {afterwards}")
    return seen


async def _settle(world: World, seen: Seen, before: dict[str, int]) -> None:
    """Wait until every table is as it was before the call, or for long enough."""
    times = world.times
    deadline = world.loop.time() + times.limit
    pause = times.step / 32
    while (left := _left(world, before)) and world.loop.time() < deadline:
        await asyncio.sleep(pause)
        pause *= 1.25
    seen.settled_after = world.loop.time()
    seen.trouble += left


_KEPT = ("server.sessions", "sessions._sessions", "]._decoder.pending", "]._unseen")
"""A session goes on after a call; half a frame, and streams that the router has not seen, may be in it for so long."""


def _left(world: World, before: dict[str, int]) -> list[str]:
    """What the call has left behind so far: tables that hold more than before, connections that are open."""
    grown = [
        f"{path} was {before.get(path, 0)} and is {size}"
        for path, size in world.sizes().items()
        # Less is right: the fault may have ended a connection of a pool.
        if size > before.get(path, 0) and not path.endswith(_KEPT)
    ]
    return grown + [f"{each} is open" for each in world.responses.still_open()]


def _port(address: str) -> int:
    return int(address.partition("/")[0].rpartition(":")[2])
