"""The frames as one writes them with `struct`: what `dynamo-fast bench codec` compares the codec with.

It is short and correct, and does less than the codec: it has no limit, so the peer says how much memory a message takes.
"""

from __future__ import annotations

import struct

__all__ = ["StructDecoder", "decode", "encode"]

_PREFIX = struct.Struct(">QQQ")


def encode(header: bytes, data: bytes) -> bytes:
    """The frame of a message."""
    return _PREFIX.pack(len(header), len(data), 0) + header + data


def decode(frame: bytes) -> tuple[bytes, bytes]:
    """The header and the data of one whole frame."""
    header_size, data_size, _ = _PREFIX.unpack_from(frame)
    end = _PREFIX.size + header_size + data_size
    if len(frame) != end:
        raise ValueError(f"{len(frame)} bytes are no message of {end}")
    return frame[_PREFIX.size : _PREFIX.size + header_size], frame[_PREFIX.size + header_size :]


class StructDecoder:
    """A stream of frames, in chunks of any size."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, chunk: bytes) -> list[tuple[bytes, bytes]]:
        """The messages that `chunk` completes."""
        buffer = self._buffer
        buffer += chunk
        messages = []
        at = 0
        while len(buffer) - at >= _PREFIX.size:
            header_size, data_size, _ = _PREFIX.unpack_from(buffer, at)
            start = at + _PREFIX.size
            middle = start + header_size
            end = middle + data_size
            if len(buffer) < end:
                break
            messages.append((bytes(buffer[start:middle]), bytes(buffer[middle:end])))
            at = end
        del buffer[:at]
        return messages
