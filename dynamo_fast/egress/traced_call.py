"""`TracedCall`: a call whose attempts are spans of a trace. A push router makes it where traces are followed.

The spans begin when a worker is picked, and end with the answer. How a call ended is told in the words of Dynamo 1.6.1
(observability.md 2), on the span and in a log record.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

from dynamo_fast.context import Context
from dynamo_fast.egress.call import Call, CallOwner
from dynamo_fast.egress.instance_table import Entry
from dynamo_fast.errors import Cancelled, DynamoError
from dynamo_fast.logs import get_logger
from dynamo_fast.observability.spans import RequestSpan, Tracer
from dynamo_fast.wire.headers import TRACEPARENT

__all__ = ["TracedCall"]

logger = get_logger(__name__)

_OUTCOME_OF_TYPE = {
    "CannotConnect": "connection_failed",
    "Disconnected": "worker_disconnected",
}
_OUTCOME_OF_CLASS = {
    "CapacityExhausted": "rejected",
    "DeadlineExceeded": "timeout",
    "InvalidRequest": "rejected",
    "PayloadTooLarge": "rejected",
    "Unavailable": "unavailable",
}


class TracedCall(Call):
    """A `Call` that owns the span of the running attempt, and the span around all attempts if a handler calls on."""

    __slots__ = ("_around", "_given", "_mode", "_span", "_tracer", "_tries")

    def __init__(
        self,
        owner: CallOwner,
        request: Any,
        context: Context,
        headers: Mapping[str, str],
        retries: int,
        *,
        how: tuple[Any, bool] = (None, False),
        tracer: Tracer,
        mode: str,
    ) -> None:
        super().__init__(owner, request, context, headers, retries, how=how)
        self._tracer = tracer
        self._mode = mode
        self._given = headers
        self._tries = 0
        self._span: RequestSpan | None = None
        self._around: RequestSpan | None = None

    def prepare(self, choose: Callable[[], Entry]) -> None:
        """See Call."""
        try:
            super().prepare(lambda: self._begin(choose()))
        except BaseException:
            self._end("rejected", {"error.type": "invalid_argument"})
            self._leave()
            raise

    def failed(self, error: DynamoError) -> bool:
        """See Call."""
        self._end(*_how_it_failed(error, self.context))
        again = super().failed(error)
        if not again:
            self._leave()
        return again

    def completed(self) -> None:
        """See Call."""
        stopped = self.context.is_stopped()
        self._end("cancelled", _signal(self.context)) if stopped else self._end("success", {})
        super().completed()
        self._leave()

    def release(self) -> None:
        """See Call. An answer that has not ended was dropped."""
        super().release()
        if self._span is not None:
            self._dropped()

    def __del__(self) -> None:
        if self._span is not None:
            self._dropped()
        super().__del__()

    def _begin(self, entry: Entry) -> Entry:
        """The span of an attempt at `entry`, and what the worker is told of it."""
        headers = self.context.trace_headers()
        common = {"request_id": self.context.id()}
        if self._around is None and headers and TRACEPARENT in headers:
            endpoint = str(entry.instance.endpoint_id)
            called = {**common, "operation": self._mode, "endpoint": endpoint}
            self._around = self._tracer.call("client_request", "internal", headers, called)
        attributes: dict[str, str | bool] = {
            **common,
            "router_mode": self._mode,
            "worker_id": str(entry.instance.instance_id),
            "request.attempt": str(self._tries),
            "migration.is_retry": self._tries > 0,
        }
        if self._around is None:
            span = self._tracer.call("router.route_request", "client", self._given, attributes)
        else:
            span = self._tracer.below(self._around, "router.route_request", "client", attributes)
        self._span = span
        self._tries += 1
        self._headers = {**self._given, **span.headers}
        return entry

    def _dropped(self) -> None:
        self._end("cancelled", _signal(self.context))
        self._leave()

    def _end(self, outcome: str, attributes: Mapping[str, str]) -> None:
        """The attempt is over. Nothing happens if it is over already."""
        span, self._span = self._span, None
        if span is None:
            return
        error = attributes.get("error.type")
        word = "cancelled" if outcome == "cancelled" else "completed" if error is None else "failed"
        span.set({"request.outcome": outcome, **attributes})
        span.event(f"route request {word}")
        span.end(error)
        level = logging.WARNING if error is not None else logging.INFO
        if logger.isEnabledFor(level):
            fields = span.fields()
            if error is not None:
                fields |= {"otel.status_code": "error", "otel.status_description": error}
            logger.log(level, "route request %s", word, extra=fields)

    def _leave(self) -> None:
        around, self._around = self._around, None
        if around is not None:
            around.end()


def _how_it_failed(error: DynamoError, context: Context) -> tuple[str, dict[str, str]]:
    """The outcome, and the attributes that go with it."""
    if isinstance(error, Cancelled) or error.error_class == "Cancelled":
        return "cancelled", _signal(context) if context.is_stopped() else {"cancellation.signal": "context"}
    outcome = _OUTCOME_OF_TYPE.get(error.error_type) or _OUTCOME_OF_CLASS.get(error.error_class, "error")
    return outcome, {"error.type": _snake(error.error_type)}


def _signal(context: Context) -> dict[str, str]:
    signal = "kill" if context.is_killed() else "stop" if context.is_stopped() else "stream_drop"
    return {"cancellation.signal": signal}


def _snake(error_type: str) -> str:
    """`Backend.InvalidArgument` as `backend_invalid_argument`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", error_type.replace(".", "_")).lower()
