"""Calls that fail before their stream begins: which error, and that nothing is left behind."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable

import pytest

from dynamo_fast.config import ResponseServerConfig, TcpClientConfig
from dynamo_fast.context import Context
from dynamo_fast.egress.response_stream import ResponseStream
from dynamo_fast.egress.router import AddressedPushRouter, AddressedRequest
from dynamo_fast.errors import (
    Cancelled,
    CannotConnect,
    ConnectionTimeout,
    Disconnected,
    DynamoError,
    InvalidAddress,
    RemoteError,
    RequestRefused,
    RequestTooLarge,
    ResourceExhausted,
    SerializationError,
    Unavailable,
)
from dynamo_fast.wire.control import MAX_CONTROL_MESSAGE_SIZE
from tests.egress.conftest import make_router
from tests.egress.raw_worker import LIMIT, OK_PROLOGUE, RawWorker, two_part
from tests.egress.test_generate import begin, data_of


async def fails(call: asyncio.Future[ResponseStream], kind: type[DynamoError], text: str) -> DynamoError:
    with pytest.raises(kind, match=text) as caught:
        await asyncio.wait_for(call, LIMIT)
    assert type(caught.value) is kind
    return caught.value


# Nothing was sent


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("localhost:80/x", "Invalid TCP address 'localhost:80/x': invalid socket address syntax"),
        ("127.0.0.1:80", "the endpoint path is missing"),
        ("127.0.0.1:99999/x", "invalid socket address syntax"),
    ],
)
async def test_an_address_that_does_not_parse(router: AddressedPushRouter, address: str, text: str) -> None:
    await fails(asyncio.ensure_future(router.generate(AddressedRequest.new({}, address))), InvalidAddress, text)


async def test_a_request_that_cannot_be_serialised(router: AddressedPushRouter, worker: RawWorker) -> None:
    call = asyncio.ensure_future(router.generate(AddressedRequest.new({"a": object()}, worker.address)))
    await fails(call, SerializationError, "object")


async def test_a_control_message_over_its_limit(router: AddressedPushRouter, worker: RawWorker) -> None:
    context = Context("id", {"key": ""})
    call, request = await begin(router, worker, context)
    room = MAX_CONTROL_MESSAGE_SIZE - len(request.control_bytes)
    call.cancel()
    await asyncio.wait([call])
    exact, request = await begin(router, worker, Context("id", {"key": "x" * room}))
    assert len(request.control_bytes) == MAX_CONTROL_MESSAGE_SIZE
    exact.cancel()
    await asyncio.wait([exact])
    one_more = asyncio.ensure_future(
        router.generate(AddressedRequest.new({"n": 1}, worker.address), Context("id", {"key": "x" * (room + 1)}))
    )
    error = await fails(
        one_more, RequestTooLarge, "request control message too large: 131073 bytes exceeds limit 131072"
    )
    assert isinstance(error, RequestTooLarge)
    assert (error.size, error.limit) == (131073, 131072)


async def test_a_request_over_the_frame_limit_is_refused_before_it_is_sent(worker: RawWorker) -> None:
    async with await make_router(client=TcpClientConfig(max_message_size=2000)) as router:
        call = asyncio.ensure_future(router.generate(AddressedRequest.new("x" * 2000, worker.address)))
        error = await fails(call, RequestTooLarge, r"too large for this deployment.*; the limit is 2000\.")
        assert isinstance(error, RequestTooLarge)
        assert error.limit == 2000
        assert error.size > 2000
        # The whole frame counts: what the first was too large by fits exactly.
        context = Context("x" * 36)
        fits = "x" * (2000 - (error.size - 2000))
        call = asyncio.ensure_future(router.generate(AddressedRequest.new(fits, worker.address), context))
        await worker.request()
        call.cancel()
        await asyncio.wait([call])
        assert (router.metrics.inflight, router.response_server.pending) == (0, 0)


async def test_a_context_that_was_killed_before(router: AddressedPushRouter, worker: RawWorker) -> None:
    context = Context()
    context.kill()
    call = asyncio.ensure_future(router.generate(AddressedRequest.new({}, worker.address), context))
    await fails(call, Cancelled, "Request cancelled before response stream was established")


# The request connection


async def test_nobody_listens(router: AddressedPushRouter) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        call = asyncio.ensure_future(router.generate(AddressedRequest.new({}, f"127.0.0.1:{port}/x")))
        error = await fails(call, CannotConnect, rf"^TCP connection to 127\.0\.0\.1:{port} failed$")
    assert isinstance(error.__cause__, ConnectionRefusedError)
    assert error.migratable


async def test_the_worker_closes_before_it_acknowledges(router: AddressedPushRouter, worker: RawWorker) -> None:
    call, request = await begin(router, worker)
    request.cut()
    await fails(call, CannotConnect, "TCP connection to .* failed")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (b"Server overloaded: worker at capacity", ResourceExhausted),
        (b"Server unavailable: unknown endpoint x", Unavailable),
        (b"Unknown endpoint: x", Unavailable),
        (b"Read error: message too large", RequestRefused),
        (b"\xff\xfe", RequestRefused),
    ],
)
async def test_every_word_of_an_acknowledgement_is_a_refusal(
    router: AddressedPushRouter, worker: RawWorker, text: bytes, kind: type[DynamoError]
) -> None:
    call, request = await begin(router, worker)
    request.acknowledge(text)
    error = await fails(call, kind, ".")
    assert str(error) == text.decode(errors="replace")
    late = await request.dial()  # its subject is gone
    assert await late.received() == [b"reset"]


async def test_an_acknowledgement_that_does_not_come(worker: RawWorker) -> None:
    async with await make_router(client=TcpClientConfig(request_timeout=0.05)) as router:
        call, late = await begin(router, worker)
        await fails(call, ConnectionTimeout, rf"^TCP request to 127\.0\.0\.1:{worker.port} timed out$")
        # Nothing waits on that connection, so it is closed: the next request goes onto another.
        await late.closed()
        call, request = await begin(router, worker)
        assert request.writer is not late.writer
        request.acknowledge()
        stream = await request.dial()
        stream.end()
        assert await data_of(await call) == []


async def test_garbage_for_an_acknowledgement_ends_its_connection_only(
    router: AddressedPushRouter, worker: RawWorker
) -> None:
    async with RawWorker() as other:
        good_call, good = await begin(router, other)
        call, request = await begin(router, worker)
        request.writer.write(struct.pack(">I", 0xFFFFFFFF))
        await fails(call, CannotConnect, "TCP connection to .* failed")
        good.acknowledge()
        stream = await good.dial()
        stream.end()
        assert await data_of(await good_call) == []


async def test_an_acknowledgement_of_nothing_ends_the_connection(
    router: AddressedPushRouter, worker: RawWorker
) -> None:
    call, request = await begin(router, worker)
    request.acknowledge()
    request.acknowledge()
    stream = await request.dial()
    stream.end()
    assert await data_of(await asyncio.wait_for(call, LIMIT)) == []
    again, request = await begin(router, worker)
    request.acknowledge()
    (await request.dial()).end()
    assert await data_of(await again) == []


# The dial-back


async def test_a_worker_that_acknowledges_and_never_dials(worker: RawWorker) -> None:
    async with await make_router(ResponseServerConfig(host="127.0.0.1", call_home_timeout=0.05)) as router:
        call, request = await begin(router, worker)
        request.acknowledge()
        await fails(call, ConnectionTimeout, r"did not dial back within 0\.05 s")
        assert await (await request.dial()).received() == [b"reset"]


async def test_a_worker_that_dials_and_says_nothing_more(worker: RawWorker) -> None:
    async with await make_router(ResponseServerConfig(host="127.0.0.1", call_home_timeout=0.05)) as router:
        call, request = await begin(router, worker)
        request.acknowledge()
        stream = await request.dial(prologue=None)
        await fails(call, ConnectionTimeout, r"did not start to answer within 0\.05 s")
        assert await stream.received() == [b'"kill"', b""]


async def test_a_worker_that_dies_after_its_acknowledgement(worker: RawWorker) -> None:
    async with await make_router(ResponseServerConfig(host="127.0.0.1", call_home_grace=0.05)) as router:
        call, request = await begin(router, worker)
        request.acknowledge()
        request.cut()
        await fails(call, Disconnected, "Worker disconnected before response stream was established")


async def test_a_dial_back_within_the_grace_saves_the_request(router: AddressedPushRouter, worker: RawWorker) -> None:
    call, request = await begin(router, worker)
    request.acknowledge()
    request.cut()
    stream = await request.dial()
    stream.items(1)
    stream.end()
    assert await data_of(await asyncio.wait_for(call, LIMIT)) == [1]


def handshake(subject: str, stream_type: str) -> bytes:
    return f'{{"subject":"{subject}","stream_type":"{stream_type}"}}'.encode()


@pytest.mark.parametrize(
    "first",
    [
        lambda subject: b"GET / HTTP/1.1\r\n\r\n" * 3,
        lambda subject: b"\xff" * 24,
        lambda subject: two_part(b"not json"),
        lambda subject: two_part(handshake("unknown", "response")),
        lambda subject: two_part(handshake(subject, "request")),
        lambda subject: two_part(handshake(subject, "both")),
        lambda subject: two_part(data=handshake(subject, "response")),
        lambda subject: two_part(),
    ],
)
async def test_a_bad_handshake_is_reset_and_the_call_waits_on(
    router: AddressedPushRouter, worker: RawWorker, first: Callable[[str], bytes]
) -> None:
    call, request = await begin(router, worker)
    request.acknowledge()
    bad = await request.connect()
    bad.writer.write(first(request.info["subject"]))
    assert await bad.received() == [b"reset"]
    assert not call.done()
    stream = await request.dial()
    stream.end()
    assert await data_of(await asyncio.wait_for(call, LIMIT)) == []


async def test_a_subject_is_used_once(router: AddressedPushRouter, worker: RawWorker) -> None:
    call, request = await begin(router, worker)
    request.acknowledge()
    stream = await request.dial()
    answer = await call
    second = await request.dial()
    assert await second.received() == [b"reset"]
    stream.items(1)
    stream.end()
    assert await data_of(answer) == [1]


async def test_no_handshake_at_all(worker: RawWorker) -> None:
    async with await make_router(ResponseServerConfig(host="127.0.0.1", handshake_timeout=0.05)) as router:
        call, request = await begin(router, worker)
        request.acknowledge()
        silent = await request.connect()
        assert await silent.received() == [b"reset"]
        (await request.dial()).end()
        assert await data_of(await asyncio.wait_for(call, LIMIT)) == []


# The prologue


@pytest.mark.parametrize(
    ("header", "data", "text"),
    [
        (b"", b"data", "malformed prologue: expected HeaderOnly ControlMessage"),
        (OK_PROLOGUE, b"data", "malformed prologue: expected HeaderOnly ControlMessage"),
        (b"", b"", "malformed prologue: expected HeaderOnly ControlMessage"),
        (b"not json", b"", "malformed prologue: .*not json"),
        (b'{"error":5}', b"", "malformed prologue: "),
        (b'{"error":"Generate Error: no"}', b"", "Generate Error: no"),
        (b'{"error":""}', b"", ""),
    ],
)
async def test_a_bad_prologue(
    router: AddressedPushRouter, worker: RawWorker, header: bytes, data: bytes, text: str
) -> None:
    call, request = await begin(router, worker)
    request.acknowledge()
    stream = await request.dial(prologue=None)
    stream.send(header, data)
    await fails(call, CannotConnect, rf"^Worker generate\(\) failed before response stream: {text}")
    assert await stream.received() == [b"reset"]


async def test_an_error_prologue_before_the_acknowledgement(router: AddressedPushRouter, worker: RawWorker) -> None:
    call, request = await begin(router, worker)
    await request.dial(b'{"error":"no"}')
    await fails(call, CannotConnect, "no$")
    request.acknowledge()


async def test_the_typed_error_of_a_prologue(router: AddressedPushRouter, worker: RawWorker) -> None:
    call, request = await begin(router, worker)
    request.acknowledge()
    await request.dial(
        b'{"error":"m","typed_error":{"error_type":"Unknown","class":"Internal","reason":"runtime.unclassified",'
        b'"message":"m"}}'
    )
    error = await fails(call, CannotConnect, "failed before response stream: m")
    assert isinstance(error.caused_by, RemoteError)
    assert (error.caused_by.error_class, error.caused_by.message) == ("Internal", "m")


async def test_the_callers_own_mistake_is_raised_as_the_worker_wrote_it(
    router: AddressedPushRouter, worker: RawWorker
) -> None:
    call, request = await begin(router, worker)
    request.acknowledge()
    await request.dial(b'{"error":"m","typed_error":{"error_type":"InvalidArgument","message":"m"}}')
    error = await fails(call, RemoteError, "^m$")
    assert error.error_class == "InvalidRequest"
    assert not error.migratable


@pytest.mark.parametrize("how", ["half_close", "reset"])
async def test_a_worker_that_leaves_before_its_prologue(
    router: AddressedPushRouter, worker: RawWorker, how: str
) -> None:
    call, request = await begin(router, worker)
    request.acknowledge()
    stream = await request.dial(prologue=None)
    await stream.writer.drain()
    getattr(stream, how)()
    await fails(call, Disconnected, "^Worker disconnected before response stream was established$")


# The router itself


async def test_closing_the_router_ends_every_wait(worker: RawWorker) -> None:
    router = await make_router()
    waiting, _ = await begin(router, worker)
    called, request = await begin(router, worker)
    streaming, other = await begin(router, worker)
    for each in (request, other):
        each.acknowledge()
    # acknowledgements come in order: the first request's is still missing, so it takes the second's
    silent = await request.dial(prologue=None)
    await router.close()
    for call in (waiting, called, streaming):
        with pytest.raises((Disconnected, CannotConnect)):
            await asyncio.wait_for(call, LIMIT)
    assert (await silent.received())[-1] in (b"", b"reset")
    with pytest.raises(Disconnected, match="was closed"):
        await router.generate(AddressedRequest.new({}, worker.address))
    assert (router.metrics.inflight, router.response_server.pending) == (0, 0)


async def test_more_streams_than_the_process_may_have(worker: RawWorker) -> None:
    async with await make_router(ResponseServerConfig(host="127.0.0.1", max_streams=2)) as router:
        calls = [await begin(router, worker) for _ in range(2)]
        refused = asyncio.ensure_future(router.generate(AddressedRequest.new({}, worker.address)))
        await fails(refused, ResourceExhausted, "2 response streams are open already.*DYNAMO_FAST_MAX_STREAMS")
        for call, request in calls:
            request.acknowledge()
            (await request.dial()).end()
            assert await data_of(await call) == []
        call, request = await begin(router, worker)
        request.acknowledge()
        (await request.dial()).end()
        assert await data_of(await call) == []
