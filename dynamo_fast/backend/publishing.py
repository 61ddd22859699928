"""What an engine publishes for KV-aware routing: its KV events, and the load of its ranks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from dynamo_fast.backend.config import WorkerConfig
from dynamo_fast.backend.metrics import ComponentMetrics, SnapshotPublisher
from dynamo_fast.errors import Unavailable
from dynamo_fast.llm import KvEventPublisher, WorkerMetricsPublisher
from dynamo_fast.runtime.endpoint import Endpoint
from dynamo_fast.wire.error import display, from_exception

__all__ = ["publish_kv_events", "publish_load"]


async def publish_kv_events(
    sources: Iterable[Any], endpoint: Endpoint, block_size: int | None, config: WorkerConfig
) -> None:
    """Make a publisher for each source: for the engine (`on_ready`), or one that relays the engine's ZMQ socket.

    The sources are those of `dynamo.common.backend.publisher`. Raises Unavailable if the engine does not take its
    publisher, and what `KvEventPublisher` raises.
    """
    for source in sources:
        publisher = KvEventPublisher(
            endpoint,
            kv_block_size=block_size or 0,
            dp_rank=source.dp_rank,
            enable_local_indexer=config.enable_local_indexer,
            zmq_endpoint=getattr(source, "endpoint", None),
            zmq_topic=getattr(source, "topic", None),
            kv_state_endpoint=config.kv_state_endpoint,
        )
        if (on_ready := getattr(source, "on_ready", None)) is not None:
            await _give(on_ready, publisher, f"kv publisher on_ready (dp_rank={source.dp_rank})")


async def publish_load(engine: Any, ranks: Sequence[int], endpoint: Endpoint, metrics: ComponentMetrics) -> None:
    """Give the engine a publisher of its snapshots. Raises Unavailable if it does not take it."""
    load = WorkerMetricsPublisher()
    await load.create_endpoint(endpoint)
    publisher = SnapshotPublisher(metrics, ranks, load)
    await _give(engine.attach_snapshot_publisher, publisher, "snapshot publisher on_ready")


async def _give(take: Callable[[Any], Any], publisher: Any, what: str) -> None:
    """Call a function of the engine, in a thread: it may block."""
    try:
        await asyncio.to_thread(take, publisher)
    except Exception as error:
        raise Unavailable(f"{what}: {display(from_exception(error))}") from error
