"""Traces that cross from our processes to those of real Dynamo 1.6.1 and back: its spans come to a collector."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from dynamo_fast.context import Context
from dynamo_fast.discovery.file import FileDiscovery
from dynamo_fast.egress.push_router import PushRouter
from dynamo_fast.egress.router import AddressedPushRouter
from dynamo_fast.ingress.worker import Worker
from tests.interop.peers import PeerClient, peer_worker
from tests.observability.otlp import Collector, Span, collector, named
from tests.observability.recorded import Recorded, recorded
from tests.waiting import until

__all__ = ["recorded"]

VERSION = "1.6.1"
PEER, OURS = "peer.worker.generate", "ours.worker.generate"
ECHO = {"mode": "echo", "value": 1}
BY_PRODUCTS = {"busy_ns", "code.file.path", "code.line.number", "code.module.name", "idle_ns", "target"}
BY_PRODUCTS |= {"thread.id", "thread.name"}
"""What a Rust library adds to every span of real Dynamo."""


@pytest.fixture(autouse=True)
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "DYN_FILE_KV": str(tmp_path),
        "DYN_TCP_RPC_HOST": "127.0.0.1",
        "DYN_TCP_RESPONSE_STREAM_HOST": "127.0.0.1",
        "DYNAMO_FAST_LEAVE_DELAY": "0",
    }.items():
        monkeypatch.setenv(name, value)


def exporting(found: Collector) -> dict[str, str]:
    return {
        "OTEL_EXPORT_ENABLED": "1",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{found.http_port}",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "DYN_LOG": "info",  # the events of its spans are log records
    }


async def exported(found: Collector, name: str, count: int = 1) -> list[Span]:
    spans = await asyncio.to_thread(found.wait_for, lambda spans: len(named(spans, name)) >= count)
    return named(spans, name)


async def call(endpoint: str, request: Any) -> list[Any]:
    discovery = FileDiscovery()
    async with (
        await AddressedPushRouter.create() as addressed,
        await PushRouter.create(endpoint, discovery, addressed) as router,
    ):
        await router.wait_for_instances()
        items = [item.data() async for item in await router.generate(request)]
    await discovery.close()
    return items


async def echo(request: Any, context: Context) -> AsyncIterator[Any]:
    yield request["value"]


async def test_a_span_of_ours_is_the_parent_of_a_real_workers(recorded: Recorded, tmp_path: Path) -> None:
    with collector() as found, peer_worker(VERSION, tmp_path, **exporting(found)):
        with recorded.provider.get_tracer("program").start_as_current_span("mine"):
            assert await call(PEER, ECHO) == [1]
        (theirs,) = await exported(found, "handle_payload")
    (ours,), (mine,) = named(recorded.spans, "router.route_request"), named(recorded.spans, "mine")
    assert (theirs.trace_id, theirs.parent_id) == (ours.trace_id, ours.span_id)
    assert (ours.trace_id, ours.parent_id) == (mine.trace_id, mine.span_id)


async def test_a_real_callers_span_is_the_parent_of_ours_in_the_same_words(recorded: Recorded, tmp_path: Path) -> None:
    worker = await Worker.start(FileDiscovery())
    await worker.serve(echo, OURS)
    with collector() as found:
        client = await PeerClient.start(VERSION, tmp_path, **exporting(found))
        await client.wait_for(OURS, 1)
        assert await client.call(OURS, ECHO) == ([1], None)
        assert await call(OURS, ECHO) == [1]
        (theirs,) = await exported(found, "router.route_request")
        await client.close()
    await until(lambda: len(named(recorded.spans, "handle_payload")) == 2)
    (ours,) = named(recorded.spans, "router.route_request")
    first, second = named(recorded.spans, "handle_payload")
    assert (first.trace_id, first.parent_id) == (theirs.trace_id, theirs.span_id)
    assert (second.trace_id, second.parent_id) == (ours.trace_id, ours.span_id)
    assert theirs.kind == ours.kind == "CLIENT"
    said = {name: text for name, text in theirs.attributes.items() if name not in BY_PRODUCTS}
    assert ours.attributes == {**said, "request_id": ours.attributes["request_id"]}
    assert set(ours.events) <= set(theirs.events)
    await worker.close()


async def test_a_real_worker_and_ours_say_the_same_of_a_request(recorded: Recorded, tmp_path: Path) -> None:
    worker = await Worker.start(FileDiscovery())
    await worker.serve(echo, OURS)
    with collector() as found, peer_worker(VERSION, tmp_path, **exporting(found)):
        assert await call(PEER, ECHO) == [1]
        assert await call(OURS, ECHO) == [1]
        (theirs,) = await exported(found, "handle_payload")
    await until(lambda: named(recorded.spans, "handle_payload"))
    (ours,) = named(recorded.spans, "handle_payload")
    assert theirs.kind == ours.kind == "SERVER"
    assert ours.attributes.keys() == theirs.attributes.keys() - BY_PRODUCTS
    assert theirs.attributes["endpoint"] == ours.attributes["endpoint"] == "generate"
    assert set(ours.events) <= set(theirs.events)
    await worker.close()


async def test_our_handler_between_two_real_processes(recorded: Recorded, tmp_path: Path) -> None:
    discovery = FileDiscovery()
    addressed = await AddressedPushRouter.create()
    router = await PushRouter.create(PEER, discovery, addressed)

    async def middle(request: Any, context: Context) -> AsyncIterator[Any]:
        async for item in await router.generate(request, context=context):
            yield item.data()

    worker = await Worker.start(FileDiscovery())
    await worker.serve(middle, OURS)
    with collector() as found, peer_worker(VERSION, tmp_path, **exporting(found)):
        client = await PeerClient.start(VERSION, tmp_path, **exporting(found))
        await client.wait_for(OURS, 1)
        await router.wait_for_instances()
        assert await client.call(OURS, ECHO) == ([1], None)
        (last,) = await exported(found, "handle_payload")
        (first,) = await exported(found, "router.route_request")
        await client.close()
    await until(lambda: len(recorded.spans) == 3)
    request, around, attempt = (
        named(recorded.spans, name)[0] for name in ("handle_payload", "client_request", "router.route_request")
    )
    chain = [first, request, around, attempt, last]
    assert {each.trace_id for each in chain} == {first.trace_id}
    assert [each.parent_id for each in chain[1:]] == [each.span_id for each in chain[:-1]]
    router.close()
    await addressed.close()
    await discovery.close()
    await worker.close()
