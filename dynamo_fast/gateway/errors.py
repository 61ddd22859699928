"""`HttpError`: an error as an HTTP status and a body, and which status the errors of this package get.

before the first item    a status, and {"error":{"message":..,"type":..,"code":STATUS}}
after the head           the same object as an item of the stream
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from aiohttp import web

from dynamo_fast.errors import DynamoError, InvalidRequest, RemoteError, RequestTooLarge
from dynamo_fast.wire.text import printable

__all__ = ["CLIENT_GONE", "HttpError", "http_error"]

CLIENT_GONE = 499
OVERLOADED = 529
RETRY_AFTER = "1"
"""Seconds, for the statuses that say "later"."""

_OF_CLASS = {
    "InvalidRequest": 400,
    "Unauthenticated": 401,
    "PermissionDenied": 403,
    "NotFound": 404,
    "Conflict": 409,
    "PayloadTooLarge": 413,
    "UnsupportedMedia": 415,
    "RateLimited": 429,
    "Cancelled": CLIENT_GONE,
    "NotImplemented": 501,
    "BackendProtocol": 502,
    "Unavailable": 503,
    "DeadlineExceeded": 504,
    "CapacityExhausted": OVERLOADED,
}
"""Class of an error, in the words of Dynamo 1.6 -> status. Every other class is 500."""

_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
    CLIENT_GONE: "cancelled",
    501: "not_implemented_error",
    503: "service_unavailable",
    504: "timeout_error",
    OVERLOADED: "overloaded_error",
}
_REASONS = {CLIENT_GONE: "Client Closed Request", OVERLOADED: "Site is overloaded"}
_HIDDEN = {
    501: "Not implemented",
    502: "The worker's answer is not valid",
    503: "Service temporarily unavailable",
    504: "The worker did not answer in time",
    OVERLOADED: "All workers are busy, please retry later",
    CLIENT_GONE: "The request was cancelled",
}
_LATER = (429, 503, OVERLOADED)
_encode = msgspec.json.Encoder().encode


class HttpError(Exception):
    """An error with its HTTP status. `detail` is the whole text, for logs and observers; `message` goes to the client."""

    def __init__(
        self, status: int, message: str, *, detail: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.detail = message if detail is None else detail
        self.headers = dict(headers or {})
        if status in _LATER:
            self.headers.setdefault("Retry-After", RETRY_AFTER)

    @property
    def kind(self) -> str:
        """The word for programs: OpenAI's where it has one."""
        return _KINDS.get(self.status) or ("invalid_request_error" if self.status < 500 else "internal_server_error")

    def body(self) -> bytes:
        """As JSON."""
        error: dict[str, Any] = {"message": self.message, "type": self.kind, "code": self.status}
        return _encode({"error": error})

    def response(self) -> web.Response:
        """The whole answer. With the header `Connection: close` the connection ends with it."""
        response = web.Response(
            body=self.body(),
            status=self.status,
            reason=_REASONS.get(self.status),
            content_type="application/json",
            headers=self.headers,
        )
        if "Connection" in self.headers:
            response.force_close()
        return response


def http_error(error: BaseException, show: bool = False) -> HttpError:
    """The status and the text for `error`. Only errors of the client show their text, unless `show` is true."""
    if isinstance(error, HttpError):
        return error
    status = _status(error)
    detail = printable(f"{type(error).__name__}: {error}")
    return HttpError(status, _message(error, status, show), detail=detail)


def _status(error: BaseException) -> int:
    if isinstance(error, RequestTooLarge):
        return 413
    if isinstance(error, DynamoError):
        return _OF_CLASS.get(error.error_class, 500)
    return 500


def _message(error: BaseException, status: int, show: bool) -> str:
    if show or isinstance(error, InvalidRequest):
        return printable(str(error))
    if isinstance(error, RemoteError) and error.public:
        public = error.public.get("message")
        if isinstance(public, str):
            return printable(public)
    if status == 400:
        return "Invalid request"
    return _HIDDEN.get(status) or ("Internal server error" if status >= 500 else HTTPStatus(status).phrase)
