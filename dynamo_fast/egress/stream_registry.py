# cython: freethreading_compatible=True, annotation_typing=False
"""`StreamRegistry`: the response streams of a router, from their registration to their end (transport.md 4.1, 5.5).

A request registers a subject: a random text that the worker sends when it dials. The first handshake with a subject takes
the stream, so a subject is used once. Connections whose handshake has not come are *strangers*: they have a limit of their
own, well below that of the streams.
"""

from __future__ import annotations

import asyncio
import sys
from itertools import islice
from typing import Any

from dynamo_fast.config import ResponseServerConfig
from dynamo_fast.context import Context
from dynamo_fast.deadlines import Deadlines
from dynamo_fast.egress.mux_session import MuxSession, SessionOwner
from dynamo_fast.egress.request_sender import ManyIn, RequestSender
from dynamo_fast.egress.response_connection import ResponseConnection
from dynamo_fast.egress.response_receiver import ResponseReceiver
from dynamo_fast.errors import Disconnected, ResourceExhausted, TlsError
from dynamo_fast.logs import get_logger
from dynamo_fast.net.descriptors import PROCESS
from dynamo_fast.wire.address import EndpointInstanceId
from dynamo_fast.wire.ids import random_uuid
from dynamo_fast.wire.mux import VERSION, MuxHandshake, MuxOffer
from dynamo_fast.wire.payload import PayloadCodec
from dynamo_fast.wire.stream import Event

__all__ = ["StreamRegistry"]

logger = get_logger(__name__)

_FEWEST_STRANGERS, _MOST_STRANGERS = 16, 1024
_SECONDS_BETWEEN_WARNINGS = 10.0
_STRANGERS_TO_LOOK_AT = 16
_TOMBSTONE_SECONDS = 5.0
_MOST_SESSIONS = 4096  # further workers dial for each answer
_REFUSED_SECONDS = 3.0  # as long as a handshake may take by default


class StreamRegistry(SessionOwner):
    """The subjects of a router, their deadlines, the open connections, and the tombstones of removed workers.

    Owns each registered stream until its worker dials or it ends, and each connection while it is open. The router
    registers, response connections take, receivers forget; `end_streams` ends it. One event loop.
    """

    def __init__(self, config: ResponseServerConfig) -> None:
        self.loop = asyncio.get_running_loop()
        self.config = config
        self.address = ""
        """What workers dial, `host:port`."""
        self.call_home: Deadlines[ResponseReceiver] = Deadlines(
            self.loop, config.call_home_timeout, ResponseReceiver.timed_out
        )
        self.orphans: Deadlines[ResponseReceiver] = Deadlines(
            self.loop, config.call_home_grace, ResponseReceiver.orphaned
        )
        self.connections: set[ResponseConnection] = set()
        """Those that are open."""
        self.strangers: Deadlines[ResponseConnection] = Deadlines(
            self.loop, config.handshake_timeout, lambda connection: connection.step(Event.TIMEOUT)
        )
        """Those among them whose handshake has not come."""
        self.offer = MuxOffer(VERSION, random_uuid()) if config.mux == "auto" else None
        """What lets a worker answer on a session of its own."""
        self.sessions: dict[str, MuxSession] = {}
        """The sessions that are open, by the name of the worker process."""
        self.multiplexed = 0
        """Streams that are open on them."""
        self.forgotten = 0
        """Opens that may come for nothing, since the registry was made: of calls that were given up before, and once more
        of the streams of sessions that are over."""
        self.strangers_reset = 0
        """Connections that were reset without a valid handshake, since the registry was made."""
        self._max_streams = config.max_streams or sys.maxsize
        self.max_strangers = config.max_pending_connections or _strangers_beside(min(self._max_streams, PROCESS.usable))
        """How many of `strangers` there may be, beyond the calls that wait for their worker."""
        self._warn_after = 0.0
        self._waiting: dict[str, ResponseReceiver] = {}
        self._inputs: dict[str, RequestSender] = {}
        self._tombstones: dict[EndpointInstanceId, float] = {}
        self._refusals: dict[str, asyncio.TimerHandle] = {}
        self._closed = False
        PROCESS.add(self, calls=True)

    def end_streams(self) -> None:
        """Fail the calls that wait with Disconnected, cut the streams under way, and tell their workers."""
        self._closed = True
        for receiver in list(self._waiting.values()):
            receiver.fail(Disconnected("The response server was closed"))
        for connection in list(self.connections):
            connection.step(Event.DROPPED)
        for session in list(self.sessions.values()):
            session.close("the response server was closed", cut=True)
        for deadlines in (self.strangers, self.call_home, self.orphans):
            deadlines.close()
        for timer in self._refusals.values():
            timer.cancel()

    @property
    def pending(self) -> int:
        """Registered streams whose worker has not dialled yet."""
        return len(self._waiting)

    def register(
        self, context: Context, established: asyncio.Future[Any] | None = None, mux: int | None = None
    ) -> ResponseReceiver:
        """A new subject, whose answer will be cancelled by `context`; see the receiver for `established`.

        `mux`: the newest version of the multiplexed plane that the worker speaks; None: none.

        Raises ResourceExhausted if as many streams are open as may be, or if the process has no descriptor for the
        worker's connection, and Disconnected once the server is closed.
        """
        if self._closed:
            raise Disconnected("The response server was closed")
        streams = len(self._waiting) + len(self.connections) + self.multiplexed
        if streams >= self._max_streams and streams - len(self.strangers) >= self._max_streams:
            raise ResourceExhausted(
                f"{self._max_streams} response streams are open already, as many as DYNAMO_FAST_MAX_STREAMS allows"
            )
        offer = self.offer if mux is not None else None  # the worker speaks all versions up to that one
        if offer is None:
            _promise_descriptor()
        subject = random_uuid()
        receiver = ResponseReceiver(self, subject, context, established)
        receiver.offer = offer
        self._waiting[subject] = receiver
        return receiver

    def register_input(self, source: ManyIn, codec: PayloadCodec, receiver: ResponseReceiver) -> RequestSender:
        """A second subject for the same request, on which the worker will dial for its input. Raises ResourceExhausted."""
        _promise_descriptor()
        subject = random_uuid()
        sender = RequestSender(subject, source, codec, receiver.context, receiver.input_failed)
        receiver.sender = self._inputs[subject] = sender
        return sender

    def take_input(self, subject: str) -> RequestSender | None:
        """The input that waits for `subject`, which is used up by this; None if none does."""
        return self._inputs.pop(subject, None)

    def take(self, subject: str) -> ResponseReceiver | None:
        """The stream that waits for `subject`, which is used up by this; None if none does."""
        return self._waiting.pop(subject, None)

    def open_session(self, handshake: MuxHandshake, transport: asyncio.Transport) -> bool:
        """Take a connection as a session; false if it was not asked for. An older session of that name is closed."""
        if self.offer is None or handshake.session != self.offer.session:
            return False
        session = MuxSession(self, handshake.worker)
        older = self.sessions.get(handshake.worker)
        if older is not None:
            older.close("the worker has opened another session")
        session.begin(transport, self._why_not(handshake))
        return True

    def _why_not(self, handshake: MuxHandshake) -> str:
        """Why a session is refused; empty if it is not."""
        if handshake.mux != VERSION:
            return f"version {handshake.mux} of the multiplexed response plane is not spoken here: expected {VERSION}"
        if self._closed:
            return "the response server was closed"
        if len(self.sessions) >= _MOST_SESSIONS:
            return f"{_MOST_SESSIONS} sessions are open already"
        return ""

    def forget(self, receiver: ResponseReceiver) -> None:
        """Remove a stream that has ended before its worker began to answer."""
        if self._waiting.pop(receiver.subject, None) is not None:
            self.forgotten += 1
        self.call_home.discard(receiver)
        self.orphans.discard(receiver)

    def forget_input(self, sender: RequestSender) -> None:
        """Remove and end the input of a stream that has ended."""
        self._inputs.pop(sender.subject, None)
        sender.close()

    def cancel_recv_stream(self, subject: str) -> bool:
        """Fail the call that waits for `subject` with Disconnected; false if none does."""
        receiver = self._waiting.get(subject)
        if receiver is None:
            return False
        receiver.fail(Disconnected("Worker disconnected before response stream was established"))
        return True

    def descriptors(self) -> tuple[int, int]:
        """See `net.descriptors.Promiser`."""
        on_sessions = sum(receiver.offer is not None for receiver in self._waiting.values()) if self.offer else 0
        waiting = len(self._waiting) - on_sessions + len(self._inputs)
        return waiting, len(self.connections) - len(self.strangers)

    # Strangers --------------------------------------------------------------------------------------------

    def limit_strangers(self) -> None:
        """If there are too many strangers, reset the one that has been silent for longest.

        One stranger for each call that waits for its worker may be such a worker: only those beyond that number count.
        """
        if len(self.strangers) <= self.max_strangers + len(self._waiting):
            return
        oldest = list(islice(self.strangers, _STRANGERS_TO_LOOK_AT))
        # After a pause of the event loop, many handshakes may have arrived that are not read yet.
        silent = next((each for each in oldest if each.is_silent()), oldest[0])
        silent.step(Event.TIMEOUT)
        now = self.loop.time()
        if now >= self._warn_after:
            self._warn_after = now + _SECONDS_BETWEEN_WARNINGS
            logger.warning(
                "more than %d connections to %s have not said which request they answer: reset the oldest of them "
                "(%d connections were reset until now; see DYNAMO_FAST_MAX_PENDING_CONNECTIONS)",
                self.max_strangers,
                self.address,
                self.strangers_reset,
            )

    # Workers that cannot call home (tls.md 4) ---------------------------------------------------------------------------

    def refused(self, host: str, why: str) -> None:
        """A connection from `host` failed before it said which request it answers.

        It may be the worker of a call that waits. So the calls to workers at that address, if they still wait after
        the time that a handshake may take, fail with TlsError. (Dynamo's wait for ever.)
        """
        if host not in self._refusals and not self._closed:
            # The worker may have dialled before its acknowledgement was read: who it is, is known later.
            waiting = list(self._waiting)
            self._refusals[host] = self.loop.call_later(_REFUSED_SECONDS, self._give_up, host, why, waiting)

    def _give_up(self, host: str, why: str, subjects: list[str]) -> None:
        del self._refusals[host]
        for subject in subjects:
            receiver = self._waiting.get(subject)
            if receiver is not None and receiver.worker_host == host:
                receiver.fail(TlsError(f"The worker at {host} cannot open its response stream: {why}"))

    # Instances and their tombstones (transport.md 5.5) --------------------------------------------------------------

    def associate_instance(self, subject: str, instance: EndpointInstanceId) -> bool:
        """Record which worker is to answer `subject`; false, and the stream is dropped, if that one was removed."""
        receiver = self._waiting.get(subject)
        if receiver is None:
            return False
        if self._is_tombstoned(instance):
            receiver.drop()
            return False
        receiver.instance = instance
        return True

    def cancel_instance_streams(self, instance: EndpointInstanceId) -> int:
        """A worker was removed: fail the calls that still wait for it to dial, and those that come in the next 5 s.

        Streams that are established go on to their end. Returns how many calls failed.
        """
        self._bury(instance)
        receivers = [each for each in self._waiting.values() if each.instance == instance]
        for receiver in receivers:
            self.cancel_recv_stream(receiver.subject)
        return len(receivers)

    def _bury(self, instance: EndpointInstanceId) -> None:
        """The oldest tombstones are at the front: a fleet may lose a thousand workers at once."""
        now = self.loop.time()
        while self._tombstones and next(iter(self._tombstones.values())) <= now:
            del self._tombstones[next(iter(self._tombstones))]
        self._tombstones.pop(instance, None)  # to the end
        self._tombstones[instance] = now + _TOMBSTONE_SECONDS

    def clear_instance_tombstone(self, instance: EndpointInstanceId) -> None:
        """The worker is in discovery again."""
        self._tombstones.pop(instance, None)

    def _is_tombstoned(self, instance: EndpointInstanceId) -> bool:
        until = self._tombstones.get(instance)
        return until is not None and until > self.loop.time()


_PROCESS = PROCESS  # with its type, where this file is compiled


def _promise_descriptor() -> None:
    if not _PROCESS.promise():
        raise ResourceExhausted(f"This process has no descriptor for the worker's connection: {PROCESS.shortage()}")


def _strangers_beside(streams: int) -> int:
    """How many connections without a handshake are allowed beside so many streams."""
    return min(max(streams // 8, _FEWEST_STRANGERS), _MOST_STRANGERS)
