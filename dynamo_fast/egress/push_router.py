"""`PushRouter`: sends each request to a worker of one endpoint (runtime.md section 3).

    router = await PushRouter.create("demo.backend.generate", discovery, addressed_router)
    stream = await router.generate({"prompt": "hi"})
    async for item in stream:
        print(item.data())

`selection` says which worker gets a request, `call` carries it there, and tries another worker if retries are allowed.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Literal, TypeVar, overload

from dynamo_fast.config import PushRouterConfig
from dynamo_fast.context import Context
from dynamo_fast.discovery.base import Discovery
from dynamo_fast.egress.call import Call, RoutedStream
from dynamo_fast.egress.instance_table import InstanceTable
from dynamo_fast.egress.router import AddressedPushRouter
from dynamo_fast.egress.selection import RouterMode, Selection
from dynamo_fast.egress.sink import Delivery, Sink
from dynamo_fast.egress.traced_call import TracedCall
from dynamo_fast.errors import InvalidConfig
from dynamo_fast.observability import spans
from dynamo_fast.wire.address import EndpointId
from dynamo_fast.wire.instance import Instance

__all__ = ["PushRouter", "RouterMode"]

_T = TypeVar("_T")


class PushRouter:
    """Requests to the workers of one endpoint. One event loop; any number of requests at once.

    Owns its selection, and its table if `create` made it; `close` ends both. The addressed router belongs to the caller.
    """

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

        Only errors whose `migratable` is true are tried again. More than one worker may then have begun the request, and
        the caller must not change it before its first item. Raises InvalidConfig for the mode KV and for a bad setting.
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
        self._tracer = spans.tracer()
        self.selection = Selection(table, self.config, router.response_server.loop)

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
        """Stop following discovery. A table that was passed in goes on for others; answers under way go on."""
        if self._owns_table:
            self.table.close()
        self.selection.close()

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
        """The ids of those that are neither inhibited nor overloaded."""
        return [entry.instance.instance_id for entry in self.selection.free()]

    async def wait_for_instances(self) -> list[int]:
        """Their ids, as soon as there is one. Waits without limit: put a timeout around it."""
        await self.table.filled()
        return self.instance_ids()

    # Requests -------------------------------------------------------------------------------------------------------

    # `raw`, `response_type` and `sink`: see `AddressedPushRouter.generate`.

    @overload
    async def generate(
        self,
        request: Any,
        context: Context | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        raw: Literal[True],
    ) -> RoutedStream[bytes]: ...

    @overload
    async def generate(
        self,
        request: Any,
        context: Context | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        response_type: type[_T],
    ) -> RoutedStream[_T]: ...

    @overload
    async def generate(
        self,
        request: Any,
        context: Context | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        raw: bool = False,
        response_type: Any = None,
        sink: Sink[Any],
    ) -> Delivery: ...

    @overload
    async def generate(
        self, request: Any, context: Context | None = None, headers: Mapping[str, str] | None = None
    ) -> RoutedStream[Any]: ...

    async def generate(
        self,
        request: Any,
        context: Context | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        raw: bool = False,
        response_type: Any = None,
        sink: Sink[Any] | None = None,
    ) -> RoutedStream[Any] | Delivery:
        """Send `request` to a worker that the mode picks.

        Raises Unavailable (no worker, or all are inhibited), ResourceExhausted (all are busy), and what
        `AddressedPushRouter.generate` raises.
        """
        how = response_type, raw
        call = self.prepare(self.mode, request, context, headers, self.retries, how=how)
        answer: RoutedStream[Any] | Delivery = await _answer(call, sink)
        return answer

    @overload
    async def round_robin(self, request: Any, context: Context | None = None) -> RoutedStream[Any]: ...

    @overload
    async def round_robin(
        self,
        request: Any,
        context: Context | None = None,
        *,
        raw: bool = ...,
        response_type: Any = ...,
        sink: Any = ...,
    ) -> Any: ...

    async def round_robin(
        self,
        request: Any,
        context: Context | None = None,
        *,
        raw: bool = False,
        response_type: Any = None,
        sink: Sink[Any] | None = None,
    ) -> Any:
        """Send `request` to the next worker in the order of their ids."""
        return await _answer(self.prepare(RouterMode.RoundRobin, request, context, how=(response_type, raw)), sink)

    @overload
    async def random(self, request: Any, context: Context | None = None) -> RoutedStream[Any]: ...

    @overload
    async def random(
        self,
        request: Any,
        context: Context | None = None,
        *,
        raw: bool = ...,
        response_type: Any = ...,
        sink: Any = ...,
    ) -> Any: ...

    async def random(
        self,
        request: Any,
        context: Context | None = None,
        *,
        raw: bool = False,
        response_type: Any = None,
        sink: Sink[Any] | None = None,
    ) -> Any:
        """Send `request` to any worker."""
        return await _answer(self.prepare(RouterMode.Random, request, context, how=(response_type, raw)), sink)

    @overload
    async def direct(
        self,
        request: Any,
        instance_id: int,
        context: Context | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> RoutedStream[Any]: ...

    @overload
    async def direct(
        self,
        request: Any,
        instance_id: int,
        context: Context | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        raw: bool = ...,
        response_type: Any = ...,
        sink: Any = ...,
    ) -> Any: ...

    async def direct(
        self,
        request: Any,
        instance_id: int,
        context: Context | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        raw: bool = False,
        response_type: Any = None,
        sink: Sink[Any] | None = None,
    ) -> Any:
        """Send `request` to that worker, inhibited or not. Raises Unavailable if discovery does not know it."""
        return await _answer(self.prepare(instance_id, request, context, headers, how=(response_type, raw)), sink)

    def prepare(
        self,
        to: RouterMode | int,
        request: Any,
        context: Context | None = None,
        headers: Mapping[str, str] | None = None,
        retries: int = 0,
        *,
        how: tuple[Any, bool] = (None, False),
    ) -> Call:
        """Pick a worker by a mode, or the one of that id, and encode `request` for it; `Call.send` does the rest.

        The worker has the request in flight from now on, until the answer has ended or the call is dropped.
        `how`: the `response_type` of the items, and whether they are `raw`.
        Raises SerializationError, and TypeError for a bad `how`; if no worker can be picked, `send` raises.
        """
        selection = self.selection
        context = Context() if context is None else context
        if self._tracer is None:
            call = Call(self, request, context, headers or {}, retries, how=how)
        else:
            mode = "Direct" if isinstance(to, int) else to.name
            call = TracedCall(self, request, context, headers or {}, retries, how=how, tracer=self._tracer, mode=mode)
        call.prepare((lambda: selection.named(to)) if isinstance(to, int) else selection.choosers[to])
        return call


async def _answer(call: Call, sink: Sink[Any] | None) -> Any:
    stream = await call.send()
    return RoutedStream(call, stream) if sink is None else Delivery(stream, sink, call).begin()
