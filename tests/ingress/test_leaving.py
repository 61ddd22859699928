"""How endpoints leave when several leave at once, or when what they serve does not want to end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from dynamo_fast.errors import CannotConnect
from dynamo_fast.ingress.worker import Worker
from dynamo_fast.wire.control import StreamType, TcpStreamConnectionInfo
from tests.ingress.conftest import Start, address_of, echo, server_of
from tests.ingress.requester import PATIENCE, Requester
from tests.waiting import until


async def test_two_who_close_at_once_both_see_it_closed(start: Start) -> None:
    gate = asyncio.Event()

    async def slow(request: Any) -> AsyncIterator[Any]:
        yield 1
        await gate.wait()

    worker = await start(slow, leave_delay=0.05)
    (served,) = worker.endpoints.values()
    async with Requester(address_of(worker)) as requester:
        answer = await requester.call(None)
        assert await answer.read() is not None
        closings = [asyncio.ensure_future(served.close()), asyncio.ensure_future(worker.close())]
        await until(lambda: not server_of(worker)._endpoints)  # both wait for the answer now
        gate.set()
        await answer.items()
        await asyncio.wait_for(asyncio.gather(*closings), PATIENCE)


async def test_the_deadline_of_a_shutdown_is_that_of_waiting_requests_too(start: Start) -> None:
    began = 0

    async def endless(request: Any) -> AsyncIterator[Any]:
        nonlocal began
        began += 1
        yield 1
        await asyncio.Event().wait()

    worker = await start(endless, server={"engine_request_limit": 1, "request_queue_limit": 3}, shutdown_timeout=0.05)
    async with Requester(address_of(worker)) as requester:
        first = await requester.call(None)
        assert await first.read() is not None  # the prologue
        assert await first.read() is not None  # the item
        requester.send(requester.control(), b"1")
        assert await requester.ack() == ""
        assert worker.admission.queued == 1
        closing = asyncio.ensure_future(worker.close())
        error, _ = await first.items()
        assert error["data"]["error"]["reason"] == "backend.engine_shutdown"
        second = await requester.dialled()
        prologue = await second.read()
        assert prologue is not None
        assert prologue.header["error"].startswith("Generate Error: ")
        assert prologue.header["typed_error"]["reason"] == "backend.engine_shutdown"
        second.writer.write_eof()
        await asyncio.wait_for(closing, PATIENCE)
        assert began == 1


async def test_an_earlier_handlers_requests_are_waited_for(start: Start) -> None:
    gate = asyncio.Event()

    async def slow(request: Any) -> AsyncIterator[Any]:
        yield 1
        await gate.wait()
        yield 2

    worker = await start(slow)
    async with Requester(address_of(worker)) as requester:
        answer = await requester.call(None)
        assert await answer.read() is not None
        await worker.serve(echo, "a.b.c")
        closing = asyncio.ensure_future(worker.close())
        await until(lambda: not server_of(worker)._endpoints)
        early = closing.done()
        gate.set()
        await answer.items()
        await asyncio.wait_for(closing, PATIENCE)
        assert not early


async def test_a_handler_that_cannot_be_registered_takes_nothing_from_the_earlier_one(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = asyncio.Event()

    async def slow(request: Any) -> AsyncIterator[Any]:
        yield 1
        await gate.wait()
        yield 2

    async def refuse(instance: Any) -> None:
        raise CannotConnect("no discovery at the moment")

    worker = await start(slow)
    (served,) = worker.endpoints.values()
    async with Requester(address_of(worker)) as requester:
        answer = await requester.call(None)
        assert await answer.read() is not None
        monkeypatch.setattr(worker.discovery, "register", refuse)
        for endpoint in ("a.b.c", "a.b.d"):
            with pytest.raises(CannotConnect):
                await worker.serve(echo, endpoint)
        assert worker.endpoints == {served.endpoint: served}
        await until(lambda: worker.metrics.endpoints == [served.metrics])
        assert len(server_of(worker)._endpoints) == 1
        later = await requester.call(None)  # the earlier handler answers still
        assert await later.read() is not None
        assert served.metrics.inflight == 2
        closing = asyncio.ensure_future(worker.close())
        await until(lambda: not server_of(worker)._endpoints)
        early = closing.done()
        gate.set()
        await answer.items()
        await later.items()
        await asyncio.wait_for(closing, PATIENCE)
        assert not early


async def test_an_earlier_endpoint_leaves_no_metrics(worker: Worker) -> None:
    (earlier,) = worker.endpoints.values()
    await worker.serve(echo, "a.b.c")
    await asyncio.wait_for(earlier.close(), PATIENCE)
    (served,) = worker.endpoints.values()
    assert served is not earlier
    assert worker.metrics.endpoints == [served.metrics]


async def test_a_handler_that_swallows_its_cancellation(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    release = asyncio.Event()

    async def stubborn(request: Any) -> AsyncIterator[Any]:
        yield 1
        while not release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await release.wait()

    worker = await start(stubborn, shutdown_timeout=0.05, connect_timeout=0.1)
    (served,) = worker.endpoints.values()
    async with Requester(address_of(worker)) as requester:
        answer = await requester.call(None)
        assert await answer.read() is not None
        closing = asyncio.ensure_future(served.close())
        done, _ = await asyncio.wait([closing], timeout=PATIENCE)
        release.set()
        await answer.items()
        assert done
        assert "1 requests for a/b/c go on though cancelled" in caplog.text


async def test_an_endpoint_that_is_served_again_while_it_leaves(start: Start) -> None:
    worker = await start(echo, leave_delay=0.05)
    (earlier,) = worker.endpoints.values()
    leaving = asyncio.ensure_future(earlier.close())
    while await worker.discovery.list():  # it has left discovery, and waits for what still comes
        await asyncio.sleep(0)
    served = await worker.serve(echo, "a.b.c")
    await asyncio.wait_for(leaving, PATIENCE)
    async with Requester(address_of(worker)) as requester:
        answer = await requester.call([1])
        await answer.read()
        assert [item["data"] for item in await answer.items() if item.get("data")] == [{"data": 1}]
    assert worker.endpoints == {served.endpoint: served}
    await asyncio.wait_for(served.close(), PATIENCE)
    assert not worker.endpoints
    assert not worker.metrics.endpoints


async def test_an_endpoint_that_cannot_leave_discovery_closes_all_the_same(
    worker: Worker, caplog: pytest.LogCaptureFixture
) -> None:
    (served,) = worker.endpoints.values()
    await worker.discovery.unregister(served.instance)
    await asyncio.wait_for(worker.close(), PATIENCE)
    assert "could not leave discovery" in caplog.text
    assert not worker.endpoints


async def test_a_connection_that_is_given_up_as_it_is_made(worker: Worker) -> None:
    """A request may end while its answer is being dialled: there is nothing to set up then, and nothing to write."""

    class GivenUp(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            cast(asyncio.Transport, transport).abort()

    received: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionResetError):
            received.set_result(await reader.read())
        writer.close()

    server = await asyncio.start_server(receive, "127.0.0.1", 0)
    async with server:
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        await worker.dialler.dial(
            TcpStreamConnectionInfo(address, "subject", "context", StreamType.RESPONSE), GivenUp()
        )
        assert await asyncio.wait_for(received, PATIENCE) == b""
