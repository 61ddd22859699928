# cython: freethreading_compatible=True, annotation_typing=False
"""`Selection`: which worker gets a request. `PushRouter` asks it, for each call (runtime.md section 3).

    all workers of the endpoint             what discovery lists
      less the inhibited ones               failed with an error that says "not this worker": for 5 s
      less the overloaded ones              said that they are busy: until an answer of ours there ends, or for 0.1 s
    = the free ones                         the mode picks one of these

`direct` names its worker, and takes an inhibited one, too. What a selection has learnt is its own; how many requests each
worker has in flight is common to all routers that share the table.
"""

from __future__ import annotations

import asyncio
import enum
import random
from collections.abc import Callable

from dynamo_fast import reasons
from dynamo_fast.config import PushRouterConfig
from dynamo_fast.deadlines import Deadlines
from dynamo_fast.egress.instance_table import Entry, InstanceTable, LoadQueue
from dynamo_fast.errors import DynamoError, InvalidRequest, ResourceExhausted, Unavailable

__all__ = ["Chooser", "RouterMode", "Selection"]

_OVERLOADED_SECONDS = 0.1
_OVERLOADED = reasons.WORKER_OVERLOADED.reason
# "Not this worker": from the transport, or from a worker that is about to leave. An error that a handler met behind the
# worker (for example `backend.cannot_connect`) says nothing about the worker.
_INHIBITING = frozenset(
    words.reason
    for words in (
        reasons.CANNOT_CONNECT,
        reasons.DISCONNECTED,
        reasons.CONNECTION_TIMEOUT,
        reasons.RESPONSE_TIMEOUT,
        reasons.BACKEND_ENGINE_SHUTDOWN,
        reasons.BACKEND_STREAM_INCOMPLETE,
        reasons.WORKER_UNAVAILABLE,
    )
)


class RouterMode(enum.Enum):
    """How `PushRouter.generate` picks a worker. The names are Dynamo's."""

    RoundRobin = "round_robin"
    Random = "random"
    KV = "kv"
    """Not offered: it needs the workers' cache events."""
    Direct = "direct"
    """The caller names the worker; there is `direct` for that."""
    PowerOfTwoChoices = "power_of_two_choices"
    LeastLoaded = "least_loaded"
    DeviceAwareWeighted = "device_aware_weighted"

    __hash__ = object.__hash__  # each call looks its mode up, and that of `Enum` is Python

    def __repr__(self) -> str:
        return str(self)


Chooser = Callable[[], Entry]
"""Picks a worker. Raises Unavailable or ResourceExhausted if there is none to pick, InvalidRequest for the mode Direct."""


class Selection:
    """The workers of one endpoint as one router sees them: which are free, and whose turn it is.

    Owns the marks of inhibited and overloaded workers, not the table. A push router makes it; its calls report how they
    ended; `close` ends its timers. One event loop.
    """

    def __init__(self, table: InstanceTable, config: PushRouterConfig, loop: asyncio.AbstractEventLoop) -> None:
        self._table = table
        self._config = config
        self._inhibited: Deadlines[Entry] = Deadlines(loop, config.inhibited_duration, self._changed)
        self._overloaded: Deadlines[Entry] = Deadlines(loop, _OVERLOADED_SECONDS, self._changed)
        # Both follow from the marks and the table. They are computed when they are needed: None means "not now".
        self._free: list[Entry] | None = None
        self._out: set[Entry] = set()
        self._turn = 0
        self.choosers: dict[RouterMode, Chooser] = {
            RouterMode.RoundRobin: self._next,
            RouterMode.Random: self._any,
            RouterMode.Direct: self._unnamed,
            RouterMode.PowerOfTwoChoices: self._better_of_two,
            RouterMode.LeastLoaded: self._least_loaded,
            RouterMode.DeviceAwareWeighted: self._by_device,
        }
        """How each mode picks a worker."""
        table.listen(self)

    def close(self) -> None:
        """Forget the marks, and stop the timers."""
        self._inhibited.close()
        self._overloaded.close()
        self._free = None

    def free(self) -> list[Entry]:
        """The workers that are neither inhibited nor overloaded, in ascending order of their ids."""
        if self._free is None:
            self._out = {*self._inhibited.keys(), *self._overloaded.keys()}
            self._free = [entry for entry in self._table.entries if entry not in self._out]
        return self._free

    def _free_or_error(self) -> list[Entry]:
        free = self.free()
        if not free:
            raise self._nobody()
        return free

    def _nobody(self) -> DynamoError:
        if len(self._overloaded):
            error = ResourceExhausted("All workers are busy, please retry later")
            error.reason = reasons.CAPACITY_EXHAUSTED.reason
            return error
        return Unavailable(f"No workers available for endpoint {self._table.endpoint}")

    def _next(self) -> Entry:
        free = self._free_or_error()
        entry = free[self._turn % len(free)]
        self._turn += 1
        return entry

    def _any(self) -> Entry:
        free = self._free_or_error()
        return free[_below(len(free))]

    def _better_of_two(self) -> Entry:
        free = self._free_or_error()
        if len(free) == 1:
            return free[0]
        first, second = _below(len(free)), _below(len(free) - 1)
        one, other = free[first], free[second + (second >= first)]
        return other if other.in_flight < one.in_flight else one

    def _least_loaded(self) -> Entry:
        cpu, other = self._least_of_each()
        if cpu is None or other is None:
            return self._only(cpu, other)
        return cpu if cpu.in_flight < other.in_flight else other

    def _by_device(self) -> Entry:
        """The least loaded of a class. A CPU gets 1/ratio of the requests that an accelerator gets."""
        cpu, other = self._least_of_each()
        if cpu is None or other is None:
            return self._only(cpu, other)
        cpus, on_cpus = self._load_of(self._table.cpu)
        others, on_others = self._load_of(self._table.other)
        share = on_others * cpus / (self._config.cuda_to_cpu_ratio * others)
        return cpu if on_cpus < share else other

    def _least_of_each(self) -> tuple[Entry | None, Entry | None]:
        self._free_or_error()
        return self._table.cpu.least(self._out), self._table.other.least(self._out)

    @staticmethod
    def _only(*entries: Entry | None) -> Entry:
        return next(entry for entry in entries if entry is not None)

    def _load_of(self, queue: LoadQueue) -> tuple[int, int]:
        """How many workers of a class are free, and how many requests they have in flight."""
        size, total = queue.size, queue.total
        for entry in self._out:
            if entry.queue is queue:
                size -= 1
                total -= entry.in_flight
        return size, total

    def named(self, instance_id: int) -> Entry:
        """The worker of that id, inhibited or not. Raises Unavailable."""
        entry = self._table.find(instance_id)
        if entry is None:
            raise Unavailable(f"instance_id={instance_id} not found for endpoint {self._table.endpoint}")
        return entry

    def another(self, tried: set[Entry]) -> Entry:
        """The least loaded worker that was not tried. Raises as a `Chooser`."""
        untried = [entry for entry in self.free() if entry not in tried]
        if not untried:
            raise self._nobody()
        return min(untried, key=lambda entry: entry.in_flight)

    def _unnamed(self) -> Entry:
        raise InvalidRequest("the router mode is Direct: call direct(request, instance_id)")

    # How requests ended ---------------------------------------------------------------------------------------------

    def failed(self, entry: Entry, error: DynamoError) -> None:
        """A request to `entry` ended with `error`: mark the worker if the error says so."""
        if self._table.find(entry.instance.instance_id) is not entry:
            return
        found = {link.reason for link in error.chain()}
        if _OVERLOADED in found:
            marks = self._overloaded
        elif found & _INHIBITING and self._config.inhibited_duration:
            marks = self._inhibited
        else:
            return
        marks.discard(entry)  # its time starts again
        marks.add(entry)
        self._free = None

    def ended(self, entry: Entry) -> None:
        """A request to `entry` is over: the worker has room again."""
        entry.end()
        if entry in self._overloaded:
            self._overloaded.discard(entry)
            self._free = None

    def table_changed(self, gone: Entry | None) -> None:
        """See TableListener."""
        if gone is not None:
            self._inhibited.discard(gone)
            self._overloaded.discard(gone)
        self._free = None

    def _changed(self, _: Entry) -> None:
        self._free = None


def _below(end: int) -> int:
    """A random number from 0 to `end` - 1, in a fifth of the time that `randrange` takes."""
    return int(random.random() * end)  # noqa: S311  # it need not be secret
