"""`Load`: the same request many times, a few at once or at a rate, and how long the answers took."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from dynamo_fast.context import Context
from dynamo_fast.egress.call import RoutedStream
from dynamo_fast.egress.response_stream import ResponseStream
from dynamo_fast.errors import DynamoError
from dynamo_fast.wire.text import printable

__all__ = ["Load", "Send"]

Send = Callable[[Context], Awaitable[ResponseStream | RoutedStream]]

_STEPS = (1, 2, 5)
_BOUNDS = [step * 10.0**power for power in range(-5, 4) for step in _STEPS]
"""The upper bounds of the histogram's bars, in seconds; there is a bar above them, too."""
_WIDTH = 40


class Load:
    """Sends a request again and again, and counts the answers instead of printing them.

    Owned by one `call` or `bench`, which runs it once and then prints `progress` and `summary`. Times are in seconds.
    """

    def __init__(self, send: Send, metadata: dict[str, str], timeout: float | None = None) -> None:
        """`timeout`: of each answer; then its request is killed, and has failed."""
        self._send = send
        self._metadata = metadata
        self._timeout = timeout
        self._done = 0
        self._items = 0
        self._first_items: list[float] = []
        self._answers: list[float] = []
        self._errors: Counter[str] = Counter()
        self._seconds = 0.0
        self._began = time.perf_counter()

    async def run(
        self, repeat: int | None, concurrency: int, *, seconds: float = math.inf, rate: float = math.inf
    ) -> None:
        """Send the request `repeat` times, or for so many seconds; at most `concurrency` at once.

        `rate`: so many requests are due in a second, evenly. The time of one counts from when it was due, so that it has
        the time in it that it waited while too many others were under way. Errors of requests are counted, not raised.
        """
        self._began = began = time.perf_counter()
        left = _turns(repeat, began, seconds, rate)
        await asyncio.gather(*(self._take(left) for _ in range(min(repeat or concurrency, concurrency))))
        self._seconds = time.perf_counter() - began

    @property
    def failed(self) -> int:
        """How many requests failed."""
        return self._errors.total()

    def progress(self, repeat: int | None) -> str:
        """What has been done so far."""
        elapsed = time.perf_counter() - self._began
        done = f"{self._done:,}{f' of {repeat:,}' if repeat else ''} requests, {self.failed:,} failed"
        return f"{elapsed:.0f} s: {done}, {self._items:,} items, {self._done / max(elapsed, 1e-3):,.0f} requests/s"

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

    def figures(self) -> dict[str, Any]:
        """The same as values, after `run`: times as percentiles, and the histogram as upper bounds and counts."""
        return {
            "requests": self._done,
            "failed": self.failed,
            "items": self._items,
            "seconds": self._seconds,
            "requests_per_second": self._done / self._seconds,
            "items_per_second": self._items / self._seconds,
            "first_item": _percentiles(self._first_items),
            "answer": _percentiles(self._answers),
            "histogram": [[bound, number] for bound, number in self._bars()],
            "errors": dict(self._errors),
        }

    def histogram(self) -> Iterator[str]:
        """The times of whole answers as lines with bars, after `run`."""
        bars = list(self._bars())
        most = max((number for _, number in bars), default=0)
        for bound, number in bars:
            upper = "more" if bound is None else f"{bound * 1e3:g} ms"
            yield f"{upper:>10} {'#' * math.ceil(number / most * _WIDTH):{_WIDTH}} {number}"

    def _bars(self) -> Iterator[tuple[float | None, int]]:
        """From the first bar to the last one that has something in it. A time belongs to the first bound not below it."""
        found = Counter(bisect_left(_BOUNDS, seconds) for seconds in self._answers)
        for place in range(min(found, default=0), max(found, default=-1) + 1):
            yield _BOUNDS[place] if place < len(_BOUNDS) else None, found[place]

    async def _take(self, left: Iterator[float | None]) -> None:
        for due in left:
            began = time.perf_counter() if due is None else due
            if began > (now := time.perf_counter()):
                await asyncio.sleep(began - now)
            try:
                await asyncio.wait_for(self._one(began), self._timeout)
                self._answers.append(time.perf_counter() - began)
            except DynamoError as error:
                self._errors[f"{type(error).__name__}: {error}"] += 1
            except asyncio.TimeoutError:
                self._errors[f"the answer was not complete within {self._timeout:g} s"] += 1
            self._done += 1

    async def _one(self, began: float) -> None:
        first = True
        async with await self._send(Context(None, self._metadata)) as stream:
            async for _ in stream:
                if first:
                    self._first_items.append(time.perf_counter() - began)
                    first = False
                self._items += 1


def _turns(repeat: int | None, began: float, seconds: float, rate: float) -> Iterator[float | None]:
    """When each request is due; None: now. Ends after so many, and when the next one would be too late."""
    for number in itertools.count() if repeat is None else range(repeat):
        due = None if rate == math.inf else began + number / rate
        if (time.perf_counter() if due is None else due) >= began + seconds:
            return
        yield due


def _percentiles(times: list[float]) -> dict[str, float]:
    if not times:
        return {}
    times = sorted(times)
    found = {f"p{percent}": times[len(times) * percent // 100] for percent in (50, 90, 99)}
    return {**found, "max": times[-1]}
