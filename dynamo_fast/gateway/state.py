"""`LiveState`: what a gateway does now, for its page and for `dynamo-fast top`.

    state = LiveState(Fleet(routers))
    state.start()                            # a sample each second, from now on
    flight = state.request_started("demo.backend.generate", None, "5f1c")
    flight.items(3)                          # three items are written to the client
    flight.ended(200, None)                  # or flight.ended(503, "no worker")
    state.snapshot()                         # everything that is shown, as one msgspec.Struct

A request costs a few additions and one clock; a write of items costs one clock and one bucket, whatever the number of its
items. All else happens once a second, and the JSON is made only while it is asked for.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from time import perf_counter

import msgspec

from dynamo_fast.gateway.errors import CLIENT_GONE
from dynamo_fast.gateway.fleet import Change, Fleet, InstanceView, ModelView
from dynamo_fast.observability.histogram import Histogram
from dynamo_fast.wire.text import printable

__all__ = ["EndpointView", "Failure", "Flight", "LiveState", "Sample", "Share", "Snapshot", "quantile"]

INTERVAL = 1.0
"""Seconds between two samples."""
HISTORY = 300
"""Samples that are kept."""
WINDOW = 10
"""Percentiles are those of the last `WINDOW` samples."""
MAX_ERRORS = 50
"""Errors that are kept."""
MAX_ENDPOINTS = 1000
"""Endpoints that are counted by name. Further ones are counted together, as `OTHERS`."""
OTHERS = "(others)"
_MAX_MESSAGE = 300

BOUNDS = tuple(1e-4 * 10 ** (step / 10) for step in range(61))
"""Ten buckets for each power of ten, from 100 us to 100 s: a percentile is at most 13 % off."""


# What is shown --------------------------------------------------------------------------------------------------------


class Sample(msgspec.Struct, frozen=True):
    """One second. Rates are per second; times are in seconds, None where nothing was measured."""

    at: float
    """Unix time."""
    in_flight: int
    requests: float
    items: float
    errors: float
    first_p50: float | None = None
    """From the request to its first item."""
    first_p99: float | None = None
    between_p50: float | None = None
    """Between two items of one answer, as they are written: items that are written together are 0 s apart."""
    between_p99: float | None = None


class Failure(msgspec.Struct, frozen=True):
    """Why a request failed."""

    status: int
    """The status of the answer. An error after the head has the status that it would have had before."""
    kind: str
    """The name of the error; empty if it has none."""
    message: str
    """Its text; empty if it is hidden."""
    endpoint: str
    model: str
    """Empty for requests that name none."""
    request_id: str
    at: float
    """Unix time."""


class EndpointView(msgspec.Struct):
    """One endpoint: what was counted since the start, and how many instances it has."""

    name: str
    requests: int = 0
    items: int = 0
    errors: int = 0
    in_flight: int = 0
    instances: int = 0


class Snapshot(msgspec.Struct, frozen=True):
    """Everything that is shown. `samples` are in the order of time; errors and changes have the newest first."""

    version: str
    started: float
    now: float
    processes: int
    """How many processes are added up here."""
    requests: int
    items: int
    errors: int
    in_flight: int
    endpoints: list[EndpointView]
    instances: list[InstanceView]
    instances_total: int
    """How many there are; `instances` has the first of them."""
    models: list[ModelView]
    failures: list[Failure]
    changes: list[Change]
    samples: list[Sample]


# What is counted ------------------------------------------------------------------------------------------------------


class Share(msgspec.Struct):
    """What one process has counted since its start. Shares are added up field by field."""

    started: float
    endpoints: dict[str, EndpointView]
    first: list[int]
    """How many first items fell into each bucket of `BOUNDS`, and above."""
    between: list[int]
    failures: list[Failure]


class _Counts:
    """What is counted of one endpoint: the hot half of an `EndpointView`."""

    __slots__ = ("errors", "in_flight", "items", "name", "requests")

    def __init__(self, name: str) -> None:
        self.name = name
        self.requests = self.items = self.errors = self.in_flight = 0

    def view(self) -> EndpointView:
        """A copy."""
        return EndpointView(self.name, self.requests, self.items, self.errors, self.in_flight)


Others = Callable[[Share], Iterable[Share]]
"""Takes the share of this process, for others to see, and returns theirs."""


class Flight:
    """One request, from its arrival to the end of its answer: a `RequestObserver`. Made by `LiveState.request_started`."""

    __slots__ = ("_between", "_counts", "_last", "_model", "_observe", "_request_id", "_state")

    def __init__(self, state: LiveState, counts: _Counts, model: str | None, request_id: str) -> None:
        self._state = state
        self._counts = counts
        self._model = model
        self._request_id = request_id
        self._between = state.between
        self._observe = state.first.observe
        self._last = perf_counter()

    def items(self, count: int) -> None:
        """`count` items, at least one, are written to the client together."""
        now = perf_counter()
        self._observe(now - self._last)
        self._observe = self._between.observe
        self._last = now
        self._counts.items += count
        if count > 1:
            self._between.counts[0] += count - 1

    def ended(self, status: int, error: str | None) -> None:
        """The answer is over, with an error or without one. A client that has gone (499) is no error."""
        counts = self._counts
        counts.in_flight -= 1
        if error is not None and status != CLIENT_GONE:
            counts.errors += 1
            self._state.failures.appendleft(
                Failure(
                    status=status,
                    **self._state.words_of(error),
                    endpoint=counts.name,
                    model=printable(self._model or ""),
                    request_id=printable(self._request_id),
                    at=time.time(),
                )
            )


class LiveState:
    """The counts of one gateway process, its last errors, and a sample of both for each second.

    Owned by the gateway's application, used on its event loop. `start` begins the samples, `close` ends them and the waits
    of `next_sample`. Every list in it is bounded.
    """

    def __init__(
        self, fleet: Fleet, *, version: str = "", show_errors: bool = True, others: Others | None = None
    ) -> None:
        """`show_errors`: whether the texts of errors are kept, or only their names.

        `others`: the other processes that serve the same port; None if this is the only one.
        """
        self.fleet = fleet
        self.first = Histogram(BOUNDS)
        self.between = Histogram(BOUNDS)
        self.failures: deque[Failure] = deque(maxlen=MAX_ERRORS)
        """The newest first."""
        self.samples: deque[Sample] = deque(maxlen=HISTORY)
        self.is_closed = False
        self._version = version
        self._show_errors = show_errors
        self._others = others
        self._endpoints: dict[str, _Counts] = {}
        self._started = time.time()
        self._total = _Total([self.share()])
        self._past: deque[_Total] = deque([self._total], maxlen=WINDOW + 1)
        self._timer: asyncio.TimerHandle | None = None
        self._sampled: asyncio.Future[None] | None = None

    # An observer of requests --------------------------------------------------------------------------------

    def request_started(self, endpoint: str, model: str | None, request_id: str) -> Flight:
        """A request for `endpoint` has come."""
        counts = self._endpoints.get(endpoint) or self._counts_of(endpoint)
        counts.requests += 1
        counts.in_flight += 1
        return Flight(self, counts, model, request_id)

    def words_of(self, error: str) -> dict[str, str]:
        """The fields `kind` and `message` of a failure, from `NameOfTheError: its text`."""
        kind, colon, text = error.partition(": ")
        if not (colon and kind.isidentifier()):
            kind, text = "", error
        return {"kind": kind, "message": printable(text, _MAX_MESSAGE) if self._show_errors else ""}

    # Samples ------------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Look at the fleet now, and take a sample each `INTERVAL` seconds, on the running event loop."""
        self.fleet.look()
        self._timer = asyncio.get_running_loop().call_later(INTERVAL, self._sample_and_go_on)

    def close(self) -> None:
        """End the samples; `next_sample` returns. May be called twice."""
        self.is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._wake()

    def sample(self) -> Sample:
        """Take a sample now, and look at the fleet. Rates are those since the last one."""
        self.fleet.look()
        share = self.share()
        total = _Total([share, *(self._others(share) if self._others else ())])
        self._past.append(total)
        sample = total.sample(self._total, self._past[0])
        self._total = total
        self.samples.append(sample)
        self._wake()
        return sample

    async def next_sample(self) -> None:
        """Wait for the next sample, or for `close`."""
        if self.is_closed:
            return
        if self._sampled is None:
            self._sampled = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._sampled)

    def share(self) -> Share:
        """What this process has counted until now."""
        return Share(
            self._started,
            {name: counts.view() for name, counts in self._endpoints.items()},
            list(self.first.counts),
            list(self.between.counts),
            list(self.failures),
        )

    # What is shown ------------------------------------------------------------------------------------------------------

    def snapshot(self, history: int = HISTORY) -> Snapshot:
        """The state as of the last sample, with that many of the last samples."""
        total = self._total
        samples = list(self.samples)
        instances, known = self.fleet.instances()
        return Snapshot(
            version=self._version,
            started=total.started,
            now=total.at,
            processes=total.processes,
            requests=total.requests,
            items=total.items,
            errors=total.errors,
            in_flight=total.in_flight,
            endpoints=self._with_instances(total.endpoints),
            instances=instances,
            instances_total=known,
            models=self.fleet.models(),
            failures=total.failures,
            changes=list(self.fleet.changes),
            samples=samples[-history:] if history else [],
        )

    def _with_instances(self, counted: dict[str, EndpointView]) -> list[EndpointView]:
        """The endpoints that were called, and those that have instances."""
        numbers = self.fleet.endpoints()
        names = sorted({*counted, *numbers})
        return [
            msgspec.structs.replace(counted.get(name) or EndpointView(name), instances=numbers.get(name, 0))
            for name in names[:MAX_ENDPOINTS]
        ]

    def _counts_of(self, endpoint: str) -> _Counts:
        if len(self._endpoints) >= MAX_ENDPOINTS:
            endpoint = OTHERS
        return self._endpoints.setdefault(endpoint, _Counts(endpoint))

    def _sample_and_go_on(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(INTERVAL, self._sample_and_go_on)
        self.sample()

    def _wake(self) -> None:
        sampled, self._sampled = self._sampled, None
        if sampled is not None:
            sampled.set_result(None)


class _Total:
    """The shares of all processes, added up at one moment."""

    def __init__(self, shares: Sequence[Share]) -> None:
        self.at = time.time()
        self.processes = len(shares)
        self.started = min(share.started for share in shares)
        self.endpoints: dict[str, EndpointView] = {}
        for share in shares:
            for name, counts in share.endpoints.items():
                sums = self.endpoints.setdefault(name, EndpointView(name))
                sums.requests += counts.requests
                sums.items += counts.items
                sums.errors += counts.errors
                sums.in_flight += counts.in_flight
        self.requests = sum(each.requests for each in self.endpoints.values())
        self.items = sum(each.items for each in self.endpoints.values())
        self.errors = sum(each.errors for each in self.endpoints.values())
        self.in_flight = sum(each.in_flight for each in self.endpoints.values())
        self.first = [sum(each) for each in zip(*(share.first for share in shares), strict=True)]
        self.between = [sum(each) for each in zip(*(share.between for share in shares), strict=True)]
        failures = [failure for share in shares for failure in share.failures]
        self.failures = sorted(failures, key=lambda failure: -failure.at)[:MAX_ERRORS]

    def sample(self, last: _Total, first: _Total) -> Sample:
        """What has happened since `last`; percentiles since `first`."""
        seconds = max(self.at - last.at, 1e-3)
        to_first, between = _since(self.first, first.first), _since(self.between, first.between)
        return Sample(
            at=self.at,
            in_flight=self.in_flight,
            # A process that has ended takes its counts with it.
            requests=max(self.requests - last.requests, 0) / seconds,
            items=max(self.items - last.items, 0) / seconds,
            errors=max(self.errors - last.errors, 0) / seconds,
            first_p50=quantile(to_first, 0.5),
            first_p99=quantile(to_first, 0.99),
            between_p50=quantile(between, 0.5),
            between_p99=quantile(between, 0.99),
        )


def _since(counts: list[int], before: list[int]) -> list[int]:
    return [max(now - then, 0) for now, then in zip(counts, before, strict=True)]


def quantile(counts: Sequence[int], q: float) -> float | None:
    """The value below which `q` (0 to 1) of the values lie, in seconds; None without values.

    `counts` are those of the buckets of `BOUNDS`; within a bucket the values are taken as evenly spread over its logarithm.
    The first bucket counts as 0 to its bound, evenly; the last one as its lower bound.
    """
    rank = q * sum(counts)
    if rank == 0:
        return None
    below = 0
    for index, count in enumerate(counts):
        if count and below + count >= rank:
            return _within(index, (rank - below) / count)
        below += count
    return BOUNDS[-1]


def _within(index: int, part: float) -> float:
    if index == 0:
        return BOUNDS[0] * part
    if index == len(BOUNDS):
        return BOUNDS[-1]
    lower, upper = BOUNDS[index - 1 : index + 1]
    return float(lower * (upper / lower) ** part)
