"""An engine for Dynamo's own `Worker` that says what is called: the same program runs on the real binding and on ours.

recorded_engine.py MODEL [--fail METHOD] [--error CLASS] [--mode MODE] [--raw] [--no-kv-routing] [--block-size TOKENS]
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from dynamo.common.backend import EngineConfig, LLMEngine, LlmRegistration, RawEngine, Worker, WorkerConfig
from dynamo.common.backend.publisher import PushSource
from dynamo.common.constants import DisaggregationMode
from dynamo.llm import ModelInput
from dynamo.llm.exceptions import InvalidArgument

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("--fail", default="")
parser.add_argument("--error", default="RuntimeError")
parser.add_argument("--mode", default="agg")
parser.add_argument("--raw", action="store_true")
parser.add_argument("--no-kv-routing", action="store_true")
parser.add_argument("--block-size", type=int, default=16)
options = parser.parse_args()

ERRORS: dict[str, type[BaseException]] = {
    "RuntimeError": RuntimeError,
    "ValueError": ValueError,
    "InvalidArgument": InvalidArgument,
}


def say(event: str, **fields: Any) -> None:
    print(json.dumps({"event": event, **fields}), flush=True)


def called(name: str) -> None:
    say(name)
    if name == options.fail:
        raise ERRORS[options.error]("boom")


class Engine(RawEngine if options.raw else LLMEngine):  # type: ignore[misc]
    @classmethod
    async def from_args(cls, argv: list[str] | None = None) -> Any:
        raise NotImplementedError

    async def start(self, worker_id: int) -> Any:
        called("start")
        llm = LlmRegistration(kv_cache_block_size=options.block_size or None)
        return EngineConfig(model=options.model, served_model_name="m", llm=llm)

    async def register_prometheus(self, metrics: Any) -> None:
        say("labels", names=sorted(metrics.auto_labels))
        called("register_prometheus")

    def component_metrics_dp_ranks(self) -> list[int]:
        called("component_metrics_dp_ranks")
        return [0]

    async def kv_event_sources(self) -> list[Any]:
        called("kv_event_sources")
        return [PushSource(on_ready=lambda publisher: called("on_ready"), dp_rank=0)]

    def attach_snapshot_publisher(self, publisher: Any) -> None:
        called("attach_snapshot_publisher")

    async def on_endpoint_ready(self, endpoint: Any) -> None:
        called("on_endpoint_ready")

    def supported_controls(self) -> set[str]:
        called("supported_controls")
        return set()

    def supported_updates(self) -> set[str]:
        called("supported_updates")
        return set()

    async def health_check_payload(self) -> Any:
        called("health_check_payload")

    async def generate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        yield {}

    async def is_quiescent(self) -> bool:
        called("is_quiescent")
        return True

    async def cleanup(self) -> None:
        called("cleanup")


async def main() -> None:
    config = WorkerConfig(
        namespace="ns",
        model_name=options.model,
        discovery_backend="file",
        disaggregation_mode=DisaggregationMode(options.mode),
        enable_kv_routing=not options.no_kv_routing,
        model_input=ModelInput.Text if options.raw else ModelInput.Tokens,
        endpoint_types="images" if options.raw else "chat,completions",
    )
    try:
        await Worker(Engine(), config).run()
    except Exception as error:
        say("failed", text=str(error))
        raise SystemExit(7) from error
    say("ended")


asyncio.run(main())
