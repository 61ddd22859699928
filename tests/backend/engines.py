"""Engines for the tests of `backend.Worker`: they record what is called, and can fail where a test wants it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

from dynamo_fast.backend import EngineConfig, LlmRegistration
from dynamo_fast.runtime import Context

__all__ = ["Engine", "Source"]


class Source(SimpleNamespace):
    """What `dynamo.common.backend.publisher.PushSource` is."""

    on_ready: Callable[[Any], None]
    dp_rank: int


class Engine:
    """Has every method that Dynamo's worker calls. `calls` has their names in order."""

    def __init__(self, model: str = "", *, failing: str = "", error: BaseException | None = None) -> None:
        self.model = model
        self.failing = failing
        self.error = error or RuntimeError("boom")
        self.calls: list[str] = []
        self.aborted: list[str] = []
        self.began = asyncio.Event()
        """Set when a request is being answered."""
        self.may_end = asyncio.Event()
        """A request that says `wait` ends when this is set."""
        self.quiescent: list[Any] = [True]
        """The answers of `is_quiescent`, one after the other; the last one again and again."""
        self.publishers: list[Any] = []
        self.worker_id: int | None = None
        self.endpoint: Any = None
        self.metrics: Any = None
        self.payload: dict[str, Any] | None = None
        self.config: Any = None

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if name == self.failing:
            raise self.error

    async def start(self, worker_id: int) -> Any:
        self.worker_id = worker_id
        self._called("start")
        return self.config or EngineConfig(
            self.model or "m", served_model_name="served", llm=LlmRegistration(kv_cache_block_size=16)
        )

    async def register_prometheus(self, metrics: Any) -> None:
        self.metrics = metrics
        self._called("register_prometheus")

    def component_metrics_dp_ranks(self) -> list[int]:
        self._called("component_metrics_dp_ranks")
        return [0]

    async def kv_event_sources(self) -> list[Source]:
        self._called("kv_event_sources")
        return [Source(on_ready=self.on_ready, dp_rank=0)]

    def on_ready(self, publisher: Any) -> None:
        assert threading.current_thread() is not threading.main_thread()  # it may block
        self.publishers.append(publisher)
        self._called("on_ready")

    def attach_snapshot_publisher(self, publisher: Any) -> None:
        self.publishers.append(publisher)
        self._called("attach_snapshot_publisher")

    async def on_endpoint_ready(self, endpoint: Any) -> None:
        self.endpoint = endpoint
        self._called("on_endpoint_ready")

    def supported_controls(self) -> set[str]:
        self._called("supported_controls")
        return {"pause"}

    async def engine_control(self, control: str, body: dict[str, Any]) -> dict[str, Any]:
        return {"control": control, "body": body}

    def supported_updates(self) -> set[str]:
        self._called("supported_updates")
        return {"weights"}

    async def engine_update(self, update: str, body: dict[str, Any]) -> dict[str, Any]:
        return {"update": update, "body": body}

    async def health_check_payload(self) -> dict[str, Any] | None:
        self._called("health_check_payload")
        return self.payload

    async def generate(self, request: Any, context: Context) -> AsyncIterator[Any]:
        self.calls.append("generate")
        self.began.set()
        try:
            if request.get("wait"):
                await self.may_end.wait()
            for chunk in request.get("chunks", ()):
                yield chunk
            yield {"token_ids": [7], "index": 0, "finish_reason": "stop"}
        finally:
            self.calls.append("generated")

    async def abort(self, context: Context) -> None:
        self.aborted.append(context.id())
        self._called("abort")

    async def is_quiescent(self) -> bool | None:
        self._called("is_quiescent")
        answer: bool | None = self.quiescent.pop(0) if len(self.quiescent) > 1 else self.quiescent[0]
        return answer

    async def cleanup(self) -> None:
        self._called("cleanup")
