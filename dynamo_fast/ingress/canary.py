"""`Canary`: checks in process whether an endpoint still answers (transport.md 6.6, runtime.md 7.2).

If an endpoint has a health-check payload and has sent no item for a while, its handler is called with that payload. The
first item decides. A good item means ready; an error, no item, or no item in time means not ready. Items for real requests
mean ready, too, and postpone the next check.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from dynamo_fast.config import HealthCheckConfig
from dynamo_fast.context import Context
from dynamo_fast.ingress.push_handler import PushHandler
from dynamo_fast.logs import get_logger

__all__ = ["Canary"]

logger = get_logger(__name__)


class Canary:
    """Watches one endpoint, which is not ready at first. The served endpoint owns it and closes it. It owns one task."""

    def __init__(self, handler: PushHandler, payload: dict[str, Any], config: HealthCheckConfig) -> None:
        self._ready = False
        self._handler = handler
        self._seen = handler.items_sent
        self._payload = payload
        self._config = config
        self._task = asyncio.get_running_loop().create_task(self._watch())

    @property
    def ready(self) -> bool:
        """Whether the last check, or an item for a real request since, was good."""
        return self._ready or self._handler.items_sent != self._seen

    def close(self) -> None:
        """Stop watching."""
        self._task.cancel()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._config.canary_wait_time)
            sent = self._handler.items_sent
            if sent == self._seen:
                self._say(await self._check())
            else:
                self._say(None)
            self._seen = sent

    async def _check(self) -> str | None:
        """Why the endpoint is not ready; None if it is."""
        context = Context()
        task = asyncio.get_running_loop().create_task(self._first_item(context))
        try:
            # Not `wait_for`: it waits until the task has ended, and the handler may swallow its cancellation.
            await asyncio.wait([task], timeout=self._config.request_timeout)
            return task.result() if task.done() else f"no answer within {self._config.request_timeout:g} s"
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        finally:
            task.add_done_callback(_retrieve)
            task.cancel()
            context.kill()

    async def _first_item(self, context: Context) -> str | None:
        iterator = self._handler.call(self._payload, context)
        close: Callable[[], Any] | None = getattr(iterator, "aclose", None)
        try:
            async for item in iterator:
                is_error = isinstance(item, dict) and item.get("_dynamo_annotated") and item.get("event") == "error"
                return "its first item is an error" if is_error else None
            return "it yielded nothing"
        finally:
            if close is not None:
                await close()

    def _say(self, trouble: str | None) -> None:
        if self._ready != (trouble is None):
            self._ready = trouble is None
            if trouble is None:
                logger.info("%s is ready", self._handler.endpoint)
            else:
                logger.warning("%s is not ready: the health check found %s", self._handler.endpoint, trouble)


def _retrieve(task: asyncio.Task[str | None]) -> None:
    """Ignore what a handler raises after its time."""
    task.cancelled() or task.exception()
