"""The same calls of `KvEventPublisher` and `WorkerMetricsPublisher`, on real Dynamo and on ours. A process of its own.

    python -m tests.interop.kv_calls PACKAGE VERSION      `dynamo` or `dynamo_fast`; the release whose calls are made

It prints `ready ID`, publishes a first event until a line comes, makes each call and prints what came of it, publishes a
last event, prints `done`, and shuts down when the next line comes.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
import threading
from typing import Any

FIRST, LAST = 10_000_000, 99_999_999
"""Hashes and loads of the first events, which the calls of the test do not use, and of the last."""
MM = [{"mm_objects": [{"mm_hash": 77, "offsets": [[1, 3]]}]}]


def calls(publisher: Any, metrics: Any, newer: bool) -> list[tuple[Any, ...]]:
    """A function and its arguments."""
    stored, removed = publisher.publish_stored, publisher.publish_removed
    found: list[tuple[Any, ...]] = [
        (stored, ([1, 2, 3, 4, 5, 6, 7, 8], [4, 4], [11, -2])),
        (stored, ([9, 10, 11, 12], [4], [13], -2)),
        (stored, ([9, 10, 11, 12, 13, 14], [4, 2], [15, 16], 13)),
        (stored, ([9, 10, 11, 12], [4, 4], [17, 18], 13)),
        (stored, ([9, 10, 11, 12], [4], [17, 18], 13)),
        (stored, ([1, 2, 3, 4], [4], [21]), {"lora_name": "ad"}),
        (stored, ([1, 2, 3, 4, 5], [4], [22]), {"is_eagle": True}),
        (stored, ([1, 2, 3, 4], [4], [23]), {"block_mm_infos": MM}),
        (stored, ([1, 2, 3, 4], [4], [24]), {"block_mm_infos": [None]}),
        (stored, ([1, 2, 3, 2**32 - 1], [4], [26])),
        (stored, ([1, 2, 3, 2**32], [4], [26])),
        (stored, ([1, 2, 3, -1], [4], [26])),
        (stored, ([1, 2, 3, 4], [4], [2**64])),
        (stored, ("abcd", [4], [2])),
        (removed, ([13, 999],)),
        (removed, ([],)),
        (metrics.publish, (0, 3, 9)),
        (metrics.publish, ()),
        (metrics.publish, (1, 4)),
        (metrics.publish, (), {"dp_rank": 0, "kv_used_blocks": 7}),
        (metrics.publish, (-1,)),
        (metrics.publish, (0, -1)),
    ]
    if newer:
        batch = publisher.publish_batch
        one = {"type": "stored", "token_ids": [1, 2, 3, 4], "num_block_tokens": [4], "block_hashes": [31]}
        found += [
            (stored, ([1, 2, 3, 4], [4], [25]), {"cache_salt": "abc"}),
            (batch, ([one, {"type": "removed", "block_hashes": [31]}],)),
            (batch, ([{}],)),
            (batch, ([{"type": "x"}],)),
        ]
    return found


async def main(package: str) -> None:
    runtime = importlib.import_module(f"{package}.runtime")
    llm = importlib.import_module(f"{package}.llm")
    loop = asyncio.get_running_loop()
    distributed = runtime.DistributedRuntime(loop, "file", "tcp")
    endpoint = distributed.endpoint("ns.comp.generate")

    async def handler(request: Any, context: Any) -> Any:
        yield request

    serving = endpoint.serve_endpoint(handler)
    wrong: list[dict[str, Any]] = [{}, {"kv_block_size": -1}, {"kv_block_size": 4, "dp_rank": -1}]
    for each in wrong:
        tell(attempt(llm.KvEventPublisher, (endpoint,), each))
    publisher = llm.KvEventPublisher(endpoint, kv_block_size=4, enable_local_indexer=True)
    metrics = llm.WorkerMetricsPublisher()
    tell(attempt(metrics.publish, (0, FIRST), {}))
    tell(await metrics.create_endpoint(endpoint))
    print(f"ready {endpoint.connection_id()}", flush=True)

    lines = threading.Semaphore(0)
    threading.Thread(target=count_lines, args=(lines,), daemon=True).start()
    go = loop.run_in_executor(None, lines.acquire)
    load = FIRST  # another one each time: real Dynamo publishes changes
    while not go.done():  # until the subscriber has them
        publisher.publish_stored([1, 2, 3, 4], [4], [FIRST])
        metrics.publish(0, load := load + 1)
        await asyncio.wait([go], timeout=0.02)
    for call, arguments, *options in calls(publisher, metrics, sys.argv[2] != "1.3.1"):
        tell(attempt(call, arguments, *options))
        await asyncio.sleep(0.02)  # real Dynamo keeps the last load of a moment only
    publisher.publish_removed([LAST])
    metrics.publish(0, LAST)
    print("done", flush=True)
    await loop.run_in_executor(None, lines.acquire)
    publisher.shutdown()
    publisher.shutdown()
    distributed.shutdown()
    await serving


def count_lines(lines: threading.Semaphore) -> None:
    for _ in sys.stdin:
        lines.release()


def attempt(call: Any, arguments: tuple[Any, ...], options: dict[str, Any] | None = None) -> Any:
    try:
        return call(*arguments, **(options or {})) and "something"
    except Exception as error:
        return [type(error).__name__, str(error)]


def tell(value: Any) -> None:
    print(f"call {json.dumps(value)}", flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
