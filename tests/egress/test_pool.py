"""Which connection of its pool a request goes onto, and when another one is opened."""

from __future__ import annotations

import asyncio
import struct

import pytest

from dynamo_fast.errors import CannotConnect
from tests.egress.raw_worker import LIMIT, RawWorker, two_part
from tests.egress.test_tcp_client import CONTROL, PAYLOAD, client, received


async def test_connections_take_turns(worker: RawWorker) -> None:
    requests = client(channel_buffer=2, pool_size=3)
    acks = [requests.send_request(worker.address, PAYLOAD, {}) for _ in range(6)]
    for request in await received(worker, 6):
        request.acknowledge()
    await asyncio.wait_for(asyncio.gather(*acks), LIMIT)
    for _ in range(2):
        acks = [requests.send_request(worker.address, PAYLOAD, {}) for _ in range(3)]
        arrived = await received(worker, 3)
        assert len({request.writer for request in arrived}) == 3
        for request in arrived:
            request.acknowledge()
        await asyncio.wait_for(asyncio.gather(*acks), LIMIT)
    await requests.close()


async def test_a_connection_that_is_not_full_is_waited_for(worker: RawWorker) -> None:
    """The first request fills what the system buffers; the second waits until there is room, on the same connection."""
    requests = client(pool_size=3)
    opening = requests.send_request(worker.address, PAYLOAD, {})
    (request,) = await received(worker, 1)
    request.acknowledge()
    await asyncio.wait_for(opening, LIMIT)
    large = requests.send_request(worker.address, two_part(CONTROL, b"x" * 20_000_000), {})
    small = requests.send_request(worker.address, PAYLOAD, {})
    arrived = await received(worker, 2)
    assert [request.writer for request in arrived] == worker.writers * 2
    for request in arrived:
        request.acknowledge()
    await asyncio.wait_for(asyncio.gather(large, small), LIMIT)
    await requests.close()


async def test_a_request_that_was_given_up_while_it_waited_is_not_sent(worker: RawWorker) -> None:
    requests = client(channel_buffer=1, pool_size=1)
    acks = [requests.send_request(worker.address, PAYLOAD, {"request-id": name}) for name in ("1", "2", "3")]
    (first,) = await received(worker, 1)
    acks[1].cancel()
    first.acknowledge()
    (next_one,) = await received(worker, 1)
    assert next_one.headers["request-id"] == "3"
    next_one.acknowledge()
    assert (await asyncio.wait_for(acks[2], LIMIT)).text == b""
    await requests.close()


async def test_a_connect_that_fails_harms_no_request_that_can_go_onto_another_connection(worker: RawWorker) -> None:
    requests = client(channel_buffer=1, pool_size=2)
    first = requests.send_request(worker.address, PAYLOAD, {})
    (request,) = await received(worker, 1)
    worker.stop_listening()
    second = requests.send_request(worker.address, PAYLOAD, {})  # for which another connection is opened, in vain
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", worker.port)
    for _ in range(20):  # until the client has heard of it, too
        await asyncio.sleep(0)
    request.acknowledge()
    assert (await asyncio.wait_for(first, LIMIT)).text == b""
    (request,) = await received(worker, 1)
    request.acknowledge()
    assert (await asyncio.wait_for(second, LIMIT)).text == b""
    await requests.close()


async def test_a_connection_that_is_being_closed_gets_no_request(worker: RawWorker) -> None:
    requests = client(channel_buffer=1, pool_size=1)
    acks = [requests.send_request(worker.address, PAYLOAD, {}) for _ in range(2)]
    (first,) = await received(worker, 1)
    # The acknowledgement makes room for the second request, and the garbage behind it has the connection closed.
    first.writer.write(struct.pack(">I", 0) + b"\xff" * 4)
    assert (await asyncio.wait_for(acks[0], LIMIT)).text == b""
    (second,) = await received(worker, 1)
    assert second.writer is not first.writer
    second.acknowledge()
    assert (await asyncio.wait_for(acks[1], LIMIT)).text == b""
    await requests.close()


async def test_requests_that_wait_fail_when_no_connection_can_be_opened(worker: RawWorker) -> None:
    worker.stop_listening()
    requests = client()
    acks = [requests.send_request(worker.address, PAYLOAD, {}) for _ in range(3)]
    for ack in acks:
        with pytest.raises(CannotConnect):
            await asyncio.wait_for(ack, LIMIT)
    await requests.close()


async def test_an_answer_to_nothing_has_its_connection_closed(worker: RawWorker) -> None:
    requests = client()
    ack = requests.send_request(worker.address, PAYLOAD, {})
    (request,) = await received(worker, 1)
    request.acknowledge()
    request.acknowledge()
    assert (await asyncio.wait_for(ack, LIMIT)).text == b""
    await request.closed()
    await requests.close()


async def test_a_request_that_was_given_up_alone_shows_that_its_connection_is_deaf(worker: RawWorker) -> None:
    requests = client(request_timeout=0.05)
    ack = requests.send_request(worker.address, PAYLOAD, {})
    (request,) = await received(worker, 1)
    ack.cancel()
    await request.closed()
    await requests.close()


class Writes:
    """A transport that keeps what is written to it."""

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def is_closing(self) -> bool:
        return False

    def abort(self) -> None: ...


async def test_requests_of_one_turn_are_written_together_behind_the_first(worker: RawWorker) -> None:
    """The first one of all waits for nothing, and a large one is not copied."""
    requests = client()
    opening = requests.send_request(worker.address, PAYLOAD, {})
    (request,) = await received(worker, 1)
    request.acknowledge()
    await asyncio.wait_for(opening, LIMIT)
    (pool,) = requests._pools.values()
    (connection,) = pool.connections
    transport, writes = connection._transport, Writes()
    connection._transport = writes

    acks = [requests.send_request(worker.address, PAYLOAD, {}) for _ in range(3)]
    assert len(writes.written) == 1
    await asyncio.sleep(0)
    assert [frame.count(PAYLOAD) for frame in writes.written] == [1, 2]
    large = two_part(CONTROL, b"x" * 20_000)
    acks += [requests.send_request(worker.address, payload, {}) for payload in (PAYLOAD, large, PAYLOAD)]
    assert [frame.count(CONTROL) for frame in writes.written[2:]] == [1, 1]
    assert large in writes.written[3]
    await asyncio.sleep(0)
    assert [frame.count(CONTROL) for frame in writes.written[2:]] == [1, 1, 1]

    connection._transport = transport
    await requests.close()
    for ack in acks:
        ack.cancel()


async def test_gathered_requests_arrive_in_order(worker: RawWorker) -> None:
    requests = client()
    acks = [requests.send_request(worker.address, PAYLOAD, {"request-id": str(number)}) for number in range(200)]
    arrived = await received(worker, 200)
    assert [request.headers["request-id"] for request in arrived] == [str(number) for number in range(200)]
    for request in arrived:
        request.acknowledge()
    await asyncio.wait_for(asyncio.gather(*acks), LIMIT)
    await requests.close()


async def test_gathered_requests_of_a_lost_connection_fail(worker: RawWorker) -> None:
    requests = client()
    opening = requests.send_request(worker.address, PAYLOAD, {})
    await received(worker, 1)
    acks = [requests.send_request(worker.address, PAYLOAD, {}) for _ in range(3)]
    await requests.close()  # in the turn in which they were gathered
    for ack in (opening, *acks):
        with pytest.raises(CannotConnect):
            await asyncio.wait_for(ack, LIMIT)
