"""What our codec writes for a value or an exception is what Dynamo 1.6 writes for it, byte for byte."""

from __future__ import annotations

import asyncio  # noqa: F401  # the expressions below name it
from collections.abc import AsyncIterator

import pytest

from dynamo_fast.config import ResponseServerConfig
from dynamo_fast.egress.response_server import TcpStreamServer
from dynamo_fast.egress.router import AddressedPushRouter
from dynamo_fast.errors import RemoteError, SerializationError
from dynamo_fast.wire.error import from_exception
from dynamo_fast.wire.payload import PayloadCodec
from tests.interop.peers import Peer
from tests.interop.test_router import CODECS, begin, items_of

# Python expressions, which a worker yields the value of.
VALUES = [
    "None",
    "True",
    "-1",
    "[0, 127, 128, 255, 256, 65535, 65536, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1]",
    "[-1, -32, -33, -128, -129, -2**15, -2**15 - 1, -2**31, -2**31 - 1, -2**63]",
    "[2**64, -2**63 - 1, 2**100, 2**127 - 1, -2**127]",
    "[0.0, -0.0, 1.0, 2.5, 1e-5, 1.5e-5, 1e-7, 123e-7, 1e15, 1e16, 1.25e20, 1e300, 5e-324, 1.7976931348623157e308]",
    "[float('nan'), float('inf'), float('-inf')]",
    "['', 'a', 'h\\u00e9', '\\U0001f600', 'x' * 31, 'x' * 32, 'x' * 255, 'x' * 256, 'x' * 65536]",
    "'\"\\\\/\\b\\f\\n\\r\\t\\x00\\x01\\x1b\\x1f\\x7f\\u2028\\u2029'",
    "[[], (), set(), frozenset(), range(3), (1, 2), {1}, frozenset([2]), memoryview(b'ab')]",
    "[list(range(15)), list(range(16)), [0] * 65536]",
    "[{}, {'b': 1, 'a': {'c': [None]}}, {str(i): i for i in range(15)}, {str(i): i for i in range(16)}]",
    "[b'', b'\\x00\\xffab', b'x' * 256]",
    "{1: 'a', -1: 'b', 2**40: 'c'}",
    "{True: 'a', False: 'b'}",
    "{1.5: 'a', 2.0: 'b', 1e16: 'c', 1e-7: 'd'}",
    "{float('nan'): 'a'}",
    "{None: 'a'}",
    "{(1, 2): 'a'}",
    "{frozenset([1]): 'a'}",
    "{2**64: 'a'}",
    "{b'k': 'a'}",
    "__import__('collections').OrderedDict(b=1, a=2)",
    "__import__('http').HTTPStatus.OK",
    "__import__('enum').Enum('Color', 'RED').RED",
    "__import__('uuid').UUID(int=1)",
    "__import__('datetime').datetime(2020, 1, 1)",
    "__import__('decimal').Decimal('1.5')",
    "bytearray(b'ab')",
    "1j",
    "'\\ud800'",
    "{'\\ud800': 1}",
    "{'_dynamo_annotated': True, 'data': {'a': 1}, 'id': '7', 'event': 'e', 'comment': ['c', 'd'], 'other': 1}",
    "{'_dynamo_annotated': 1, 'data': None}",
    "{'_dynamo_annotated': True, 'comment': 'text'}",
    "{'_dynamo_annotated': True, 'comment': ('a', 'b')}",
    "{'_dynamo_annotated': True, 'id': 5}",
    "{'_dynamo_annotated': False, 'data': 1}",
    "__import__('collections').OrderedDict(_dynamo_annotated=True, data=1)",
]

_HTTP = "type('HttpError', (Exception,), {{'code': {}, 'message': 'said'}})()"
EXCEPTIONS = [
    "ValueError('x')",
    "ValueError()",
    "TypeError('a', 'b')",
    "UnicodeDecodeError('utf-8', b'x', 0, 1, 'why')",
    "KeyError('x')",
    "RuntimeError('two\\nlines')",
    "RuntimeError('h\u00e9\U0001f600')",
    "RuntimeError('x' * 4082)",
    "RuntimeError('x' * 4083)",
    "RuntimeError('\u00e9' * 5000)",
    "RuntimeError('\U0001f600' * 5000)",
    "RuntimeError('x' * 100000)",
    "OSError(2, 'no')",
    "TimeoutError('t')",
    "asyncio.TimeoutError()",
    "ConnectionError('c')",
    "ConnectionRefusedError('c')",
    "ConnectionResetError('c')",
    "BrokenPipeError('c')",
    "ConnectionAbortedError('c')",
    "asyncio.CancelledError('c')",
    "GeneratorExit('g')",
    "type('Mine', (ValueError,), {})('m')",
    "type('Outer', (), {'Inner': type('Inner', (Exception,), {})}).Inner('m')",
    "type('Status', (Exception,), {'status': 404, 'message': 'gone'})()",
    "type('Code', (Exception,), {'code': 404})('no message')",
    "type('Code', (Exception,), {'code': '404', 'message': 'text'})('a text as its code')",
    "type('Code', (ValueError,), {'code': True, 'message': 'text'})('a truth as its code')",
    "type('Code', (ValueError,), {'code': 404, 'message': 5})('a number as its message')",
    *(
        _HTTP.format(status)
        for status in (0, 200, 302, 400, 401, 403, 404, 405, 408, 409, 413, 415, 418, 422, 429, 431, 499)
    ),
    *(_HTTP.format(status) for status in (500, 501, 502, 503, 504, 505, 507, 529, 599, 70000, -1)),
]


@pytest.fixture
async def router() -> AsyncIterator[AddressedPushRouter]:
    server = await TcpStreamServer.create(ResponseServerConfig(host="127.0.0.1"))
    async with await AddressedPushRouter.create(response_server=server) as router:
        yield router


@CODECS
@pytest.mark.parametrize("worker", ["1.6.1"], indirect=True)  # 1.3.1 knows fewer values, and has the same forms
@pytest.mark.parametrize("source", VALUES)
async def test_a_value_has_the_bytes_that_dynamo_gives_it(
    worker: Peer, router: AddressedPushRouter, source: str, codec: PayloadCodec
) -> None:
    frame, error = await first_frame(router, worker, source, codec)
    if error is None:
        assert codec.encode_item(eval(source)) == frame
    else:
        with pytest.raises(SerializationError):
            codec.encode_item(eval(source))


@CODECS
@pytest.mark.parametrize("worker", ["1.6.1"], indirect=True)
@pytest.mark.parametrize("source", EXCEPTIONS)
async def test_an_exception_has_the_bytes_that_dynamo_gives_it(
    worker: Peer, router: AddressedPushRouter, source: str, codec: PayloadCodec
) -> None:
    frame, _ = await first_frame(router, worker, f"(_ for _ in ()).throw({source})", codec)
    assert codec.encode_error_item(from_exception(eval(source))) == frame


async def first_frame(
    router: AddressedPushRouter, worker: Peer, source: str, codec: PayloadCodec
) -> tuple[bytes, RemoteError | None]:
    """What the worker sends for a Python expression, and the error that it is, if it is one."""
    stream = await begin(router, worker, {"mode": "eval", "source": source}, codec=codec)
    receiver = stream._receiver
    while not receiver.frames and not receiver.ended:
        await receiver.readable()
    frame = bytes(next(iter(receiver.frames)))
    try:
        await items_of(stream)
    except RemoteError as error:
        return frame, error
    return frame, None
