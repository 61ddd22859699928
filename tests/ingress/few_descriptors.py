"""A worker in a process of its own that may have few open files.

    python -m tests.ingress.few_descriptors LOOP FILES [BACKEND]

It prints its address, `ip:port/path`. Its handler holds every answer until a line comes on stdin, then yields "done";
with the address of a BACKEND, it calls that one instead and yields what it gets. With DYN_FILE_KV it can be found there.
"""

from __future__ import annotations

import asyncio
import os
import resource
import sys
from collections.abc import AsyncIterator
from typing import Any

from dynamo_fast.config import ResponseServerConfig, TcpServerConfig, WorkerConfig
from dynamo_fast.discovery.file import FileDiscovery
from dynamo_fast.discovery.memory import MemoryDiscovery
from dynamo_fast.egress.response_server import TcpStreamServer
from dynamo_fast.egress.router import AddressedPushRouter, AddressedRequest
from dynamo_fast.ingress.worker import Worker
from tests.loops import LOOPS


async def main(backend: str | None) -> None:
    released = asyncio.Event()

    async def hold(request: Any) -> AsyncIterator[Any]:
        await released.wait()
        yield "done"

    discovery = FileDiscovery() if "DYN_FILE_KV" in os.environ else MemoryDiscovery()
    worker = await Worker.start(discovery, WorkerConfig(), TcpServerConfig(host="127.0.0.1"))
    if backend is None:
        handler: Any = hold
    else:
        response_server = await TcpStreamServer.create(ResponseServerConfig(host="127.0.0.1"))
        router = await AddressedPushRouter.create(response_server=response_server)

        async def forward(request: Any) -> AsyncIterator[Any]:
            async for item in await router.generate(AddressedRequest.new(request, backend)):
                yield item.data()

        handler = forward
    served = await worker.serve(handler, "a.b.c")
    print(served.address, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    released.set()
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    loop, files, *backends = sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(files), int(files)))
    LOOPS[loop]().run_until_complete(main(backends[0] if backends else None))
