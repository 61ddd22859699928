"""The frames of Dynamo's TCP planes: two-part messages, TCP request frames and their acknowledgements. Bytes only, no I/O.

    frame = encode(header, data)                           # bytes
    header, data = decode(frame)                           # exactly one message
    decoder = TwoPartDecoder(max_message_size=1 << 20)     # a stream
    for header, data in decoder.feed(chunk): ...

`TwoPartCodec` does the same with a limit, checksums or views. `dynamo_fast.streams` reads and writes messages on
asyncio's streams.

Two backends with one behaviour: `_codec` (compiled) and `_codec_py` (Python, and the description of the format). The
compiled one is used if it can be imported; the environment variable DYNAMO_FAST_BACKEND=cython|python forces one. `BACKEND`
says which it is.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Literal

from dynamo_fast.config.backend import backend

if TYPE_CHECKING:
    from dynamo_fast._codec_py import (
        MUX_BODY_LIMIT,
        MUX_DATA,
        MUX_PART,
        MUX_PREFIX_SIZE,
        MuxCodec,
        MuxDecoder,
        MuxFrame,
        TcpRequestCodec,
        TcpRequestDecoder,
        TcpRequestMessage,
        TcpResponseCodec,
        TcpResponseDecoder,
        TcpResponseMessage,
        TwoPartCodec,
        TwoPartDecoder,
        TwoPartMessage,
        TwoPartMessageType,
        decode_two_part,
        encode_data_frames,
        encode_mux_frame,
        encode_mux_items,
        encode_two_part,
        mux_frames_within,
    )

__all__ = [
    "BACKEND",
    "MUX_BODY_LIMIT",
    "MUX_DATA",
    "MUX_PART",
    "MUX_PREFIX_SIZE",
    "MuxCodec",
    "MuxDecoder",
    "MuxFrame",
    "TcpRequestCodec",
    "TcpRequestDecoder",
    "TcpRequestMessage",
    "TcpResponseCodec",
    "TcpResponseDecoder",
    "TcpResponseMessage",
    "TwoPartCodec",
    "TwoPartDecoder",
    "TwoPartMessage",
    "TwoPartMessageType",
    "decode",
    "decode_two_part",
    "encode",
    "encode_data_frames",
    "encode_mux_frame",
    "encode_mux_items",
    "encode_two_part",
    "mux_frames_within",
]


def _load() -> tuple[Literal["cython", "python"], Any]:
    """The backend that is configured, or the compiled one if it can be imported. Raises InvalidConfig, ImportError."""
    wanted = backend()
    if wanted == "python":
        return "python", _python()
    try:
        return "cython", _cython()
    except ImportError as error:
        if wanted:
            raise ImportError(
                f"DYNAMO_FAST_BACKEND=cython, but the compiled codec cannot be imported: {error}"
            ) from error
        if sys.implementation.name == "cpython":
            import logging

            logging.getLogger("dynamo_fast").warning(
                "using the Python codec, which is slower: the compiled codec cannot be imported (%s). "
                "Set DYNAMO_FAST_BACKEND=python to choose it without this warning.",
                error,
            )
        return "python", _python()


# PyInstaller and Nuitka find modules by their import statements.


def _cython() -> Any:
    import dynamo_fast._codec as backend

    return backend


def _python() -> Any:
    import dynamo_fast._codec_py as backend

    return backend


BACKEND, _backend = _load()

if not TYPE_CHECKING:
    MUX_BODY_LIMIT = _backend.MUX_BODY_LIMIT
    MUX_DATA = _backend.MUX_DATA
    MUX_PART = _backend.MUX_PART
    MUX_PREFIX_SIZE = _backend.MUX_PREFIX_SIZE
    MuxCodec = _backend.MuxCodec
    MuxDecoder = _backend.MuxDecoder
    MuxFrame = _backend.MuxFrame
    TcpRequestCodec = _backend.TcpRequestCodec
    TcpRequestDecoder = _backend.TcpRequestDecoder
    TcpRequestMessage = _backend.TcpRequestMessage
    TcpResponseCodec = _backend.TcpResponseCodec
    TcpResponseDecoder = _backend.TcpResponseDecoder
    TcpResponseMessage = _backend.TcpResponseMessage
    TwoPartCodec = _backend.TwoPartCodec
    TwoPartDecoder = _backend.TwoPartDecoder
    TwoPartMessage = _backend.TwoPartMessage
    TwoPartMessageType = _backend.TwoPartMessageType
    decode_two_part = _backend.decode_two_part
    encode_data_frames = _backend.encode_data_frames
    encode_mux_frame = _backend.encode_mux_frame
    encode_mux_items = _backend.encode_mux_items
    encode_two_part = _backend.encode_two_part
    mux_frames_within = _backend.mux_frames_within

# Shorter names for `codec.encode(...)` and `codec.decode(...)`.
encode = encode_two_part
decode = decode_two_part
