"""The same answers over grpc.aio, from bytes made beforehand: `python -m benchmarks.grpc_worker` prints its port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import msgspec


async def generate(request: bytes, _: Any) -> AsyncIterator[bytes]:
    work = msgspec.msgpack.decode(request)
    text = "x" * max(0, work["size"] - 20)
    item = msgspec.msgpack.encode({"token": 12345, "text": text})
    for _number in range(work["items"]):
        yield item
        if work["pace"]:
            await asyncio.sleep(work["pace"] / 1e6)


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
    asyncio.run(main())
