"""`RuntimeMetrics` and `FirstTokenSource`: what an endpoint offers beside calls (runtime.md 4.10)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dynamo_fast.observability.system_status import SystemStatus
from dynamo_fast.runtime.context import Context
from dynamo_fast.runtime.exceptions import argument_error

__all__ = ["FirstTokenSource", "RuntimeMetrics"]

_MAX_RANK = (1 << 32) - 1


class RuntimeMetrics:
    """Adds a program's own metrics to those of its process. `Endpoint.metrics` makes it; it has no state of its own."""

    def __init__(self, status: SystemStatus) -> None:
        self._status = status

    def register_prometheus_expfmt_callback(self, callback: Callable[[], str]) -> None:
        """Append what `callback` returns, in Prometheus's text format, to each answer of `/metrics`.

        An error of the callback, and a value that is no text, are logged. Without a status server it is never called.
        """
        self._status.text_callbacks.append(callback)

    def register_prometheus_typed_callback(self, callback: Callable[[], Any]) -> None:
        """Do nothing: Dynamo exports these metrics over OTLP alone, which is not offered here."""


class FirstTokenSource:
    """Told by a worker which request prefills where. `Endpoint.first_token_source` makes it.

    In Dynamo it tells the replicas of a KV router, over the event plane, when a prefill has ended. Here it does nothing:
    routers see the first item of the answer.
    """

    def bind(self, context: Context, dp_rank: int | None = None) -> None:
        """Nothing. Raises TypeError or OverflowError for other arguments than a context and an unsigned 32-bit number."""
        if not isinstance(context, Context):
            raise argument_error("context", context, "Context")
        if dp_rank is None:
            return
        if not isinstance(dp_rank, int):
            raise TypeError(
                f"argument 'dp_rank': '{type(dp_rank).__name__}' object cannot be interpreted as an integer"
            )
        if not 0 <= dp_rank <= _MAX_RANK:
            raise OverflowError("out of range integral type conversion attempted")
