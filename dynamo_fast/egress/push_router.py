"""`PushRouter`: picks a worker for each request, and keeps away from those that failed (runtime.md section 3).

    router = await PushRouter.create("demo.backend.generate", discovery, addressed_router)
    stream = await router.generate({"prompt": "hi"})
    async for item in stream:
        print(item.data())

A worker that fails in a way that says "not this one" is *inhibited*: for 5 s no request goes there, unless `direct` names
it. One that says it is busy is left alone until one of our own answers there has ended, at least for a tenth of a second.
What a router has learnt is its own; how many requests each worker has in flight is common to all who share the table.
"""

from __future__ import annotations

import asyncio
import enum
import random
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from dynamo_fast import reasons
from dynamo_fast.config import PushRouterConfig
from dynamo_fast.context import Context
from dynamo_fast.deadlines import Deadlines
from dynamo_fast.discovery.base import Discovery
from dynamo_fast.egress.instance_table import Entry, InstanceTable, LoadQueue
from dynamo_fast.egress.request_sender import ManyIn
from dynamo_fast.egress.response_stream import ResponseStream
from dynamo_fast.egress.router import AddressedPushRouter, AddressedRequest, EncodedBody
from dynamo_fast.errors import (
    DynamoError,
    InvalidConfig,
    InvalidRequest,
    ResourceExhausted,
    Unavailable,
)
from dynamo_fast.wire.address import EndpointId
from dynamo_fast.wire.instance import Instance
from dynamo_fast.wire.payload import Annotated

__all__ = ["Call", "PushRouter", "RoutedStream", "RouterMode"]

_OVERLOADED_SECONDS = 0.1
_OVERLOADED = reasons.WORKER_OVERLOADED.reason
# "Not this worker", said by the transport or by a worker that is about to leave. What a handler met behind the worker
# (`backend.cannot_connect` and the like) says nothing about the worker.
_INHIBITING = frozenset(
    words.reason
    for words in (
        reasons.CANNOT_CONNECT,
        reasons.DISCONNECTED,
        reasons.CONNECTION_TIMEOUT,
        reasons.RESPONSE_TIMEOUT,
        reasons.BACKEND_ENGINE_SHUTDOWN,
        reasons.BACKEND_STREAM_INCOMPLETE,
        reasons.WORKER_UNAVAILABLE,
    )
)


class RouterMode(enum.Enum):
    """How `PushRouter.generate` picks a worker. The names are Dynamo's."""

    RoundRobin = "round_robin"
    Random = "random"
    KV = "kv"
    """Not offered: it needs the workers' cache events."""
    Direct = "direct"
    """The caller names the worker; there is `direct` for that."""
    PowerOfTwoChoices = "power_of_two_choices"
    LeastLoaded = "least_loaded"
    DeviceAwareWeighted = "device_aware_weighted"


Chooser = Callable[[], Entry]


class PushRouter:
    """Requests to the workers of one endpoint. One event loop; any number of requests at once."""

    def __init__(
        self,
        table: InstanceTable,
        router: AddressedPushRouter,
        *,
        mode: RouterMode = RouterMode.RoundRobin,
        retries: int = 0,
        config: PushRouterConfig | None = None,
    ) -> None:
        """`retries`: on how many other workers `generate` may try a request that failed before its first item.

        Only errors that say `migratable` are tried again. The request may then have been begun more than once, and must
        not be changed by its caller before its first item. Raises InvalidConfig for the mode KV, and for a setting.
        """
        if mode is RouterMode.KV:
            raise InvalidConfig(
                "the router mode KV is not offered: it needs the workers' cache events; use LeastLoaded"
            )
        if retries < 0:
            raise InvalidConfig(f"retries={retries} is not valid: expected a whole number of at least 0")
        self.table = table
        self.router = router
        self.mode = mode
        self.retries = retries
        self.config = config or PushRouterConfig.from_env()
        self._owns_table = False
        loop = router.response_server.loop
        self._inhibited: Deadlines[Entry] = Deadlines(loop, self.config.inhibited_duration, self._changed)
        self._overloaded: Deadlines[Entry] = Deadlines(loop, _OVERLOADED_SECONDS, self._changed)
        self._free: list[Entry] | None = None  # with `_out`, what is derived from the two and the table when needed
        self._out: set[Entry] = set()
        self._turn = 0
        self._choosers: dict[RouterMode, Chooser] = {
            RouterMode.RoundRobin: self._next,
            RouterMode.Random: self._any,
            RouterMode.Direct: self._unnamed,
            RouterMode.PowerOfTwoChoices: self._better_of_two,
            RouterMode.LeastLoaded: self._least_loaded,
            RouterMode.DeviceAwareWeighted: self._by_device,
        }
        table.listen(self)

    @classmethod
    async def create(
        cls,
        endpoint: EndpointId | str,
        discovery: Discovery,
        router: AddressedPushRouter,
        *,
        mode: RouterMode = RouterMode.RoundRobin,
        retries: int = 0,
        config: PushRouterConfig | None = None,
    ) -> PushRouter:
        """A router that knows the workers of `endpoint` ("namespace.component.endpoint") from `discovery`.

        Raises InvalidAddress, InvalidConfig, and what the discovery backend raises.
        """
        endpoint = EndpointId.parse(endpoint) if isinstance(endpoint, str) else endpoint
        table = await InstanceTable.watch(endpoint, discovery, router.response_server)
        try:
            push_router = cls(table, router, mode=mode, retries=retries, config=config)
        except BaseException:
            table.close()
            raise
        push_router._owns_table = True
        return push_router

    def close(self) -> None:
        """Follow discovery no longer; a table that was given goes on for others. Answers under way go on."""
        if self._owns_table:
            self.table.close()
        self._inhibited.close()
        self._overloaded.close()
        self._free = None

    async def __aenter__(self) -> PushRouter:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # The workers --------------------------------------------------------------------------------------------------

    def instances(self) -> list[Instance]:
        """The workers that discovery knows, inhibited ones included, in ascending order of their ids."""
        return [entry.instance for entry in self.table]

    def instance_ids(self) -> list[int]:
        """Their ids."""
        return [entry.instance.instance_id for entry in self.table]

    def free_ids(self) -> list[int]:
        """The ids of those that are neither inhibited nor marked as overloaded."""
        return [entry.instance.instance_id for entry in self._free_entries()]

    async def wait_for_instances(self) -> list[int]:
        """Their ids, as soon as there is one. Waits for as long as that takes: put a bound around it."""
        await self.table.filled()
        return self.instance_ids()

    # Requests -------------------------------------------------------------------------------------------------------

    async def generate(
        self, request: Any, context: Context | None = None, headers: Mapping[str, str] | None = None
    ) -> RoutedStream:
        """Send `request` to a worker that the mode picks.

        Raises Unavailable (nobody is there, or everybody is inhibited), ResourceExhausted (everybody is busy), and what
        `AddressedPushRouter.generate` raises.
        """
        return await _stream(self.prepare(self.mode, request, context, headers, self.retries))

    async def round_robin(self, request: Any, context: Context | None = None) -> RoutedStream:
        """Send `request` to the next worker in the order of their ids."""
        return await _stream(self.prepare(RouterMode.RoundRobin, request, context))

    async def random(self, request: Any, context: Context | None = None) -> RoutedStream:
        """Send `request` to any worker."""
        return await _stream(self.prepare(RouterMode.Random, request, context))

    async def direct(self, request: Any, instance_id: int, context: Context | None = None) -> RoutedStream:
        """Send `request` to that worker, inhibited or not. Raises Unavailable if discovery does not know it."""
        return await _stream(self.prepare(instance_id, request, context))

    def prepare(
        self,
        to: RouterMode | int,
        request: Any,
        context: Context | None = None,
        headers: Mapping[str, str] | None = None,
        retries: int = 0,
    ) -> Call:
        """Pick a worker by a mode, or the one of that id, and encode `request` for it; `Call.send` does the rest.

        The worker has the request in flight from now on, until the answer has ended or the call is dropped.
        Raises SerializationError now; that nobody can be picked is for `send` to say.
        """
        chooser = (lambda: self._named(to)) if isinstance(to, int) else self._choosers[to]
        call = Call(self, request, Context() if context is None else context, headers or {}, retries)
        call.prepare(chooser)
        return call

    # Selection ------------------------------------------------------------------------------------------------------

    def _free_entries(self) -> list[Entry]:
        if self._free is None:
            self._out = {*self._inhibited.keys(), *self._overloaded.keys()}
            self._free = [entry for entry in self.table.entries if entry not in self._out]
        return self._free

    def _free_or_error(self) -> list[Entry]:
        free = self._free_entries()
        if not free:
            raise self._nobody()
        return free

    def _nobody(self) -> DynamoError:
        if len(self._overloaded):
            error = ResourceExhausted("All workers are busy, please retry later")
            error.reason = reasons.CAPACITY_EXHAUSTED.reason
            return error
        return Unavailable(f"No workers available for endpoint {self.table.endpoint}")

    def _next(self) -> Entry:
        free = self._free_or_error()
        entry = free[self._turn % len(free)]
        self._turn += 1
        return entry

    def _any(self) -> Entry:
        free = self._free_or_error()
        return free[_below(len(free))]

    def _better_of_two(self) -> Entry:
        free = self._free_or_error()
        if len(free) == 1:
            return free[0]
        first, second = _below(len(free)), _below(len(free) - 1)
        one, other = free[first], free[second + (second >= first)]
        return other if other.in_flight < one.in_flight else one

    def _least_loaded(self) -> Entry:
        cpu, other = self._least_of_each()
        if cpu is None or other is None:
            return self._only(cpu, other)
        return cpu if cpu.in_flight < other.in_flight else other

    def _by_device(self) -> Entry:
        """The least loaded of a class; CPUs get their share, so that each has 1/ratio of what an accelerator has."""
        cpu, other = self._least_of_each()
        if cpu is None or other is None:
            return self._only(cpu, other)
        cpus, on_cpus = self._load_of(self.table.cpu)
        others, on_others = self._load_of(self.table.other)
        share = on_others * cpus / (self.config.cuda_to_cpu_ratio * others)
        return cpu if on_cpus < share else other

    def _least_of_each(self) -> tuple[Entry | None, Entry | None]:
        self._free_or_error()
        return self.table.cpu.least(self._out), self.table.other.least(self._out)

    @staticmethod
    def _only(*entries: Entry | None) -> Entry:
        return next(entry for entry in entries if entry is not None)

    def _load_of(self, queue: LoadQueue) -> tuple[int, int]:
        """How many of a class can be picked, and their requests in flight."""
        size, total = queue.size, queue.total
        for entry in self._out:
            if entry.queue is queue:
                size -= 1
                total -= entry.in_flight
        return size, total

    def _named(self, instance_id: int) -> Entry:
        entry = self.table.find(instance_id)
        if entry is None:
            raise Unavailable(f"instance_id={instance_id} not found for endpoint {self.table.endpoint}")
        return entry

    def another(self, tried: set[Entry]) -> Entry:
        """The least loaded of those that were not tried; raises as a first pick does."""
        untried = [entry for entry in self._free_entries() if entry not in tried]
        if not untried:
            raise self._nobody()
        return min(untried, key=lambda entry: entry.in_flight)

    def _unnamed(self) -> Entry:
        raise InvalidRequest("the router mode is Direct: call direct(request, instance_id)")

    # What became of them --------------------------------------------------------------------------------------------

    def failed(self, entry: Entry, error: DynamoError) -> None:
        """A request that went to `entry` ended with `error`: remember what that says about the worker."""
        if self.table.find(entry.instance.instance_id) is not entry:
            return
        found = {link.reason for link in error.chain()}
        if _OVERLOADED in found:
            marks = self._overloaded
        elif found & _INHIBITING and self.config.inhibited_duration:
            marks = self._inhibited
        else:
            return
        marks.discard(entry)  # the time starts again
        marks.add(entry)
        self._free = None

    def ended(self, entry: Entry) -> None:
        """A request that went to `entry` is over: there is room again."""
        entry.end()
        if entry in self._overloaded:
            self._overloaded.discard(entry)
            self._free = None

    def table_changed(self, gone: Entry | None) -> None:
        if gone is not None:
            self._inhibited.discard(gone)
            self._overloaded.discard(gone)
        self._free = None

    def _changed(self, _: Entry) -> None:
        self._free = None


class Call:
    """One request on its way to its first item: the worker that was picked, and those that were tried before."""

    __slots__ = ("_attempt", "_error", "_headers", "_request", "_retries", "_tried", "context", "entry", "router")

    def __init__(
        self, router: PushRouter, request: Any, context: Context, headers: Mapping[str, str], retries: int
    ) -> None:
        self.router = router
        self.context = context
        self.entry: Entry | None = None
        """The worker that has the request; None before, and when it is over."""
        self._request = request
        self._headers = headers
        self._retries = retries
        self._tried: set[Entry] = set()
        self._error: DynamoError | None = None
        self._attempt: AddressedRequest | None = None

    def prepare(self, choose: Chooser) -> None:
        """Pick a worker, and encode the request for it. Raises SerializationError."""
        try:
            entry = choose()
        except DynamoError as error:
            self._error = error
            return
        instance = entry.instance
        codec = instance.payload_codec
        stream_of_requests = isinstance(self._request, ManyIn)
        data = self._request if stream_of_requests else EncodedBody(codec.encode(self._request))
        self._attempt = AddressedRequest(
            data,
            instance.transport.address,
            instance.endpoint_instance_id,
            codec,
            self._headers,
            self.router.config.inactivity_timeout,
            instance.transport.kind,
        )
        if stream_of_requests:
            self._retries = 0  # it can be read only once
        if not self._retries:
            self._request = None
        self.entry = entry
        entry.begin()

    async def send(self) -> ResponseStream:
        """Send it; another worker is tried if this one fails, and that is wanted."""
        while True:
            if self._error is not None:
                raise self._error
            assert self._attempt is not None
            try:
                return await self.router.router.generate(self._attempt, self.context)
            except DynamoError as error:
                if not self.failed(error):
                    raise
            except BaseException:
                self.release()
                raise

    def failed(self, error: DynamoError) -> bool:
        """The worker that was picked failed. Whether there is another one to `send` to, which is prepared then."""
        entry = self.entry
        if entry is None:
            return False
        self.release()
        self.router.failed(entry, error)
        if not self._retries or not error.migratable or self.context.is_stopped():
            return False
        self._retries -= 1
        self._tried.add(entry)
        self.prepare(lambda: self.router.another(self._tried))
        return self._error is None

    def begun(self) -> None:
        """The first item has come: there is no other worker from now on."""
        self._retries = 0
        self._request = None

    def release_from_any_thread(self) -> None:
        """As `release`, which belongs to the router's loop."""
        if self.entry is None:
            return
        loop = self.router.router.response_server.loop
        if asyncio._get_running_loop() is loop:
            self.release()
        elif not loop.is_closed():
            loop.call_soon_threadsafe(self.release)

    def release(self) -> None:
        """The worker has this request no longer."""
        entry, self.entry = self.entry, None
        if entry is not None:
            self.router.ended(entry)

    def __del__(self) -> None:
        # Of an answer that was dropped, or a call that was never sent. The garbage collector may run on any thread, and
        # the table belongs to the loop's.
        if self.entry is not None:
            loop = self.router.router.response_server.loop
            if asyncio._get_running_loop() is loop:
                self.release()
            elif not loop.is_closed():
                loop.call_soon_threadsafe(self.router.ended, self.entry)


class RoutedStream:
    """The answer of the worker that was picked: `ResponseStream`, and what its end says about the worker."""

    __slots__ = ("__weakref__", "_begun", "_call", "_stream")

    def __init__(self, call: Call, stream: ResponseStream) -> None:
        self._call = call
        self._stream = stream
        self._begun = False

    def __aiter__(self) -> RoutedStream:
        return self

    async def __anext__(self) -> Annotated:
        while True:
            try:
                item = await self._stream.__anext__()
            except DynamoError as error:
                if not self._call.failed(error):
                    raise
                self._stream = await self._call.send()
            except StopAsyncIteration:
                self._call.release()
                raise
            else:
                if not self._begun:
                    self._begun = True
                    self._call.begun()
                return item

    def close(self) -> None:
        """End the answer: if it has not ended yet, the worker is told to quit. From any thread; may be called again."""
        self._stream.close()
        self._call.release_from_any_thread()

    async def aclose(self) -> None:
        """The same as `close`, under the name that asynchronous generators give it."""
        self.close()

    async def __aenter__(self) -> RoutedStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _below(end: int) -> int:
    """A random number from 0 to `end` - 1, in a fifth of the time that `randrange` takes."""
    return int(random.random() * end)  # noqa: S311  # nobody is to be kept from guessing it


async def _stream(call: Call) -> RoutedStream:
    return RoutedStream(call, await call.send())
