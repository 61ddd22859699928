"""A worker in this process, found through memory, and what it publishes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio

from dynamo_fast.discovery.memory import MemoryDiscovery
from dynamo_fast.ingress.worker import ServedEndpoint, Worker
from tests.llm.subscriber import Subscriber

WORKER_ID = 0xA1


@pytest.fixture(autouse=True)
def _on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYN_EVENT_PLANE_HOST", "127.0.0.1")
    monkeypatch.setenv("DYN_TCP_RPC_HOST", "127.0.0.1")
    monkeypatch.setenv("DYN_TCP_RESPONSE_STREAM_HOST", "127.0.0.1")
    monkeypatch.setenv("DYNAMO_FAST_LEAVE_DELAY", "0")


@pytest_asyncio.fixture
async def worker() -> AsyncIterator[Worker]:
    started = await Worker.start(MemoryDiscovery(connection_id=WORKER_ID))
    yield started
    await started.close()


@pytest_asyncio.fixture
async def served(worker: Worker) -> ServedEndpoint:
    async def generate(request: Any) -> AsyncIterator[Any]:
        yield request

    return await worker.serve(generate, "ns.comp.generate")


@pytest.fixture
def subscriber() -> Iterator[Subscriber]:
    subscribed = Subscriber()
    yield subscribed
    subscribed.close()
