"""`TcpStreamServer`: what workers dial back to (transport.md section 4).

One listener for all requests of a router. Each request registers a subject; the worker that answers it dials, names the
subject in its handshake, and its connection is that request's from then on.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import sys
from functools import partial

from dynamo_fast.codec import (
    TwoPartDecoder,
    TwoPartMessage,
    TwoPartMessageType,
    encode_two_part,
)
from dynamo_fast.config import ResponseServerConfig, refuse_tls
from dynamo_fast.context import Context
from dynamo_fast.deadlines import Deadlines
from dynamo_fast.egress.request_sender import ManyIn, RequestSender
from dynamo_fast.egress.response_receiver import ResponseReceiver
from dynamo_fast.errors import (
    CannotConnect,
    CodecError,
    ControlError,
    Disconnected,
    DynamoError,
    RemoteError,
    ResourceExhausted,
)
from dynamo_fast.net.addresses import resolve
from dynamo_fast.net.listener import listening_socket
from dynamo_fast.observability import frame_log
from dynamo_fast.wire.address import EndpointInstanceId, join_host_port
from dynamo_fast.wire.control import (
    CallHomeHandshake,
    ControlMessage,
    ResponseStreamPrologue,
    StreamType,
)
from dynamo_fast.wire.ids import random_uuid
from dynamo_fast.wire.payload import PayloadCodec
from dynamo_fast.wire.stream import Action, Event, State, StreamMachine, classify

__all__ = ["TcpStreamServer"]

_TOMBSTONE_SECONDS = 5.0
_RESERVED_FILES, _FEWEST_STREAMS = 128, 16
_STOP = encode_two_part(ControlMessage.STOP.encode(), b"")
_KILL = encode_two_part(ControlMessage.KILL.encode(), b"")
# What every request needs is looked up once: on Python 3.11 a member of an enumeration costs as much as a call.
_DATA_ONLY, _HEADER_ONLY = TwoPartMessageType.DATA_ONLY, TwoPartMessageType.HEADER_ONLY
_DELIVERING = frozenset({State.STREAMING, State.STOPPED})
_HANDSHAKE, _PROLOGUE, _CLOSED = State.HANDSHAKE, State.PROLOGUE, State.CLOSED
_DIALLED, _STARTED, _SENTINEL = Event.HANDSHAKE, Event.PROLOGUE_OK, Event.SENTINEL
_REQUEST, _RESPONSE = StreamType.REQUEST, StreamType.RESPONSE
_IGNORE = Action.IGNORE
_LINGER_NOT = struct.pack("ii", 1, 0)


class TcpStreamServer:
    """The response server of a router. Make it with `create`; one event loop."""

    def __init__(self, config: ResponseServerConfig) -> None:
        refuse_tls()
        self.loop = asyncio.get_running_loop()
        self.config = config
        self.handshakes: Deadlines[_ResponseConnection] = Deadlines(
            self.loop, config.handshake_timeout, lambda connection: connection.step(Event.TIMEOUT)
        )
        self.call_home: Deadlines[ResponseReceiver] = Deadlines(
            self.loop, config.call_home_timeout, ResponseReceiver.timed_out
        )
        self.orphans: Deadlines[ResponseReceiver] = Deadlines(
            self.loop, config.call_home_grace, ResponseReceiver.orphaned
        )
        self.connections: set[_ResponseConnection] = set()
        self._waiting: dict[str, ResponseReceiver] = {}
        self._inputs: dict[str, RequestSender] = {}
        self._tombstones: dict[EndpointInstanceId, float] = {}
        self._closed = False
        listening = resolve(config.host, "DYN_TCP_RESPONSE_STREAM_HOST")
        self._max_streams = config.max_streams or _affordable_streams()
        # The event loop's own accept loop: one connection a request is the protocol's price, and this is the cheapest
        # way to pay it. It has no answer to running out of descriptors, which `max_streams` keeps from happening.
        self._socket = listening_socket(listening.bind_ip, config.port, config.backlog)
        self._server: asyncio.AbstractServer | None = None
        self.address = join_host_port(listening.advertised_ip, self._socket.getsockname()[1])
        """What workers dial, `host:port`."""

    @classmethod
    async def create(cls, config: ResponseServerConfig | None = None) -> TcpStreamServer:
        """Listen as `config` says, by default as the environment does. Raises InvalidConfig, OSError."""
        server = cls(ResponseServerConfig.from_env() if config is None else config)
        server._server = await server.loop.create_server(
            partial(_ResponseConnection, server), sock=server._socket, backlog=server.config.backlog
        )
        return server

    async def close(self) -> None:
        """Stop listening; calls that wait fail with Disconnected, streams under way are cut and their workers told."""
        self._closed = True
        if self._server is not None:
            self._server.close()
        self._socket.close()
        for receiver in list(self._waiting.values()):
            receiver.fail(Disconnected("The response server was closed"))
        for connection in list(self.connections):
            connection.step(Event.DROPPED)
        for deadlines in (self.handshakes, self.call_home, self.orphans):
            deadlines.close()
        await asyncio.sleep(0)  # the transports close in the next turn

    # Registrations ------------------------------------------------------------------------------------------------

    @property
    def pending(self) -> int:
        """Registered streams whose worker has not dialled yet."""
        return len(self._waiting)

    def register(self, context: Context) -> ResponseReceiver:
        """A new subject, whose answer will be cancelled by `context`.

        Raises ResourceExhausted if as many streams are open as may be, and Disconnected once the server is closed.
        """
        if self._closed:
            raise Disconnected("The response server was closed")
        if len(self._waiting) + len(self.connections) >= self._max_streams:
            raise ResourceExhausted(
                f"{self._max_streams} response streams are open already, as many as this process may have: raise its "
                "limit of open files (ulimit -n), or DYNAMO_FAST_MAX_STREAMS"
            )
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


class _ResponseConnection(asyncio.Protocol):
    """A worker's connection: bytes to frames, frames to events, events to what the table says."""

    __slots__ = ("_decoder", "_delivers", "_machine", "_paused", "_receiver", "_server", "_transport")

    _transport: asyncio.Transport

    def __init__(self, server: TcpStreamServer) -> None:
        self._server = server
        self._machine = StreamMachine.requester()
        self._decoder = TwoPartDecoder(server.config.max_message_size)
        self._receiver: ResponseReceiver | None = None
        self._paused = False
        self._delivers = False  # whether data frames are items now

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # the loop makes no other for a Protocol
        server = self._server
        server.connections.add(self)
        if len(server.handshakes) >= server.config.max_pending_connections:
            self.step(Event.TIMEOUT)
        else:
            server.handshakes.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._server.connections.discard(self)
        if self._machine.state is not _CLOSED:
            self.step(Event.LOST, error)
        self._receiver = None

    def eof_received(self) -> bool:
        if self._decoder.pending:
            self._violation(ControlError(f"the worker's stream ends inside a frame ({self._decoder.pending} bytes)"))
        self.step(Event.EOF)
        return False

    def data_received(self, data: bytes) -> None:
        # The hot path: all the frames of one read are queued, then the consumer is woken once.
        receiver = self._receiver
        try:
            if self._delivers and not frame_log.ENABLED:
                items, messages = self._decoder.feed_data(data)
                receiver.frames.extend(items)  # type: ignore[union-attr]  # who delivers has a receiver
            else:
                messages = self._decoder.feed(data)
        except CodecError:  # a bad frame with none before it; what to do is the same, see below
            messages = []
        if frame_log.ENABLED:
            frame_log.log_frames(self._transport, messages)
        for message in messages:
            if self._delivers and message.message_type is _DATA_ONLY:
                receiver.frames.append(message.data)  # type: ignore[union-attr]  # the same
            else:
                self._receive(message)
                receiver = self._receiver
        if self._decoder.failed is not None:
            self._violation(self._decoder.failed)
        if receiver is not None and receiver.frames:
            self._delivered(receiver, len(data))

    def _delivered(self, receiver: ResponseReceiver, size: int) -> None:
        if receiver.on_first_frame is not None:
            receiver.on_first_frame()
            receiver.on_first_frame = None
        receiver.unread += size
        config = self._server.config
        if receiver.unread > config.max_buffered_bytes or len(receiver.frames) > config.max_buffered_frames:
            self._pause_reading()
        receiver.wake()

    def _receive(self, message: TwoPartMessage) -> None:
        state = self._machine.state
        if state is _HANDSHAKE:
            self._receive_handshake(message)
        elif state is _PROLOGUE:
            self._receive_prologue(message)
        else:
            event = classify(message)
            error = ControlError(f"the worker sent {message}") if event is not _SENTINEL else None
            self.step(event, error)

    def _receive_handshake(self, message: TwoPartMessage) -> None:
        try:
            handshake = CallHomeHandshake.decode(message.header)
        except ControlError:
            self.step(Event.VIOLATION)  # whoever dialled is not told why: it is reset, and the caller waits on
            return
        if handshake.stream_type is _REQUEST and (sender := self._server.take_input(handshake.subject)):
            self._become_input(sender)
            return
        self._receiver = self._server.take(handshake.subject) if handshake.stream_type is _RESPONSE else None
        self.step(Event.VIOLATION if self._receiver is None else _DIALLED)

    def _become_input(self, sender: RequestSender) -> None:
        """It is no response stream: another protocol has this connection from now on."""
        self._server.handshakes.discard(self)
        self._server.connections.discard(self)
        sender.dialled(self._transport)

    def _receive_prologue(self, message: TwoPartMessage) -> None:
        prefix = "Worker generate() failed before response stream: "
        if message.message_type is not _HEADER_ONLY:
            self.step(Event.VIOLATION, CannotConnect(prefix + "malformed prologue: expected HeaderOnly ControlMessage"))
            return
        try:
            prologue = ResponseStreamPrologue.decode(message.header)
        except ControlError as error:
            self.step(Event.VIOLATION, CannotConnect(f"{prefix}malformed prologue: {error}"))
            return
        if prologue.error is None:
            self.step(_STARTED)
        else:
            self.step(Event.PROLOGUE_ERROR, _prologue_error(prefix + prologue.error, prologue.typed_error))

    def _violation(self, error: DynamoError) -> None:
        self.step(Event.VIOLATION, error)

    # What the table says ----------------------------------------------------------------------------------------

    def step(self, event: Event, error: BaseException | None = None) -> None:
        """Tell the machine of `event` and do what it says; `error` is the cause, should this be the end."""
        action = self._machine.step(event)
        self._delivers = self._machine.state in _DELIVERING
        if action is not _IGNORE:
            _ACTIONS[action](self, error)

    def _accept(self, _: BaseException | None) -> None:
        assert self._receiver is not None
        self._server.handshakes.discard(self)
        self._receiver.dialled(self)

    def _establish(self, _: BaseException | None) -> None:
        assert self._receiver is not None
        self._receiver.ready()

    def _refuse(self, error: BaseException | None) -> None:
        if not isinstance(error, DynamoError) or isinstance(error, ControlError):
            cause = error
            error = Disconnected("Worker disconnected before response stream was established")
            error.__cause__ = cause
        assert self._receiver is not None
        self._receiver.fail(error)
        self._reset(None)

    def _finish(self, _: BaseException | None) -> None:
        self._close(None)

    def _send_stop(self, _: BaseException | None) -> None:
        self._transport.write(_STOP)

    def _stop_and_finish(self, _: BaseException | None) -> None:
        self._transport.write(_STOP)
        self._close(None)

    def _send_kill(self, error: BaseException | None) -> None:
        self._transport.write(_KILL)
        self._close(error)

    def _close(self, error: BaseException | None) -> None:
        self._server.handshakes.discard(self)
        self._transport.close()
        if self._receiver is not None:
            self._receiver.end(error)

    def _reset(self, _: BaseException | None) -> None:
        # A worker takes an end of file for "the requester has finished writing", and goes on; a reset stops it.
        self._server.handshakes.discard(self)
        with contextlib.suppress(OSError):  # the connection may be gone already, which is as good
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
        self._transport.abort()

    # Back-pressure ------------------------------------------------------------------------------------------------

    def _pause_reading(self) -> None:
        if not self._paused and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Every frame was taken: read on."""
        if self._paused and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()


_ACTIONS = {
    Action.RESET: _ResponseConnection._reset,
    Action.ACCEPT: _ResponseConnection._accept,
    Action.ESTABLISH: _ResponseConnection._establish,
    Action.REFUSE: _ResponseConnection._refuse,
    Action.FINISH: _ResponseConnection._finish,
    Action.SEND_STOP: _ResponseConnection._send_stop,
    Action.STOP_AND_FINISH: _ResponseConnection._stop_and_finish,
    Action.SEND_KILL: _ResponseConnection._send_kill,
    Action.END: _ResponseConnection._close,
}


def _affordable_streams() -> int:
    """As many streams as this process may have open files, less a reserve for everything else."""
    try:
        import resource
    except ImportError:  # Windows, where sockets are no files
        return sys.maxsize
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if files == resource.RLIM_INFINITY else max(_FEWEST_STREAMS, files - _RESERVED_FILES)


def _prologue_error(text: str, typed_error: RemoteError | None) -> DynamoError:
    """The error of a handler that could not be started (transport.md 5.3).

    One that is the caller's fault is raised as the worker wrote it; any other says that this worker cannot serve, with
    the worker's error, if it sent one, as its cause.
    """
    if typed_error is not None and typed_error.error_class == "InvalidRequest":
        return typed_error
    error = CannotConnect(text)
    error.__cause__ = typed_error
    return error
