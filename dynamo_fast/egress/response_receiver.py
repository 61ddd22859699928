# cython: freethreading_compatible=True, annotation_typing=False
"""`ResponseReceiver`: one request's answer at the router, from its registration to its end.

Three parties meet here, and none waits for another: the request connection (the acknowledgement), the response connection
that the worker dials (which may come before the acknowledgement), and the caller. One future, `established`, tells the
caller the result of the first two; then one queue carries the frames.

A request has no task of its own. The connections, the context and the timers call the methods below.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from dynamo_fast.context import Context
from dynamo_fast.deadlines import Deadlines
from dynamo_fast.egress._frames import Frames
from dynamo_fast.egress.request_client import Ack, RequestConnection
from dynamo_fast.egress.request_sender import RequestSender
from dynamo_fast.errors import (
    Cancelled,
    ConnectionTimeout,
    Disconnected,
    RequestRefused,
    ResourceExhausted,
    ResponseTimeout,
    Unavailable,
)
from dynamo_fast.observability.metrics import RequestTiming
from dynamo_fast.wire.address import EndpointInstanceId
from dynamo_fast.wire.control import StreamType, TcpStreamConnectionInfo
from dynamo_fast.wire.mux import MuxOffer
from dynamo_fast.wire.stream import Event

__all__ = ["ResponseReceiver", "refusal"]


class StreamConnection(Protocol):
    """What a receiver asks of the response connection that belongs to it."""

    def step(self, event: Event, error: BaseException | None = None) -> None: ...

    def resume_reading(self) -> None: ...


class StreamOwner:
    """What a receiver asks of the registry that made it, which is a subclass and sets the attributes."""

    loop: asyncio.AbstractEventLoop
    address: str
    call_home: Deadlines[ResponseReceiver]
    """Receivers whose worker has not dialled, or not sent its prologue."""
    orphans: Deadlines[ResponseReceiver]
    """Those among them whose request connection is lost."""

    def forget(self, receiver: ResponseReceiver) -> None:
        """It has ended before its worker began to answer."""
        raise NotImplementedError

    def forget_input(self, sender: RequestSender) -> None:
        """It has ended, and `sender` was its input."""
        raise NotImplementedError


class ResponseReceiver:
    """One registered response stream: its subject, its waiting caller, and the frames that have come.

    The registry holds it until its worker has dialled, then its connection; the caller's stream holds it all the time.
    `end` ends it and releases it from the others.
    """

    __slots__ = (
        "_acknowledged",
        "_call_home",
        "_connection",
        "_first",
        "_inactivity",
        "_inactivity_timer",
        "_orphans",
        "_owner",
        "_reader",
        "_ready",
        "_request_connection",
        "_silent_since",
        "_timing",
        "_waiters",
        "context",
        "ended",
        "error",
        "established",
        "frames",
        "input_error",
        "instance",
        "offer",
        "sender",
        "subject",
        "unread",
    )

    def __init__(
        self, owner: StreamOwner, subject: str, context: Context, established: asyncio.Future[Any] | None = None
    ) -> None:
        self._owner = owner
        self.subject = subject
        self.context = context
        self.instance: EndpointInstanceId | None = None
        self.established: asyncio.Future[Any] = owner.loop.create_future() if established is None else established
        """Done when the request is acknowledged and the worker's handler started; or the error that came instead."""
        self._call_home, self._orphans = owner.call_home, owner.orphans
        self.offer: MuxOffer | None = None
        """What the worker was told of the multiplexed plane."""
        self.frames = Frames()
        """Wrapped items that the caller has not taken yet."""
        self.unread = 0
        """Bytes that were read since they were last empty: an upper bound of what the frames hold."""
        self.ended = False
        """Whether no more frames will come."""
        self.error: BaseException | None = None
        """Why the connection ended, if not with its sentinel."""
        self.sender: RequestSender | None = None
        """The input of a bidirectional request."""
        self.input_error: BaseException | None = None
        """What that input raised."""
        self._acknowledged = False
        self._ready = False  # the worker has sent its prologue
        self._connection: StreamConnection | None = None
        self._request_connection: RequestConnection | None = None
        self._waiters: list[asyncio.Future[None]] = []
        self._timing: RequestTiming = None  # type: ignore[assignment]  # `follow` sets it
        self._first: RequestTiming | None = None  # until the first item has come
        self._reader: Callable[[], None] | None = None
        self._inactivity: float | None = None
        self._inactivity_timer: asyncio.TimerHandle = None  # type: ignore[assignment]  # as long as there is a limit
        self._silent_since: float | None = None  # when the caller began to wait; None if it has not waited yet
        context.watch(self)

    @property
    def connection_info(self) -> TcpStreamConnectionInfo:
        """Where the worker is to dial, for the control message."""
        return TcpStreamConnectionInfo(self._owner.address, self.subject, self.context.id(), StreamType.RESPONSE)

    @property
    def worker_host(self) -> str | None:
        """The address of the worker that has acknowledged the request; None if it is not known."""
        return None if self._request_connection is None else self._request_connection.host

    # The request connection -------------------------------------------------------------------------------------

    def follow(self, timing: RequestTiming) -> None:
        """The request is sent: report its acknowledgement and the first item to `timing`."""
        self._first = self._timing = timing

    def is_settled(self) -> bool:
        """See AckListener. The call has its stream, or has ended."""
        return self.established.done()

    def on_ack(self, ack: asyncio.Future[Ack]) -> None:
        """`ack` is done, where the transport has a future of it."""
        if self.is_settled():
            self._timing.acknowledged()
            ack.cancelled() or ack.exception()  # mark the error as retrieved
        elif ack.cancelled():
            self.unacknowledged(Disconnected("The request was dropped before it was acknowledged"))
        elif (error := ack.exception()) is not None:
            self.unacknowledged(error)
        else:
            self.acknowledged(ack.result().text, ack.result().connection)

    def unacknowledged(self, error: BaseException) -> None:
        """See AckListener."""
        self._timing.acknowledged()
        if not self.is_settled():
            self.fail(error)

    def acknowledged(self, text: bytes, connection: RequestConnection | None) -> None:
        """See AckListener."""
        self._timing.acknowledged()
        if text:
            self.fail(refusal(text.decode("utf-8", "replace")))
            return
        self._acknowledged = True
        if self._connection is None and not self.ended:  # a short answer may be over before its acknowledgement
            self._call_home.add(self)
            self._request_connection = connection
            if connection is not None:
                connection.on_lost(self._request_connection_lost)
        self._establish_if_complete()

    def _request_connection_lost(self) -> None:
        # The worker may have dialled before, and its connection may be about to be accepted: hence the grace.
        if not self.established.done() and self._connection is None:
            self._orphans.add(self)

    def _forget_request_connection(self) -> None:
        if self._request_connection is not None:
            self._request_connection.off_lost(self._request_connection_lost)
            self._request_connection = None

    # The response connection -------------------------------------------------------------------------------------

    def dialled(self, connection: StreamConnection) -> None:
        """The worker has dialled: `connection` belongs to this stream from now on."""
        self._connection = connection
        if self._acknowledged:
            self._forget_request_connection()
            self._orphans.discard(self)
            self._call_home.discard(self)
        self._call_home.add(self)  # the same time again, for the prologue
        if self.context.is_stopped():
            self.context_changed()

    def ready(self) -> None:
        """The prologue has come, and the handler was started."""
        self._ready = True
        self._call_home.discard(self)
        if self.sender is not None and not self.sender.is_dialled:
            self._call_home.add(self)  # the same time once more: a worker dials for its input first
        self._establish_if_complete()

    def _establish_if_complete(self) -> None:
        if self._acknowledged and self._ready and not self.established.done():
            self.established.set_result(None)

    def arrived(self, size: int) -> None:
        """Frames have come, in a read of `size` bytes."""
        if self._first is not None:
            self._first.first_item()
            self._first = None
        self.unread += size

    def wake(self) -> None:
        """Wake the caller: frames have come, or the stream has ended."""
        if self._reader is not None:
            self._reader()
        if self._waiters:
            for waiter in self._waiters:
                if not waiter.done():
                    waiter.set_result(None)
            self._waiters.clear()

    def end(self, error: BaseException | None = None) -> None:
        """No more frames will come; `error` says why, if it was not the sentinel."""
        if not self.ended:
            self.ended = True
            self.error = error
            self.context.unwatch(self)
            if self._inactivity is not None:
                self._inactivity_timer.cancel()
            if not self._ready:
                self._owner.forget(self)
                self.ready()  # a stream that ended before its prologue, and was not refused, is a stream without items
            if self.sender is not None:
                self._call_home.discard(self)
                self._owner.forget_input(self.sender)
            self.wake()
            self._connection = None  # break the reference cycle

    def fail(self, error: BaseException) -> None:
        """Fail the call with `error`, unless it has its stream already. A worker that has dialled is told to stop."""
        if not self.established.done():
            self.established.set_exception(error)
        self.drop()

    # The caller --------------------------------------------------------------------------------------------------

    def readable(self) -> asyncio.Future[None]:
        """Done when there are frames, or at the end. Called when all frames were taken: resumes reading the socket."""
        self._wait_for_frames()
        waiter: asyncio.Future[None] = self._owner.loop.create_future()
        self._waiters.append(waiter)
        return waiter

    def listen(self, reader: Callable[[], None] | None) -> None:
        """Call `reader` each time that frames have come, and at the end, until another one is given, or None.

        Called when all frames were taken, as `readable`, or with None.
        """
        self._reader = reader
        if reader is not None:
            self._wait_for_frames()

    def _wait_for_frames(self) -> None:
        if self._inactivity is not None and (self.unread or self._silent_since is None):
            self._silent_since = self._owner.loop.time()
        self.unread = 0
        if self._connection is not None:
            self._connection.resume_reading()

    def limit_inactivity(self, seconds: float) -> None:
        """From now on, end the answer with ResponseTimeout if the caller waits longer than that for the next frame.

        One timer serves the whole stream and looks at the clock when it fires, so that an item costs nothing.
        """
        if self.ended:
            return
        if self._inactivity is not None:
            self._inactivity_timer.cancel()
        self._inactivity = seconds
        self._silent_since = None
        self._inactivity_timer = self._owner.loop.call_later(seconds, self._look_for_silence)

    def _look_for_silence(self) -> None:
        assert self._inactivity is not None
        now = self._owner.loop.time()
        # If there are frames that the caller has not taken, or it does not wait, its next wait begins now or later.
        waits = self._silent_since is not None and not self.unread
        due = (self._silent_since if waits else now) + self._inactivity  # type: ignore[operator]  # `waits` says so
        if due > now + 0.001:  # uvloop's clock has whole milliseconds
            self._inactivity_timer = self._owner.loop.call_at(due, self._look_for_silence)
        elif self._connection is not None:
            self._connection.step(Event.TIMEOUT, ResponseTimeout("backend response inactivity timeout"))

    def drop(self) -> None:
        """The consumer is gone: tell the worker to stop."""
        self.frames.clear()
        if self.ended:
            return
        if self._connection is not None:
            self._connection.step(Event.DROPPED)
        self._forget_request_connection()
        self.end()

    def input_failed(self, error: BaseException) -> None:
        """The caller's own input raised `error`: raise it at the caller, and tell the worker to stop."""
        self.input_error = error
        if not self.established.done():
            self.established.set_exception(error)
        self.context.kill()

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """See Watcher."""
        return self._owner.loop

    def context_changed(self) -> None:
        """See Watcher."""
        if self.context.is_killed():
            self.frames.clear()
            if not self.established.done():
                self.established.set_exception(Cancelled("Request cancelled before response stream was established"))
            if self._connection is not None:
                self._connection.step(Event.CONTEXT_KILLED)
            self._forget_request_connection()
            self.end()
        elif self.context.is_stopped() and self._connection is not None:
            self._connection.step(Event.CONTEXT_STOPPED)

    def timed_out(self) -> None:
        """The worker did not dial, did not send its prologue, or did not dial for its input in time."""
        seconds = self._call_home.seconds
        if self._ready:
            if self.sender is not None and not self.sender.is_dialled:
                self.input_failed(ConnectionTimeout(f"Worker did not dial for its input within {seconds:g} s"))
            return
        missing = "dial back" if self._connection is None else "start to answer"
        self.fail(ConnectionTimeout(f"Worker acknowledged the request but did not {missing} within {seconds:g} s"))

    def orphaned(self) -> None:
        """The request connection was lost, and the worker has not dialled since."""
        self.fail(Disconnected("Worker disconnected before response stream was established"))


def refusal(text: str) -> RequestRefused:
    """The error that a non-empty acknowledgement is.

    Dynamo's own routers treat an unknown text as success, and wait without limit (transport.md 2.4); here every text is a
    refusal.
    """
    if text.startswith("Server overloaded:"):
        return ResourceExhausted(text)
    if text.startswith(("Server unavailable:", "Unknown endpoint:")):
        return Unavailable(text)
    return RequestRefused(text)
