"""The drop-in for `dynamo._core.backend`: the `Worker` that drives an engine, and what it is configured with.

    from dynamo_fast import backend                     # was: from dynamo._core import backend

    worker = backend.Worker(engine, backend.WorkerConfig(namespace="demo"), asyncio.get_running_loop())
    await worker.run()                                  # until SIGTERM, SIGINT or an error

An engine has the methods of `dynamo.common.backend.LLMEngine`, or of `RawEngine` (see `worker.py`). Programs use this
module through `dynamo.common.backend.Worker`, which `dynamo-fast run` lets run on it.
"""

from __future__ import annotations

from typing import NoReturn

from dynamo_fast.backend.config import DisaggregationMode, EngineConfig, LlmRegistration, RuntimeConfig, WorkerConfig
from dynamo_fast.backend.metrics import EngineMetrics, SnapshotPublisher
from dynamo_fast.backend.worker import Worker
from dynamo_fast.runtime.exceptions import NotOffered

__all__ = [
    "HEALTH_CHECK_KEY",
    "DisaggregationMode",
    "EngineConfig",
    "EngineMetrics",
    "LlmRegistration",
    "RuntimeConfig",
    "SnapshotPublisher",
    "Worker",
    "WorkerConfig",
]

HEALTH_CHECK_KEY = "_HEALTH_CHECK"
"""Set in a request that is a health check."""


def _run_sglang_sidecar(argv: list[str] | None = None) -> NoReturn:
    raise NotOffered("the SGLang sidecar is not offered: it is a program of Dynamo's own, in Rust")


def _run_trtllm_sidecar(argv: list[str] | None = None) -> NoReturn:
    raise NotOffered("the TensorRT-LLM sidecar is not offered: it is a program of Dynamo's own, in Rust")


def _run_vllm_sidecar(argv: list[str] | None = None) -> NoReturn:
    raise NotOffered("the vLLM sidecar is not offered: it is a program of Dynamo's own, in Rust")
