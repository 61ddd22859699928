"""A process that serves models: `python -m tests.interop.model_worker peer|dropin|native MODELS`.

`peer` is Dynamo's own worker (it is run by a peer's interpreter), `dropin` the same lines on `dynamo_fast.runtime` and
`dynamo_fast.llm`, `native` the API of this project. MODELS is a list in JSON of what `frontends.Model` has.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import json
import operator
import os
import signal
import sys
from typing import Any

from tests.interop.model_engine import HANDLERS, tell

DISCOVERY = os.environ.get("PEER_DISCOVERY", "file")


async def with_runtime(models: list[dict[str, Any]], runtime_module: Any, llm: Any) -> None:
    """The lines that a worker for the real packages has."""
    loop = asyncio.get_running_loop()
    runtime = runtime_module.DistributedRuntime(loop, DISCOVERY, "tcp")
    loop.add_signal_handler(signal.SIGTERM, runtime.shutdown)
    serving = []
    for model in models:
        endpoint = runtime.endpoint(model["endpoint"])
        serving.append(asyncio.ensure_future(endpoint.serve_endpoint(HANDLERS[model["handler"]])))
        await register(endpoint, model, llm)
    tell(event="ready")
    await asyncio.gather(*serving)


async def register(endpoint: Any, model: dict[str, Any], llm: Any) -> None:
    kind = functools.reduce(operator.or_, (getattr(llm.ModelType, each) for each in model["kinds"]))
    config = llm.ModelRuntimeConfig()
    if model["tool_call_parser"]:
        config.tool_call_parser = model["tool_call_parser"]
    options: dict[str, Any] = {"model_aliases": model["aliases"]} if model["aliases"] else {}
    await llm.register_model(
        getattr(llm.ModelInput, model["input"]),
        kind,
        endpoint,
        model["path"] or model["name"],
        model["name"],
        kv_cache_block_size=16,
        runtime_config=config,
        worker_type=llm.WorkerType.Aggregated,
        **options,
    )
    for name in model["loras"]:
        await llm.register_model(
            getattr(llm.ModelInput, model["input"]),
            kind,
            endpoint,
            model["path"],
            kv_cache_block_size=16,
            runtime_config=config,
            worker_type=llm.WorkerType.Aggregated,
            lora_name=name,
            base_model_path=model["path"],
        )


async def native(models: list[dict[str, Any]]) -> None:
    """The same with `Worker` and `ModelCard`. SIGTERM ends it in order."""
    from dynamo_fast import Worker
    from dynamo_fast.discovery.connect import connect
    from dynamo_fast.llm import ModelCard, ModelRuntimeConfig, ModelType

    terminated = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminated.set)
    worker = await Worker.start(connect(DISCOVERY))
    for model in models:
        kinds = functools.reduce(operator.or_, (getattr(ModelType, each) for each in model["kinds"]))
        if model["input"] == "Text":
            card = ModelCard.text(model["name"], model_type=kinds, aliases=model["aliases"])
        else:
            card = ModelCard.from_folder(
                model["path"],
                name=model["name"],
                model_type=kinds,
                aliases=model["aliases"],
                runtime_config=ModelRuntimeConfig(tool_call_parser=model["tool_call_parser"]),
            )
        served = await worker.serve(HANDLERS[model["handler"]], model["endpoint"], model=card)
        for name in model["loras"]:
            await served.add_model(card.adapter(name))
    tell(event="ready")
    await terminated.wait()
    await worker.close()


def main() -> None:
    kind, models = sys.argv[1], json.loads(sys.argv[2])
    if kind == "native":
        asyncio.run(native(models))
        return
    package = {"peer": "dynamo", "dropin": "dynamo_fast"}[kind]
    llm, runtime = (importlib.import_module(f"{package}.{name}") for name in ("llm", "runtime"))
    asyncio.run(with_runtime(models, runtime, llm))


if __name__ == "__main__":
    main()
