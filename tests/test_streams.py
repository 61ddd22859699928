"""Messages on asyncio's streams: what was sent comes, however it was cut; what breaks is named; the ends are told apart."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator

import pytest

from dynamo_fast import TwoPartCodec, TwoPartMessage, read_message, write_message
from dynamo_fast.codec import encode
from dynamo_fast.errors import ChecksumMismatch, IncompleteMessage, MessageTooLarge
from dynamo_fast.streams import MAX_MESSAGE_SIZE
from tests.captured import Vector, captured, name_of

MESSAGES = [TwoPartMessage(b"h", b"d"), TwoPartMessage(), TwoPartMessage(b"", b"x" * 1_000_000), TwoPartMessage(b"end")]


@contextlib.asynccontextmanager
async def echo() -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to a server that writes each message that it reads, and closes after the last one."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (message := await read_message(reader)) is not None:
            await write_message(writer, message)
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        try:
            yield reader, writer
        finally:
            writer.close()
            await writer.wait_closed()


def reader_of(data: bytes) -> asyncio.StreamReader:
    """A stream that has all of `data`, and ends."""
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    return reader


async def test_messages_go_there_and_back() -> None:
    async with echo() as (reader, writer):
        for message in MESSAGES:
            await write_message(writer, message)
            assert await read_message(reader) == message
        writer.write_eof()
        assert await read_message(reader) is None


@pytest.mark.parametrize("vector", captured("data_*", "final_*", "prologue_*", "handshake_*"), ids=name_of)
async def test_what_dynamo_wrote_is_read_as_the_codec_reads_it(vector: Vector) -> None:
    assert await read_message(reader_of(vector.data)) == TwoPartCodec().decode_message(vector.data)


async def test_a_stream_that_ends_in_a_message_is_told_from_one_that_ends_before_it() -> None:
    frame = encode(b"head", b"body")
    assert await read_message(reader_of(b"")) is None
    for size in range(1, len(frame)):
        whole = 24 if size < 24 else 32
        told = f"the stream ends in a two-part message: {size} bytes of at least {whole}"
        with pytest.raises(IncompleteMessage, match=told):
            await read_message(reader_of(frame[:size]))
    assert await read_message(reader_of(frame)) == TwoPartMessage(b"head", b"body")


async def test_a_message_over_the_limit_is_refused_on_its_prefix() -> None:
    reader = asyncio.StreamReader()  # which never has the rest
    reader.feed_data(struct.pack(">QQQ", 0, MAX_MESSAGE_SIZE, 0))
    with pytest.raises(MessageTooLarge, match=rf"\(limit: {MAX_MESSAGE_SIZE} bytes\)"):
        await read_message(reader)
    message = TwoPartMessage(b"", b"x" * 100)
    frame = encode(*message)
    assert await read_message(reader_of(frame), len(frame)) == message
    with pytest.raises(MessageTooLarge):
        await read_message(reader_of(frame), len(frame) - 1)
    async with echo() as (_, writer):
        with pytest.raises(MessageTooLarge):
            await write_message(writer, message, len(frame) - 1)


async def test_checksums_are_written_and_verified() -> None:
    async with echo() as (reader, writer):
        await write_message(writer, TwoPartMessage(b"h", b"d"), checksum=True)
        assert await read_message(reader, checksum=True) == TwoPartMessage(b"h", b"d")
    frame = TwoPartCodec(checksum=True).encode_message(TwoPartMessage(b"h", b"d"))
    with pytest.raises(ChecksumMismatch):
        await read_message(reader_of(frame[:-1] + b"D"), checksum=True)
