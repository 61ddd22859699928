# cython: freethreading_compatible=True, annotation_typing=False
"""`FrameProtocol`: the base of every protocol class of this package. Bytes come in, messages go out.

    data_received    decode, write the frame log, then
      message_received(message)    for each complete message, in order
      stream_failed(error)         if a frame is bad, after the messages before it; again for each later read
      read_finished(size)          once, when all the messages of one read were handled

A decoder raises CodecError for people who use it alone. The error ends here: a subclass handles messages and one call
that says why no more will come, and never catches.

This runs for every read: where there is a compiler, Cython translates this file, with the types in `frame_protocol.pxd`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Protocol, TypeVar

from dynamo_fast._native import Native
from dynamo_fast.codec import TwoPartDecoder, TwoPartMessage, TwoPartMessageType
from dynamo_fast.errors import CodecError
from dynamo_fast.net import frame_log
from dynamo_fast.net.sockets import descriptors_of

__all__ = ["Bodies", "DataFrameProtocol", "Decoder", "FrameProtocol"]

_Message = TypeVar("_Message")
_DATA_ONLY = TwoPartMessageType.DATA_ONLY


class Decoder(Protocol[_Message]):
    """A streaming decoder of `dynamo_fast.codec`."""

    @property
    def pending(self) -> int:
        """Bytes held for an incomplete message."""

    @property
    def expected(self) -> int:
        """Bytes of the incomplete message, as far as its lengths are known."""

    @property
    def failed(self) -> CodecError | None:
        """Why the stream cannot be read on; None while it can."""

    def feed(self, chunk: bytes, /) -> list[_Message]:
        """The messages that `chunk` completes. Raises CodecError if it completes none and the stream has failed."""


class Bodies(Protocol):
    """Takes the bodies of data frames."""

    def append(self, body: bytes | memoryview, /) -> None:
        """One."""

    def extend(self, bodies: list[bytes | memoryview], /) -> None:
        """Those of one read; the list is given away."""


class FrameProtocol(Native, asyncio.Protocol):
    """One connection: its decoder, and its transport while it is open. Its messages are of the type that it decodes.

    The event loop calls it. It ends with `connection_lost`. A subclass sets `_transport` when the connection is its own.
    """

    __slots__ = ("_decoder", "_transport")

    def __init__(self, decoder: Decoder[Any]) -> None:
        self._decoder: Any = decoder
        self._transport: Any = None

    def message_received(self, message: Any) -> None:
        """A message is complete."""
        raise NotImplementedError

    def stream_failed(self, error: CodecError) -> None:
        """A frame is bad: the rest of the stream cannot be read. Called again if more bytes come."""
        raise NotImplementedError

    def bytes_refused(self, data: bytes) -> None:  # most need not know
        """`data` has no message before a bad frame: `stream_failed` follows. Maybe it is another protocol."""

    def read_finished(self, size: int) -> None:
        """Every message of a read of `size` bytes was handled."""

    def open_sockets(self) -> Iterable[int]:
        """See SocketHolder."""
        return descriptors_of([self._transport])

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        decoder = self._decoder
        try:
            messages = decoder.feed(data)
        except CodecError:  # the first frame of this read is bad; `failed` is set
            messages = []
            self.bytes_refused(data)
        if frame_log.ENABLED:
            frame_log.log_frames(self._transport, messages)
        for message in messages:
            self.message_received(message)
        if decoder.failed is not None:
            self.stream_failed(decoder.failed)
        self.read_finished(len(data))


class DataFrameProtocol(FrameProtocol):
    """As `FrameProtocol`, for two-part messages of which nearly all are data frames: those cost no call each.

    While `_sink` is set, the bodies of data frames are appended to it; `message_received` gets the other messages only.
    It may set or clear `_sink`, which counts from the next message on.
    """

    __slots__ = ("_sink",)

    def __init__(self, decoder: TwoPartDecoder) -> None:
        self._decoder = decoder  # as the base: one call less for each response connection
        self._transport = None
        self._sink: Bodies | None = None

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        decoder, sink = self._decoder, self._sink
        messages: list[TwoPartMessage] = []
        try:
            if sink is None or frame_log.ENABLED:
                messages = decoder.feed(data)
            else:
                bodies, messages = decoder.feed_data(data)
                sink.extend(bodies)
        except CodecError:  # the first frame of this read is bad; `failed` is set
            self.bytes_refused(data)
        if frame_log.ENABLED:
            frame_log.log_frames(self._transport, messages)
        for message in messages:
            if self._sink is not None and message.message_type is _DATA_ONLY:
                self._sink.append(message.data)
            else:
                self.message_received(message)
        if decoder.failed is not None:
            self.stream_failed(decoder.failed)
        self.read_finished(len(data))
