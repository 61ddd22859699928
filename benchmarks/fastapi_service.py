"""The service that users of Dynamo's binding write: `python fastapi_service.py PORT`, settings from the environment.

Run by a peer's interpreter; FastAPI, uvicorn and uvloop come from PYTHONPATH. It imports nothing of this project. orjson
writes the items, if it is there: most such services use `json`, which takes longer.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import uvicorn
from dynamo.runtime import DistributedRuntime  # type: ignore[import-not-found,unused-ignore]
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

ENDPOINT = "bench.worker.run"


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    runtime = DistributedRuntime(asyncio.get_running_loop(), "file", "tcp")
    app.state.client = await runtime.endpoint(ENDPOINT).client()
    await app.state.client.wait_for_instances()
    print("ready", flush=True)
    yield
    runtime.shutdown()


app = FastAPI(lifespan=lifespan)


@app.post("/bench/worker/run")
async def run(request: Request) -> StreamingResponse:
    stream = await app.state.client.round_robin(await request.json())

    async def events() -> AsyncIterator[Any]:
        async for item in stream:
            yield b"data: %b\n\n" % orjson.dumps(item.data())
        yield b"data: [DONE]\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), loop="uvloop", http="httptools", log_level="critical")
