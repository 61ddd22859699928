"""Every time limit of a router, with its default value, on a turned clock.

Each fires at its time and not before, is lifted when what it waits for has come, and leaves its table.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from dynamo_fast.config import PushRouterConfig, ResponseServerConfig, TcpClientConfig
from dynamo_fast.context import Context
from dynamo_fast.discovery.memory import MemoryDiscovery
from dynamo_fast.egress.push_router import PushRouter
from dynamo_fast.egress.request_sender import ManyIn
from dynamo_fast.egress.router import AddressedPushRouter, AddressedRequest
from dynamo_fast.errors import (
    CannotConnect,
    ConnectionTimeout,
    Disconnected,
    DynamoError,
    ResourceExhausted,
    ResponseTimeout,
)
from dynamo_fast.testing import clock
from dynamo_fast.wire.address import EndpointId, EndpointInstanceId
from dynamo_fast.wire.instance import Instance, TransportType
from tests.egress.conftest import make_router
from tests.egress.raw_worker import FINAL, OK_PROLOGUE, SENTINEL, RawRequest, RawStream, RawWorker
from tests.faults.tables import tables
from tests.faults.test_idle import unanswered
from tests.waiting import happens_after

pytestmark = pytest.mark.turned_clock

HOUR = 3600.0
ENDPOINT = EndpointId("demo", "backend", "generate")
WORKER, OTHER = (EndpointInstanceId("demo", "backend", "generate", number) for number in (1, 2))
Call = asyncio.Future[Any]


def waiting(router: AddressedPushRouter) -> dict[str, int]:
    """What the router keeps of streams and requests: its tables, but for the pooled connections."""
    sizes = tables(server=router.response_server, client=router.client)
    return {path: size for path, size in sizes.items() if "_pools" not in path}


async def begin(
    router: AddressedPushRouter, worker: RawWorker, data: Any = None, **fields: Any
) -> tuple[Call, RawRequest]:
    """A call whose request has reached the worker."""
    call = asyncio.ensure_future(router.generate(AddressedRequest(data, worker.address, **fields)))
    return call, await worker.request()


async def acknowledged(
    router: AddressedPushRouter, worker: RawWorker, data: Any = None, **fields: Any
) -> tuple[Call, RawRequest]:
    """A call whose acknowledgement has reached the router."""
    call, request = await begin(router, worker, data, **fields)
    request.acknowledge()
    await clock.settle()
    return call, request


async def answered(router: AddressedPushRouter, worker: RawWorker, **fields: Any) -> tuple[Any, RawStream]:
    """A stream that the worker has begun."""
    call, request = await acknowledged(router, worker, **fields)
    stream = await request.dial()
    return await call, stream


async def dial_for_input(request: RawRequest) -> RawStream:
    stream = await request.connect()
    info = json.loads(request.control["request_stream_connection_info"]["info"])
    stream.send(json.dumps({"subject": info["subject"], "stream_type": "request"}).encode())
    await clock.settle()
    return stream


async def ends_well(answer: Any, stream: RawStream) -> None:
    """The worker ends its answer, and the caller gets it."""
    stream.items("last")
    stream.end()
    assert [item.data() async for item in answer] == ["last"]


def next_item(answer: Any) -> Call:
    item: Call = asyncio.ensure_future(answer.__anext__())
    return item


def failed(call: Call, kind: type[DynamoError], text: str) -> None:
    error = call.exception()
    assert type(error) is kind
    assert text in str(error)


def is_open(stream: RawStream) -> bool:
    """Whether the router has not closed its end. (Nothing that it writes is waited for.)"""
    return not stream.reader.at_eof() and stream.reader.exception() is None


def request_connection_is_open(request: RawRequest) -> bool:
    return request._connection is not None and not request._connection.done()


# The acknowledgement has DYN_TCP_REQUEST_TIMEOUT, 5 s


async def test_an_acknowledgement_has_5_seconds(router: AddressedPushRouter, worker: RawWorker) -> None:
    before = waiting(router)
    call, request = await begin(router, worker)
    await happens_after(5, call.done)
    failed(call, ConnectionTimeout, "timed out")
    assert not request_connection_is_open(request)  # the worker may be deaf
    assert waiting(router) == before


async def test_an_acknowledgement_lifts_its_limit(router: AddressedPushRouter, worker: RawWorker) -> None:
    call, request = await begin(router, worker)
    await clock.advance(4.99)
    request.acknowledge()
    await clock.advance(60)  # the call home has more time
    assert not call.done()
    stream = await request.dial()
    await ends_well(await call, stream)
    assert request_connection_is_open(request)  # it is good for the next request


async def test_each_request_has_its_own_5_seconds(router: AddressedPushRouter, worker: RawWorker) -> None:
    first, _ = await begin(router, worker)
    await clock.advance(3)
    second, _ = await begin(router, worker)
    await happens_after(2, first.done)
    await happens_after(3 - 0.002, second.done)
    for call in (first, second):
        failed(call, ConnectionTimeout, "timed out")


async def test_a_request_that_was_given_up_while_it_waited_is_not_sent(worker: RawWorker) -> None:
    async with await make_router(client=TcpClientConfig(channel_buffer=1, pool_size=1)) as router:
        first, _ = await begin(router, worker, 1)
        second = asyncio.ensure_future(router.generate(AddressedRequest(2, worker.address)))
        await clock.advance(4)
        third = asyncio.ensure_future(router.generate(AddressedRequest(3, worker.address)))
        request = await worker.request()
        for call in (first, second):
            failed(call, ConnectionTimeout, "timed out")
        assert request.body == b"3"
        request.acknowledge()
        stream = await request.dial()
        await ends_well(await third, stream)


# Connecting has DYN_TCP_CONNECT_TIMEOUT, 5 s


async def test_a_connect_has_5_seconds() -> None:
    listener, others = unanswered()
    address = f"127.0.0.1:{listener.getsockname()[1]}/x"
    async with await make_router(client=TcpClientConfig(request_timeout=60)) as router:
        call = asyncio.ensure_future(router.generate(AddressedRequest(None, address)))
        await happens_after(5, call.done)
        failed(call, CannotConnect, "failed")
        assert isinstance(call.exception().__cause__, asyncio.TimeoutError)  # type: ignore[union-attr]
    for each in (listener, *others):
        each.close()


# Idle pools are closed after DYN_TCP_HOST_IDLE_TTL_SECS, 300 s; it is looked at every 150 s


@pytest.mark.parametrize(("last_used", "closed_after"), [(149, 301), (151, 449)])
async def test_idle_connections_are_closed_between_300_and_450_seconds_after_their_last_request(
    router: AddressedPushRouter, worker: RawWorker, last_used: float, closed_after: float
) -> None:
    await ends_well(*await answered(router, worker))
    await clock.advance(last_used)
    call, request = await acknowledged(router, worker)
    stream = await request.dial()
    await ends_well(await call, stream)
    await happens_after(closed_after, lambda: not request_connection_is_open(request))
    assert "client._pools" not in tables(client=router.client)
    await ends_well(*await answered(router, worker))  # another one is opened


@pytest.mark.parametrize("waits_for", ["acknowledgement", "call home"])
async def test_a_connection_that_is_waited_on_is_not_idle(worker: RawWorker, waits_for: str) -> None:
    config = TcpClientConfig(host_idle_ttl=1, request_timeout=60)  # it is looked at every 30 s
    async with await make_router(client=config) as router:
        call, request = await begin(router, worker)
        if waits_for == "call home":
            request.acknowledge()
        await clock.advance(45)
        assert request_connection_is_open(request)
        assert not call.done()
        if waits_for == "acknowledgement":
            request.acknowledge()
        stream = await request.dial()
        await ends_well(await call, stream)
        await clock.advance(30)
        assert not request_connection_is_open(request)


# The call home has DYNAMO_FAST_CALL_HOME_TIMEOUT, 120 s, and the prologue the same again, and the input, too


async def test_a_call_home_has_2_minutes(router: AddressedPushRouter, worker: RawWorker) -> None:
    before = waiting(router)
    call, request = await acknowledged(router, worker)
    await happens_after(120, call.done)
    failed(call, ConnectionTimeout, "did not dial back within 120 s")
    assert waiting(router) == before
    assert await (await request.dial()).received() == [b"reset"]


async def test_a_prologue_has_2_minutes_of_its_own(router: AddressedPushRouter, worker: RawWorker) -> None:
    before = waiting(router)
    call, request = await acknowledged(router, worker)
    await clock.advance(119)
    stream = await request.dial(prologue=None)
    await clock.settle()
    await happens_after(120, call.done)
    failed(call, ConnectionTimeout, "did not start to answer within 120 s")
    assert await stream.received() == [b'"kill"', b""]
    assert waiting(router) == before


async def test_a_dial_before_the_acknowledgement_has_the_same_time(
    router: AddressedPushRouter, worker: RawWorker
) -> None:
    call, request = await begin(router, worker)
    await request.dial(prologue=None)
    await clock.settle()
    request.acknowledge()
    await happens_after(120, call.done)
    failed(call, ConnectionTimeout, "did not start to answer within 120 s")


async def test_an_answer_that_has_begun_has_no_limit(router: AddressedPushRouter, worker: RawWorker) -> None:
    """Neither the handshake, nor the call home, nor the prologue is waited for any more."""
    before = waiting(router)
    call, request = await acknowledged(router, worker)
    await clock.advance(119)
    stream = await request.dial(prologue=None)
    await clock.advance(119)
    stream.send(OK_PROLOGUE)
    answer = await call
    assert not router.response_server.call_home
    item = next_item(answer)
    await clock.advance(24 * HOUR)
    assert not item.done()
    stream.items("first")
    assert (await item).data() == "first"
    await ends_well(answer, stream)
    await clock.settle()
    assert waiting(router) == before


async def never() -> AsyncIterator[Any]:
    await asyncio.get_running_loop().create_future()
    yield


async def test_an_input_is_dialled_for_within_2_minutes(router: AddressedPushRouter, worker: RawWorker) -> None:
    before = waiting(router)
    call, request = await acknowledged(router, worker, ManyIn(never()))
    await clock.advance(119)
    await request.dial()
    answer = await call
    item = next_item(answer)
    await happens_after(120, item.done)
    failed(item, ConnectionTimeout, "did not dial for its input within 120 s")
    await clock.settle()
    assert waiting(router) == before


async def test_an_input_that_was_dialled_for_has_no_limit(router: AddressedPushRouter, worker: RawWorker) -> None:
    before = waiting(router)
    call, request = await acknowledged(router, worker, ManyIn(never()))
    stream = await request.dial()
    answer = await call
    await clock.advance(119)
    inputs = await dial_for_input(request)
    await clock.advance(24 * HOUR)
    assert is_open(inputs)
    await ends_well(answer, stream)
    await clock.settle()
    assert waiting(router) == before


# A call whose request connection is lost has DYNAMO_FAST_CALL_HOME_GRACE, 1 s


async def test_a_worker_that_is_gone_is_waited_for_a_second(router: AddressedPushRouter, worker: RawWorker) -> None:
    before = waiting(router)
    call, request = await acknowledged(router, worker)
    await clock.advance(60)
    request.cut()
    await clock.settle()
    await happens_after(1, call.done)
    failed(call, Disconnected, "Worker disconnected before response stream was established")
    assert waiting(router) == before


async def test_a_dial_within_the_second_lifts_it(router: AddressedPushRouter, worker: RawWorker) -> None:
    before = waiting(router)
    call, request = await acknowledged(router, worker)
    request.cut()
    await clock.settle()
    await clock.advance(0.99)
    stream = await request.dial(prologue=None)
    await clock.advance(60)
    assert not call.done()
    stream.send(OK_PROLOGUE)
    await ends_well(await call, stream)
    await clock.settle()
    assert waiting(router) == before


async def test_a_call_that_is_given_up_leaves_no_deadline(router: AddressedPushRouter, worker: RawWorker) -> None:
    before = waiting(router)
    call, request = await acknowledged(router, worker)
    request.cut()
    await clock.settle()
    assert router.response_server.call_home
    assert router.response_server.orphans
    call.cancel()
    await clock.settle()
    assert waiting(router) == before


# The handshake has DYNAMO_FAST_HANDSHAKE_TIMEOUT, 10 s


async def dial(router: AddressedPushRouter, first: bytes = b"") -> RawStream:
    host, _, port = router.response_server.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(first)
    await clock.settle()
    return RawStream(reader, writer)


async def test_a_handshake_has_10_seconds(router: AddressedPushRouter) -> None:
    before = waiting(router)
    silent, slow = await dial(router), await dial(router, bytes(23))
    await clock.advance(9)
    slow.writer.write(bytes(1))  # a byte is no handshake
    await happens_after(1, lambda: not is_open(silent))
    assert not is_open(slow)
    assert router.response_server.strangers_reset == 2
    assert waiting(router) == before
    for each in (silent, slow):
        each.writer.close()


async def test_a_handshake_lifts_its_limit(router: AddressedPushRouter, worker: RawWorker) -> None:
    call, request = await acknowledged(router, worker)
    stream = await request.connect()
    await clock.advance(9.9)
    stream.send(json.dumps({"subject": request.info["subject"], "stream_type": "response"}).encode())
    stream.send(OK_PROLOGUE)
    answer = await call
    assert not router.response_server.strangers
    await clock.advance(HOUR)
    await ends_well(answer, stream)
    assert router.response_server.strangers_reset == 0


async def test_too_many_strangers_are_told_of_once_in_10_seconds(caplog: pytest.LogCaptureFixture) -> None:
    async with await make_router(ResponseServerConfig(host="127.0.0.1", max_pending_connections=1)) as router:
        with caplog.at_level(logging.WARNING):
            strangers = [await dial(router) for _ in range(3)]
            assert len(caplog.messages) == 1
            await clock.advance(9.99)
            strangers.append(await dial(router))
            assert len(caplog.messages) == 1
            await clock.advance(0.02)
            strangers += [await dial(router) for _ in range(2)]
            assert len(caplog.messages) == 2
        for each in strangers:
            each.writer.close()


# A worker that was removed is not called for 5 s


def refuses(router: AddressedPushRouter, instance: EndpointInstanceId = WORKER) -> bool:
    server = router.response_server
    receiver = server.register(Context())
    refused = not server.associate_instance(receiver.subject, instance)
    receiver.drop()
    return refused


async def test_a_removed_worker_is_not_called_for_5_seconds(router: AddressedPushRouter, worker: RawWorker) -> None:
    router.response_server.cancel_instance_streams(WORKER)
    with pytest.raises(Disconnected, match="tombstoned"):
        await router.generate(AddressedRequest.with_instance(None, worker.address, WORKER))
    await happens_after(5, lambda: not refuses(router))
    call = asyncio.ensure_future(router.generate(AddressedRequest.with_instance(None, worker.address, WORKER)))
    request = await worker.request()
    request.acknowledge()
    stream = await request.dial()
    await ends_well(await call, stream)


async def test_a_worker_that_is_removed_again_is_not_called_for_5_seconds_more(router: AddressedPushRouter) -> None:
    router.response_server.cancel_instance_streams(WORKER)
    await clock.advance(4)
    router.response_server.cancel_instance_streams(WORKER)
    await happens_after(5, lambda: not refuses(router))


async def test_a_worker_that_is_back_is_called_at_once(router: AddressedPushRouter) -> None:
    router.response_server.cancel_instance_streams(WORKER)
    router.response_server.cancel_instance_streams(OTHER)
    router.response_server.clear_instance_tombstone(WORKER)
    assert not refuses(router)
    assert refuses(router, OTHER)


async def test_workers_that_were_removed_are_forgotten(router: AddressedPushRouter) -> None:
    """A table of every worker that there ever was would be a leak."""
    for number in range(100):
        router.response_server.cancel_instance_streams(WORKER._replace(instance_id=number))
        await clock.advance(1)
    assert max(tables(server=router.response_server).values()) <= 5


# A worker that failed is avoided for DYN_RUNTIME_INHIBITED_DURATION_SECS, 5 s; one that is busy for 0.1 s


@pytest.fixture
async def pushing(router: AddressedPushRouter) -> AsyncIterator[PushRouter]:
    """A router of one endpoint with two workers."""
    discovery = MemoryDiscovery()
    for number in (1, 2):
        await discovery.register(Instance(ENDPOINT, number, TransportType("tcp", "127.0.0.1:1/x")))
    async with await PushRouter.create(ENDPOINT, discovery, router, config=PushRouterConfig()) as pushing:
        yield pushing


FAILED, BUSY = CannotConnect("gone"), ResourceExhausted("Server overloaded: worker at capacity")


@pytest.mark.parametrize(("error", "seconds"), [(FAILED, 5), (BUSY, 0.1)], ids=["inhibited", "overloaded"])
async def test_a_worker_that_failed_is_avoided_for_its_time(
    pushing: PushRouter, error: DynamoError, seconds: float
) -> None:
    first, second = pushing.table.entries
    pushing.selection.failed(first, error)
    assert pushing.free_ids() == [2]
    await clock.advance(seconds / 2)
    pushing.selection.failed(second, error)
    assert pushing.free_ids() == []
    await happens_after(seconds / 2, pushing.free_ids)
    assert pushing.free_ids() == [1]
    await clock.advance(seconds / 2)
    assert pushing.free_ids() == [1, 2]
    assert not pushing.selection._inhibited
    assert not pushing.selection._overloaded


@pytest.mark.parametrize(("error", "seconds"), [(FAILED, 5), (BUSY, 0.1)], ids=["inhibited", "overloaded"])
async def test_a_worker_that_fails_again_is_avoided_for_the_time_again(
    pushing: PushRouter, error: DynamoError, seconds: float
) -> None:
    entry = pushing.table.entries[0]
    pushing.selection.failed(entry, error)
    await clock.advance(seconds * 0.8)
    pushing.selection.failed(entry, error)
    await happens_after(seconds, lambda: pushing.free_ids() == [1, 2])


# An item has the inactivity timeout, which is not set by default


async def test_the_next_item_has_its_time(router: AddressedPushRouter, worker: RawWorker) -> None:
    before = waiting(router)
    answer, stream = await answered(router, worker, inactivity_timeout=30.0)
    for number in range(5):
        item = next_item(answer)
        await clock.advance(29.9)
        assert not item.done()
        stream.items(number)
        assert (await item).data() == number
    item = next_item(answer)
    await happens_after(30, item.done)
    failed(item, ResponseTimeout, "backend response inactivity timeout")
    assert await stream.received() == [b'"kill"', b""]
    assert waiting(router) == before


async def test_a_consumer_may_take_its_time(router: AddressedPushRouter, worker: RawWorker) -> None:
    answer, stream = await answered(router, worker, inactivity_timeout=30.0)
    await clock.advance(HOUR)
    item = next_item(answer)
    await clock.advance(1)
    stream.items(1, 2)
    assert (await item).data() == 1
    await clock.advance(HOUR)
    assert (await next_item(answer)).data() == 2
    await clock.advance(HOUR)
    item = next_item(answer)
    await happens_after(30, item.done)
    failed(item, ResponseTimeout, "inactivity")


async def test_waits_that_are_given_up_are_one_wait(router: AddressedPushRouter, worker: RawWorker) -> None:
    answer, _ = await answered(router, worker, inactivity_timeout=30.0)
    for _ in range(4):
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(answer.__anext__(), 7)
    item = next_item(answer)
    await happens_after(2, item.done)
    failed(item, ResponseTimeout, "inactivity")


async def test_the_sentinel_has_a_second_after_the_final_item(router: AddressedPushRouter, worker: RawWorker) -> None:
    before = waiting(router)
    answer, stream = await answered(router, worker)
    stream.send(data=FINAL)
    item = next_item(answer)
    await clock.settle()
    await happens_after(1, item.done)
    assert isinstance(item.exception(), StopAsyncIteration)
    assert await stream.received() == [b'"kill"', b""]
    assert waiting(router) == before


async def test_a_sentinel_in_time_lifts_its_limit(router: AddressedPushRouter, worker: RawWorker) -> None:
    answer, stream = await answered(router, worker)
    stream.send(data=FINAL)
    item = next_item(answer)
    await clock.advance(0.99)
    stream.send(SENTINEL)
    assert isinstance((await asyncio.gather(item, return_exceptions=True))[0], StopAsyncIteration)
    assert await stream.received() == [b""]
