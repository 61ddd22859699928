from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client import Histogram as Reference

from dynamo_fast.observability.histogram import Histogram

BOUNDS = (0.1, 0.5, 1.0, 2.5)


def test_a_value_on_a_bound_counts_below_it() -> None:
    histogram = Histogram(BOUNDS)
    for value in (0.0, 0.1, 0.11, 2.5, 2.6):
        histogram.observe(value)
    assert histogram.counts == [2, 1, 0, 1, 1]
    assert histogram.count == 5
    assert histogram.sum == 0.0 + 0.1 + 0.11 + 2.5 + 2.6
    assert histogram.buckets() == [("0.1", 2.0), ("0.5", 3.0), ("1.0", 3.0), ("2.5", 4.0), ("+Inf", 5.0)]


def test_an_empty_histogram() -> None:
    histogram = Histogram(BOUNDS)
    assert (histogram.count, histogram.sum) == (0, 0.0)
    assert [count for _, count in histogram.buckets()] == [0.0] * 5


@given(st.lists(st.floats(0, 5) | st.sampled_from(BOUNDS)))
def test_it_counts_as_prometheus_client_does(values: list[float]) -> None:
    registry = CollectorRegistry()
    reference = Reference("x", "x", buckets=BOUNDS, registry=registry)
    histogram = Histogram(BOUNDS)
    for value in values:
        histogram.observe(value)
        reference.observe(value)
    (metric,) = registry.collect()
    samples = {sample.labels.get("le", sample.name): sample.value for sample in metric.samples}
    assert dict(histogram.buckets()) == {bound: samples[bound] for bound in ("0.1", "0.5", "1.0", "2.5", "+Inf")}
    assert (histogram.count, histogram.sum) == (samples["x_count"], samples["x_sum"])
