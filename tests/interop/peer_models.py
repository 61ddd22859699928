"""Dynamo's own `register_model`, run by a peer's interpreter: `python peer_models.py` reads cases, writes their records.

Standard input: a JSON list of cases, `{"endpoint", "input", "type", "path", ...}`; other keys are keyword arguments of
`register_model`; `worker_type` and the entries of `needs` are names, `runtime_config` is an object of attributes. Standard
output, last line: a JSON list with the error's text, or the records under `v1/mdc` (key to value), of each case.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from dynamo import llm
from dynamo.runtime import DistributedRuntime


async def main() -> None:
    runtime = DistributedRuntime(asyncio.get_running_loop(), "file", "tcp")
    answers: list[Any] = []
    for case in json.load(sys.stdin):
        name = case.pop("endpoint")
        endpoint = runtime.endpoint(name)
        try:
            await register(endpoint, **case)
        except BaseException as error:
            answers.append(f"{type(error).__name__}: {error}")
        else:
            answers.append(records(name))
    print("\n" + json.dumps(answers), flush=True)
    runtime.shutdown()


async def register(endpoint: Any, input: str, type: str, path: str, **arguments: Any) -> None:
    kind = llm.ModelType.Empty
    for name in filter(None, type.split("|")):
        kind = kind | getattr(llm.ModelType, name)
    if "runtime_config" in arguments:
        runtime = llm.ModelRuntimeConfig()
        given = arguments["runtime_config"]
        for name, value in given.pop("engine_specific", {}).items():
            runtime.set_engine_specific(name, json.dumps(value))
        if "disaggregated_endpoint" in given:
            runtime.set_disaggregated_endpoint(*given.pop("disaggregated_endpoint"))
        if "structural_tag" in given:
            runtime.set_structural_tag(given.pop("structural_tag"))
        for name, value in given.items():
            setattr(runtime, name, set(value) if name == "taints" else value)
        arguments["runtime_config"] = runtime
    arguments["worker_type"] = getattr(llm.WorkerType, arguments.get("worker_type", "Aggregated"))
    if "needs" in arguments:
        arguments["needs"] = [[getattr(llm.WorkerType, name) for name in group] for group in arguments["needs"]]
    await llm.register_model(getattr(llm.ModelInput, input), kind, endpoint, path, **arguments)


def records(endpoint: str) -> dict[str, Any]:
    """The model records of that endpoint."""
    folder = Path(os.environ["DYN_FILE_KV"], "v1", "mdc")
    found = {unquote(each.name): each for each in sorted(folder.iterdir())} if folder.is_dir() else {}
    prefix = endpoint.replace(".", "/") + "/"
    return {key: json.loads(each.read_text()) for key, each in found.items() if key.startswith(prefix)}


asyncio.run(main())
