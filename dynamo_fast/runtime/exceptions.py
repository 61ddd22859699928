"""The exceptions that handlers raise, and the package's errors in the form that Dynamo's callers expect (runtime.md 4.5).

Dynamo raises a bare `Exception` where a call is awaited, and a `ValueError` where its answer is iterated, with the text
`<Class>: <message>`. This package raises its own errors with that text; while an answer is iterated, the error is a
`ValueError` too. Code that was written for Dynamo catches them, and code that knows this package can read their attributes.
"""

from __future__ import annotations

from dynamo_fast import reasons
from dynamo_fast.errors import (
    DynamoError,
    InvalidAddress,
    RequestTooLarge,
    SerializationError,
)
from dynamo_fast.wire.error import display

__all__ = [
    "Cancelled",
    "CannotConnect",
    "ConnectionTimeout",
    "Disconnected",
    "DynamoException",
    "EngineShutdown",
    "InvalidArgument",
    "NotOffered",
    "RouterQueueLimitExceeded",
    "SelectionServiceError",
    "StreamIncomplete",
    "Unknown",
    "WorkerUnavailable",
    "argument_error",
    "at_await",
    "at_call",
    "at_iterate",
    "plainly",
]


# Raised by handlers, to choose the error that the caller gets


class DynamoException(DynamoError):
    """Base of the exceptions that handlers raise."""

    error_type, error_class, reason = reasons.BACKEND_UNKNOWN


class Unknown(DynamoException):
    """Something went wrong."""


class InvalidArgument(DynamoException):
    """The request is wrong. The caller and the end user get this text."""

    error_type, error_class, reason = reasons.BACKEND_INVALID_ARGUMENT

    @property
    def public(self) -> dict[str, object]:
        """The message for the end user."""
        return {"type": "message", "message": str(self)}


class CannotConnect(DynamoException):
    """The engine cannot be reached."""

    error_type, error_class, reason = reasons.BACKEND_CANNOT_CONNECT


class Disconnected(DynamoException):
    """The connection to the engine was lost."""

    error_type, error_class, reason = reasons.BACKEND_DISCONNECTED


class ConnectionTimeout(DynamoException):
    """The engine did not answer in time."""

    error_type, error_class, reason = reasons.BACKEND_CONNECTION_TIMEOUT


class Cancelled(DynamoException):
    """The request was cancelled."""

    error_type, error_class, reason = reasons.BACKEND_CANCELLED


class EngineShutdown(DynamoException):
    """The engine shuts down. Callers inhibit this worker."""

    error_type, error_class, reason = reasons.BACKEND_ENGINE_SHUTDOWN


class StreamIncomplete(DynamoException):
    """The answer is incomplete. Callers inhibit this worker."""

    error_type, error_class, reason = reasons.BACKEND_STREAM_INCOMPLETE


class WorkerUnavailable(DynamoException):
    """This worker cannot serve. Callers inhibit it."""

    error_type, error_class, reason = reasons.WORKER_UNAVAILABLE


class RouterQueueLimitExceeded(DynamoException):
    """The queue of a router is full."""


class SelectionServiceError(DynamoException):
    """The service that selects workers failed."""


class NotOffered(DynamoError, NotImplementedError):
    """A part of Dynamo's API that this package does not have."""


# Raised to callers


def at_await(error: DynamoError) -> DynamoError:
    """The error as it is raised where a call is awaited."""
    if isinstance(error, InvalidAddress):  # Dynamo shows no class for it
        return plainly(error, error.problem)
    if isinstance(error, RequestTooLarge):
        return plainly(error, f"{error.error_class}: {error.problem}")
    return plainly(error, display(error))


def at_iterate(error: DynamoError) -> DynamoError:
    """The error as it is raised while an answer is iterated."""
    public = getattr(error, "public", None)
    if error.error_class == reasons.INVALID_REQUEST.error_class and public and public.get("type") == "message":
        return InvalidArgument(str(public.get("message", "")))
    return _with_text(error, _also(type(error), ValueError), display(error))


def at_call(error: SerializationError) -> Exception:
    """The error as the call itself raises it, for a request that cannot be expressed."""
    if isinstance(error.__cause__, UnicodeEncodeError):
        return error.__cause__
    return _with_text(error, _also(type(error), TypeError if error.by_type else ValueError), error.problem)


def plainly(error: DynamoError, text: str) -> DynamoError:
    """The error with Dynamo's text."""
    return _with_text(error, type(error), text)


def argument_error(name: str, value: object, wanted: str) -> TypeError:
    """The TypeError of Dynamo's binding for an argument of the wrong type."""
    return TypeError(f"argument '{name}': '{type(value).__name__}' object cannot be converted to '{wanted}'")


def _with_text(error: DynamoError, kind: type[DynamoError], text: str) -> DynamoError:
    shown = kind.__new__(kind, text)
    shown.args = (text,)
    shown.__dict__.update(error.__dict__)
    shown.__cause__ = error.__cause__
    shown.__suppress_context__ = True
    return shown


def _also(kind: type[DynamoError], base: type[Exception]) -> type[DynamoError]:
    """A class that is both `kind` and `base`; the same one for each call."""
    if issubclass(kind, base):
        return kind
    both = _BOTH.get((kind, base))
    if both is None:
        members = {"__module__": kind.__module__, "__doc__": kind.__doc__}
        both = _BOTH[kind, base] = type(kind.__name__, (kind, base), members)
    return both


_BOTH: dict[tuple[type[DynamoError], type[Exception]], type[DynamoError]] = {}
