"""The router's deadlines on a turned clock: when each begins, and when it is lifted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from dynamo_fast import AddressedPushRouter, AddressedRequest, Context, EndpointId, Instance, ManyIn, PushRouter
from dynamo_fast.config import ResponseServerConfig, TcpClientConfig
from dynamo_fast.discovery.memory import MemoryDiscovery
from dynamo_fast.errors import CannotConnect, ConnectionTimeout, Disconnected, ResourceExhausted
from dynamo_fast.testing import clock
from dynamo_fast.wire.address import EndpointInstanceId
from dynamo_fast.wire.instance import TransportType
from tests.egress.conftest import make_router
from tests.egress.raw_worker import OK_PROLOGUE, RawWorker
from tests.egress.test_generate import begin, data_of

HOUR = 3600.0
INSTANCE = EndpointInstanceId("demo", "backend", "generate", 31)


def now() -> float:
    return asyncio.get_running_loop().time()


def on_a_turned_clock(
    main: Callable[[AddressedPushRouter, RawWorker], Awaitable[None]],
    client: dict[str, Any] | None = None,
    **server: Any,
) -> None:
    """Run `main` with a router and a worker."""

    async def run() -> None:
        server_config = ResponseServerConfig(host="127.0.0.1", **server)
        async with RawWorker() as worker, await make_router(server_config, TcpClientConfig(**(client or {}))) as router:
            await main(router, worker)
            assert router.metrics.inflight == 0
            assert router.response_server.pending == 0

    clock.run(run())


async def established(router: AddressedPushRouter, worker: RawWorker, context: Context | None = None) -> Any:
    """An answer, and the worker's end of it."""
    call, request = await begin(router, worker, context)
    request.acknowledge()
    stream = await request.dial()
    return await call, stream


def test_an_answer_may_take_as_long_as_it_likes() -> None:
    async def main(router: AddressedPushRouter, worker: RawWorker) -> None:
        answer, stream = await established(router, worker)
        await asyncio.sleep(24 * HOUR)
        stream.items(1)
        assert (await answer.__anext__()).data() == 1
        await asyncio.sleep(24 * HOUR)
        stream.items(2)
        stream.end()
        assert await data_of(answer) == [2]

    on_a_turned_clock(main)


def test_each_deadline_is_lifted_when_what_it_waits_for_has_come() -> None:
    """A worker that is in time at each step, but slower than any one deadline in total."""

    async def main(router: AddressedPushRouter, worker: RawWorker) -> None:
        began = now()
        call, request = await begin(router, worker)
        await asyncio.sleep(4)  # of 5: the acknowledgement
        request.acknowledge()
        await asyncio.sleep(110)  # of 120: the dial
        stream = await request.connect()
        await asyncio.sleep(9)  # of 10: the handshake
        stream.send(b'{"subject":"%s","stream_type":"response"}' % request.info["subject"].encode())
        await asyncio.sleep(110)  # of 120: the prologue
        stream.send(OK_PROLOGUE)
        answer = await call
        stream.items(1)
        stream.end()
        assert await data_of(answer) == [1]
        assert now() - began > 230

    on_a_turned_clock(main)


@pytest.mark.parametrize("how_far", ["acknowledged", "dialled"])
def test_a_worker_that_stops_on_its_way_is_given_up(how_far: str) -> None:
    async def main(router: AddressedPushRouter, worker: RawWorker) -> None:
        call, request = await begin(router, worker)
        request.acknowledge()
        if how_far == "dialled":
            await asyncio.sleep(60)
            await request.dial(prologue=None)
        began = now()
        with pytest.raises(ConnectionTimeout, match="within 120 s"):
            await asyncio.wait_for(call, HOUR)
        assert 119 <= now() - began <= 121

    on_a_turned_clock(main)


def test_a_worker_that_never_dials_for_its_input_is_given_up() -> None:
    async def source() -> AsyncIterator[int]:
        yield 1

    async def main(router: AddressedPushRouter, worker: RawWorker) -> None:
        call = asyncio.ensure_future(router.generate(AddressedRequest(ManyIn(source()), worker.address)))
        request = await worker.request()
        request.acknowledge()
        await request.dial()
        answer = await call
        began = now()
        with pytest.raises(ConnectionTimeout, match="did not dial for its input within 120 s"):
            await asyncio.wait_for(answer.__anext__(), HOUR)
        assert 119 <= now() - began <= 121

    on_a_turned_clock(main)


def test_a_removed_worker_is_refused_for_five_seconds() -> None:
    async def main(router: AddressedPushRouter, worker: RawWorker) -> None:
        def call() -> asyncio.Task[Any]:
            return asyncio.ensure_future(router.generate(AddressedRequest.with_instance({}, worker.address, INSTANCE)))

        router.response_server.cancel_instance_streams(INSTANCE)
        await asyncio.sleep(4.9)
        with pytest.raises(Disconnected, match="tombstoned instance"):
            await call()
        await asyncio.sleep(0.2)
        again = call()
        request = await worker.request()
        request.acknowledge()
        (await request.dial()).end()
        assert await data_of(await again) == []

    on_a_turned_clock(main)


def test_open_answers_count_as_streams() -> None:
    async def main(router: AddressedPushRouter, worker: RawWorker) -> None:
        answers = [await established(router, worker) for _ in range(2)]
        with pytest.raises(ResourceExhausted, match="2 response streams are open already"):
            await router.generate(AddressedRequest.new({}, worker.address))
        for answer, stream in answers:
            stream.end()
            assert await data_of(answer) == []
        answer, stream = await established(router, worker)
        stream.end()
        assert await data_of(answer) == []

    on_a_turned_clock(main, max_streams=2)


def test_a_request_connection_is_kept_while_an_acknowledgement_is_waited_for() -> None:
    async def main(router: AddressedPushRouter, worker: RawWorker) -> None:
        call, request = await begin(router, worker)
        await asyncio.sleep(HOUR)
        request.acknowledge()
        (await request.dial()).end()
        assert await data_of(await call) == []

    on_a_turned_clock(main, client={"host_idle_ttl": 60.0, "request_timeout": 2 * HOUR})


def test_a_request_connection_that_was_acknowledged_on_is_used_again() -> None:
    async def main(router: AddressedPushRouter, worker: RawWorker) -> None:
        for _ in range(3):
            answer, stream = await established(router, worker)
            stream.end()
            assert await data_of(answer) == []
            await asyncio.sleep(10)
        assert len({id(writer) for writer in worker.writers}) == 4  # one for the requests, and one for each answer

    on_a_turned_clock(main)


def test_a_request_connection_is_kept_while_a_dial_back_is_waited_for() -> None:
    async def main(router: AddressedPushRouter, worker: RawWorker) -> None:
        call, request = await begin(router, worker)
        request.acknowledge()
        await asyncio.sleep(HOUR)
        (await request.dial()).end()
        assert await data_of(await call) == []

    on_a_turned_clock(main, client={"host_idle_ttl": 60.0}, call_home_timeout=2 * HOUR)


def test_a_request_connection_is_closed_when_it_is_not_used_any_more() -> None:
    async def main(router: AddressedPushRouter, worker: RawWorker) -> None:
        call, request = await begin(router, worker)
        request.acknowledge()
        (await request.dial()).end()
        assert await data_of(await call) == []
        began = now()
        await asyncio.wait(worker.tasks)  # each ends when the router has closed its connection
        assert 60 <= now() - began <= 120

    on_a_turned_clock(main, client={"host_idle_ttl": 60.0})


def test_an_answer_without_its_sentinel_is_over_within_a_second_of_its_final_item() -> None:
    async def main(router: AddressedPushRouter, worker: RawWorker) -> None:
        answer, stream = await established(router, worker)
        stream.items(1)
        stream.send(data=b'{"complete_final":true}')
        began = now()
        assert await data_of(answer) == [1]
        assert now() - began <= 1.1

    on_a_turned_clock(main)


def test_silence_is_measured_from_the_last_item_that_was_taken() -> None:
    async def main(router: AddressedPushRouter, worker: RawWorker) -> None:
        answer, stream = await established(router, worker)
        for number in range(5):
            await asyncio.sleep(9)  # of 10, with nobody waiting
            stream.items(number)
            assert (await answer.__anext__()).data() == number
        waiting = asyncio.ensure_future(answer.__anext__())
        await asyncio.sleep(9)
        stream.items("late")
        assert (await waiting).data() == "late"
        await asyncio.sleep(HOUR)  # the caller does something else
        stream.end()
        assert await data_of(answer) == []

    on_a_turned_clock(main, inactivity_timeout=10.0)


def test_a_worker_that_fails_again_is_avoided_for_as_long_again() -> None:
    endpoint = EndpointId("demo", "backend", "generate")

    async def main(router: AddressedPushRouter, worker: RawWorker) -> None:
        discovery = MemoryDiscovery()
        worker.stop_listening()
        await discovery.register(Instance(endpoint, 1, TransportType("tcp", worker.address)))
        async with await PushRouter.create(endpoint, discovery, router) as workers:
            with pytest.raises(CannotConnect):
                await workers.generate(None)
            await asyncio.sleep(4)
            with pytest.raises(CannotConnect):
                await workers.direct(None, 1)  # whoever names it may try it
            await asyncio.sleep(4)
            assert workers.free_ids() == []
            await asyncio.sleep(1.1)
            assert workers.free_ids() == [1]

    on_a_turned_clock(main)


def test_a_busy_worker_is_avoided_for_a_tenth_of_a_second() -> None:
    endpoint = EndpointId("demo", "backend", "generate")

    async def main(router: AddressedPushRouter, worker: RawWorker) -> None:
        discovery = MemoryDiscovery()
        await discovery.register(Instance(endpoint, 1, TransportType("tcp", worker.address)))
        async with await PushRouter.create(endpoint, discovery, router) as workers:
            call = asyncio.ensure_future(workers.generate(None))
            (await worker.request()).acknowledge(b"Server overloaded: worker at capacity")
            with pytest.raises(ResourceExhausted):
                await call
            assert workers.free_ids() == []
            await asyncio.sleep(0.09)
            assert workers.free_ids() == []
            await asyncio.sleep(0.02)
            assert workers.free_ids() == [1]

    on_a_turned_clock(main)
