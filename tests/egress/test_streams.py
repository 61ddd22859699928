"""Streams that end otherwise than they should, and those that nobody wants any more."""

from __future__ import annotations

import asyncio
import gc
import json
import struct
import threading

import pytest

from dynamo_fast.config import ResponseServerConfig
from dynamo_fast.context import Context
from dynamo_fast.egress.response_stream import ResponseStream
from dynamo_fast.egress.router import AddressedPushRouter, AddressedRequest
from dynamo_fast.errors import (
    Cancelled,
    CannotConnect,
    CodecError,
    ControlError,
    Disconnected,
    DynamoError,
    MessageTooLarge,
    PayloadError,
    ProtocolError,
    RemoteError,
    ResourceExhausted,
)
from dynamo_fast.wire.payload import PayloadCodec
from tests.egress.conftest import make_router
from tests.egress.raw_worker import FINAL, LIMIT, SENTINEL, RawStream, RawWorker, item, two_part
from tests.egress.test_generate import begin, data_of
from tests.garbage import no_garbage

ERROR_ITEM = {"event": "error", "error": {"error_type": {"Backend": "Unknown"}, "message": "RuntimeError: boom"}}


async def establish(
    router: AddressedPushRouter, worker: RawWorker, context: Context | None = None
) -> tuple[ResponseStream, RawStream]:
    call, request = await begin(router, worker, context)
    request.acknowledge()
    stream = await request.dial()
    return await asyncio.wait_for(call, LIMIT), stream


async def fails_after(answer: ResponseStream, expected: list[object], kind: type[DynamoError]) -> DynamoError:
    """The items that come before the error, which is raised once: then the stream is at its end."""
    for value in expected:
        assert (await asyncio.wait_for(answer.__anext__(), LIMIT)).data() == value
    with pytest.raises(kind) as caught:
        await asyncio.wait_for(answer.__anext__(), LIMIT)
    assert type(caught.value) is kind
    for _ in range(2):
        with pytest.raises(StopAsyncIteration):
            await answer.__anext__()
    return caught.value


async def test_an_answer_leaves_nothing_for_the_garbage_collector(
    router: AddressedPushRouter, worker: RawWorker
) -> None:
    with no_garbage():
        answer, stream = await establish(router, worker)
        stream.items(1)
        stream.end()
        assert await data_of(answer) == [1]
        assert await stream.received() == [b""]
        del answer, stream


@pytest.mark.parametrize("how", ["error", "lost", "too late", "refused", "dead"])
async def test_an_answer_that_fails_leaves_nothing_for_the_garbage_collector(
    router: AddressedPushRouter, worker: RawWorker, how: str
) -> None:
    """Else the error would hold its caller's frame, and with it streams that the caller has dropped."""
    with no_garbage():
        if how == "refused":
            call, request = await begin(router, worker)
            request.acknowledge(b"Server overloaded: busy")
            with pytest.raises(ResourceExhausted):
                await call
            del call, request
            return
        if how == "dead":
            with pytest.raises(CannotConnect):
                await router.generate(AddressedRequest(1, "127.0.0.1:1/x"))
            return
        answer, stream = await establish(router, worker)
        if how == "error":
            stream.send(data=json.dumps({"data": ERROR_ITEM, "complete_final": False}).encode())
        elif how == "too late":
            answer._receiver.limit_inactivity(0.01)
        else:
            stream.items(1)
            assert (await anext(answer)).data() == 1
            stream.reset()
        with pytest.raises(DynamoError):
            await anext(answer)  # without wait_for, which makes such a cycle itself
        await stream.received()
        del answer, stream


# The connection


@pytest.mark.parametrize("how", ["half_close", "reset"])
async def test_a_connection_that_ends_without_a_final_marker(
    router: AddressedPushRouter, worker: RawWorker, how: str
) -> None:
    answer, stream = await establish(router, worker)
    stream.items(1, 2)
    assert [(await answer.__anext__()).data() for _ in range(2)] == [1, 2]
    getattr(stream, how)()
    error = await fails_after(answer, [], Disconnected)
    assert str(error) == "Stream ended before generation completed"
    assert error.migratable


async def test_a_sentinel_without_a_final_marker(router: AddressedPushRouter, worker: RawWorker) -> None:
    answer, stream = await establish(router, worker)
    stream.items(1)
    stream.send(SENTINEL)
    await fails_after(answer, [1], Disconnected)


@pytest.mark.parametrize(
    ("frame", "kind", "text"),
    [
        (two_part(b'"stop"'), ControlError, "the worker sent"),
        (two_part(b'"kill"'), ControlError, "the worker sent"),
        (two_part(b'"other"'), ControlError, "the worker sent"),
        (two_part(b"not json"), ControlError, "the worker sent"),
        (two_part(SENTINEL, b"data"), ControlError, "the worker sent"),
        (b"\xff" * 24, CodecError, ""),
        (struct.pack(">QQQ", 0, 1 << 40, 0), MessageTooLarge, f"{(1 << 40) + 24}.*{256 << 20}"),
    ],
)
async def test_what_a_worker_may_not_send(
    router: AddressedPushRouter, worker: RawWorker, frame: bytes, kind: type[Exception], text: str
) -> None:
    answer, stream = await establish(router, worker)
    stream.items(1)
    stream.writer.write(frame)
    stream.items(2)  # after it nothing is read
    error = await fails_after(answer, [1], Disconnected)
    assert isinstance(error.__cause__, kind)
    assert __import__("re").search(text, str(error.__cause__))
    assert (await stream.received())[0] == b'"kill"'


async def test_an_end_of_file_inside_a_frame(router: AddressedPushRouter, worker: RawWorker) -> None:
    answer, stream = await establish(router, worker)
    stream.writer.write(two_part(data=item(1))[:-1])
    stream.half_close()
    error = await fails_after(answer, [], Disconnected)
    assert "inside a frame" in str(error.__cause__)


async def test_a_frame_over_the_limit(worker: RawWorker) -> None:
    async with await make_router(ResponseServerConfig(host="127.0.0.1", max_message_size=1000)) as router:
        answer, stream = await establish(router, worker)
        stream.send(data=item("x" * 2000))
        error = await fails_after(answer, [], Disconnected)
        assert isinstance(error.__cause__, MessageTooLarge)
        assert error.__cause__.limit == 1000


# The items


async def test_items_after_the_final_marker(router: AddressedPushRouter, worker: RawWorker) -> None:
    answer, stream = await establish(router, worker)
    stream.items(1)
    stream.send(data=FINAL)
    stream.items(2)
    error = await fails_after(answer, [1], ProtocolError)
    assert str(error) == "Response received after generation ended - this should never happen"


async def test_what_comes_after_the_sentinel_is_not_read(router: AddressedPushRouter, worker: RawWorker) -> None:
    answer, stream = await establish(router, worker)
    stream.items(1)
    stream.end()
    stream.items(2)
    stream.writer.write(b"\xff" * 100)
    assert await data_of(answer) == [1]


@pytest.mark.parametrize("data", [b'{"complete_final":false}', b'{"data":null,"complete_final":false}'])
async def test_a_frame_without_anything(router: AddressedPushRouter, worker: RawWorker, data: bytes) -> None:
    answer, stream = await establish(router, worker)
    stream.send(data=data)
    error = await fails_after(answer, [], ProtocolError)
    assert str(error) == "Empty response received - this should never happen"


@pytest.mark.parametrize("data", [b"not json", b'{"data":{"data":1}}', b'{"data":5,"complete_final":false}', b"\xff"])
async def test_a_frame_that_is_no_item(router: AddressedPushRouter, worker: RawWorker, data: bytes) -> None:
    answer, stream = await establish(router, worker)
    stream.items(1)
    stream.send(data=data)
    await fails_after(answer, [1], PayloadError)
    assert await stream.received() == [b'"kill"', b""]


async def test_bytes_after_an_item_in_messagepack_are_forgiven(router: AddressedPushRouter, worker: RawWorker) -> None:
    request = AddressedRequest({}, worker.address, payload_codec=PayloadCodec.MSGPACK)
    call = asyncio.ensure_future(router.generate(request))
    raw = await worker.request()
    raw.acknowledge()
    stream = await raw.dial()
    stream.send(data=PayloadCodec.MSGPACK.encode_item(1) + b"after")
    stream.send(data=PayloadCodec.MSGPACK.encode_item(2))
    stream.send(data=PayloadCodec.MSGPACK.final)
    stream.send(SENTINEL)
    assert await data_of(await call) == [1, 2]


async def test_an_error_of_the_handler(router: AddressedPushRouter, worker: RawWorker) -> None:
    answer, stream = await establish(router, worker)
    stream.items(1)
    stream.send(data=json.dumps({"data": ERROR_ITEM, "complete_final": False}).encode())
    stream.end()
    error = await fails_after(answer, [1], RemoteError)
    assert (str(error), error.error_type, error.error_class) == ("RuntimeError: boom", "Backend.Unknown", "Internal")


# Cancellation


async def test_stop_is_told_once_and_late_items_are_delivered(router: AddressedPushRouter, worker: RawWorker) -> None:
    context = Context()
    answer, stream = await establish(router, worker, context)
    context.stop_generating()
    context.stop_generating()
    assert await asyncio.wait_for(stream.next_control(), LIMIT) == b'"stop"'
    stream.items(1, 2)
    stream.half_close()  # a worker that was stopped writes no final marker: a clean end all the same
    assert await data_of(answer) == [1, 2]
    assert (await stream.received())[:-1] == []


async def test_kill_ends_the_answer_now(router: AddressedPushRouter, worker: RawWorker) -> None:
    context = Context()
    answer, stream = await establish(router, worker, context)
    stream.items(1, 2, 3)
    assert (await answer.__anext__()).data() == 1
    context.kill()
    assert await data_of(answer) == []
    assert await stream.received() == [b'"kill"', b""]


async def test_kill_after_stop(router: AddressedPushRouter, worker: RawWorker) -> None:
    context = Context()
    answer, stream = await establish(router, worker, context)
    context.stop_generating()
    context.kill()
    assert await data_of(answer) == []
    assert await stream.received() == [b'"stop"', b'"kill"', b""]


async def test_stop_before_the_request_is_sent(router: AddressedPushRouter, worker: RawWorker) -> None:
    context = Context()
    context.stop_generating()
    call, request = await begin(router, worker, context)
    request.acknowledge()
    stream = await request.dial(prologue=None)
    assert await stream.received() == [b'"stop"', b""]
    assert await data_of(await asyncio.wait_for(call, LIMIT)) == []


async def test_stop_between_handshake_and_prologue(router: AddressedPushRouter, worker: RawWorker) -> None:
    context = Context()
    call, request = await begin(router, worker, context)
    request.acknowledge()
    stream = await request.dial(prologue=None)
    await _connected(router)
    context.stop_generating()
    assert await data_of(await asyncio.wait_for(call, LIMIT)) == []
    assert await stream.received() == [b'"stop"', b""]


async def test_kill_while_the_worker_is_waited_for(router: AddressedPushRouter, worker: RawWorker) -> None:
    context = Context()
    call, request = await begin(router, worker, context)
    request.acknowledge()
    context.kill()
    with pytest.raises(Cancelled, match="Request cancelled before response stream was established"):
        await asyncio.wait_for(call, LIMIT)
    assert await (await request.dial()).received() == [b"reset"]


async def test_a_call_that_is_abandoned_before_the_dial_back(router: AddressedPushRouter, worker: RawWorker) -> None:
    call, request = await begin(router, worker)
    request.acknowledge()
    call.cancel()
    await asyncio.wait([call], timeout=LIMIT)
    assert router.response_server.pending == 0
    assert await (await request.dial()).received() == [b"reset"]


async def test_a_call_that_is_abandoned_before_the_prologue(router: AddressedPushRouter, worker: RawWorker) -> None:
    call, request = await begin(router, worker)
    request.acknowledge()
    stream = await request.dial(prologue=None)
    await _connected(router)
    call.cancel()
    assert await stream.received() == [b'"kill"', b""]


async def test_a_call_that_is_abandoned_with_an_error_on_its_way(
    router: AddressedPushRouter, worker: RawWorker, caplog: pytest.LogCaptureFixture
) -> None:
    call, request = await begin(router, worker)
    request.acknowledge(b"Server overloaded: late")
    call.cancel()
    await asyncio.wait([call], timeout=LIMIT)
    gc.collect()
    assert "never retrieved" not in caplog.text


async def _connected(router: AddressedPushRouter) -> None:
    """Wait until a worker's handshake was taken."""
    while router.response_server.pending:
        await asyncio.sleep(0)  # the server has no event for this, and needs none


@pytest.mark.parametrize("how", ["close", "aclose", "context manager", "drop", "drop on another thread", "cancel"])
async def test_an_answer_that_nobody_wants_stops_the_worker(
    router: AddressedPushRouter, worker: RawWorker, how: str
) -> None:
    answer, stream = await establish(router, worker)
    stream.items(1, 2, 3)
    assert (await answer.__anext__()).data() == 1
    if how == "close":
        answer.close()
        answer.close()
    elif how == "aclose":
        await answer.aclose()
    elif how == "context manager":
        async with answer:
            pass
    elif how == "cancel":
        consumer = asyncio.ensure_future(data_of(answer))
        del answer
        await asyncio.sleep(0)
        consumer.cancel()
        await asyncio.wait([consumer])
        del consumer
        gc.collect()
    elif how == "drop":
        del answer
    else:
        holder = [answer]
        del answer
        thread = threading.Thread(target=holder.clear)
        thread.start()
        thread.join()
    assert await stream.received() in ([b'"kill"', b""], [b'"kill"', b"reset"])
    assert router.metrics.inflight == 0


async def test_a_consumer_that_waits_is_woken_by_closing(router: AddressedPushRouter, worker: RawWorker) -> None:
    answer, _ = await establish(router, worker)
    waiting = asyncio.ensure_future(answer.__anext__())
    await asyncio.sleep(0)
    answer.close()
    with pytest.raises(StopAsyncIteration):
        await asyncio.wait_for(waiting, LIMIT)


# Back-pressure


async def test_a_slow_consumer_stops_its_own_worker_only(router: AddressedPushRouter, worker: RawWorker) -> None:
    answer, stream = await establish(router, worker)
    body = two_part(data=item("x" * 100_000))
    sent = 0
    while sent < 400:  # until the kernel takes no more, which it does not as long as the router reads
        stream.writer.write(body)
        sent += 1
        try:
            await asyncio.wait_for(stream.writer.drain(), 0.2)
        except asyncio.TimeoutError:
            break
    assert sent < 400
    other, quick = await establish(router, worker)
    quick.items(1)
    quick.end()
    assert await data_of(other) == [1]
    stream.end()
    assert len(await data_of(answer)) == sent


# Instances


async def test_removing_an_instance_fails_the_calls_that_wait_for_it(
    router: AddressedPushRouter, worker: RawWorker
) -> None:
    from dynamo_fast.wire.address import EndpointInstanceId

    gone = EndpointInstanceId("demo", "backend", "generate", 31)
    other = gone._replace(instance_id=32)

    def call(instance: EndpointInstanceId) -> asyncio.Task[ResponseStream]:
        request = AddressedRequest.with_instance({}, worker.address, instance)
        return asyncio.ensure_future(router.generate(request))

    calls = [call(gone), call(gone), call(other)]
    requests = [await worker.request() for _ in calls]
    for request in requests:
        request.acknowledge()
    established = await requests[0].dial()
    answer = await asyncio.wait_for(calls[0], LIMIT)
    assert router.response_server.cancel_instance_streams(gone) == 1
    with pytest.raises(Disconnected, match="^Worker disconnected before response stream was established$"):
        await asyncio.wait_for(calls[1], LIMIT)
    with pytest.raises(Disconnected, match="tombstoned instance"):
        await call(gone)
    established.items(1)
    established.end()
    assert await data_of(answer) == [1]
    (await requests[2].dial()).end()
    assert await data_of(await asyncio.wait_for(calls[2], LIMIT)) == []
    router.response_server.clear_instance_tombstone(gone)
    back = call(gone)
    request = await worker.request()
    request.acknowledge()
    (await request.dial()).end()
    assert await data_of(await asyncio.wait_for(back, LIMIT)) == []


async def test_cancelling_a_subject(router: AddressedPushRouter, worker: RawWorker) -> None:
    call, request = await begin(router, worker)
    assert router.response_server.cancel_recv_stream(request.info["subject"])
    with pytest.raises(Disconnected, match=r"Worker disconnected before"):
        await asyncio.wait_for(call, LIMIT)
    assert not router.response_server.cancel_recv_stream(request.info["subject"])
