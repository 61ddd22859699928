"""A client on Dynamo's own binding, run by a peer's interpreter: `python peer_client.py ENDPOINT...`.

Each line of standard input is a call, in JSON; each line of standard output says how one of them ended:

    {"id": 1, "endpoint": "a.b.c", "method": "round_robin", "request": ..., "stop_after": 3, "drop_after": null}
    {"id": 1, "items": [...], "error": ["ValueError", "..."]}
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

from dynamo.runtime import Context, DistributedRuntime


async def call(client: Any, command: dict[str, Any]) -> dict[str, Any]:
    items: list[Any] = []
    error = None
    context = Context(command.get("context_id"), command.get("metadata"))
    try:
        method = getattr(client, command.get("method", "round_robin"))
        arguments = [] if "instance" not in command else [command["instance"]]
        stream = await method(command["request"], *arguments, context=context)
        async for item in stream:
            items.append(
                [item.data(), item.event(), item.comments(), item.id()] if command.get("envelopes") else item.data()
            )
            if len(items) == command.get("stop_after"):
                context.stop_generating()
            if len(items) == command.get("drop_after"):
                break
        del stream
    except Exception as raised:
        error = [type(raised).__name__, str(raised)]
    return {"id": command["id"], "items": items, "error": error}


def say(value: Any) -> None:
    print(json.dumps(value, default=lambda other: list(other) if isinstance(other, bytes) else str(other)), flush=True)


async def main() -> None:
    discovery, plane = os.environ.get("PEER_DISCOVERY", "file"), os.environ.get("PEER_PLANE", "tcp")
    runtime = DistributedRuntime(asyncio.get_running_loop(), discovery, plane)
    clients: dict[str, Any] = {}
    reader = asyncio.StreamReader(limit=1 << 26)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    running: set[asyncio.Future[None]] = set()

    async def answer(command: dict[str, Any]) -> None:
        say(await call(clients[command["endpoint"]], command))

    say({"id": 0})
    while line := await reader.readline():
        command = json.loads(line)
        endpoint = command["endpoint"]
        if endpoint not in clients:
            clients[endpoint] = await runtime.endpoint(endpoint).client()
        if "wait_for" in command:
            while len(clients[endpoint].instance_ids()) != command["wait_for"]:
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.2)  # 1.3.1 knows an instance a moment before it may use it
            say({"id": command["id"], "items": clients[endpoint].instance_ids(), "error": None})
            continue
        running.add(task := asyncio.ensure_future(answer(command)))
        task.add_done_callback(running.discard)


asyncio.run(main())
