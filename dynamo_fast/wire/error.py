"""Errors as they travel: in a prologue and in error items (transport.md 7.3, 7.4).

An error object has the words of two generations. Dynamo 1.3 reads `error_type` and `message`, and cannot read a frame
whose `error_type` it does not know. Dynamo 1.6 reads `class`, `reason` and `diagnostic`, and derives a missing word from
the older ones. This module writes all of them, and reads any of them. The words are in `dynamo_fast.reasons`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from dynamo_fast import reasons
from dynamo_fast.errors import DynamoError, RemoteError
from dynamo_fast.reasons import Words
from dynamo_fast.wire._plain import UNWRITABLE, is_plain
from dynamo_fast.wire.json_text import dumps
from dynamo_fast.wire.text import shown

__all__ = ["MAX_CAUSES", "decode_error", "display", "encodable", "encode_error", "from_exception", "text_of"]

MAX_TEXT_SIZE = 4096
"""Bytes of an error's text; a longer text is cut (1.6)."""
MAX_CAUSES = 64
"""How many errors of a chain of causes are read or written, the outermost first. Dynamo's JSON parser takes 127 levels."""
_MAX_PUBLIC_DEPTH = 32
_CUT = "...[truncated]"

_OF_STATUS = {
    401: reasons.UNAUTHENTICATED,
    403: reasons.PERMISSION_DENIED,
    404: reasons.NOT_FOUND,
    408: reasons.DEADLINE_EXCEEDED,
    409: reasons.CONFLICT,
    413: reasons.PAYLOAD_TOO_LARGE,
    415: reasons.UNSUPPORTED_MEDIA,
    429: reasons.RATE_LIMITED,
    431: reasons.PAYLOAD_TOO_LARGE,
    499: reasons.CANCELLED,
    501: reasons.NOT_IMPLEMENTED,
    502: reasons.BACKEND_PROTOCOL,
    503: reasons.UNAVAILABLE,
    504: reasons.DEADLINE_EXCEEDED,
    529: reasons.CAPACITY_EXHAUSTED,
}
"""HTTP status -> words. Others of 400 to 499 are invalid requests, the rest internal errors."""


def encode_error(error: DynamoError) -> dict[str, Any]:
    """The JSON object of an error and of its causes, with the keys in the order of Dynamo 1.6.

    Both payload codecs can write it, for every error.
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
    """The error in a JSON object of either generation, with its chain of causes (`caused_by`).

    Never raises: an object that makes no sense becomes an Internal error.
    """
    # Read from the outermost error inwards, then build from the innermost outwards.
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
    words = _words(value.get("class"), value.get("reason"), reasons.BY_TYPE.get(error_type or ""))
    public = value.get("public")
    return RemoteError(
        _text(value.get("diagnostic")) or _text(value.get("message")),
        error_type=error_type or words.error_type,
        error_class=words.error_class,
        reason=words.reason,
        public=public if isinstance(public, dict) and words.reason != reasons.INVALID_ERROR.reason else None,
    )


def _words(error_class: object, reason: object, by_type: Words | None) -> Words:
    """The words of 1.6, from those that were given (if any) and from those of the older type."""
    if error_class is None:
        derived = by_type or reasons.UNCLASSIFIED
    elif not isinstance(error_class, str) or error_class not in reasons.BY_CLASS:
        return reasons.INVALID_ERROR
    elif by_type is not None and by_type.error_class == error_class:
        derived = by_type
    else:
        derived = reasons.BY_CLASS[error_class]
    if reason is None:
        return derived
    if not isinstance(reason, str) or reasons.CLASS_OF_REASON.get(reason) != derived.error_class:
        return reasons.INVALID_ERROR
    return derived._replace(reason=reason)


def display(error: DynamoError) -> str:
    """The error as Dynamo 1.6 shows it: its class, then its text, or its reason where it has none."""
    return f"{error.error_class}: {error.message or error.reason}"


def from_exception(error: BaseException) -> DynamoError:
    """The error that a worker sends for an exception that its handler raised.

    The type of the exception decides, as in Dynamo's own worker. The text is `TypeName: text`; for an exception with an
    HTTP status in `code` or `status` and with a `message`, it is both as JSON; an error of this package or of `dynamo`
    keeps its text alone.
    """
    if isinstance(error, DynamoError):
        # The error happened behind the worker, not on the way to it. If it stayed a `Disconnected`, for example, the
        # router would avoid this worker.
        words = reasons.BY_TYPE.get(f"Backend.{error.error_type}", reasons.BACKEND_UNKNOWN)
        return error if words is reasons.BACKEND_UNKNOWN else RemoteError.of(words, error.message)
    status = _status(error)
    if status is not None:
        return _from_status(status, error.message)  # type: ignore[attr-defined]  # see _status
    if isinstance(error, GeneratorExit):
        return RemoteError.of(reasons.BACKEND_ENGINE_SHUTDOWN, "engine shutting down")
    dynamo_words = _dynamo_words(error)
    if dynamo_words is not None:
        remote = RemoteError.of(dynamo_words, text_of(error))
        if dynamo_words is reasons.BACKEND_INVALID_ARGUMENT:
            remote.public = {"type": "message", "message": remote.message}
        return remote
    return RemoteError.of(_python_words(error), f"{type(error).__name__}: {text_of(error)}")


def text_of(error: BaseException) -> str:
    """The text of any exception, in characters that can be encoded. Never raises."""
    try:
        return encodable(str(error))
    except Exception as another:
        return f"<its text raises {type(another).__name__}>"


def _dynamo_words(error: BaseException) -> Words | None:
    """The words of an exception of `dynamo.llm.exceptions`, found by its name: `dynamo` need not be installed."""
    for kind in type(error).__mro__:
        if kind.__module__.partition(".")[0] == "dynamo":
            if kind.__name__ == reasons.WORKER_UNAVAILABLE.error_type:
                return reasons.WORKER_UNAVAILABLE
            return reasons.BY_TYPE.get(f"Backend.{kind.__name__}", reasons.BACKEND_UNKNOWN)
    return None


def _python_words(error: BaseException) -> Words:
    # asyncio's own TimeoutError is another class until Python 3.11.
    if isinstance(error, (TimeoutError, asyncio.TimeoutError)):
        return reasons.BACKEND_CONNECTION_TIMEOUT
    if isinstance(error, ConnectionRefusedError):
        return reasons.BACKEND_CANNOT_CONNECT
    if isinstance(error, ConnectionError):
        return reasons.BACKEND_DISCONNECTED
    if isinstance(error, asyncio.CancelledError):
        return reasons.BACKEND_CANCELLED
    if isinstance(error, (ValueError, TypeError)):
        return reasons.BACKEND_INVALID_ARGUMENT
    return reasons.BACKEND_UNKNOWN


def _status(error: BaseException) -> int | None:
    status = getattr(error, "code", getattr(error, "status", None))
    if not isinstance(status, int) or not 0 <= status < 1 << 16:
        return None
    return int(status) if isinstance(getattr(error, "message", None), str) else None


def _from_status(status: int, message: str) -> RemoteError:
    other = reasons.INVALID_REQUEST if 400 <= status <= 499 else reasons.INTERNAL
    text = json.dumps({"message": message, "code": status}, separators=(",", ":"), ensure_ascii=False)
    return RemoteError.of(_OF_STATUS.get(status, other), text)


def _wire_type(error_type: str) -> str | dict[str, str]:
    """The `error_type` as 1.3 reads it. A type that 1.3.1 does not know becomes the nearest one that it knows."""
    error_type = reasons.OLDER_TYPES.get(error_type, error_type)
    is_known = error_type in reasons.BY_TYPE
    if error_type.startswith("Backend."):
        return {"Backend": error_type.removeprefix("Backend.") if is_known else "Unknown"}
    return error_type if is_known else "Unknown"


def _is_writable(public: object) -> bool:
    try:
        dumps(public)
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
