"""Errors as they travel: in a prologue and in error items (transport.md 7.3, 7.4).

Two generations of words stand side by side in one object. Dynamo 1.3 reads `error_type` and `message`, and cannot read a
frame whose `error_type` it does not know; Dynamo 1.6 reads `class`, `reason` and `diagnostic`, and derives what is
missing from the older words. What is written here has all of them; what is read may have any.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import orjson

from dynamo_fast.errors import DynamoError, RemoteError
from dynamo_fast.wire._plain import UNWRITABLE, is_plain
from dynamo_fast.wire.text import shown

__all__ = ["MAX_CAUSES", "decode_error", "display", "encodable", "encode_error", "from_exception", "text_of"]

MAX_TEXT_SIZE = 4096
"""Bytes of an error's text; what is longer is cut (1.6)."""
MAX_CAUSES = 64
"""Errors of a chain of causes, the outermost first, that are read or written. Dynamo's parser takes 127 levels of JSON."""
_MAX_PUBLIC_DEPTH = 32
_CUT = "...[truncated]"

# error_type (1.3) -> class and reason (1.6)
_OF_TYPE = {
    "Unknown": ("Internal", "runtime.unclassified"),
    "InvalidArgument": ("InvalidRequest", "request.invalid_argument"),
    "CannotConnect": ("Unavailable", "transport.cannot_connect"),
    "Disconnected": ("Unavailable", "transport.disconnected"),
    "ConnectionTimeout": ("DeadlineExceeded", "transport.connection_timeout"),
    "ResponseTimeout": ("DeadlineExceeded", "backend.response_timeout"),
    "Cancelled": ("Cancelled", "request.cancelled"),
    "ResourceExhausted": ("CapacityExhausted", "capacity.pool_exhausted"),
    "WorkerOverloaded": ("CapacityExhausted", "capacity.worker_overloaded"),
    "Unavailable": ("Unavailable", "backend.unavailable"),
    "WorkerUnavailable": ("Unavailable", "backend.worker_unavailable"),
    "Backend.Unknown": ("Internal", "backend.unknown"),
    "Backend.InvalidArgument": ("InvalidRequest", "backend.invalid_argument"),
    "Backend.CannotConnect": ("Unavailable", "backend.cannot_connect"),
    "Backend.Disconnected": ("Unavailable", "backend.disconnected"),
    "Backend.ConnectionTimeout": ("DeadlineExceeded", "backend.connection_timeout"),
    "Backend.ResponseTimeout": ("DeadlineExceeded", "backend.response_timeout"),
    "Backend.Cancelled": ("Cancelled", "backend.cancelled"),
    "Backend.EngineShutdown": ("Unavailable", "backend.engine_shutdown"),
    "Backend.StreamIncomplete": ("Unavailable", "backend.stream_incomplete"),
}
# class (1.6) -> its default reason, and the error_type that 1.3 can read
_OF_CLASS = {
    "Internal": ("runtime.internal", "Unknown"),
    "InvalidRequest": ("request.invalid", "InvalidArgument"),
    "Unauthenticated": ("request.unauthenticated", "Unknown"),
    "PermissionDenied": ("request.permission_denied", "Unknown"),
    "NotFound": ("request.not_found", "Unknown"),
    "Conflict": ("request.conflict", "Unknown"),
    "PayloadTooLarge": ("request.payload_too_large", "InvalidArgument"),
    "UnsupportedMedia": ("request.unsupported_media", "InvalidArgument"),
    "RateLimited": ("request.rate_limited", "ResourceExhausted"),
    "Cancelled": ("request.cancelled", "Cancelled"),
    "DeadlineExceeded": ("request.deadline_exceeded", "ResponseTimeout"),
    "CapacityExhausted": ("capacity.exhausted", "ResourceExhausted"),
    "Unavailable": ("backend.unavailable", "Unavailable"),
    "BackendProtocol": ("backend.protocol", "Unknown"),
    "NotImplemented": ("runtime.not_implemented", "Unknown"),
}
_CLASS_OF_REASON = {
    **{reason: error_class for error_class, reason in _OF_TYPE.values()},
    **{reason: error_class for error_class, (reason, _) in _OF_CLASS.items()},
}
_INVALID = ("Internal", "runtime.invalid_error")
_CLASS_OF_REASON[_INVALID[1]] = _INVALID[0]

# HTTP status -> class. Others of 400 to 499 are InvalidRequest, the rest Internal.
_CLASS_OF_STATUS = {
    401: "Unauthenticated",
    403: "PermissionDenied",
    404: "NotFound",
    408: "DeadlineExceeded",
    409: "Conflict",
    413: "PayloadTooLarge",
    415: "UnsupportedMedia",
    429: "RateLimited",
    431: "PayloadTooLarge",
    499: "Cancelled",
    501: "NotImplemented",
    502: "BackendProtocol",
    503: "Unavailable",
    504: "DeadlineExceeded",
    529: "CapacityExhausted",
}


def encode_error(error: DynamoError) -> dict[str, Any]:
    """The JSON object of an error and of what caused it, with the keys in the order of Dynamo 1.6.

    Both payload codecs can write it, whatever the error holds.
    """
    encoded: dict[str, Any] | None = None
    for link in reversed(error.chain()[:MAX_CAUSES]):
        outer = _encode_one(link)
        if encoded is not None:
            outer["caused_by"] = encoded
        encoded = outer
    assert encoded is not None
    return encoded


def _encode_one(error: DynamoError) -> dict[str, Any]:
    text = _cut(error.message)
    encoded: dict[str, Any] = {
        "error_type": _wire_type(error.error_type),
        "class": error.error_class,
        "reason": error.reason,
        "message": text,
    }
    if text:
        encoded["diagnostic"] = text
    public = getattr(error, "public", None)
    if public is not None and _is_writable(public):
        encoded["public"] = public
    return encoded


def decode_error(value: object) -> RemoteError:
    """The error that a JSON object says, whichever generation wrote it. Never raises: what makes no sense is Internal.

    Its causes are its chain of `caused_by`.
    """
    # Causes are taken from the outside in and built from the inside out.
    levels = [value if isinstance(value, Mapping) else {"message": value}]
    while len(levels) < MAX_CAUSES and isinstance(cause := levels[-1].get("caused_by"), Mapping):
        levels.append(cause)
    error: RemoteError | None = None
    for level in reversed(levels):
        outer = _decode_one(level)
        outer.__cause__ = error
        error = outer
    assert error is not None
    return error


def _decode_one(value: Mapping[str, Any]) -> RemoteError:
    error_type = _type_of(value.get("error_type"))
    error_class, reason = _words(value.get("class"), value.get("reason"), _OF_TYPE.get(error_type or ""))
    public = value.get("public")
    return RemoteError(
        _text(value.get("diagnostic")) or _text(value.get("message")),
        error_type=error_type or _OF_CLASS[error_class][1],
        error_class=error_class,
        reason=reason,
        public=public if isinstance(public, dict) and reason != _INVALID[1] else None,
    )


def _words(error_class: object, reason: object, by_type: tuple[str, str] | None) -> tuple[str, str]:
    """The class and the reason of 1.6, from those that were given (if any) and from the older word's."""
    if error_class is None:
        error_class, derived = by_type or ("Internal", "runtime.unclassified")
    elif not isinstance(error_class, str) or error_class not in _OF_CLASS:
        return _INVALID
    elif by_type is not None and by_type[0] == error_class:
        derived = by_type[1]
    else:
        derived = _OF_CLASS[error_class][0]
    if reason is None:
        return error_class, derived
    if not isinstance(reason, str) or _CLASS_OF_REASON.get(reason) != error_class:
        return _INVALID
    return error_class, reason


def display(error: DynamoError) -> str:
    """The error as Dynamo 1.6 shows it: its class, then its text, or its reason where it has none."""
    return f"{error.error_class}: {error.message or error.reason}"


def from_exception(error: BaseException) -> DynamoError:
    """What a worker tells the router about an exception that its handler raised.

    Told by type, as Dynamo's own worker does: the text is `TypeName: text`, or, for an exception with an HTTP status in
    `code` or `status` and a `message`, both as JSON; an error of this package, or of `dynamo`, has its text alone.
    """
    if isinstance(error, DynamoError):
        # What went wrong behind the worker did not go wrong on the way to it: a `Disconnected` that the handler met
        # must not make the router avoid this worker.
        backend_type = f"Backend.{error.error_type}"
        known = error.error_type != "Unknown" and backend_type in _OF_TYPE
        return _remote(backend_type, error.message) if known else error
    status = _status(error)
    if status is not None:
        return _from_status(status, error.message)  # type: ignore[attr-defined]  # see _status
    if isinstance(error, GeneratorExit):
        return _remote("Backend.EngineShutdown", "engine shutting down")
    dynamo_type = _dynamo_type(error)
    if dynamo_type is not None:
        remote = _remote(dynamo_type, text_of(error))
        if dynamo_type == "Backend.InvalidArgument":
            remote.public = {"type": "message", "message": remote.message}
        return remote
    return _remote(_backend_type(error), f"{type(error).__name__}: {text_of(error)}")


def text_of(error: BaseException) -> str:
    """The text of any exception, in characters that can be encoded. Never raises."""
    try:
        return encodable(str(error))
    except Exception as another:
        return f"<its text raises {type(another).__name__}>"


def _dynamo_type(error: BaseException) -> str | None:
    """The type of an exception of `dynamo.llm.exceptions`, told by its name: `dynamo` may well not be installed."""
    for kind in type(error).__mro__:
        if kind.__module__.partition(".")[0] == "dynamo":
            if kind.__name__ == "WorkerUnavailable":
                return "WorkerUnavailable"
            name = f"Backend.{kind.__name__}"
            return name if name in _OF_TYPE else "Backend.Unknown"
    return None


def _backend_type(error: BaseException) -> str:
    # asyncio's own TimeoutError is another class until Python 3.11.
    if isinstance(error, (TimeoutError, asyncio.TimeoutError)):
        return "Backend.ConnectionTimeout"
    if isinstance(error, ConnectionRefusedError):
        return "Backend.CannotConnect"
    if isinstance(error, ConnectionError):
        return "Backend.Disconnected"
    if isinstance(error, asyncio.CancelledError):
        return "Backend.Cancelled"
    if isinstance(error, (ValueError, TypeError)):
        return "Backend.InvalidArgument"
    return "Backend.Unknown"


def _remote(error_type: str, text: str) -> RemoteError:
    error_class, reason = _OF_TYPE[error_type]
    return RemoteError(text, error_type=error_type, error_class=error_class, reason=reason)


def _status(error: BaseException) -> int | None:
    status = getattr(error, "code", getattr(error, "status", None))
    if not isinstance(status, int) or not 0 <= status < 1 << 16:
        return None
    return int(status) if isinstance(getattr(error, "message", None), str) else None


def _from_status(status: int, message: str) -> RemoteError:
    error_class = _CLASS_OF_STATUS.get(status, "InvalidRequest" if 400 <= status <= 499 else "Internal")
    reason, error_type = _OF_CLASS[error_class]
    text = json.dumps({"message": message, "code": status}, separators=(",", ":"), ensure_ascii=False)
    return RemoteError(text, error_type=error_type, error_class=error_class, reason=reason)


def _wire_type(error_type: str) -> str | dict[str, str]:
    """The older word in its older form; a word that 1.3 would not know becomes the nearest that it does."""
    if error_type.startswith("Backend."):
        backend = error_type.removeprefix("Backend.")
        return {"Backend": backend if f"Backend.{backend}" in _OF_TYPE else "Unknown"}
    if error_type == "WorkerOverloaded":
        return "ResourceExhausted"
    if error_type == "WorkerUnavailable":
        return "Unavailable"
    return error_type if error_type in _OF_TYPE else "Unknown"


def _is_writable(public: object) -> bool:
    try:
        orjson.dumps(public)
    except UNWRITABLE:
        return False
    return is_plain(public, _MAX_PUBLIC_DEPTH)


def _type_of(value: object) -> str | None:
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping) and isinstance(backend := value.get("Backend"), str):
        return f"Backend.{backend}"
    return None


def _text(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else shown(value)


def encodable(text: str) -> str:
    """`text` with a question mark for each half of a surrogate pair, which UTF-8 does not have."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _cut(text: str) -> str:
    data = text.encode("utf-8", "replace")
    if len(data) <= MAX_TEXT_SIZE:
        return data.decode("utf-8")
    return data[: MAX_TEXT_SIZE - len(_CUT)].decode("utf-8", "ignore") + _CUT
