"""`Load`: the same request many times, a few at once, and how long the answers took."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator

from dynamo_fast.context import Context
from dynamo_fast.egress.call import RoutedStream
from dynamo_fast.egress.response_stream import ResponseStream
from dynamo_fast.errors import DynamoError
from dynamo_fast.wire.text import printable

__all__ = ["Load", "Send"]

Send = Callable[[Context], Awaitable[ResponseStream | RoutedStream]]


class Load:
    """Sends a request again and again, and counts the answers instead of printing them.

    Owned by one `call`, which runs it once and then prints `progress` and `summary`. Times are in seconds.
    """

    def __init__(self, send: Send, metadata: dict[str, str]) -> None:
        self._send = send
        self._metadata = metadata
        self._done = 0
        self._items = 0
        self._first_items: list[float] = []
        self._answers: list[float] = []
        self._errors: Counter[str] = Counter()
        self._seconds = 0.0

    async def run(self, repeat: int, concurrency: int) -> None:
        """Send the request `repeat` times, at most `concurrency` at once. Its errors are counted, not raised."""
        left = iter(range(repeat))
        began = time.perf_counter()
        await asyncio.gather(*(self._take(left) for _ in range(min(repeat, concurrency))))
        self._seconds = time.perf_counter() - began

    @property
    def failed(self) -> int:
        """How many requests failed."""
        return self._errors.total()

    def progress(self, repeat: int) -> str:
        """What has been done so far."""
        return f"{self._done}/{repeat} requests, {self._items} items"

    def summary(self) -> Iterator[str]:
        """The lines of the summary, after `run`."""
        yield f"{self._done} requests, {self.failed} failed, {self._items} items in {self._seconds:.2f} s"
        yield f"{self._done / self._seconds:,.0f} requests/s, {self._items / self._seconds:,.0f} items/s"
        for name, times in (("first item", self._first_items), ("whole answer", self._answers)):
            if times:
                times.sort()
                median, late = times[len(times) // 2], times[int(len(times) * 0.99)]
                yield f"{name}: median {median * 1e3:.2f} ms, 99th percentile {late * 1e3:.2f} ms"
        for text, count in self._errors.most_common():
            yield f"{count} x {printable(text)}"

    async def _take(self, left: Iterator[int]) -> None:
        for _ in left:
            began = time.perf_counter()
            try:
                await self._one(began)
                self._answers.append(time.perf_counter() - began)
            except DynamoError as error:
                self._errors[f"{type(error).__name__}: {error}"] += 1
            self._done += 1

    async def _one(self, began: float) -> None:
        first = True
        async with await self._send(Context(None, self._metadata)) as stream:
            async for _ in stream:
                if first:
                    self._first_items.append(time.perf_counter() - began)
                    first = False
                self._items += 1
