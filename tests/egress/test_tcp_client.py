"""The pool of request connections: when another is opened, who waits, and what a full house says."""

from __future__ import annotations

import asyncio
import struct
from functools import partial
from typing import Any

import pytest

from dynamo_fast.config import TcpClientConfig
from dynamo_fast.egress.request_client import Ack
from dynamo_fast.egress.tcp_client import TcpRequestClient
from dynamo_fast.errors import CannotConnect, ConnectionTimeout, ResourceExhausted
from dynamo_fast.observability.metrics import RequestPlaneMetrics
from tests.egress.raw_worker import LIMIT, RawRequest, RawWorker, two_part
from tests.waiting import until

CONTROL = b'{"id":"1","connection_info":{"transport":"tcp_server","info":"{}"}}'
PAYLOAD = two_part(CONTROL, b"{}")


def client(**settings: Any) -> TcpRequestClient:
    return TcpRequestClient(TcpClientConfig(**settings), metrics=RequestPlaneMetrics())


async def received(worker: RawWorker, count: int) -> list[RawRequest]:
    return [await worker.request() for _ in range(count)]


async def test_another_connection_is_opened_only_when_all_are_full(worker: RawWorker) -> None:
    requests = client(channel_buffer=10, pool_size=3)
    acks = [requests.send_request(worker.address, PAYLOAD, {}) for _ in range(100)]
    arrived = await received(worker, 30)
    loads = [len([each for each in arrived if each.writer is writer]) for writer in worker.writers]
    assert loads == [10, 10, 10]
    assert not any(ack.done() for ack in acks)
    # One acknowledgement makes room for one of those that wait.
    arrived[0].acknowledge()
    await received(worker, 1)
    assert len(worker.writers) == 3
    await requests.close()
    failed = await asyncio.wait_for(asyncio.gather(*acks, return_exceptions=True), LIMIT)
    assert [type(each) for each in failed].count(Ack) == 1
    assert [type(each) for each in failed].count(CannotConnect) == 99


async def test_requests_are_written_in_one_piece_and_acknowledged_in_order(worker: RawWorker) -> None:
    requests = client()
    acks = [requests.send_request(worker.address, PAYLOAD, {"request-id": str(number)}) for number in range(20)]
    arrived = await received(worker, 20)
    assert [request.headers["request-id"] for request in arrived] == [str(number) for number in range(20)]
    texts = [f"refused {number}".encode() if number % 3 else b"" for number in range(20)]
    arrived[0].writer.write(b"".join(struct.pack(">I", len(text)) + text for text in texts))
    assert [ack.text for ack in await asyncio.wait_for(asyncio.gather(*acks), LIMIT)] == texts
    await requests.close()


class Told:
    """A listener that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.settled = False

    def acknowledged(self, text: bytes, connection: object) -> None:
        self.told.append(text)

    def unacknowledged(self, error: Exception) -> None:
        self.told.append(error)

    def is_settled(self) -> bool:
        return self.settled


async def test_a_listener_is_told_of_its_acknowledgement_and_never_during_the_call(worker: RawWorker) -> None:
    requests = client(max_waiting=2)
    first, other, refused = Told(), Told(), Told()
    for each in (first, other, refused):
        requests.send(worker.address, PAYLOAD, b"{", each)
    assert refused.told == []
    arrived = await received(worker, 2)
    assert [type(each) for each in refused.told] == [ResourceExhausted]
    other.settled = True
    arrived[0].writer.write(struct.pack(">I", 0) * 2)
    await until(lambda: first.told == [b""])
    assert other.told == []  # it needs none any more, and the one after it gets its own
    requests.send(worker.address, PAYLOAD, b"{", last := Told())
    (await worker.request()).acknowledge()
    await until(lambda: last.told == [b""])
    await requests.close()


async def test_a_large_request_does_not_hold_up_its_memory(worker: RawWorker) -> None:
    requests = client()
    ack = requests.send_request(worker.address, two_part(CONTROL, b"x" * 5_000_000), {})
    (request,) = await received(worker, 1)
    assert len(request.body) == 5_000_000
    request.acknowledge()
    assert (await asyncio.wait_for(ack, LIMIT)).text == b""
    await requests.close()


async def test_a_full_house_refuses_instead_of_queueing_without_end(worker: RawWorker) -> None:
    requests = client(max_waiting=2)
    first = [requests.send_request(worker.address, PAYLOAD, {}) for _ in range(2)]
    refused = requests.send_request(worker.address, PAYLOAD, {})
    with pytest.raises(ResourceExhausted, match=r"2 requests wait for a connection to .* already: try again later"):
        await asyncio.wait_for(refused, LIMIT)
    for request in await received(worker, 2):
        request.acknowledge()
    await asyncio.wait_for(asyncio.gather(*first), LIMIT)
    await requests.close()


async def test_a_request_that_waits_for_room_times_out(worker: RawWorker) -> None:
    requests = client(channel_buffer=1, pool_size=1, request_timeout=0.05)
    acks = [requests.send_request(worker.address, PAYLOAD, {}) for _ in range(2)]
    for ack in acks:
        with pytest.raises(ConnectionTimeout, match="timed out"):
            await asyncio.wait_for(ack, LIMIT)
    assert requests.metrics.tcp_errors == 2
    await requests.close()


async def test_a_connection_that_is_lost_is_replaced(worker: RawWorker) -> None:
    requests = client()
    for _ in range(3):
        ack = requests.send_request(worker.address, PAYLOAD, {})
        (request,) = await received(worker, 1)
        request.acknowledge()
        ack_connection = (await asyncio.wait_for(ack, LIMIT)).connection
        assert ack_connection is not None
        lost = asyncio.get_running_loop().create_future()
        ack_connection.on_lost(partial(lost.set_result, None))
        request.cut()
        await asyncio.wait_for(lost, LIMIT)
    await requests.close()


async def test_whoever_asks_too_late_is_told_at_once(worker: RawWorker) -> None:
    requests = client()
    ack = requests.send_request(worker.address, PAYLOAD, {})
    (request,) = await received(worker, 1)
    request.acknowledge()
    connection = (await asyncio.wait_for(ack, LIMIT)).connection
    assert connection is not None
    await requests.close()
    called: list[None] = []
    connection.on_lost(lambda: called.append(None))
    assert called


async def test_an_idle_worker_is_let_go(worker: RawWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dynamo_fast.egress.tcp_client._IDLE_SWEEP_SECONDS", 0.01)
    requests = client(host_idle_ttl=0.02)
    ack = requests.send_request(worker.address, PAYLOAD, {})
    (request,) = await received(worker, 1)
    request.acknowledge()
    await asyncio.wait_for(ack, LIMIT)
    await until(lambda: not requests._pools)
    again = requests.send_request(worker.address, PAYLOAD, {})
    (request,) = await received(worker, 1)
    request.acknowledge()
    assert (await asyncio.wait_for(again, LIMIT)).text == b""
    assert len(worker.writers) == 2
    await requests.close()


async def test_a_closed_client_says_so(worker: RawWorker) -> None:
    requests = client()
    await requests.close()
    with pytest.raises(CannotConnect, match="the client was closed"):
        requests.send_request(worker.address, PAYLOAD, {})


# An acknowledgement that does not come


def time_out_oldest(requests: TcpRequestClient) -> None:
    """As if the time were over for the request that waits for longest."""
    oldest = requests.deadlines.keys()[0]
    requests.deadlines.discard(oldest)
    oldest.time_out()


async def test_a_connection_that_acknowledges_nothing_gets_no_further_request(worker: RawWorker) -> None:
    requests = client(request_timeout=0.05)
    deaf = requests.send_request(worker.address, PAYLOAD, {})
    (first,) = await received(worker, 1)
    with pytest.raises(ConnectionTimeout):
        await asyncio.wait_for(deaf, LIMIT)
    await first.closed()
    fresh = requests.send_request(worker.address, PAYLOAD, {})
    (second,) = await received(worker, 1)
    assert second.writer is not first.writer
    second.acknowledge()
    assert (await asyncio.wait_for(fresh, LIMIT)).text == b""
    await requests.close()


async def test_a_request_that_nobody_waits_for_any_more_retires_its_connection_too(worker: RawWorker) -> None:
    requests = client(request_timeout=0.05)
    requests.send_request(worker.address, PAYLOAD, {}).cancel()
    again = requests.send_request(worker.address, PAYLOAD, {})
    (first,) = await received(worker, 1)
    with pytest.raises(ConnectionTimeout):
        await asyncio.wait_for(again, LIMIT)
    await first.closed()
    await requests.close()


async def test_a_late_acknowledgement_is_not_taken_for_anothers(worker: RawWorker) -> None:
    requests = client()
    late, timely = (requests.send_request(worker.address, PAYLOAD, {}) for _ in range(2))
    first, second = await received(worker, 2)
    time_out_oldest(requests)
    with pytest.raises(ConnectionTimeout):
        await late
    first.acknowledge(b"Server overloaded: late")
    second.acknowledge(b"timely")
    assert (await asyncio.wait_for(timely, LIMIT)).text == b"timely"
    await first.closed()
    await requests.close()


async def test_a_retired_connection_stays_open_while_a_dial_back_is_waited_for(worker: RawWorker) -> None:
    requests = client(pool_size=2)
    acks = [requests.send_request(worker.address, PAYLOAD, {}) for _ in range(2)]
    first, _ = await received(worker, 2)
    first.acknowledge()
    connection = (await asyncio.wait_for(acks[0], LIMIT)).connection
    assert connection is not None
    lost: list[None] = []

    def on_lost() -> None:
        lost.append(None)

    connection.on_lost(on_lost)
    time_out_oldest(requests)
    with pytest.raises(ConnectionTimeout):
        await acks[1]
    fresh = requests.send_request(worker.address, PAYLOAD, {})
    (third,) = await received(worker, 1)
    assert third.writer is not first.writer
    third.acknowledge()
    await asyncio.wait_for(fresh, LIMIT)
    assert not lost
    connection.off_lost(on_lost)
    await first.closed()
    assert not lost
    await requests.close()


async def test_a_connection_that_is_lost_at_once_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    dials = 0

    def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal dials
        dials += 1
        writer.transport.abort()

    server = await asyncio.start_server(reset, "127.0.0.1", 0)
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}/x"
    requests = client()
    dial = requests.connector.dial

    async def dial_and_lose(*args: Any) -> Any:
        transport, connection = await dial(*args)
        while not transport.is_closing():
            await asyncio.sleep(0)
        await asyncio.sleep(0.01)  # the pool has heard of it
        return transport, connection

    monkeypatch.setattr(requests.connector, "dial", dial_and_lose)
    for number in range(20):
        with pytest.raises(CannotConnect):
            await asyncio.wait_for(requests.send_request(address, PAYLOAD, {}), LIMIT)
        assert dials <= number + 1
    await requests.close()
    server.close()
