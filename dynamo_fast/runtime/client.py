"""`Client` and `AsyncResponseStream`, as `dynamo.runtime` has them (runtime.md 4.3)."""

from __future__ import annotations

import asyncio
import operator
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from dynamo_fast.context import Context as RequestContext
from dynamo_fast.egress.call import Call, RoutedStream
from dynamo_fast.egress.push_router import PushRouter, RouterMode
from dynamo_fast.errors import DynamoError, InvalidRequest, SerializationError
from dynamo_fast.runtime.context import Context
from dynamo_fast.runtime.eager import start
from dynamo_fast.runtime.exceptions import argument_error, at_await, at_call, at_iterate
from dynamo_fast.runtime.hub import Hub
from dynamo_fast.runtime.runtime_data import check_arguments, wait_for_runtime_data
from dynamo_fast.wire.instance import Instance as Record
from dynamo_fast.wire.instance import TransportType

__all__ = ["AsyncResponseStream", "Client", "Instance"]

_BY_LOAD = (RouterMode.PowerOfTwoChoices, RouterMode.LeastLoaded, RouterMode.DeviceAwareWeighted)


class Client:
    """Calls to the instances of one endpoint.

    `Endpoint.client` makes it. It owns a `PushRouter`, which remembers the workers that failed; the runtime's hub owns the
    connections and ends them. Every call returns a future that runs already. The call itself raises if the request cannot
    be encoded, and raises RuntimeError on another event loop than the one on which the client was made.
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
        self, request: Any, annotated: bool | None = True, context: Context | None = None
    ) -> asyncio.Future[AsyncResponseStream]:
        """Send the request to the next instance, in the order of their ids."""
        return self._call(RouterMode.RoundRobin, request, annotated, context)

    def random(
        self, request: Any, annotated: bool | None = True, context: Context | None = None
    ) -> asyncio.Future[AsyncResponseStream]:
        """Send the request to a random instance."""
        return self._call(RouterMode.Random, request, annotated, context)

    def generate(
        self, request: Any, annotated: bool | None = True, context: Context | None = None
    ) -> asyncio.Future[AsyncResponseStream]:
        """Send the request to the instance that the client's router mode picks; without a mode, to a random one.

        (Dynamo's client takes a random instance in every mode.)
        """
        mode = RouterMode.Random if self._mode in (None, RouterMode.Direct, RouterMode.KV) else self._mode
        assert mode is not None
        return self._call(mode, request, annotated, context)

    def direct(
        self, request: Any, instance_id: int, annotated: bool | None = True, context: Context | None = None
    ) -> asyncio.Future[AsyncResponseStream]:
        """Send the request to this instance, even if it is inhibited."""
        return self._call(_unsigned("instance_id", instance_id), request, annotated, context)

    def device_aware_weighted(
        self, request: Any, annotated: bool | None = True, context: Context | None = None
    ) -> asyncio.Future[AsyncResponseStream]:
        """Send the request to the least loaded instance, with a weight for CPUs.

        The client must have been made with a mode that looks at the load, else the future raises InvalidRequest.
        """
        if self._mode not in _BY_LOAD:
            text = f"routing occupancy state not initialized for endpoint {self._router.table.endpoint}"
            return asyncio.ensure_future(_failing(InvalidRequest(text)))
        return self._call(RouterMode.DeviceAwareWeighted, request, annotated, context)

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
        self, to: RouterMode | int, request: Any, annotated: bool | None, context: Context | None
    ) -> asyncio.Future[AsyncResponseStream]:
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
            call = self._router.prepare(to, request, child)
        except SerializationError as error:
            _undo(unlink)
            raise at_call(error) from None
        except BaseException:
            _undo(unlink)
            raise
        return start(_send(call, bool(annotated), unlink), loop)


class AsyncResponseStream:
    """The items of an answer.

    A call of `Client` makes it, and the caller owns it. It ends after the last item or an error. If the caller drops it
    before that, or cancels the wait for an item, the worker is told to stop. Iterate it on the client's event loop (asyncio
    raises RuntimeError elsewhere); it may be dropped on any thread.
    """

    __slots__ = ("__weakref__", "_annotated", "_loop", "_stream", "_unlink")

    def __init__(self, stream: RoutedStream, annotated: bool, unlink: Callable[[], None] | None) -> None:
        self._stream = stream
        self._annotated = annotated
        self._unlink = unlink
        self._loop = asyncio.get_running_loop()

    def __aiter__(self) -> AsyncResponseStream:
        return self

    def __anext__(self) -> asyncio.Future[Any]:
        return start(self._next(), self._loop)

    async def _next(self) -> Any:
        try:
            while True:
                item = await self._stream.__anext__()
                if self._annotated:
                    return item
                data = item.data()
                if data is not None:
                    return data
        except StopAsyncIteration:
            self._end()
            raise StopAsyncIteration("Stream exhausted") from None
        except DynamoError as error:
            self._end()
            raise at_iterate(error)  # noqa: B904  # which keeps its cause
        except Exception:  # of the caller's own input
            self._end()
            raise

    def _end(self) -> None:
        unlink, self._unlink = self._unlink, None
        _undo(unlink)

    def __del__(self) -> None:
        self._end()


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


async def _send(call: Call, annotated: bool, unlink: Callable[[], None] | None) -> AsyncResponseStream:
    try:
        stream = RoutedStream(call, await call.send())
        return AsyncResponseStream(stream, annotated, unlink)
    except DynamoError as error:
        _undo(unlink)
        raise at_await(error)  # noqa: B904  # which keeps its cause
    except BaseException:
        _undo(unlink)
        raise


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
