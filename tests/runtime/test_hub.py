"""What the endpoints of one runtime share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from dynamo_fast.discovery.file import FileDiscovery
from dynamo_fast.discovery.memory import MemoryDiscovery
from dynamo_fast.errors import CannotConnect, Disconnected, InvalidRequest
from dynamo_fast.runtime.hub import Hub
from dynamo_fast.wire.address import EndpointId
from tests.waiting import until

LIMIT = 30
FIRST, SECOND = EndpointId("a", "b", "first"), EndpointId("a", "b", "second")


@pytest.fixture(autouse=True)
def loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYN_TCP_RPC_HOST", "127.0.0.1")
    monkeypatch.setenv("DYN_TCP_RESPONSE_STREAM_HOST", "127.0.0.1")
    monkeypatch.setenv("DYNAMO_FAST_LEAVE_DELAY", "0")


@pytest_asyncio.fixture
async def hub() -> AsyncIterator[Hub]:
    """A hub that is ended whatever becomes of the test."""
    hub = Hub(asyncio.get_running_loop(), MemoryDiscovery())
    yield hub
    await end(hub)


async def end(hub: Hub) -> None:
    hub.shutdown()
    await asyncio.wait_for(hub.ended(), LIMIT)


async def test_parts_are_made_once_even_if_they_are_asked_for_at_once(hub: Hub) -> None:
    workers = await asyncio.gather(hub.worker(), hub.worker())
    routers = await asyncio.gather(hub.push_router(FIRST), hub.push_router(FIRST), hub.push_router(SECOND))
    assert workers[0] is workers[1]
    one, other, second = routers
    assert one is not other
    assert one.table is other.table
    assert one.table is not second.table
    assert one.router is second.router


async def test_a_cancelled_caller_leaves_the_part_to_the_others(hub: Hub) -> None:
    first, second = asyncio.ensure_future(hub.worker()), asyncio.ensure_future(hub.worker())
    await asyncio.sleep(0)
    first.cancel()
    assert await asyncio.wait_for(second, LIMIT) is await hub.worker()


async def test_a_record_without_a_handler_comes_and_goes(hub: Hub) -> None:
    assert await hub.register(FIRST) == ()
    assert [record.endpoint_id for record in await hub.discovery.list()] == [FIRST]
    assert await hub.unregister(FIRST) == ()
    assert await hub.discovery.list() == []
    with pytest.raises(InvalidRequest):
        await hub.unregister(FIRST)


async def test_after_a_shutdown_there_are_no_new_parts(hub: Hub) -> None:
    await end(hub)
    for part in (hub.worker(), hub.push_router(FIRST)):
        with pytest.raises(Disconnected, match="was cancelled before it was established"):
            await part
    # The fixture calls `shutdown` again.


async def test_a_handler_gets_a_router_until_the_last_request_has_its_answer(hub: Hub) -> None:
    begun, release = asyncio.Event(), asyncio.Event()

    async def handler(request: Any) -> AsyncIterator[str]:
        begun.set()
        await release.wait()
        router = await hub.push_router(SECOND)  # first asked for after the shutdown
        yield str(router.table.endpoint)

    worker = await hub.worker()
    await worker.serve(handler, FIRST)
    router = await hub.push_router(FIRST)
    await router.wait_for_instances()
    stream = await router.round_robin(None)
    await asyncio.wait_for(begun.wait(), LIMIT)
    hub.shutdown()
    assert not hub.ended().done()
    release.set()
    assert (await asyncio.wait_for(stream.__anext__(), LIMIT)).data() == str(SECOND)
    with pytest.raises(StopAsyncIteration):
        await asyncio.wait_for(stream.__anext__(), LIMIT)
    await asyncio.wait_for(hub.ended(), LIMIT)
    with pytest.raises(Disconnected):
        await hub.push_router(SECOND)


class Failing(MemoryDiscovery):
    """Its first watch fails; with `gate` set, a watch waits."""

    def __init__(self) -> None:
        super().__init__()
        self.gate: asyncio.Event | None = None
        self.failures = 1

    async def watch(self, endpoint: EndpointId, listener: Any) -> Any:
        if self.gate is not None:
            await self.gate.wait()
        if self.failures:
            self.failures -= 1
            raise CannotConnect("away for a moment")
        return await super().watch(endpoint, listener)


async def test_what_failed_once_is_tried_again() -> None:
    hub = Hub(asyncio.get_running_loop(), Failing())
    with pytest.raises(CannotConnect):
        await hub.push_router(FIRST)
    assert (await hub.push_router(FIRST)).instances() == []
    await end(hub)


async def test_a_client_that_is_not_there_yet_is_told_of_the_shutdown() -> None:
    discovery = Failing()
    discovery.gate = asyncio.Event()
    hub = Hub(asyncio.get_running_loop(), discovery)
    waiting = [asyncio.ensure_future(hub.push_router(FIRST)) for _ in range(2)]
    while FIRST not in hub._tables:
        await asyncio.sleep(0)
    await end(hub)
    for error in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(error, Disconnected)


async def test_a_shutdown_on_the_loop_of_another_thread_closes_on_the_hubs_own() -> None:
    hub = Hub(None, MemoryDiscovery())
    await hub.worker()

    async def shut_down() -> None:
        hub.shutdown()

    await asyncio.to_thread(asyncio.run, shut_down())
    await asyncio.wait_for(hub.ended(), LIMIT)


async def test_an_end_that_is_cancelled_leaves_no_thread_and_no_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the event loop ends before the runtime has: it cancels its tasks, and waits for them."""
    monkeypatch.setenv("DYN_SYSTEM_PORT", "0")
    monkeypatch.setenv("DYN_SYSTEM_HOST", "127.0.0.1")
    discovery = FileDiscovery(tmp_path)
    hub = Hub(asyncio.get_running_loop(), discovery)
    await hub.register(FIRST)
    await hub.worker()
    hub.shutdown()
    await until(lambda: hub._closing is not None)
    closing = hub._closing
    assert closing is not None
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait([closing])
    assert not discovery.store.thread.running
    assert hub.status._server is not None
    assert list(hub.status._server.open_sockets()) == [-1]
    worker = await hub._worker if hub._worker is not None else None
    if worker is not None:
        await worker.close()
