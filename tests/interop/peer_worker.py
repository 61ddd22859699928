"""A worker on Dynamo's own binding, run by a peer's interpreter: `python peer_worker.py`.

What it does with a request is in the request: see `generate`.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from typing import Any

from dynamo.runtime import DistributedRuntime

seen: dict[str, asyncio.Future[list[bool]]] = {}
"""For each watched request: what its context said in the end."""


def seen_by(key: str) -> asyncio.Future[list[bool]]:
    return seen.setdefault(key, asyncio.get_running_loop().create_future())


async def generate(request: Any, context: Any) -> AsyncIterator[Any]:
    mode = request["mode"]
    if mode == "echo":
        yield request["value"]
    elif mode == "eval":
        yield eval(request["source"])
    elif mode == "count":
        for number in range(request["n"]):
            yield {"number": number}
            if "pause" in request:
                await asyncio.sleep(request["pause"])
    elif mode == "raise":
        for number in range(request["after"]):
            yield number
        raise {"ValueError": ValueError, "RuntimeError": RuntimeError}[request["kind"]]("on purpose")
    elif mode == "context":
        yield {"id": context.id(), "metadata": dict(context.metadata.items())}
    elif mode == "watch":
        watching = asyncio.ensure_future(watch(request["key"], context))
        number = 0
        while not context.is_stopped():
            yield number
            number += 1
            await asyncio.sleep(0.01)
        await watching


async def watch(key: str, context: Any) -> None:
    await context.async_killed_or_stopped()
    await asyncio.sleep(0.05)  # a kill is told as a stop, then as a kill
    seen_by(key).set_result([context.is_stopped(), context.is_killed()])


async def flags(request: Any) -> AsyncIterator[list[bool]]:
    yield await seen_by(request["key"])


def blocked(request: Any) -> None:
    """The handshake is sent before this is called, the prologue after it: which it never is."""
    time.sleep(3600)


async def not_a_generator(request: Any) -> Any:
    return request


async def main() -> None:
    discovery, plane = os.environ.get("PEER_DISCOVERY", "file"), os.environ.get("PEER_PLANE", "tcp")
    runtime = DistributedRuntime(asyncio.get_running_loop(), discovery, plane)
    handlers = {"generate": generate, "flags": flags, "blocked": blocked, "broken": not_a_generator}
    if plane == "nats":  # 1.6.1 serves none of them, if it is asked for several at once over NATS
        handlers = {"generate": generate}
    serving = [runtime.endpoint(f"peer.worker.{name}").serve_endpoint(each) for name, each in handlers.items()]
    print("ready", os.getpid(), flush=True)
    await asyncio.gather(*serving)


asyncio.run(main())
