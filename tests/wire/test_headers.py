from __future__ import annotations

import pytest

from dynamo_fast.codec import TcpRequestCodec
from dynamo_fast.wire.headers import ENDPOINT_PATH, REQUEST_ID, decode_headers, encode_headers
from tests.captured import Vector, captured, name_of

REAL = [vector for vector in captured("req_*") if vector.facts["emitter"] == "real"]


@pytest.mark.parametrize("vector", REAL, ids=name_of)
def test_headers_of_dynamo(vector: Vector) -> None:
    frame = TcpRequestCodec().decode_message(vector.data)
    headers = decode_headers(frame.headers)
    assert headers == vector.facts["decoded"]["headers"]
    assert headers[ENDPOINT_PATH].encode() == bytes(frame.endpoint_path)
    assert encode_headers(headers) == bytes(frame.headers)


@pytest.mark.parametrize("data", [b"", b"notjson", b"[]", b'{"a":1}', b'{"a":null}', b"\xff", b"{"])
def test_what_is_no_object_of_texts_is_no_headers(data: bytes) -> None:
    assert decode_headers(data) == {}


def test_any_text_is_carried() -> None:
    headers = {REQUEST_ID: 'a"\\\n日本'}
    assert decode_headers(encode_headers(headers)) == headers
