"""What sessions leave behind: streams that are cancelled in every state, lost by the thousand, and ends that come again."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from benchmarks.frontend import free_port
from dynamo_fast.config import ResponseServerConfig, TcpClientConfig, TcpServerConfig, WorkerConfig
from dynamo_fast.context import Context
from dynamo_fast.discovery.memory import MemoryDiscovery
from dynamo_fast.egress.request_sender import ManyIn
from dynamo_fast.egress.response_server import TcpStreamServer
from dynamo_fast.egress.router import AddressedPushRouter, AddressedRequest
from dynamo_fast.egress.tcp_client import TcpRequestClient
from dynamo_fast.errors import Disconnected, DynamoError
from dynamo_fast.ingress.worker import Worker
from dynamo_fast.net.descriptors import Descriptors
from dynamo_fast.observability.metrics import RequestPlaneMetrics
from dynamo_fast.wire.instance import Instance
from tests.descriptors import descriptors_for
from tests.faults.tables import tables
from tests.mux.test_both_ends import LIMIT, PLANES, Ends, ends, generate, outcome
from tests.waiting import until

TURNS = range(0, 60, 3)
"""Turns of the loop after which a call ends: before the acknowledgement, the stream, the prologue, an item, its end."""


def sizes(both: Ends) -> dict[str, int]:
    """What both ends hold."""
    router = both.router
    found = tables(client=router.client, server=router.response_server, metrics=router.metrics, worker=both.worker)
    return {path: size for path, size in found.items() if "_pools" not in path}


@asynccontextmanager
async def nothing_left(plane: str) -> AsyncIterator[Ends]:
    """Both ends; after the block they hold what they held after one call."""
    async with ends(plane) as both:
        assert await outcome(await both.call("generate", {"items": 1})) == [{"number": 0, "text": ""}]
        await until(lambda: not both.worker.admission.running and not both.router.response_server.connections)
        before = sizes(both)
        yield both
        await until(lambda: {path: size for path, size in sizes(both).items() if size > before.get(path, 0)} == {})
        assert await outcome(await both.call("generate", {"items": 1})) == [{"number": 0, "text": ""}]


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def unfinished() -> AsyncIterator[Any]:
    yield 0
    await asyncio.Event().wait()


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("how", ["stop", "kill", "cancel"])
@pytest.mark.parametrize("endpoint", ["generate", "converse"])
async def test_a_call_that_is_ended_in_any_state_leaves_nothing(plane: str, how: str, endpoint: str) -> None:
    async with nothing_left(plane) as both:

        async def call(context: Context) -> Any:
            data = ManyIn(unfinished()) if endpoint == "converse" else {"items": 3, "size": 40_000, "endless": True}
            request = AddressedRequest.for_instance(data, both.instances[endpoint])
            return await outcome(await both.router.generate(request, context))

        async def end(after: int) -> None:
            context = Context()
            task = asyncio.ensure_future(call(context))
            await turns(after)
            if how == "cancel":
                task.cancel()
            elif how == "stop":
                context.stop_generating()
            else:
                context.kill()
            await asyncio.wait([task], timeout=LIMIT)
            assert task.done(), (after, how)
            assert task.cancelled() or task.exception() is None or isinstance(task.exception(), DynamoError)

        await asyncio.gather(*(end(after) for after in TURNS))


@pytest.mark.parametrize("plane", PLANES)
async def test_a_stream_that_the_collector_drops_on_another_thread_is_killed(plane: str) -> None:
    async with nothing_left(plane) as both:
        streams: list[Any] = [await both.call("generate", {"holds": True}) for _ in range(10)]
        for number in range(10):
            await anext(streams[number])
        streams.append(streams)  # only the collector finds the cycle
        held = [streams]
        del streams
        assert both.worker.admission.running == 10

        def drop() -> None:
            held.clear()
            gc.collect()

        thread = threading.Thread(target=drop)
        thread.start()
        thread.join()
        await until(lambda: not both.worker.admission.running)
        assert both.router.metrics.inflight == 0


async def test_a_session_that_is_lost_under_a_thousand_streams_ends_all_of_them() -> None:
    descriptors_for(4096)
    async with nothing_left("auto") as both:
        streams = [await both.call("generate", {"holds": True}) for _ in range(1000)]
        for stream in streams:
            assert (await anext(stream)).data() == "held"
        (session,) = both.router.response_server.sessions.values()
        session._transport.abort()
        results = await asyncio.wait_for(asyncio.gather(*map(outcome, streams)), LIMIT)
        assert {tuple(result[:1]) for result in results} == {("Disconnected",)}
        await until(lambda: not both.worker.admission.running)


async def test_items_of_every_size_come_in_their_order() -> None:
    """Cut ones and whole ones in one read: a part must not be overtaken by the item behind it."""
    sizes = [1, 50_000, 2, 16_384, 3, 16_376, 300_000, 4, 40_000, 5] * 5
    async with nothing_left("auto") as both:
        answers = await asyncio.gather(
            *(both.call("generate", {"batch": ["x" * size for size in sizes]}) for _ in range(5))
        )
        for answer in await asyncio.gather(*map(outcome, answers)):
            assert [len(item) for item in answer] == sizes


# Ends that come again --------------------------------------------------------------------------------------------------
# At ports that no other process of this machine is given meanwhile.


async def start_router(port: int = 0) -> AddressedPushRouter:
    metrics = RequestPlaneMetrics()
    server = await TcpStreamServer.create(ResponseServerConfig(host="127.0.0.1", port=port or free_port(), mux="auto"))
    return AddressedPushRouter(TcpRequestClient(TcpClientConfig(), metrics=metrics), server, metrics=metrics)


async def start_worker(port: int = 0) -> tuple[Worker, Instance]:
    config = WorkerConfig(leave_delay=0.0, cancel_grace=0.05, mux="auto")
    worker = await Worker.start(MemoryDiscovery(), config, TcpServerConfig(host="127.0.0.1", port=port or free_port()))
    try:
        return worker, (await worker.serve(generate, "a.b.generate")).instance
    except BaseException:
        await worker.close()
        raise


def port_of(address: str) -> int:
    return int(address.partition("/")[0].rpartition(":")[2])


async def one(router: AddressedPushRouter, instance: Instance) -> Any:
    request = AddressedRequest.for_instance({"item": 1}, instance)
    return await outcome(await asyncio.wait_for(router.generate(request), LIMIT))


async def test_a_worker_that_comes_again_at_the_same_address_has_a_session_of_its_own() -> None:
    async with await start_router() as router:
        worker, instance = await start_worker()
        assert await one(router, instance) == [1]
        (name,) = router.response_server.sessions
        await asyncio.wait_for(worker.close(), LIMIT)
        await until(lambda: not router.response_server.sessions)
        worker, again = await start_worker(port_of(instance.transport.address))
        assert await one(router, again) == [1]
        (other,) = router.response_server.sessions
        assert other != name
        await asyncio.wait_for(worker.close(), LIMIT)


@pytest.mark.parametrize("in_order", [True, False], ids=["it closes", "it is lost"])
async def test_a_router_that_comes_again_at_the_same_address_is_dialled_anew(in_order: bool) -> None:
    worker, instance = await start_worker()
    assert worker.dialler.sessions is not None
    router = await start_router()
    port = port_of(router.response_server.address)
    assert await one(router, instance) == [1]
    stream = await router.generate(AddressedRequest.for_instance({"holds": True}, instance))
    await anext(stream)
    if not in_order:
        (session,) = router.response_server.sessions.values()
        session._transport.abort()
    await router.close()
    with pytest.raises(Disconnected):
        await asyncio.wait_for(anext(stream), LIMIT)
    await until(lambda: not worker.admission.running)
    async with await start_router(port) as again:
        assert await one(again, instance) == [1]
        assert len(again.response_server.sessions) == 1
        assert len(worker.dialler.sessions._sessions) == 1
        assert set(worker.dialler.sessions._sessions).isdisjoint(worker.dialler.sessions._avoided)
    await asyncio.wait_for(worker.close(), LIMIT)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
async def test_the_socket_of_a_session_is_among_those_that_a_forked_child_closes() -> None:
    async with ends("auto") as both:
        stream = await both.call("generate", {"holds": True})
        await anext(stream)
        (session,) = both.router.response_server.sessions.values()
        number = session._transport.get_extra_info("socket").fileno()
        assert number in set(both.router.response_server.open_sockets())
        (theirs,) = both.worker.dialler.sessions._sessions.values()  # type: ignore[union-attr]
        assert theirs.output.transport.get_extra_info("socket").fileno() in set(both.worker.dialler.open_sockets())
        stream.close()


async def test_calls_that_wait_are_counted_for_the_descriptors_at_intervals_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Counting them takes as long as there are calls: it must not be done for each."""
    looks = 0

    def in_use(limit: int) -> int:
        nonlocal looks
        looks += 1
        return 10

    router = await start_router()
    registry = router.response_server
    receivers = [registry.register(Context(), mux=1) for _ in range(10_000)]
    receivers += [registry.register(Context()) for _ in range(100)]
    assert registry.descriptors() == (100, 0)  # those on sessions need none
    monkeypatch.setattr("dynamo_fast.net.descriptors.monotonic", lambda: 1.0)
    promises = Descriptors(lambda: 1_000_000, in_use)
    promises.add(registry, calls=True)
    assert all(promises.promise() for _ in range(10_000))
    assert looks == 1
    for receiver in receivers:
        receiver.drop()
    await router.close()
