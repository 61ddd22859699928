"""The input of a bidirectional request that breaks while the worker still dials for the answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any, cast

from dynamo_fast.config import TcpServerConfig, WorkerConfig
from dynamo_fast.context import Context
from dynamo_fast.discovery.memory import MemoryDiscovery
from dynamo_fast.ingress.worker import Worker
from tests.ingress.requester import Requester


class Ends(asyncio.Protocol):
    """A requester that ends its input in the moment in which the worker's handshake comes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.transport.abort()


async def converse(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
    async for request in requests:
        yield request


async def test_the_router_hears_of_an_input_that_broke_while_the_answer_was_dialled() -> None:
    """Else it waits until its limit for the call home: the worker has dialled, and has not said for which request."""
    worker = await Worker.start(MemoryDiscovery(), WorkerConfig(leave_delay=0.0), TcpServerConfig(host="127.0.0.1"))
    served = await worker.serve(converse, "faults.worker.converse", bidirectional=True)
    server = await asyncio.get_running_loop().create_server(Ends, "127.0.0.1", 0)
    try:
        async with Requester(served.address) as requester:
            for number in range(20):
                await _ask(requester, str(number), server.sockets[0].getsockname()[1])
    finally:
        server.close()
        await worker.close()


async def _ask(requester: Requester, request_id: str, input_port: int) -> None:
    info = requester.connection_info(request_id, "request", address=f"127.0.0.1:{input_port}")
    control = requester.control(request_id, request_type="many_in", request_stream_connection_info=info)
    subject = json.loads(control["connection_info"]["info"])["subject"]
    requester.send(control, b"")
    assert await requester.ack() == ""
    answer = await requester.dialled(subject)
    with contextlib.suppress(ConnectionResetError):
        assert b"sentinel" not in await answer.rest()
