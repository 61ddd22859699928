# cython: freethreading_compatible=True, annotation_typing=False
"""`ResponseConnection`: the router's end of a response stream, which a worker has dialled (transport.md 4).

What may be received when, and what follows from it, is the table of `wire.stream`; here are only the bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import struct
from collections.abc import Callable
from typing import Any

from dynamo_fast.codec import (
    TwoPartDecoder,
    TwoPartMessage,
    TwoPartMessageType,
    encode_two_part,
)
from dynamo_fast.config import ResponseServerConfig
from dynamo_fast.deadlines import Deadlines
from dynamo_fast.egress.request_sender import RequestSender
from dynamo_fast.egress.response_receiver import ResponseReceiver, StreamOwner
from dynamo_fast.errors import (
    CannotConnect,
    CodecError,
    ControlError,
    Disconnected,
    DynamoError,
    MessageTooLarge,
    RemoteError,
)
from dynamo_fast.net.frame_protocol import DataFrameProtocol
from dynamo_fast.net.tls import is_hello
from dynamo_fast.wire.control import (
    MAX_CONTROL_MESSAGE_SIZE,
    CallHomeHandshake,
    ControlMessage,
    ResponseStreamPrologue,
    StreamType,
    usual_subject,
)
from dynamo_fast.wire.mux import MuxHandshake
from dynamo_fast.wire.stream import REQUESTER, Action, Event, State, classify, requester

__all__ = ["EXECUTORS", "ConnectionOwner", "ResponseConnection", "no_prologue"]

_STOP = encode_two_part(ControlMessage.STOP.encode(), b"")
_KILL = encode_two_part(ControlMessage.KILL.encode(), b"")
# What every request needs is looked up once: on Python 3.11 a member of an enumeration costs as much as a call.
_HEADER_ONLY = TwoPartMessageType.HEADER_ONLY
_DATA, _DELIVER = Event.DATA, Action.DELIVER
# Where a data frame is an item and changes no state, so that it need not go through the table.
_DELIVERING = frozenset(state for state, row in REQUESTER.items() if row[_DATA] == (state, _DELIVER))
_HANDSHAKE, _PROLOGUE, _CLOSED = State.HANDSHAKE, State.PROLOGUE, State.CLOSED
_DIALLED, _STARTED, _SENTINEL = Event.HANDSHAKE, Event.PROLOGUE_OK, Event.SENTINEL
_REQUEST, _RESPONSE = StreamType.REQUEST, StreamType.RESPONSE
_STARTED_TEXT, _SENTINEL_TEXT = ResponseStreamPrologue().encode(), ControlMessage.SENTINEL.encode()
_NOT_STARTED = "Worker generate() failed before response stream: "
_LINGER_NOT = struct.pack("ii", 1, 0)
# What a worker may send before it is known, and before it has begun to answer: whole frames, in bytes.
_HANDSHAKE_LIMIT, _PROLOGUE_LIMIT = 4096, MAX_CONTROL_MESSAGE_SIZE
_LIMITS = {_HANDSHAKE: _HANDSHAKE_LIMIT, _PROLOGUE: _PROLOGUE_LIMIT}
_PREFIX_SIZE = len(encode_two_part(b"", b""))


class ConnectionOwner(StreamOwner):
    """What a response connection asks of the server that accepted it, which is a subclass and sets the attributes."""

    config: ResponseServerConfig
    connections: set[ResponseConnection]
    """Those that are open."""
    strangers: Deadlines[ResponseConnection]
    """Those among them whose handshake has not come."""
    max_strangers: int
    """With up to this many connections, there is no need to `limit_strangers`."""
    strangers_reset: int
    """Connections that were reset without a valid handshake."""

    def limit_strangers(self) -> None:
        """There are more connections than `max_strangers`."""
        raise NotImplementedError

    def refused(self, host: str, why: str) -> None:
        """A connection from `host` failed before its handshake."""
        raise NotImplementedError

    def take(self, subject: str) -> ResponseReceiver | None:
        """The stream that waits for `subject`, which is used up by this; None if none does."""
        raise NotImplementedError

    def take_input(self, subject: str) -> RequestSender | None:
        """The input that waits for `subject`, which is used up by this; None if none does."""
        raise NotImplementedError

    def open_session(self, handshake: MuxHandshake, transport: asyncio.Transport) -> bool:
        """The connection is to be a session. Returns whether it was asked for."""
        raise NotImplementedError


class ResponseConnection(DataFrameProtocol):
    """A worker's connection: messages become events, and events become the actions of the table.

    Owns its transport, and its receiver once the handshake has named it. The listener makes one for each connection that
    is accepted; the event loop and the receiver call it. It ends when the transport is lost.
    """

    __slots__ = ("_machine", "_paused", "_receiver", "_server")

    def __init__(self, server: ConnectionOwner) -> None:
        # No call of the bases: this is made for each request.
        self._decoder = TwoPartDecoder(server.config.max_message_size, views=True)
        self._transport = None
        self._sink = None
        self._server = server
        self._machine = requester()
        self._receiver: ResponseReceiver | None = None
        self._paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        server = self._server
        server.connections.add(self)
        server.strangers.add(self)
        if len(server.connections) > server.max_strangers:
            server.limit_strangers()

    def connection_lost(self, error: Exception | None) -> None:
        self._server.connections.discard(self)
        if self._machine.state is not _CLOSED:
            self._server.strangers.discard(self)
            self.step(Event.LOST, error)
        self._receiver = None

    def eof_received(self) -> bool:
        if self._decoder.pending:
            text = f"the worker's stream ends inside a frame ({self._decoder.pending} bytes)"
            self.step(Event.VIOLATION, ControlError(text))
        self.step(Event.EOF)
        return False

    def read_finished(self, size: int) -> None:
        # The hot path: all the frames of one read are queued, then the consumer is woken once.
        receiver = self._receiver
        if self._sink is None and self._decoder.pending:
            self._check_opening()
        if receiver is not None and receiver.frames:
            self._wake(receiver, size)

    def _wake(self, receiver: ResponseReceiver, size: int) -> None:
        receiver.arrived(size)
        config = self._server.config
        if receiver.unread > config.max_buffered_bytes or len(receiver.frames) > config.max_buffered_frames:
            self._pause_reading()
        receiver.wake()

    def message_received(self, message: TwoPartMessage) -> None:
        state = self._machine.state
        if state is _HANDSHAKE:
            self._receive_handshake(message)
        elif state is _PROLOGUE:
            self._receive_prologue(message)
        elif message.header == _SENTINEL_TEXT and not message.data:
            self.step(_SENTINEL)
        else:
            event = classify(message)
            if event is _SENTINEL:
                self.step(event)
            elif event is _DATA:
                self.step(event, message.data)
            else:
                self.step(event, ControlError(f"the worker sent {message}"))

    def bytes_refused(self, data: bytes) -> None:
        if is_hello(data) and self._machine.state is _HANDSHAKE:
            host = self._transport.get_extra_info("peername")[0]
            self._server.refused(host, "it dials with TLS, and this process accepts plain text")

    def stream_failed(self, error: CodecError) -> None:
        self.step(Event.VIOLATION, error)

    def _check_opening(self) -> None:
        """Refuse an incomplete handshake or prologue that will be too large."""
        limit = _LIMITS.get(self._machine.state)
        if limit is not None and self._decoder.expected > limit:
            self._too_large(self._decoder.expected, limit)

    def _too_large(self, size: int, limit: int) -> None:
        text = f"the worker's opening message is too large: {size} bytes, limit {limit}"
        self.step(Event.VIOLATION, MessageTooLarge(text, size=size, limit=limit))

    def _receive_handshake(self, message: TwoPartMessage) -> None:
        # Nearly every handshake is for a stream that waits, and has its usual text.
        subject = usual_subject(message.header) if not message.data else None
        if subject is not None:
            self._receiver = self._server.take(subject)
        if self._receiver is not None:
            self.step(_DIALLED)
        else:
            self._receive_unusual_handshake(message)

    def _receive_unusual_handshake(self, message: TwoPartMessage) -> None:
        size = _PREFIX_SIZE + len(message.header) + len(message.data)
        if size > _HANDSHAKE_LIMIT:
            self._too_large(size, _HANDSHAKE_LIMIT)
            return
        try:
            handshake = CallHomeHandshake.decode(message.header)
        except ControlError:
            if not self._become_session(message.header):
                self.step(Event.VIOLATION)  # the connection is reset without a reason; the caller goes on waiting
            return
        if handshake.stream_type is _REQUEST and (sender := self._server.take_input(handshake.subject)):
            self._become_input(sender)
            return
        self._receiver = self._server.take(handshake.subject) if handshake.stream_type is _RESPONSE else None
        self.step(Event.VIOLATION if self._receiver is None else _DIALLED)

    def _become_input(self, sender: RequestSender) -> None:
        """The connection carries the input of a request: hand it over to `sender`."""
        self._server.strangers.discard(self)
        self._server.connections.discard(self)
        sender.dialled(self._transport)

    def _become_session(self, header: bytes | memoryview) -> bool:
        """The connection is to carry many answers: hand it over. Returns whether the registry has taken it."""
        try:
            handshake = MuxHandshake.decode(header)
        except ControlError:
            return False
        # The worker waits for our answer: more bytes are a mistake. And this decoder could not read them.
        has_more = self._decoder.pending or self._decoder.failed is not None
        if has_more or not self._server.open_session(handshake, self._transport):
            return False
        self._server.strangers.discard(self)
        self._server.connections.discard(self)
        self._machine.state = _CLOSED
        return True

    def _receive_prologue(self, message: TwoPartMessage) -> None:
        if message.header == _STARTED_TEXT and not message.data:
            self.step(_STARTED)
            return
        if message.message_type is not _HEADER_ONLY:
            self.step(Event.VIOLATION, no_prologue())
            return
        size = _PREFIX_SIZE + len(message.header)
        if size > _PROLOGUE_LIMIT:
            self._too_large(size, _PROLOGUE_LIMIT)
            return
        self.read_prologue(message.header)

    def read_prologue(self, text: bytes | memoryview) -> None:
        """The worker says whether its handler was started."""
        try:
            prologue = ResponseStreamPrologue.decode(text)
        except ControlError as error:
            self.step(Event.VIOLATION, CannotConnect(f"{_NOT_STARTED}malformed prologue: {error}"))
            return
        if prologue.error is None:
            self.step(_STARTED)
        else:
            self.step(Event.PROLOGUE_ERROR, _prologue_error(_NOT_STARTED + prologue.error, prologue.typed_error))

    # What the table says ----------------------------------------------------------------------------------------

    def step(self, event: Event, detail: Any = None) -> None:
        """Tell the machine of `event`, and carry out the action that it returns.

        `detail` comes with the event: the body of a data frame, or the error behind an end.
        """
        action = self._machine.step(event)
        receiver = self._receiver
        self._sink = receiver.frames if self._machine.state in _DELIVERING and receiver is not None else None
        EXECUTORS[action](self, detail)

    def _ignore(self, _: object) -> None:
        pass

    def _deliver(self, data: bytes | memoryview) -> None:
        assert self._receiver is not None
        self._receiver.frames.append(data)

    def _accept(self, _: BaseException | None) -> None:
        assert self._receiver is not None
        self._server.strangers.discard(self)
        self._receiver.dialled(self)

    def _establish(self, _: BaseException | None) -> None:
        assert self._receiver is not None
        self._receiver.ready()

    def _refuse(self, error: BaseException | None) -> None:
        if not isinstance(error, DynamoError) or isinstance(error, (CodecError, ControlError)):
            cause = error
            error = Disconnected("Worker disconnected before response stream was established")
            error.__cause__ = cause
        assert self._receiver is not None
        self._receiver.fail(error)
        self._reset(None)

    def _send_stop(self, _: BaseException | None) -> None:
        self._transport.write(_STOP)

    def _stop_and_finish(self, _: BaseException | None) -> None:
        self._transport.write(_STOP)
        self._close(None)

    def _send_kill(self, error: BaseException | None) -> None:
        self._transport.write(_KILL)
        self._close(error)

    def _close(self, error: BaseException | None) -> None:
        self._transport.close()
        if self._receiver is not None:
            self._receiver.end(error)

    def is_silent(self) -> bool:
        """Whether no bytes wait to be read."""
        if not hasattr(select, "poll"):  # Windows
            return True
        poll = select.poll()
        poll.register(self._transport.get_extra_info("socket").fileno(), select.POLLIN)
        return not poll.poll(0)

    def _reset_stranger(self, _: BaseException | None) -> None:
        self._server.strangers.discard(self)
        self._server.strangers_reset += 1
        self._reset(None)

    def _reset(self, _: BaseException | None) -> None:
        # To a worker, an end of file means that the requester has finished writing; only a reset stops it.
        with contextlib.suppress(OSError):  # the connection may be gone already
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
        self._transport.abort()

    # Back-pressure ------------------------------------------------------------------------------------------------

    def _pause_reading(self) -> None:
        if not self._paused and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """All frames were taken: read again."""
        if self._paused and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()


#: How each action of `REQUESTER` is carried out, with the `detail` of the event.
EXECUTORS: dict[Action, Callable[[ResponseConnection, Any], None]] = {
    Action.IGNORE: ResponseConnection._ignore,
    Action.DELIVER: ResponseConnection._deliver,
    Action.RESET: ResponseConnection._reset_stranger,
    Action.ACCEPT: ResponseConnection._accept,
    Action.ESTABLISH: ResponseConnection._establish,
    Action.REFUSE: ResponseConnection._refuse,
    Action.FINISH: ResponseConnection._close,
    Action.SEND_STOP: ResponseConnection._send_stop,
    Action.STOP_AND_FINISH: ResponseConnection._stop_and_finish,
    Action.SEND_KILL: ResponseConnection._send_kill,
    Action.END: ResponseConnection._close,
}


def no_prologue() -> CannotConnect:
    """The error of a worker that sends something else in place of its prologue."""
    return CannotConnect(_NOT_STARTED + "malformed prologue: expected HeaderOnly ControlMessage")


def _prologue_error(text: str, typed_error: RemoteError | None) -> DynamoError:
    """The error of a handler that could not be started (transport.md 5.3).

    An error that is the caller's fault is raised as the worker sent it. Any other becomes CannotConnect, with the worker's
    error, if it sent one, as its cause.
    """
    if typed_error is not None and typed_error.error_class == "InvalidRequest":
        return typed_error
    error = CannotConnect(text)
    error.__cause__ = typed_error
    return error
