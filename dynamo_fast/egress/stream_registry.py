"""`StreamRegistry`: the streams of a router that wait for their worker to dial back (transport.md 4.1, 5.5).

A request registers a subject, a random text that the worker names when it dials. The first handshake with a subject takes
its stream out of the registry, so a subject is used once.
"""

from __future__ import annotations

import asyncio

from dynamo_fast.config import ResponseServerConfig
from dynamo_fast.context import Context
from dynamo_fast.deadlines import Deadlines
from dynamo_fast.egress.request_sender import ManyIn, RequestSender
from dynamo_fast.egress.response_receiver import ResponseReceiver
from dynamo_fast.errors import Disconnected
from dynamo_fast.wire.address import EndpointInstanceId
from dynamo_fast.wire.ids import random_uuid
from dynamo_fast.wire.payload import PayloadCodec

__all__ = ["StreamRegistry"]

_TOMBSTONE_SECONDS = 5.0


class StreamRegistry:
    """The subjects of a router, their deadlines, and the tombstones of removed workers.

    Owns each registered stream until its worker dials or it ends. The router registers, response connections take,
    receivers forget; it ends with the response server that it is part of. One event loop.
    """

    address: str
    """What workers dial, `host:port`."""

    def __init__(self, config: ResponseServerConfig) -> None:
        self.loop = asyncio.get_running_loop()
        self.config = config
        self.call_home: Deadlines[ResponseReceiver] = Deadlines(
            self.loop, config.call_home_timeout, ResponseReceiver.timed_out
        )
        self.orphans: Deadlines[ResponseReceiver] = Deadlines(
            self.loop, config.call_home_grace, ResponseReceiver.orphaned
        )
        self._waiting: dict[str, ResponseReceiver] = {}
        self._inputs: dict[str, RequestSender] = {}
        self._tombstones: dict[EndpointInstanceId, float] = {}
        self._closed = False

    def end_registrations(self) -> None:
        """Fail the calls that wait with Disconnected, and register no further one."""
        self._closed = True
        for receiver in list(self._waiting.values()):
            receiver.fail(Disconnected("The response server was closed"))
        self.call_home.close()
        self.orphans.close()

    @property
    def pending(self) -> int:
        """Registered streams whose worker has not dialled yet."""
        return len(self._waiting)

    def register(self, context: Context) -> ResponseReceiver:
        """A new subject, whose answer will be cancelled by `context`.

        Raises Disconnected once the registry is closed.
        """
        if self._closed:
            raise Disconnected("The response server was closed")
        subject = random_uuid()
        receiver = ResponseReceiver(self, subject, context)
        self._waiting[subject] = receiver
        return receiver

    def register_input(self, source: ManyIn, codec: PayloadCodec, receiver: ResponseReceiver) -> RequestSender:
        """A second subject for the same request, on which the worker will dial for its input."""
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

    def forget(self, receiver: ResponseReceiver) -> None:
        """Let go of a stream that has ended before its worker began to answer."""
        self._waiting.pop(receiver.subject, None)
        self.call_home.discard(receiver)
        self.orphans.discard(receiver)

    def forget_input(self, sender: RequestSender) -> None:
        """Let go of the input of a stream that has ended."""
        self._inputs.pop(sender.subject, None)
        sender.close()

    def cancel_recv_stream(self, subject: str) -> bool:
        """Fail the call that waits for `subject` with Disconnected; false if none does."""
        receiver = self._waiting.get(subject)
        if receiver is None:
            return False
        receiver.fail(Disconnected("Worker disconnected before response stream was established"))
        return True

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
        now = self.loop.time()
        self._tombstones = {each: until for each, until in self._tombstones.items() if until > now}
        self._tombstones[instance] = now + _TOMBSTONE_SECONDS
        receivers = [each for each in self._waiting.values() if each.instance == instance]
        for receiver in receivers:
            self.cancel_recv_stream(receiver.subject)
        return len(receivers)

    def clear_instance_tombstone(self, instance: EndpointInstanceId) -> None:
        """The worker is back."""
        self._tombstones.pop(instance, None)

    def _is_tombstoned(self, instance: EndpointInstanceId) -> bool:
        until = self._tombstones.get(instance)
        return until is not None and until > self.loop.time()
