"""One worker under test, in a process of its own: `python worker.py ours|dropin|peer`, settings from the environment.

`ours` is this project's worker, `dropin` serves through `dynamo_fast.runtime`, and `peer` through `dynamo.runtime`: it is
run by a peer's interpreter, and imports nothing of this project. All run on uvloop. A request says how many items it wants
and how long the text in each is: {"items": 100, "text": 5}. The endpoints:

    run     yields without pause
    step    pauses after each item, as a handler does that gets its tokens one by one
    batch   yields 32 items at a time with our `Batch`; the peer, which has none, yields them one by one
    paced   yields an item every `pace` microseconds, at a time of its own
    engine  yields an item every `pace` microseconds, all answers at the same time, as an engine does that steps
    idle    yields one item and then waits
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

ENDPOINT = "bench.worker.{}"
BATCH = 32


async def run(request: dict[str, int]) -> AsyncIterator[Any]:
    text = "x" * request["text"]
    for number in range(request["items"]):
        yield {"token": number, "text": text}


async def step(request: dict[str, int]) -> AsyncIterator[Any]:
    text = "x" * request["text"]
    for number in range(request["items"]):
        yield {"token": number, "text": text}
        await asyncio.sleep(0)


async def batch(request: dict[str, int]) -> AsyncIterator[Any]:
    from dynamo_fast.ingress.answer import Batch

    text = "x" * request["text"]
    for first in range(0, request["items"], BATCH):
        yield Batch([{"token": first + number, "text": text} for number in range(BATCH)])
        await asyncio.sleep(0)


async def peer_batch(request: dict[str, int]) -> AsyncIterator[Any]:
    text = "x" * request["text"]
    for first in range(0, request["items"], BATCH):
        for number in range(BATCH):
            yield {"token": first + number, "text": text}
        await asyncio.sleep(0)


async def paced(request: dict[str, int]) -> AsyncIterator[Any]:
    text = "x" * request["text"]
    loop = asyncio.get_running_loop()
    due = loop.time()
    for number in range(request["items"]):
        yield {"token": number, "text": text}
        due += request["pace"] / 1e6
        await asyncio.sleep(max(0.0, due - loop.time()))


class Steps:
    """The steps of an engine: who waits for one is woken with all others."""

    def __init__(self) -> None:
        self._waiting: list[asyncio.Future[None]] = []
        self._runs = False

    def next(self, pace: int) -> asyncio.Future[None]:
        """Done at the next step, of which there is one every `pace` microseconds."""
        loop = asyncio.get_running_loop()
        if not self._runs:
            self._runs = True
            loop.call_later(pace / 1e6, self._step, loop.time() + pace / 1e6, pace)
        future = loop.create_future()
        self._waiting.append(future)
        return future

    def _step(self, due: float, pace: int) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)
        self._runs = bool(waiting)
        if self._runs:
            loop = asyncio.get_running_loop()
            due += pace / 1e6
            loop.call_later(max(0.0, due - loop.time()), self._step, due, pace)


STEPS = Steps()


async def engine(request: dict[str, int]) -> AsyncIterator[Any]:
    text = "x" * request["text"]
    for number in range(request["items"]):
        yield {"token": number, "text": text}
        await STEPS.next(request["pace"])


async def idle(request: dict[str, int]) -> AsyncIterator[Any]:
    yield {"token": 0, "text": "x" * request["text"]}
    await asyncio.get_running_loop().create_future()  # an Event would take a kilobyte


HANDLERS = {"run": run, "step": step, "batch": batch, "paced": paced, "engine": engine, "idle": idle}


async def ours() -> None:
    from dynamo_fast.discovery.file import FileDiscovery
    from dynamo_fast.ingress.worker import Worker

    worker = await Worker.start(FileDiscovery())
    for name, handler in HANDLERS.items():
        await worker.serve(handler, ENDPOINT.format(name))
    print("ready", flush=True)
    await asyncio.Event().wait()


async def dropin() -> None:
    from dynamo_fast.runtime import DistributedRuntime

    await serve_endpoints(DistributedRuntime, HANDLERS)


async def peer() -> None:
    from dynamo.runtime import DistributedRuntime

    await serve_endpoints(DistributedRuntime, {**HANDLERS, "batch": peer_batch})


async def serve_endpoints(runtime_class: Any, handlers: dict[str, Any]) -> None:
    """The same for Dynamo and for the drop-in, with the `DistributedRuntime` of either."""
    runtime = runtime_class(asyncio.get_running_loop(), "file", "tcp")
    served = [runtime.endpoint(ENDPOINT.format(name)).serve_endpoint(handler) for name, handler in handlers.items()]
    print("ready", flush=True)
    await asyncio.gather(*served)


if __name__ == "__main__":
    import uvloop

    uvloop.run({"ours": ours, "dropin": dropin, "peer": peer}[sys.argv[1]]())
