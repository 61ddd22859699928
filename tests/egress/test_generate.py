"""What the router writes, and what it makes of an answer that ends well."""

from __future__ import annotations

import asyncio
import json

import pytest

from dynamo_fast.context import Context
from dynamo_fast.egress.response_stream import ResponseStream
from dynamo_fast.egress.router import AddressedPushRouter, AddressedRequest
from dynamo_fast.errors import SerializationError
from dynamo_fast.wire.address import EndpointId
from dynamo_fast.wire.instance import Instance, TransportType
from dynamo_fast.wire.payload import PayloadCodec
from tests.egress.raw_worker import FINAL, LIMIT, OK_PROLOGUE, SENTINEL, RawRequest, RawWorker, item, two_part


def start(
    router: AddressedPushRouter, worker: RawWorker, context: Context | None = None
) -> asyncio.Task[ResponseStream]:
    return asyncio.ensure_future(router.generate(AddressedRequest.new({"n": 1}, worker.address), context))


async def begin(
    router: AddressedPushRouter, worker: RawWorker, context: Context | None = None
) -> tuple[asyncio.Task[ResponseStream], RawRequest]:
    """A call whose request has reached the worker."""
    call = start(router, worker, context)
    return call, await worker.request()


async def data_of(stream: ResponseStream) -> list[object]:
    async def collect() -> list[object]:
        return [each.data() async for each in stream]

    return await asyncio.wait_for(collect(), LIMIT)


async def test_the_request_is_dynamos(router: AddressedPushRouter, worker: RawWorker) -> None:
    context = Context("the-id", {"b": "2", "a": "1"}, {"traceparent": "00-1-2-01"})
    call, request = await begin(router, worker, context)
    assert request.path == "1f/demo/backend/generate"
    assert request.body == b'{"n":1}'
    assert request.checksum == 0
    sent_at = request.headers.pop("x-frontend-send-ts-ns")
    assert sent_at.isdecimal()
    assert request.headers == {
        "x-endpoint-path": "1f/demo/backend/generate",
        "request-id": "the-id",
        "traceparent": "00-1-2-01",
    }
    info = json.dumps(
        {
            "address": router.response_server.address,
            "subject": request.info["subject"],
            "context": "the-id",
            "stream_type": "response",
        },
        separators=(",", ":"),
    )
    control = {
        "id": "the-id",
        "request_type": "single_in",
        "response_type": "many_out",
        "payload_codec": "json",
        "connection_info": {"transport": "tcp_server", "info": info},
        "metadata": {"a": "1", "b": "2"},
    }
    assert request.control_bytes == json.dumps(control, separators=(",", ":")).encode()
    request.acknowledge()
    stream = await request.dial()
    stream.end()
    assert await data_of(await call) == []


async def test_items_come_in_order_and_the_router_closes_first(router: AddressedPushRouter, worker: RawWorker) -> None:
    call, request = await begin(router, worker)
    request.acknowledge()
    stream = await request.dial()
    answer = await asyncio.wait_for(call, LIMIT)
    assert router.metrics.inflight == 1
    stream.items(*range(100), None, "größe", {"nested": [1, {"a": None}]})
    stream.send()  # an empty frame is nothing
    stream.end()
    assert await data_of(answer) == [*range(100), None, "größe", {"nested": [1, {"a": None}]}]
    assert await stream.received() == [b""]  # a bare end of file: no stop, no kill
    with pytest.raises(StopAsyncIteration):
        await answer.__anext__()


async def test_a_whole_answer_may_overtake_the_acknowledgement(router: AddressedPushRouter, worker: RawWorker) -> None:
    call, request = await begin(router, worker)
    stream = await request.dial()
    stream.items(1, 2)
    stream.end()
    assert await stream.received() == [b""]
    assert not call.done()
    request.acknowledge()
    answer = await asyncio.wait_for(call, LIMIT)
    assert not router.response_server.call_home  # nobody waits for what has been
    assert await data_of(answer) == [1, 2]


@pytest.mark.parametrize("size", [1, 7, 1_000_000])
async def test_an_answer_in_pieces_of_any_size(router: AddressedPushRouter, worker: RawWorker, size: int) -> None:
    call, request = await begin(router, worker)
    request.acknowledge()
    stream = await request.connect()
    handshake = json.dumps({"subject": request.info["subject"], "stream_type": "response", "extra": 1}).encode()
    answer = b"".join(
        [
            two_part(handshake, b"ignored"),
            two_part(OK_PROLOGUE),
            two_part(data=item("a" * 50)),
            two_part(data=item("b", final=True)),
            two_part(SENTINEL),
        ]
    )
    for start_ in range(0, len(answer), size):
        stream.writer.write(answer[start_ : start_ + size])
        await asyncio.sleep(0)
    assert await data_of(await asyncio.wait_for(call, LIMIT)) == ["a" * 50, "b"]


async def test_end_of_file_after_the_final_item_is_a_good_end(router: AddressedPushRouter, worker: RawWorker) -> None:
    call, request = await begin(router, worker)
    request.acknowledge()
    stream = await request.dial()
    stream.items(1)
    stream.send(data=FINAL)
    stream.half_close()
    assert await data_of(await call) == [1]


async def test_requests_on_one_connection_are_told_apart(router: AddressedPushRouter, worker: RawWorker) -> None:
    calls = [start(router, worker) for _ in range(50)]
    requests = [await worker.request() for _ in calls]
    assert len({request.writer for request in requests}) == 1
    assert len({request.info["subject"] for request in requests}) == 50
    assert len({request.control["id"] for request in requests}) == 50
    for number, request in reversed(list(enumerate(requests))):
        stream = await request.dial()
        stream.items(number)
        stream.end()
    for request in requests:
        request.acknowledge()
    answers = await asyncio.wait_for(asyncio.gather(*calls), LIMIT)
    assert [await data_of(answer) for answer in answers] == [[number] for number in range(50)]


async def test_the_payload_codec_is_the_workers(router: AddressedPushRouter, worker: RawWorker) -> None:
    instance = Instance(
        EndpointId("demo", "backend", "generate"), 31, TransportType("tcp", worker.address), None, PayloadCodec.MSGPACK
    )
    call = asyncio.ensure_future(router.generate(AddressedRequest.for_instance({"n": 1}, instance)))
    request = await worker.request()
    assert request.control["payload_codec"] == "msgpack"
    assert request.body == b"\x81\xa1n\x01"
    request.acknowledge()
    stream = await request.dial()
    stream.send(data=b"\x82\xa4data\x81\xa4data\x07\xaecomplete_final\xc2")
    stream.send(data=b"\x81\xaecomplete_final\xc3")
    stream.send(SENTINEL)
    assert await data_of(await call) == [7]


async def test_two_consumers_get_two_items(router: AddressedPushRouter, worker: RawWorker) -> None:
    call, request = await begin(router, worker)
    request.acknowledge()
    stream = await request.dial()
    answer = await call
    both = [asyncio.ensure_future(answer.__anext__()) for _ in range(2)]
    await asyncio.sleep(0)
    stream.items(1, 2)
    stream.end()
    assert sorted([(await asyncio.wait_for(each, LIMIT)).data() for each in both]) == [1, 2]
    assert await data_of(answer) == []


async def test_what_the_metrics_say(router: AddressedPushRouter, worker: RawWorker) -> None:
    call, request = await begin(router, worker)
    request.acknowledge()
    stream = await request.dial()
    stream.items(1)
    stream.end()
    assert await data_of(await call) == [1]
    metrics = router.metrics
    counts = [each.count for each in (metrics.queue, metrics.send, metrics.roundtrip_ttft, metrics.transport_roundtrip)]
    assert counts == [1, 1, 1, 1]
    assert metrics.tcp_bytes_sent > 200
    assert metrics.tcp_errors == 0


@pytest.mark.parametrize("metadata", [{}, {"key": "half \ud800"}, {"\udfff": "value"}])
async def test_texts_that_are_not_unicode_are_refused_before_anything_is_sent(
    router: AddressedPushRouter, worker: RawWorker, metadata: dict[str, str]
) -> None:
    context = Context(None if metadata else "half \ud800", metadata)
    with pytest.raises(SerializationError, match="surrogates not allowed"):
        await router.generate(AddressedRequest({}, worker.address), context)


@pytest.mark.parametrize("id", [None, "plain", 'a "quote"', "a back\\slash", "a line\nfeed", "\xfcml\xe4ut"])
async def test_any_id_stands_in_the_headers_and_in_the_control_message(
    router: AddressedPushRouter, worker: RawWorker, id: str | None
) -> None:
    context = Context(id)
    call, request = await begin(router, worker, context)
    assert request.headers["request-id"] == request.control["id"] == request.info["context"] == context.id()
    call.cancel()


async def test_headers_that_are_not_unicode_are_refused_before_anything_is_sent(
    router: AddressedPushRouter, worker: RawWorker
) -> None:
    request = AddressedRequest({}, worker.address, headers={"key": "half \ud800"})
    with pytest.raises(SerializationError, match="surrogates"):
        await router.generate(request)
