# cython: freethreading_compatible=True, annotation_typing=False
"""`Histogram`: the buckets that routers and workers count times in."""

from __future__ import annotations

from itertools import accumulate

__all__ = ["Histogram"]


class Histogram:
    """Counts per bucket, the last one without a bound, and the sum of all values. Not thread-safe.

    Owned by the metrics of a router or of a worker, which observe values on their event loop; scrapes read it.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        """`bounds` are the upper bounds of the buckets, in ascending order."""
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count `value` in the first bucket whose upper bound is not below it."""
        index = 0
        for bound in self.bounds:  # most times are short
            if value <= bound:
                break
            index += 1
        self.counts[index] += 1
        self.sum += value

    @property
    def count(self) -> int:
        """How many values were observed."""
        return sum(self.counts)

    def buckets(self) -> list[tuple[str, float]]:
        """Upper bound and cumulated count of each bucket, as Prometheus writes them."""
        labels = [*(repr(bound) for bound in self.bounds), "+Inf"]
        return [(label, float(count)) for label, count in zip(labels, accumulate(self.counts), strict=True)]
