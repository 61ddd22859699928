"""`Client` and `AsyncResponseStream`, as `dynamo.runtime` has them (runtime.md 4.3)."""

from __future__ import annotations

import asyncio
import operator
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from dynamo_fast.context import Context as RequestContext
from dynamo_fast.egress.call import Call
from dynamo_fast.egress.push_router import PushRouter, RouterMode
from dynamo_fast.egress.router import Exchange
from dynamo_fast.egress.sink import Delivery, Sink
from dynamo_fast.errors import DynamoError, InvalidRequest, SerializationError
from dynamo_fast.runtime._stream import AsyncResponseStream
from dynamo_fast.runtime.context import Context
from dynamo_fast.runtime.exceptions import argument_error, at_await, at_call, at_iterate
from dynamo_fast.runtime.hub import Hub
from dynamo_fast.runtime.runtime_data import check_arguments, wait_for_runtime_data
from dynamo_fast.wire.instance import Instance as Record
from dynamo_fast.wire.instance import TransportType

__all__ = ["AsyncResponseStream", "Client", "Instance"]

# Looked up once; `super()` makes an object for each use.
_Future = asyncio.Future
_set_result = asyncio.Future.set_result

_BY_LOAD = (RouterMode.PowerOfTwoChoices, RouterMode.LeastLoaded, RouterMode.DeviceAwareWeighted)


class Client:
    """Calls to the instances of one endpoint.

    `Endpoint.client` makes it. It owns a `PushRouter`, which remembers the workers that failed; the runtime's hub owns the
    connections and ends them. Every call returns a future that runs already. The call itself raises if the request cannot
    be encoded, and raises RuntimeError on another event loop than the one on which the client was made.

    Three extras, which Dynamo's client has not, are keywords of every call (see `AddressedPushRouter.generate`): with `raw`
    the data of an item is the bytes that the worker sent, with `response_type` a value of that type; with `sink` the items
    go to that object, and the future's result is their `Delivery`.
    """

    def __init__(self, router: PushRouter, mode: RouterMode | None, hub: Hub) -> None:
        self._router = router
        self._hub = hub
        self._mode = mode
        self._loop = router.router.response_server.loop

    def instance_ids(self) -> list[int]:
        """The ids of the instances that discovery knows, including those that are inhibited."""
        return self._router.instance_ids()

    def instances(self) -> list[Instance]:
        """The instances that discovery knows, including those that are inhibited."""
        return [Instance.of(record) for record in self._router.instances()]

    def wait_for_instances(self) -> asyncio.Future[list[int]]:
        """The ids, as soon as there is one. Waits without a limit."""
        return asyncio.ensure_future(self._router.wait_for_instances())

    def round_robin(
        self,
        request: Any,
        annotated: bool | None = True,
        context: Context | None = None,
        *,
        raw: bool = False,
        response_type: Any = None,
        sink: Sink[Any] | None = None,
    ) -> asyncio.Future[Any]:
        """Send the request to the next instance, in the order of their ids."""
        return self._call(RouterMode.RoundRobin, request, annotated, context, how=(response_type, raw), sink=sink)

    def random(
        self,
        request: Any,
        annotated: bool | None = True,
        context: Context | None = None,
        *,
        raw: bool = False,
        response_type: Any = None,
        sink: Sink[Any] | None = None,
    ) -> asyncio.Future[Any]:
        """Send the request to a random instance."""
        return self._call(RouterMode.Random, request, annotated, context, how=(response_type, raw), sink=sink)

    def generate(
        self,
        request: Any,
        annotated: bool | None = True,
        context: Context | None = None,
        *,
        raw: bool = False,
        response_type: Any = None,
        sink: Sink[Any] | None = None,
    ) -> asyncio.Future[Any]:
        """Send the request to the instance that the client's router mode picks; without a mode, to a random one.

        (Dynamo's client takes a random instance in every mode.)
        """
        mode = RouterMode.Random if self._mode in (None, RouterMode.Direct, RouterMode.KV) else self._mode
        assert mode is not None
        return self._call(mode, request, annotated, context, how=(response_type, raw), sink=sink)

    def direct(
        self,
        request: Any,
        instance_id: int,
        annotated: bool | None = True,
        context: Context | None = None,
        *,
        raw: bool = False,
        response_type: Any = None,
        sink: Sink[Any] | None = None,
    ) -> asyncio.Future[Any]:
        """Send the request to this instance, even if it is inhibited."""
        return self._call(
            _unsigned("instance_id", instance_id), request, annotated, context, how=(response_type, raw), sink=sink
        )

    def device_aware_weighted(
        self,
        request: Any,
        annotated: bool | None = True,
        context: Context | None = None,
        *,
        raw: bool = False,
        response_type: Any = None,
        sink: Sink[Any] | None = None,
    ) -> asyncio.Future[Any]:
        """Send the request to the least loaded instance, with a weight for CPUs.

        The client must have been made with a mode that looks at the load, else the future raises InvalidRequest.
        """
        if self._mode not in _BY_LOAD:
            text = f"routing occupancy state not initialized for endpoint {self._router.table.endpoint}"
            return asyncio.ensure_future(_failing(InvalidRequest(text)))
        return self._call(
            RouterMode.DeviceAwareWeighted, request, annotated, context, how=(response_type, raw), sink=sink
        )

    def wait_for_instance_by_runtime_data(
        self, key: str, value: str, timeout_s: float | None = None
    ) -> asyncio.Future[int]:
        """The id of the one instance whose model card has the text `value` in its runtime data, under `key`.

        Waits while there is none, or several. The future raises TimeoutError after `timeout_s`; without it, the wait has
        no limit but the end of the runtime (Disconnected).
        """
        check_arguments(key, value, timeout_s)
        return asyncio.ensure_future(self._wait_for_one(key, value, timeout_s))

    def wait_for_instances_by_runtime_data(
        self, key: str, value: str, min_count: int, timeout_s: float | None = None
    ) -> asyncio.Future[list[int]]:
        """The ids, in ascending order, of those instances as soon as there are `min_count`; else as above."""
        check_arguments(key, value, timeout_s)
        count = _unsigned("min_count", min_count)
        if count == 0:
            raise ValueError("min_count must be positive")
        return asyncio.ensure_future(self._wait_for((key, value), count, timeout_s))

    async def _wait_for_one(self, key: str, value: str, timeout: float | None) -> int:
        (found,) = await self._wait_for((key, value), 1, timeout, exactly=True)
        return found

    async def _wait_for(
        self, wanted: tuple[str, str], count: int, timeout: float | None, *, exactly: bool = False
    ) -> list[int]:
        table = self._router.table
        return await wait_for_runtime_data(self._hub, table, wanted, count, timeout=timeout, exactly=exactly)

    def _call(
        self,
        to: RouterMode | int,
        request: Any,
        annotated: bool | None,
        context: Context | None,
        *,
        how: tuple[Any, bool],
        sink: Sink[Any] | None,
    ) -> asyncio.Future[Any]:
        if context is not None and not isinstance(context, Context):
            raise argument_error("context", context, "Context")
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            raise RuntimeError(
                "a client is called on the event loop that it was made on, and another loop runs here: pass the call "
                "to that loop with asyncio.run_coroutine_threadsafe, or make a runtime for each loop"
            )
        unlink = None
        if context is None:
            child = RequestContext()
        else:
            child = context.child()
            unlink = context.request.link_child(child)
        try:
            call = self._router.prepare(to, request, child, how=how)
        except SerializationError as error:
            _undo(unlink)
            raise at_call(error) from None
        except BaseException:
            _undo(unlink)
            raise
        return _Answer(call, bool(annotated), unlink, sink, loop).begun()


@dataclass(frozen=True)
class Instance:
    """The record of one instance in discovery."""

    instance_id: int
    namespace: str
    component: str
    endpoint: str
    transport: TransportType
    device_type: str | None

    @classmethod
    def of(cls, record: Record) -> Instance:
        """Convert the record of the request plane."""
        return cls(record.instance_id, *record.endpoint_id, transport=record.transport, device_type=record.device_type)

    def __str__(self) -> str:
        return f"{self.namespace}/{self.component}/{self.endpoint}/{self.instance_id}"

    def __repr__(self) -> str:
        return f"Instance({self})"


class _Answer(asyncio.Future[Any]):
    """What a call returns: the future of its answer, or of the delivery to a sink. No task waits for it.

    The receiver of the answer holds it as its `established`, and fulfils it. It owns the call and the exchange until it is
    done; cancelled, it gives both up at once.
    """

    __slots__ = ("_annotated", "_call", "_exchange", "_sink", "_unlink")

    def __init__(
        self,
        call: Call,
        annotated: bool,
        unlink: Callable[[], None] | None,
        sink: Sink[Any] | None,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        _Future.__init__(self, loop=loop)
        self._call = call
        self._annotated = annotated
        self._unlink = unlink
        self._sink = sink
        self._exchange: Exchange | None = None

    def begun(self) -> _Answer:
        """Send the request; returns the future itself."""
        try:
            self._exchange = self._call.begin(self)
        except (Exception, asyncio.CancelledError) as error:
            self.set_exception(error)
        return self

    def set_result(self, _: Any, /) -> None:
        """The answer has begun."""
        exchange, self._exchange = self._exchange, None
        assert exchange is not None
        stream = exchange.stream()
        if self._sink is None:
            _set_result(self, AsyncResponseStream(self._call, stream, self._annotated, self._unlink))
        else:
            stream._bare = not self._annotated
            _set_result(self, Delivery(stream, self._sink, self._call, self._at_end).begin())

    def _at_end(self, error: BaseException | None) -> BaseException | None:
        _undo(self._unlink)
        return at_iterate(error) if isinstance(error, DynamoError) else error

    def set_exception(self, error: Any, /) -> None:
        """It does not begin, because of `error`."""
        if isinstance(error, DynamoError):
            super().set_exception(at_await(error))
            self._call.failed(error)
        else:  # of the caller's own input
            super().set_exception(error)
        self._give_up()

    def cancel(self, msg: Any | None = None) -> bool:
        """See asyncio.Future."""
        cancelled = super().cancel(msg)
        if cancelled:
            self._give_up()
        return cancelled

    def _give_up(self) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.give_up()
        self._call.release()
        _undo(self._unlink)


def _failing(error: DynamoError) -> Coroutine[Any, Any, Any]:
    async def fail() -> None:
        raise error

    return fail()


def _undo(unlink: Callable[[], None] | None) -> None:
    if unlink is not None:
        unlink()


def _unsigned(name: str, value: int) -> int:
    """The argument, if it is an unsigned number of 64 bits; else the error of Dynamo's binding."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(
            f"argument '{name}': '{type(value).__name__}' object cannot be interpreted as an integer"
        ) from None
    if number < 0:
        raise OverflowError("can't convert negative int to unsigned")
    if number >= 1 << 64:
        raise OverflowError("int too big to convert")
    return number
