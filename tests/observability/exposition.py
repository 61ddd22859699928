"""What an answer of `/metrics` offers: its series, without their figures."""

from __future__ import annotations

from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

__all__ = ["Series", "offered", "value_of"]


class Series(NamedTuple):
    """One metric. `labels`: the names of the labels of each sample, without `le`; `bounds`: the values of `le`."""

    kind: str
    documentation: str
    labels: frozenset[frozenset[str]]
    bounds: tuple[str, ...]


def offered(text: str, *, without: frozenset[str] = frozenset()) -> dict[str, Series]:
    """The metrics of an answer of `/metrics` by the names of Prometheus, less those `without` samples."""
    found = {}
    for family in text_string_to_metric_families(text):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        if name not in without and family.samples:
            found[name] = Series(
                family.type,
                family.documentation,
                frozenset(frozenset(sample.labels) - {"le"} for sample in family.samples),
                tuple(dict.fromkeys(sample.labels["le"] for sample in family.samples if "le" in sample.labels)),
            )
    return found


def value_of(text: str, name: str, **labels: str) -> float:
    """The sum of the samples of that name that have these labels; 0 if there is none."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )
