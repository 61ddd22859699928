"""`Admission`: how many requests run at once, how many wait for their turn, and which are refused (transport.md 6.1)."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from dynamo_fast.config import TcpServerConfig
from dynamo_fast.errors import ResourceExhausted
from dynamo_fast.observability.metrics import Histogram
from dynamo_fast.observability.worker_metrics import PERMIT_WAIT

__all__ = ["Admission", "Job", "Submit"]

Job = Callable[[], Coroutine[Any, Any, None]]
"""One request that was accepted: called when its turn comes, and awaited in a task of its own until its answer ended."""
Submit = Callable[[Job], None]
"""`Admission.submit`."""


class Admission:
    """Runs jobs in order, `capacity` at once; `queue_capacity` more may wait. One per process, for all its endpoints."""

    __slots__ = ("_loop", "_queue", "_tasks", "capacity", "queue_capacity", "rejected", "wait")

    def __init__(self, config: TcpServerConfig) -> None:
        if config.engine_request_limit is None:
            self.capacity, self.queue_capacity = config.worker_pool_size, config.work_queue_size
        else:
            self.capacity = config.engine_request_limit
            self.queue_capacity = max(1, config.request_queue_limit - 1)
        self.rejected = 0
        """Jobs that were refused."""
        self.wait = Histogram(PERMIT_WAIT)
        """How long those waited that had to, in seconds."""
        self._loop = asyncio.get_running_loop()
        self._queue: deque[tuple[float, Job]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def running(self) -> int:
        """Jobs that have a task."""
        return len(self._tasks)

    @property
    def queued(self) -> int:
        """Jobs that wait for one."""
        return len(self._queue)

    def submit(self, job: Job) -> None:
        """Run `job` now or later; raises ResourceExhausted, with the text that Dynamo's routers know."""
        if len(self._tasks) < self.capacity:
            self._start(job)
        elif len(self._queue) < self.queue_capacity:
            self._queue.append((time.monotonic(), job))
        else:
            self.rejected += 1
            raise ResourceExhausted("Server overloaded: worker at capacity")

    def _start(self, job: Job) -> None:
        task = self._loop.create_task(job())
        # A program that leaves its loop with requests in flight ends in silence: it could do nothing about them.
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # as `asyncio.gather` does
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self._queue:
            since, job = self._queue.popleft()
            self.wait.observe(time.monotonic() - since)
            self._start(job)
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error  # a job reports what can go wrong itself: this is a bug, for the loop's exception handler
