"""The words for errors in the two generations of Dynamo: one table for the whole package (transport.md 7.3 to 7.5).

Dynamo 1.3 has one word for an error, its `error_type`. Dynamo 1.6 has two, a class and a reason, and writes the older
word beside them. This module imports nothing, so that every other module can name an error through it.
"""

from __future__ import annotations

from typing import NamedTuple


class Words(NamedTuple):
    """The three words for one error. `error_type` is `Backend.<name>` where 1.3 writes `{"Backend": "<name>"}`."""

    error_type: str
    error_class: str
    reason: str

    def older(self) -> Words:
        """The same words with an `error_type` that Dynamo 1.3.1 can read."""
        return self._replace(error_type=OLDER_TYPES.get(self.error_type, self.error_type))


OLDER_TYPES = {"WorkerOverloaded": "ResourceExhausted", "WorkerUnavailable": "Unavailable"}
"""Error types that Dynamo 1.3.1 cannot read, and what to write in their place."""

# The types of 1.3, with the class and the reason that 1.6 derives from them.

UNCLASSIFIED = Words("Unknown", "Internal", "runtime.unclassified")
INVALID_ARGUMENT = Words("InvalidArgument", "InvalidRequest", "request.invalid_argument")
CANNOT_CONNECT = Words("CannotConnect", "Unavailable", "transport.cannot_connect")
DISCONNECTED = Words("Disconnected", "Unavailable", "transport.disconnected")
CONNECTION_TIMEOUT = Words("ConnectionTimeout", "DeadlineExceeded", "transport.connection_timeout")
RESPONSE_TIMEOUT = Words("ResponseTimeout", "DeadlineExceeded", "backend.response_timeout")
CANCELLED = Words("Cancelled", "Cancelled", "request.cancelled")
POOL_EXHAUSTED = Words("ResourceExhausted", "CapacityExhausted", "capacity.pool_exhausted")
WORKER_OVERLOADED = Words("WorkerOverloaded", "CapacityExhausted", "capacity.worker_overloaded")
UNAVAILABLE = Words("Unavailable", "Unavailable", "backend.unavailable")
WORKER_UNAVAILABLE = Words("WorkerUnavailable", "Unavailable", "backend.worker_unavailable")
BACKEND_UNKNOWN = Words("Backend.Unknown", "Internal", "backend.unknown")
BACKEND_INVALID_ARGUMENT = Words("Backend.InvalidArgument", "InvalidRequest", "backend.invalid_argument")
BACKEND_CANNOT_CONNECT = Words("Backend.CannotConnect", "Unavailable", "backend.cannot_connect")
BACKEND_DISCONNECTED = Words("Backend.Disconnected", "Unavailable", "backend.disconnected")
BACKEND_CONNECTION_TIMEOUT = Words("Backend.ConnectionTimeout", "DeadlineExceeded", "backend.connection_timeout")
BACKEND_RESPONSE_TIMEOUT = Words("Backend.ResponseTimeout", "DeadlineExceeded", "backend.response_timeout")
BACKEND_CANCELLED = Words("Backend.Cancelled", "Cancelled", "backend.cancelled")
BACKEND_ENGINE_SHUTDOWN = Words("Backend.EngineShutdown", "Unavailable", "backend.engine_shutdown")
BACKEND_STREAM_INCOMPLETE = Words("Backend.StreamIncomplete", "Unavailable", "backend.stream_incomplete")

BY_TYPE = {
    words.error_type: words
    for words in (
        UNCLASSIFIED,
        INVALID_ARGUMENT,
        CANNOT_CONNECT,
        DISCONNECTED,
        CONNECTION_TIMEOUT,
        RESPONSE_TIMEOUT,
        CANCELLED,
        POOL_EXHAUSTED,
        WORKER_OVERLOADED,
        UNAVAILABLE,
        WORKER_UNAVAILABLE,
        BACKEND_UNKNOWN,
        BACKEND_INVALID_ARGUMENT,
        BACKEND_CANNOT_CONNECT,
        BACKEND_DISCONNECTED,
        BACKEND_CONNECTION_TIMEOUT,
        BACKEND_RESPONSE_TIMEOUT,
        BACKEND_CANCELLED,
        BACKEND_ENGINE_SHUTDOWN,
        BACKEND_STREAM_INCOMPLETE,
    )
}
"""Every error type, and its words."""

# The classes of 1.6, with the reason of an error that has no reason of its own, and the type that is written for 1.3.

INTERNAL = Words("Unknown", "Internal", "runtime.internal")
INVALID_REQUEST = Words("InvalidArgument", "InvalidRequest", "request.invalid")
UNAUTHENTICATED = Words("Unknown", "Unauthenticated", "request.unauthenticated")
PERMISSION_DENIED = Words("Unknown", "PermissionDenied", "request.permission_denied")
NOT_FOUND = Words("Unknown", "NotFound", "request.not_found")
CONFLICT = Words("Unknown", "Conflict", "request.conflict")
PAYLOAD_TOO_LARGE = Words("InvalidArgument", "PayloadTooLarge", "request.payload_too_large")
UNSUPPORTED_MEDIA = Words("InvalidArgument", "UnsupportedMedia", "request.unsupported_media")
RATE_LIMITED = Words("ResourceExhausted", "RateLimited", "request.rate_limited")
DEADLINE_EXCEEDED = Words("ResponseTimeout", "DeadlineExceeded", "request.deadline_exceeded")
CAPACITY_EXHAUSTED = Words("ResourceExhausted", "CapacityExhausted", "capacity.exhausted")
BACKEND_PROTOCOL = Words("Unknown", "BackendProtocol", "backend.protocol")
NOT_IMPLEMENTED = Words("Unknown", "NotImplemented", "runtime.not_implemented")

BY_CLASS = {
    words.error_class: words
    for words in (
        INTERNAL,
        INVALID_REQUEST,
        UNAUTHENTICATED,
        PERMISSION_DENIED,
        NOT_FOUND,
        CONFLICT,
        PAYLOAD_TOO_LARGE,
        UNSUPPORTED_MEDIA,
        RATE_LIMITED,
        CANCELLED,
        DEADLINE_EXCEEDED,
        CAPACITY_EXHAUSTED,
        UNAVAILABLE,
        BACKEND_PROTOCOL,
        NOT_IMPLEMENTED,
    )
}
"""Every class, and its default words."""

INVALID_ERROR = Words("Unknown", "Internal", "runtime.invalid_error")
"""What 1.6 makes of an error whose words contradict each other."""

CLASS_OF_REASON = {words.reason: words.error_class for words in (*BY_TYPE.values(), *BY_CLASS.values(), INVALID_ERROR)}
"""Every reason, and its class."""

MIGRATABLE = frozenset(
    words.reason
    for words in (
        CANNOT_CONNECT,
        DISCONNECTED,
        CONNECTION_TIMEOUT,
        BACKEND_CANNOT_CONNECT,
        BACKEND_DISCONNECTED,
        BACKEND_CONNECTION_TIMEOUT,
        RESPONSE_TIMEOUT,
        BACKEND_ENGINE_SHUTDOWN,
        BACKEND_STREAM_INCOMPLETE,
        WORKER_UNAVAILABLE,
        WORKER_OVERLOADED,
    )
)
"""The reasons that let a request move to another worker (1.6's rule, transport.md 7.5)."""

NEVER_MIGRATABLE = frozenset(
    words.reason for words in (CANCELLED, BACKEND_CANCELLED, CAPACITY_EXHAUSTED, POOL_EXHAUSTED)
)
"""The reasons that forbid it, wherever they stand in the chain of causes."""
