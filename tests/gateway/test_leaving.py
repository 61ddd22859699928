"""Requests that are tried again, workers that come and go, and the end of the gateway itself."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from dynamo_fast import Context, EndpointId, FileDiscovery, Instance, serve
from dynamo_fast.egress.call import Call
from dynamo_fast.gateway.relay import Collected, Relay
from dynamo_fast.wire.instance import TransportType
from tests.gateway.conftest import ENDPOINT, Stage
from tests.waiting import until

Begin = Callable[..., Awaitable[Stage]]


async def test_a_request_moves_to_another_worker_before_its_first_item(stage: Stage, tmp_path: Path) -> None:
    other = FileDiscovery(tmp_path)
    nobody = Instance(EndpointId.parse(ENDPOINT), other.connection_id, TransportType("tcp", "127.0.0.1:1/x/a/b/c"))
    await other.register(nobody)
    router = stage.routers.find(EndpointId.parse(ENDPOINT))
    assert router is not None
    await until(lambda: len(router.instances()) == 2)
    for _ in range(4):  # whichever of the two comes first
        async with stage.post({"items": [1]}) as response:
            assert (response.status, response.headers["x-dynamo-instance-id"]) == (
                200,
                f"{stage.worker.discovery.connection_id:x}",
            )
    await other.close()


async def test_a_worker_that_nobody_reaches_is_503(begin: Begin, tmp_path: Path) -> None:
    stage = await begin()
    other = FileDiscovery(tmp_path)
    await other.register(Instance(EndpointId("x", "y", "z"), 7, TransportType("tcp", "127.0.0.1:1/7/x/y/z")))
    await until(lambda: stage.routers.find(EndpointId("x", "y", "z")))
    async with stage.post({}, "/x/y/z") as response:
        assert (response.status, response.headers["Retry-After"]) == (503, "1")
        assert "127.0.0.1" not in await response.text()
    await other.close()


async def test_errors_show_their_text_if_that_is_asked_for(begin: Begin) -> None:
    stage = await begin(show_errors=True)
    async with stage.post({"error": "RuntimeError"}) as response:
        assert (await response.json())["error"]["message"] == "RuntimeError: on purpose"


async def test_endpoints_come_and_go(stage: Stage, tmp_path: Path) -> None:
    async def listed() -> list[str]:
        async with stage.client.get("/v1/endpoints") as response:
            return list((await response.json())["endpoints"])

    assert await listed() == [ENDPOINT]

    async def one(request: Any, context: Context) -> AsyncIterator[Any]:
        yield 1

    worker = await serve(one, "a.b.other", FileDiscovery(tmp_path))
    await until(lambda: len(stage.routers.endpoints()) == 2)
    async with stage.post({}, "/a/b/other") as response:
        assert await response.text() == "data: 1\n\ndata: [DONE]\n\n"
    await worker.close()
    await until(lambda: len(stage.routers.endpoints()) == 1)
    assert await listed() == [ENDPOINT]
    async with stage.post({}, "/a/b/other") as response:
        assert response.status == 404


async def test_what_runs_is_finished_and_nothing_new_is_taken(begin: Begin) -> None:
    goes_on = asyncio.Event()

    async def held(request: Any, context: Context) -> AsyncIterator[Any]:
        yield 1
        await goes_on.wait()
        yield 2

    stage = await begin(held)
    async with stage.post({}) as running, aiohttp.ClientSession(stage.server.url) as other:
        async with other.get("/health") as response:  # a connection that stays open
            assert response.status == 200
        leaving = asyncio.ensure_future(stage.server.leave(20.0))
        await until(lambda: stage.server.is_leaving)
        async with other.get("/health") as response:
            assert (response.status, (await response.json())["status"]) == (503, "notready")
        async with other.post("/a/b/c", data=b"{}") as response:
            assert (response.status, response.headers["Connection"]) == (503, "close")
        goes_on.set()
        assert await running.text() == "data: 1\n\ndata: 2\n\ndata: [DONE]\n\n"
        await leaving


async def test_what_does_not_end_in_time_gets_an_error_and_the_worker_is_told(stage: Stage) -> None:
    async with stage.post({"items": [1], "hangs": True}) as running:
        await stage.server.leave(0.05)
        text = await running.text()
    assert text == (
        'data: 1\n\ndata: {"error":{"message":"the gateway is leaving","type":"service_unavailable","code":503}}\n\n'
        "data: [DONE]\n\n"
    )
    await until(lambda: stage.inflight == 0)


@pytest.mark.parametrize("body", [{"items": [1, 2]}, {"items": [1], "hangs": True}])
async def test_a_request_leaves_no_garbage(stage: Stage, body: dict[str, Any]) -> None:
    """Of the gateway's own: its sinks and exchanges refer to each other while they run."""

    def own() -> list[Any]:
        kinds = (Relay, Collected, Call)
        return [each for each in gc.get_objects() if isinstance(each, kinds)]

    gc.collect()
    gc.disable()
    try:
        for accept in ("text/event-stream", "application/json"):
            if body.get("hangs") and accept == "application/json":
                continue
            async with stage.post(body, headers={"Accept": accept}) as response:
                await response.content.readline()
                if not body.get("hangs"):
                    await response.read()
        await until(lambda: stage.inflight == 0 and stage.server.running == 0)
        await until(lambda: not own())
    finally:
        gc.enable()
