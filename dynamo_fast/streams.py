"""Two-part messages on the streams of asyncio, or on anything that reads and writes as they do.

    reader, writer = await asyncio.open_connection(host, port)
    await write_message(writer, TwoPartMessage(header, data))
    while (message := await read_message(reader)) is not None: ...

One message is read at a time, which suits a connection with few of them. Where many come together, feed what
`reader.read(65536)` returns to a `TwoPartDecoder`: it finds them in one go, and a read that is cancelled loses nothing.
"""

from __future__ import annotations

from typing import Protocol

from dynamo_fast.codec import TwoPartCodec, TwoPartDecoder, TwoPartMessage
from dynamo_fast.errors import IncompleteMessage

__all__ = ["MAX_MESSAGE_SIZE", "read_message", "write_message"]

MAX_MESSAGE_SIZE = 32 * 1024 * 1024
"""Bytes of the largest message that is read if the caller does not say: Dynamo's own limit."""

_PREFIX_SIZE = 24


class Reader(Protocol):
    """What is used of an `asyncio.StreamReader`: at the end of the stream it raises EOFError, with the `partial` bytes."""

    async def readexactly(self, n: int, /) -> bytes: ...


class Writer(Protocol):
    """What is used of an `asyncio.StreamWriter`."""

    def write(self, data: bytes, /) -> None: ...

    async def drain(self) -> None: ...


async def read_message(
    reader: Reader, max_message_size: int | None = MAX_MESSAGE_SIZE, *, checksum: bool = False
) -> TwoPartMessage | None:
    """The next message of the stream; None if the stream ends before it begins.

    `max_message_size` is in bytes, prefix included; it and `checksum` are those of TwoPartCodec. Raises MessageTooLarge on
    the prefix, before the rest is read; IncompleteMessage if the stream ends in the message; ChecksumMismatch; and what the
    reader raises. After an error, and after a read that was cancelled, the place in the stream is lost: close it.
    """
    decoder = TwoPartDecoder(max_message_size, checksum=checksum)
    missing = _PREFIX_SIZE
    while True:
        try:
            chunk = await reader.readexactly(missing)
        except EOFError as error:
            came = decoder.pending + len(getattr(error, "partial", b""))
            if not came:
                return None
            whole = decoder.expected or _PREFIX_SIZE
            raise IncompleteMessage(
                f"the stream ends in a two-part message: {came} bytes of at least {whole}"
            ) from None
        for message in decoder.feed(chunk):
            return message
        missing = decoder.expected - decoder.pending


async def write_message(
    writer: Writer, message: TwoPartMessage, max_message_size: int | None = None, *, checksum: bool = False
) -> None:
    """Write a message, and wait until the writer takes more.

    `max_message_size` and `checksum` are those of TwoPartCodec. Raises MessageTooLarge before anything is written, and what
    the writer raises.
    """
    writer.write(TwoPartCodec(max_message_size, checksum=checksum).encode_message(message))
    await writer.drain()
