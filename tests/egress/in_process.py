"""A request transport without a network: a request is handed to a function of the test, which answers it.

The answer takes the usual way: `RawRequest.dial` connects to the router's response server.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import cast

from dynamo_fast.egress.request_client import Ack, RequestPlaneClient
from dynamo_fast.errors import InvalidAddress
from tests.egress.raw_worker import RawRequest, RawWorker

__all__ = ["InProcessClient", "echo"]

Answer = Callable[[RawRequest], Awaitable[None]]


class InProcessClient(RequestPlaneClient):
    """Owned by a router, as every client. `workers`: who answers at each address."""

    def __init__(self, workers: Mapping[str, Answer]) -> None:
        self._workers = workers
        self._plain = RawWorker()  # it does not listen; it keeps the connections that are dialled
        self.sent: list[str] = []
        """The addresses that were sent to."""
        self.closed = False

    def send_request(self, address: str, payload: bytes, headers: Mapping[str, str]) -> asyncio.Future[Ack]:
        if address not in self._workers:
            raise InvalidAddress(f"no worker at {address!r}")
        self.sent.append(address)
        acknowledged: asyncio.Future[Ack] = asyncio.get_running_loop().create_future()
        task = asyncio.ensure_future(self._answer(address, payload, headers))
        self._plain.tasks.add(task)
        task.add_done_callback(self._plain.tasks.discard)
        acknowledged.set_result(Ack(b""))
        return acknowledged

    async def close(self) -> None:
        self.closed = True
        for writer in self._plain.writers:
            writer.transport.abort()
        await asyncio.gather(*self._plain.tasks, return_exceptions=True)

    async def _answer(self, address: str, payload: bytes, headers: Mapping[str, str]) -> None:
        no_writer = cast(asyncio.StreamWriter, None)  # nothing carries the acknowledgement
        request = RawRequest(self._plain, no_writer, address.encode(), json.dumps(dict(headers)).encode(), payload)
        await self._workers[address](request)


async def echo(request: RawRequest) -> None:
    """Answers with the request, and says who it is."""
    stream = await request.dial()
    stream.items([request.path, json.loads(request.body)])
    stream.end()
