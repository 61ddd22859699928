# cython: freethreading_compatible=True, annotation_typing=False
"""`Admission`: how many requests run at once, how many wait for their turn, and which are refused (transport.md 6.1).

Where there is a compiler, Cython translates this very file, with the types in `admission.pxd` (see setup.py).
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Coroutine
from typing import Any, Protocol

from dynamo_fast.config import TcpServerConfig
from dynamo_fast.errors import ResourceExhausted
from dynamo_fast.ingress.clock import clock_of
from dynamo_fast.net.descriptors import PROCESS, Descriptors
from dynamo_fast.observability.histogram import Histogram
from dynamo_fast.observability.worker_metrics import PERMIT_WAIT

__all__ = ["Admission", "Job"]


class Job(Protocol):
    """One request that a worker accepts."""

    descriptors: int
    """How many connections to the router it has yet to dial."""
    size: int
    """Bytes of its message, until its body is decoded."""

    def run(self) -> Coroutine[Any, Any, None]:
        """Called when its turn comes. The coroutine runs in a task of its own until the answer has ended."""


class Admission:
    """Runs jobs in order, `capacity` at once; `queue_capacity` more may wait.

    The worker owns one for all its endpoints, which submit their requests. It owns the tasks of the jobs, and ends when
    the last one has ended.

    It refuses a job that the worker could not finish: a job whose connection to the router needs a descriptor that the
    process does not have, or whose body does not fit beside the bodies that wait (see `TcpServerConfig.buffered_bytes`).
    """

    __slots__ = (
        "__weakref__",
        "_clock",
        "_context",
        "_descriptors",
        "_loop",
        "_max_bytes",
        "_on_done",
        "_queue",
        "_tasks",
        "bytes",
        "capacity",
        "promised",
        "queue_capacity",
        "rejected",
        "wait",
    )

    def __init__(self, config: TcpServerConfig, descriptors: Descriptors = PROCESS) -> None:
        if config.engine_request_limit is None:
            self.capacity, self.queue_capacity = config.worker_pool_size, config.work_queue_size
        else:
            self.capacity = config.engine_request_limit
            self.queue_capacity = max(1, config.request_queue_limit - 1)
        self.rejected = 0
        """Jobs that were refused."""
        self.wait = Histogram(PERMIT_WAIT)
        """How long queued jobs waited, in seconds."""
        self.promised = 0
        """How many connections accepted jobs have yet to dial."""
        self.bytes = 0
        """Bytes of the messages of accepted jobs whose body is not decoded yet."""
        self._max_bytes = config.buffered_bytes
        self._loop = asyncio.get_running_loop()
        self._clock = clock_of(self._loop)
        self._queue: deque[tuple[float, Job]] = deque()
        self._tasks: dict[asyncio.Task[None], Job] = {}
        self._descriptors = descriptors
        self._on_done = self._done
        self._context = contextvars.copy_context()  # else each callback has a copy of its own
        descriptors.add(self, calls=False)

    @property
    def running(self) -> int:
        """Jobs that have a task."""
        return len(self._tasks)

    @property
    def queued(self) -> int:
        """Jobs that wait for a task."""
        return len(self._queue)

    def submit(self, job: Job) -> None:
        """Run `job` now or later; raises ResourceExhausted, with a text that Dynamo's routers know."""
        running, queued = len(self._tasks), len(self._queue)
        if running >= self.capacity and queued >= self.queue_capacity:
            raise self._refusal("worker at capacity")
        if self.bytes + job.size > self._max_bytes:
            raise self._refusal(
                f"{self.bytes} bytes of requests wait, and {job.size} more are over the limit of {self._max_bytes} "
                "(DYNAMO_FAST_MAX_BUFFERED_REQUEST_BYTES)"
            )
        if not self._descriptors.promise(job.descriptors, running + queued):
            raise self._refusal(self._descriptors.shortage())
        self.promised += job.descriptors
        self.bytes += job.size
        if running < self.capacity:
            self._start(job)
        else:
            self._queue.append((self._clock(), job))

    def dials(self, job: Job) -> None:
        """`job` opens one of its connections now."""
        job.descriptors -= 1
        self.promised -= 1

    def decoded(self, job: Job) -> None:
        """`job` has released its message."""
        self.bytes -= job.size
        job.size = 0

    def descriptors(self) -> tuple[int, int]:
        """See `Promiser`."""
        return self.promised, max(0, len(self._tasks) + len(self._queue) - self.promised)

    def _refusal(self, reason: str) -> ResourceExhausted:
        self.rejected += 1
        return ResourceExhausted(f"Server overloaded: {reason}")

    def _start(self, job: Job) -> None:
        task = self._loop.create_task(job.run())
        # No message if a program leaves its loop with requests in flight: it can do nothing about them.
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # as `asyncio.gather` does
        self._tasks[task] = job
        task.add_done_callback(self._on_done, context=self._context)

    def _done(self, task: asyncio.Task[None]) -> None:
        job = self._tasks.pop(task)
        if job.size or job.descriptors:  # it failed or was cancelled before it used them
            self.decoded(job)
            self.promised -= job.descriptors
            job.descriptors = 0
        if self._queue:
            since, job = self._queue.popleft()
            self.wait.observe(self._clock() - since)
            self._start(job)
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error  # a job reports its errors itself: this is a bug, for the loop's exception handler
