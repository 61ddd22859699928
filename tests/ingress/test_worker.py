"""A worker's life: its record, its health, and how it leaves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from dynamo_fast.config import TcpServerConfig
from dynamo_fast.discovery.memory import MemoryDiscovery
from dynamo_fast.errors import Disconnected, InvalidAddress, InvalidRequest
from dynamo_fast.ingress.worker import Worker
from tests.ingress.conftest import Start, address_of, echo, server_of
from tests.ingress.requester import PATIENCE, Requester
from tests.ingress.test_push_handler import begun, data_of
from tests.waiting import until


@pytest.mark.parametrize(("mux", "ours"), [("off", {}), ("auto", {"dynamo_fast_mux": 1})])
async def test_its_record_is_dynamos(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mux: str, ours: dict[str, int]
) -> None:
    """But for one key, which Dynamo ignores."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", " NONE ")
    monkeypatch.setenv("DYN_REQUEST_PLANE_CODEC", "json")
    worker = await start(mux=mux)
    (file,) = (tmp_path / "v1" / "instances").iterdir()
    number = worker.discovery.connection_id
    assert file.name == f"a%2Fb%2Fc%2F{number:x}"
    assert json.loads(file.read_bytes()) == {
        "type": "Endpoint",
        "component": "b",
        "endpoint": "c",
        "namespace": "a",
        "instance_id": number,
        "transport": {"tcp": f"{server_of(worker).address}/{number:x}/a/b/c"},
        "device_type": "cpu",
        "request_plane_codec": "json",
        **ours,
    }


async def test_names_and_labels_that_cannot_be(worker: Worker) -> None:
    with pytest.raises(InvalidAddress, match="Invalid endpoint path 'a'"):
        await worker.serve(echo, "a")
    with pytest.raises(InvalidRequest, match="Label 'worker_id' is automatically added"):
        await worker.serve(echo, "x.y.z", metrics_labels=[("worker_id", "1")])
    assert len(worker.endpoints) == 1


async def test_leaving_and_coming_back(worker: Worker, tmp_path: Path) -> None:
    (served,) = worker.endpoints.values()
    await served.unregister()
    assert not list((tmp_path / "v1" / "instances").iterdir())
    with pytest.raises(InvalidRequest, match="was not registered by this process"):
        await served.unregister()
    async with Requester(served.address) as requester:  # who has the address is served all the same
        assert await data_of(await begun(requester, [1])) == [1]
    await served.register()
    assert len(list((tmp_path / "v1" / "instances").iterdir())) == 1


async def test_a_later_handler_takes_the_place_of_an_earlier_one(worker: Worker) -> None:
    async def other(request: Any) -> AsyncIterator[Any]:
        yield "other"

    await worker.serve(other, "a.b.c")
    async with Requester(address_of(worker)) as requester:
        assert await data_of(await begun(requester, [1])) == ["other"]


async def test_closing_lets_answers_end_and_refuses_what_comes(start: Start, tmp_path: Path) -> None:
    gate = asyncio.Event()

    async def slow(request: Any) -> AsyncIterator[Any]:
        yield 1
        await gate.wait()
        yield 2

    worker = await start(slow)
    async with Requester(address_of(worker)) as requester:
        answer = await begun(requester, None)
        closing = asyncio.ensure_future(worker.close())
        await until(lambda: not server_of(worker)._endpoints)
        assert not list((tmp_path / "v1" / "instances").iterdir())
        requester.send(requester.control(), b"1")
        assert (await requester.ack()).startswith("Server unavailable: unknown endpoint")
        assert not closing.done()
        gate.set()
        assert await data_of(answer) == [1, 2]
        await asyncio.wait_for(closing, PATIENCE)
        assert await asyncio.wait_for(requester.reader.read(), PATIENCE) == b""
    await worker.close()  # again


async def test_the_deadline_of_a_shutdown_cancels_what_is_left(start: Start) -> None:
    async def endless(request: Any) -> AsyncIterator[Any]:
        yield 1
        await asyncio.Event().wait()

    worker = await start(endless, shutdown_timeout=0.05)
    async with Requester(address_of(worker)) as requester:
        answer = await begun(requester, None)
        first = await answer.read()
        assert first is not None
        closing = asyncio.ensure_future(worker.close())
        error, final = await answer.items()
        assert error["data"]["event"] == "error"
        assert error["data"]["error"]["reason"] == "backend.engine_shutdown"
        assert final == {"complete_final": True}
        await asyncio.wait_for(closing, PATIENCE)


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYN_HEALTH_CHECK_ENABLED", "true")
    monkeypatch.setenv("DYN_CANARY_WAIT_TIME", "0.02")
    monkeypatch.setenv("DYN_HEALTH_CHECK_REQUEST_TIMEOUT", "0.05")


@pytest.mark.usefixtures("checked")
async def test_the_canary_finds_out(worker: Worker, caplog: pytest.LogCaptureFixture) -> None:
    asked: list[Any] = []
    release = asyncio.Event()
    mode = "good"

    async def engine(request: Any) -> AsyncIterator[Any]:
        asked.append(request)
        if mode == "raises":
            raise RuntimeError("ill")
        if mode == "hangs":
            await asyncio.Event().wait()
        if mode == "swallows":
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                await release.wait()
        if mode == "raises late":
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise RuntimeError("too late") from None
        if mode == "error":
            yield {"_dynamo_annotated": True, "event": "error"}
        if mode != "empty":
            yield 1

    served = await worker.serve(engine, "x.y.z", health_check_payload={"canary": True})
    assert not served.ready
    await until(lambda: served.ready)
    assert asked == [{"canary": True}] * len(asked)
    for trouble in ("raises", "hangs", "swallows", "raises late", "error", "empty"):
        mode = trouble
        await until(lambda: not served.ready)
        mode = "good"
        await until(lambda: served.ready)
    release.set()
    assert "the health check found RuntimeError: ill" in caplog.text
    assert "the health check found no answer within 0.05 s" in caplog.text
    assert "never retrieved" not in caplog.text


async def test_without_health_checks_an_endpoint_is_ready_once_it_is_registered(worker: Worker) -> None:
    served = await worker.serve(echo, "x.y.z", health_check_payload={})
    assert served.ready
    assert served.canary is None
    await served.unregister()
    assert not served.ready


class Slow(MemoryDiscovery):
    """A registration waits for `gate`."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()

    async def register(self, instance: Any) -> None:
        await self.gate.wait()
        await super().register(instance)


async def test_a_worker_that_is_closed_while_it_registers_serves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYN_HEALTH_CHECK_ENABLED", "true")
    discovery = Slow()
    worker = await Worker.start(discovery, server_config=TcpServerConfig(host="127.0.0.1"))
    serving = asyncio.ensure_future(worker.serve(echo, "a.b.c", health_check_payload={}))
    await until(lambda: worker.endpoints)
    await worker.close()
    discovery.gate.set()
    with pytest.raises(Disconnected, match="the worker was closed"):
        await serving
    assert await discovery.list() == []
    assert not worker.status.healthy
    assert asyncio.all_tasks() == {asyncio.current_task()}  # no health check goes on


async def test_a_loop_without_direct_connections_dials_for_the_answer(worker: Worker) -> None:
    worker.dialler.close()
    async with Requester(address_of(worker)) as requester:
        assert await data_of(await begun(requester, [1, 2])) == [1, 2]
