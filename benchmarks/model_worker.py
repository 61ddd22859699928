"""A model behind a frontend, in a process of its own: `python model_worker.py ours|dropin|peer NAME FOLDER`.

`ours` is this project's worker, `dropin` is `dynamo_fast.runtime` and `dynamo_fast.llm`, and `peer` is Dynamo's own: it is
run by a peer's interpreter, and imports nothing of this project. All run on uvloop. The engine is the same and trivial: as
many letters as the request asks for, one token an item, with as many milliseconds between them as the request's `seed`.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import AsyncIterator
from typing import Any

ENDPOINT = "bench.{}.generate"
LETTER = 98
"""The token of `a` in the tokenizer of `model_folder`."""


async def generate(request: Any) -> AsyncIterator[Any]:
    pause = request["sampling_options"]["seed"] / 1000
    for _ in range(request["stop_conditions"]["max_tokens"] - 1):
        yield {"token_ids": [LETTER]}
        if pause:
            await asyncio.sleep(pause)
    yield {"token_ids": [LETTER], "finish_reason": "length"}


async def ours(name: str, folder: str) -> None:
    from dynamo_fast import serve
    from dynamo_fast.llm import ModelCard

    await serve(generate, ENDPOINT.format(name), model=ModelCard.from_folder(folder, name=name))
    print("ready", flush=True)
    await asyncio.Event().wait()


async def registered(package: str, name: str, folder: str) -> None:
    """The same for Dynamo and for the drop-in."""
    llm, runtime = (importlib.import_module(f"{package}.{each}") for each in ("llm", "runtime"))
    endpoint = runtime.DistributedRuntime(asyncio.get_running_loop(), "file", "tcp").endpoint(ENDPOINT.format(name))
    kinds = llm.ModelType.Chat | llm.ModelType.Completions
    serving = asyncio.ensure_future(endpoint.serve_endpoint(generate))
    await llm.register_model(
        llm.ModelInput.Tokens, kinds, endpoint, folder, name, worker_type=llm.WorkerType.Aggregated
    )
    print("ready", flush=True)
    await serving


if __name__ == "__main__":
    import uvloop

    kind, *arguments = sys.argv[1:]
    packages = {"dropin": "dynamo_fast", "peer": "dynamo"}
    uvloop.run(ours(*arguments) if kind == "ours" else registered(packages[kind], *arguments))
