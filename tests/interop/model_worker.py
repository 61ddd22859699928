"""A process that serves models: `python -m tests.interop.model_worker peer|dropin|native MODELS`.

`peer` is Dynamo's own worker (it is run by a peer's interpreter), `dropin` the same lines on `dynamo_fast.runtime` and
`dynamo_fast.llm`, `native` the API of this project. MODELS is a list in JSON of what `frontends.Model` has.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

from tests.interop.model_engine import HANDLERS, tell

DISCOVERY = os.environ.get("PEER_DISCOVERY", "file")


async def with_runtime(models: list[dict[str, Any]], runtime_module: Any, llm: Any) -> None:
    """The lines that a worker for the real packages has."""
    runtime = runtime_module.DistributedRuntime(asyncio.get_running_loop(), DISCOVERY, "tcp")
    serving = []
    for model in models:
        endpoint = runtime.endpoint(model["endpoint"])
        serving.append(asyncio.ensure_future(endpoint.serve_endpoint(HANDLERS[model["handler"]])))
        await register(endpoint, model, llm)
    tell(event="ready")
    await asyncio.gather(*serving)


async def register(endpoint: Any, model: dict[str, Any], llm: Any) -> None:
    first, *others = (getattr(llm.ModelType, each) for each in model["kinds"])
    kind = first
    for other in others:
        kind |= other
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


def main() -> None:
    kind, models = sys.argv[1], json.loads(sys.argv[2])
    if kind == "peer":
        from dynamo import llm, runtime

        asyncio.run(with_runtime(models, runtime, llm))


if __name__ == "__main__":
    main()
