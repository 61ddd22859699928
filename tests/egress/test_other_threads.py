"""Answers and calls that are dropped or closed on another thread than the router's."""

from __future__ import annotations

import asyncio
import gc
import threading

from dynamo_fast import AddressedPushRouter, EndpointId, Instance, PushRouter, RouterMode
from dynamo_fast.discovery.memory import MemoryDiscovery
from dynamo_fast.wire.instance import TransportType
from tests.egress.raw_worker import RawWorker
from tests.egress.test_generate import begin

ENDPOINT = EndpointId("demo", "backend", "generate")


async def test_a_stream_that_is_closed_on_another_thread_ends_on_its_own_loop(
    router: AddressedPushRouter, worker: RawWorker
) -> None:
    call, request = await begin(router, worker)
    request.acknowledge()
    stream = await request.dial()
    answer = await call
    closing = threading.Thread(target=answer.close)
    closing.start()
    closing.join()  # the loop does not turn meanwhile
    assert router.metrics.inflight == 1
    await asyncio.sleep(0)
    assert router.metrics.inflight == 0
    assert (await stream.received())[0] == b'"kill"'


async def test_a_call_that_is_dropped_on_another_thread_is_not_in_flight(router: AddressedPushRouter) -> None:
    discovery = MemoryDiscovery()
    await discovery.register(Instance(ENDPOINT, 1, TransportType("tcp", "127.0.0.1:1/x")))
    push_router = await PushRouter.create(ENDPOINT, discovery, router)
    (entry,) = push_router.table
    held = [push_router.prepare(RouterMode.RoundRobin, None)]
    assert entry.in_flight == 1

    def drop() -> None:
        held.clear()
        gc.collect()

    dropping = threading.Thread(target=drop)
    dropping.start()
    dropping.join()
    assert entry.in_flight == 1  # the table belongs to the loop
    await asyncio.sleep(0)
    assert entry.in_flight == 0
    push_router.close()
