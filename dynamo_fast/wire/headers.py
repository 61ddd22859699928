# cython: freethreading_compatible=True, annotation_typing=False
"""The headers of a request frame (transport.md 2.6): a JSON object of texts. None of them is required."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from dynamo_fast.errors import SerializationError
from dynamo_fast.wire._plain import UNWRITABLE
from dynamo_fast.wire.json_text import dumps
from dynamo_fast.wire.text import UNREADABLE

__all__ = [
    "ENDPOINT_PATH",
    "FRONTEND_SEND_TS_NS",
    "REQUEST_ID",
    "TRACEPARENT",
    "TRACESTATE",
    "X_REQUEST_ID",
    "decode_headers",
    "encode_headers",
]

ENDPOINT_PATH = "x-endpoint-path"
REQUEST_ID = "request-id"
FRONTEND_SEND_TS_NS = "x-frontend-send-ts-ns"
TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"
X_REQUEST_ID = "x-request-id"

_decoder = msgspec.json.Decoder(dict[str, str])


def encode_headers(headers: Mapping[str, str]) -> bytes:
    """The JSON text of `headers`. Raises SerializationError for a text that is not Unicode."""
    try:
        return dumps(headers)
    except UNWRITABLE as error:
        raise SerializationError(f"the headers of the request cannot be written: {error}") from None


def decode_headers(data: bytes | memoryview) -> dict[str, str]:
    """The headers in a frame. What is no JSON object of texts is no headers, as in Dynamo: never an error."""
    if not data:
        return {}
    try:
        return _decoder.decode(data)
    except UNREADABLE:
        return {}
