"""`Source`: what a worker publishes on the event plane, from its first record in discovery to its end."""

from __future__ import annotations

import abc
import asyncio
import contextlib
import threading
from collections.abc import Callable

from dynamo_fast.config import EventPlaneConfig
from dynamo_fast.discovery.store import Bucket
from dynamo_fast.errors import Disconnected, DynamoError
from dynamo_fast.ingress.worker import Worker
from dynamo_fast.llm.event_plane import EventChannel, EventPlane
from dynamo_fast.logs import get_logger

__all__ = ["Source"]

logger = get_logger(__name__)


class Source(abc.ABC):
    """The sockets of one publisher and its records in discovery, which it owns.

    The constructor binds, `announce` puts the records; it ends with `close`, or with the worker that it was announced for.
    """

    def __init__(self, plane: EventPlaneConfig | None) -> None:
        """Raises InvalidConfig for a setting that is not offered, and if pyzmq is missing."""
        self._plane = EventPlane(plane)
        self._lock = threading.Lock()
        """Held while events are numbered and sent: threads of an engine publish."""
        self.feeds: list[Callable[[], None]] = []
        """Ends what publishes through this source by itself: the relay of an engine."""
        self._closed = False
        self._worker: Worker | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._records: list[tuple[Bucket[bytes], str]] = []
        self._closing: asyncio.Future[None] | None = None

    @abc.abstractmethod
    def __str__(self) -> str:
        """What is published, for logs and errors."""

    async def announce(self, worker: Worker) -> None:
        """Put the records into discovery. From then on the worker closes the source.

        Raises Disconnected if the source is closed, also meanwhile, and what discovery raises; then nothing of it stays.
        """
        self._worker = worker
        worker.companions.append(self)
        try:
            self._watch_subscribers()
            await self._announce(worker)
            self._check_open()
        except BaseException:
            await self.close()
            await self._leave()  # with what came after another `close`
            raise

    async def close(self) -> None:
        """Leave discovery, and close the sockets. May be called twice; raises nothing."""
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)

    def close_sockets(self) -> None:
        """Publish nothing any more. From any thread, and twice. Without `announce` there is nothing else to close."""
        while self.feeds:  # without the lock: a feed may be publishing
            self.feeds.pop()()
        with self._lock:
            self._closed = True
            self._plane.close()

    @abc.abstractmethod
    async def _announce(self, worker: Worker) -> None:
        """Put every record, with `_put`."""

    async def _put(self, bucket: Bucket[bytes], key: str, record: bytes) -> None:
        self._check_open()
        self._records.append((bucket, key))
        await bucket.put(key, record)

    def _check_open(self) -> None:
        if self._closed:
            raise Disconnected(f"{self} are not published: the worker was closed")

    def _watch_subscribers(self) -> None:
        self._check_open()
        self._loop = asyncio.get_running_loop()
        for channel in self._plane.channels:
            try:
                self._loop.add_reader(channel.fd, self._welcome, channel)
            except NotImplementedError:  # Windows' own loop: the next event welcomes them
                return

    def _welcome(self, channel: EventChannel) -> None:
        with self._lock:
            if not self._closed:
                channel.welcome()

    async def _close(self) -> None:
        if self._loop is not None:
            for channel in self._plane.channels:
                with contextlib.suppress(NotImplementedError):
                    self._loop.remove_reader(channel.fd)
        self.close_sockets()
        await self._leave()
        if self._worker is not None and self in self._worker.companions:
            self._worker.companions.remove(self)

    async def _leave(self) -> None:
        """Remove the records, in the order in which they were put."""
        while self._records:
            bucket, key = self._records.pop(0)
            try:
                await bucket.remove(key)
            except (DynamoError, OSError) as error:  # it expires
                logger.warning("the record %s/%s could not be removed: %s", bucket.kind.name, key, error)
