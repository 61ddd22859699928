# cython: freethreading_compatible=True, annotation_typing=False
"""`Call`: one request from the choice of its worker to its first item. `RoutedStream`: its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from time import perf_counter
from types import TracebackType
from typing import Any, Generic, Protocol

from dynamo_fast.config import PushRouterConfig
from dynamo_fast.context import Context
from dynamo_fast.egress.instance_table import Entry
from dynamo_fast.egress.request_sender import ManyIn
from dynamo_fast.egress.response_stream import ResponseStream
from dynamo_fast.egress.router import AddressedPushRouter, AddressedRequest, EncodedBody, Exchange, encoded
from dynamo_fast.errors import DynamoError
from dynamo_fast.wire.payload import Annotated, Data

__all__ = ["Call", "CallOwner", "RoutedStream", "Workers"]


class Workers(Protocol):
    """What a call asks of the selection that its worker comes from."""

    def another(self, tried: set[Entry]) -> Entry:
        """A worker that was not tried. Raises DynamoError if there is none."""

    def failed(self, entry: Entry, error: DynamoError) -> None:
        """The request to `entry` ended with `error`."""

    def ended(self, entry: Entry) -> None:
        """The request to `entry` is over."""


class CallOwner(Protocol):
    """What a call asks of the push router that made it."""

    @property
    def router(self) -> AddressedPushRouter:
        """Sends the request to the worker that was picked."""

    @property
    def selection(self) -> Workers:
        """Where the worker comes from."""

    @property
    def config(self) -> PushRouterConfig:
        """Has the inactivity timeout of its requests."""


class Call:
    """One request on its way to its first item: the worker that was picked, and those that were tried before.

    Owns one request in flight at `entry`, which `release` gives back. A push router makes it; the caller sends it, and
    its answer reports how the worker did. It ends with the answer, or when it is dropped.
    """

    __slots__ = (
        "_attempt",
        "_began",
        "_error",
        "_headers",
        "_how",
        "_owner",
        "_reader",
        "_request",
        "_retries",
        "_router",
        "_tried",
        "context",
        "entry",
    )

    def __init__(
        self,
        owner: CallOwner,
        request: Any,
        context: Context,
        headers: Mapping[str, str],
        retries: int,
        *,
        how: tuple[Any, bool] = (None, False),
    ) -> None:
        """`how`: the `response_type` of the items, and whether they are `raw`."""
        self._owner = owner
        self._router = owner.router
        self.context = context
        self.entry: Entry | None = None
        """The worker that has the request; None before that, and when the request is over."""
        self._request = request
        self._headers = headers
        self._retries = retries
        self._tried: set[Entry] | None = None
        self._error: DynamoError | None = None
        self._attempt: AddressedRequest | None = None
        self._how = how

    def prepare(self, choose: Callable[[], Entry]) -> None:
        """Pick a worker, and encode the request for it. Raises SerializationError."""
        self._began = perf_counter()
        try:
            entry = choose()
        except DynamoError as error:
            self._error = error
            return
        codec = entry.codec
        self._reader = codec.reader(*self._how)
        stream_of_requests = isinstance(self._request, ManyIn)
        data = self._request if stream_of_requests else EncodedBody(encoded(codec, self._request))
        self._attempt = AddressedRequest(
            data,
            entry.address,
            entry.id,
            codec,
            self._headers,
            self._owner.config.inactivity_timeout,
            entry.kind,
            entry.mux,
        )
        if stream_of_requests:
            self._retries = 0  # it can be read only once
        if not self._retries:
            self._request = None
        self.entry = entry
        entry.begin()

    async def send(self) -> ResponseStream[Any]:
        """Send it. If this worker fails and retries are left, another one is tried."""
        while True:
            if self._error is not None:
                raise self._error
            assert self._attempt is not None
            router = self._router
            router.metrics.route.observe(perf_counter() - self._began)
            try:
                return await router.begin(self._attempt, self._reader, self.context).answer()
            except DynamoError as error:
                if not self.failed(error):
                    raise
            except BaseException:
                self.release()
                raise

    def begin(self, established: asyncio.Future[Any]) -> Exchange:
        """Send it, for who waits for `established`, and tries no other worker. Raises DynamoError: see `failed`."""
        if self._error is not None:
            raise self._error
        attempt, self._attempt = self._attempt, None  # the body may be large, and the answer may last
        assert attempt is not None
        router = self._router
        router.metrics.route.observe(perf_counter() - self._began)
        return router.begin(attempt, self._reader, self.context, established)

    def failed(self, error: DynamoError) -> bool:
        """The worker failed. Returns whether another one was picked, which `send` is for."""
        entry = self.entry
        if entry is None:
            return False
        self.release()
        self._owner.selection.failed(entry, error)
        if not self._retries or not error.migratable or self.context.is_stopped():
            return False
        self._retries -= 1
        if self._tried is None:
            self._tried = set()
        self._tried.add(entry)
        self.prepare(self._another)
        return self._error is None

    def _another(self) -> Entry:
        assert self._tried is not None
        return self._owner.selection.another(self._tried)

    def begun(self) -> None:
        """The first item has come: no other worker is tried from now on."""
        self._retries = 0
        self._request = self._attempt = None  # as in `begin`

    def completed(self) -> None:
        """The answer has come to its end: the worker does not have the request any more."""
        self.release()

    def release_from_any_thread(self) -> None:
        """As `release`, on any thread."""
        if self.entry is None:
            return
        loop = self._router.response_server.loop
        if asyncio._get_running_loop() is loop:
            self.release()
        elif not loop.is_closed():
            loop.call_soon_threadsafe(self.release)

    def release(self) -> None:
        """The worker does not have this request any more. On the router's event loop only."""
        entry, self.entry = self.entry, None
        if entry is not None:
            self._owner.selection.ended(entry)

    def __del__(self) -> None:
        # An answer was dropped, or a call was never sent. The garbage collector may run on any thread; the table belongs
        # to the event loop's thread.
        if self.entry is not None:
            loop = self._router.response_server.loop
            if asyncio._get_running_loop() is loop:
                self.release()
            elif not loop.is_closed():
                loop.call_soon_threadsafe(self._owner.selection.ended, self.entry)


class RoutedStream(Generic[Data]):
    """The answer to a call: the items of its `ResponseStream`. It reports to the call how the answer ended.

    Owned by the caller, and used on the router's event loop; `close` works on any thread.
    """

    __slots__ = ("__weakref__", "_begun", "_call", "_stream")

    def __init__(self, call: Call, stream: ResponseStream[Data]) -> None:
        self._call = call
        self._stream = stream
        self._begun = False

    def __aiter__(self) -> RoutedStream[Data]:
        return self

    async def __anext__(self) -> Annotated[Data]:
        while True:
            try:
                item = await self._stream.__anext__()
            except DynamoError as error:
                if not self._call.failed(error):
                    raise
                self._stream = await self._call.send()
            except Exception:  # the end, or what the caller's own input raised
                self._call.completed()
                raise
            except BaseException:  # the wait was cancelled: see ResponseStream.wait_cancelled
                self._stream.wait_cancelled(self._call.release)
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

    async def __aenter__(self) -> RoutedStream[Data]:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
