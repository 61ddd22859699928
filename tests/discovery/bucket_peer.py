"""A real Dynamo 1.6.1 that writes to every bucket, run by its interpreter: `python bucket_peer.py BACKEND FOLDER`.

It serves an endpoint, registers a model on it, and publishes events of its KV cache; it ends when its input ends.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

from dynamo import llm
from dynamo.runtime import DistributedRuntime


async def handler(request: Any) -> AsyncIterator[Any]:
    yield request


async def main() -> None:
    loop = asyncio.get_running_loop()
    runtime: Any = DistributedRuntime(loop, sys.argv[1], "tcp")
    endpoint = runtime.endpoint("ns.co-mp.gen")
    serving = asyncio.ensure_future(endpoint.serve_endpoint(handler))
    client = await endpoint.client()
    await client.wait_for_instances()
    await llm.register_model(
        llm.ModelInput.Text,
        llm.ModelType.Chat,
        endpoint,
        sys.argv[2],
        "my/model",
        worker_type=llm.WorkerType.Aggregated,
        skip_model_assets=True,
    )
    publisher = llm.KvEventPublisher(endpoint, kv_block_size=4)
    print("serving", flush=True)
    await loop.run_in_executor(None, sys.stdin.readline)
    del publisher
    runtime.shutdown()
    await asyncio.wait([serving])


asyncio.run(main())
