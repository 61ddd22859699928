"""The same answers over grpc.aio: `python -m benchmarks.grpc_worker` prints its port.

A request is what `caller.py` sends, or what `worker_side.py` does, with the name of a handler of `worker.py`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import msgspec

from benchmarks.worker import HANDLERS, peer_batch

encode = msgspec.msgpack.Encoder().encode
handlers = {**HANDLERS, "batch": peer_batch}


async def generate(body: bytes, _: Any) -> AsyncIterator[bytes]:
    request = msgspec.msgpack.decode(body)
    handler = request.get("handler", "run")
    pace = 0 if handler == "paced" else request.get("pace", 0)
    async for item in handlers[handler](request):
        yield encode(item)
        if pace >= 1_000:
            await asyncio.sleep(pace / 1e6)
        elif pace:  # uvloop's timers count in milliseconds
            await asyncio.to_thread(time.sleep, pace / 1e6)


class Handler(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc comes without types
    def service(self, details: Any) -> Any:
        return grpc.unary_stream_rpc_method_handler(generate)


async def main() -> None:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    server.add_generic_rpc_handlers((Handler(),))
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    import uvloop

    uvloop.run(main())
