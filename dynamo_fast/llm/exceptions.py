"""The drop-in for `dynamo.llm.exceptions`: what a handler raises to choose the error that its caller gets.

from dynamo_fast.llm.exceptions import InvalidArgument      # was: from dynamo.llm.exceptions import InvalidArgument
"""

from __future__ import annotations

from dynamo_fast.logs import get_logger
from dynamo_fast.runtime.exceptions import (
    Cancelled,
    CannotConnect,
    ConnectionTimeout,
    Disconnected,
    DynamoException,
    EngineShutdown,
    InvalidArgument,
    RouterQueueLimitExceeded,
    SelectionServiceError,
    StreamIncomplete,
    Unknown,
    WorkerUnavailable,
)

__all__ = [
    "Cancelled",
    "CannotConnect",
    "ConnectionTimeout",
    "Disconnected",
    "DynamoException",
    "EngineShutdown",
    "HttpError",
    "InvalidArgument",
    "RouterQueueLimitExceeded",
    "SelectionServiceError",
    "StreamIncomplete",
    "Unknown",
    "WorkerUnavailable",
]

logger = get_logger(__name__)

_MAX_MESSAGE = 8192
_MAX_CODE = 599


class HttpError(Exception):
    """The frontend answers with this HTTP status, 0 to 599, and this message of at most 8192 characters.

    A longer message is cut, and logged. Raises ValueError for other arguments.
    """

    def __init__(self, code: int, message: str) -> None:
        if not isinstance(code, int) or isinstance(code, bool):
            raise ValueError("HttpError status code must be an integer")
        if not isinstance(message, str):
            raise ValueError("HttpError message must be a string")
        if not 0 <= code <= _MAX_CODE:
            raise ValueError("HTTP status code must be an integer between 0 and 599")
        if len(message) > _MAX_MESSAGE:
            logger.warning(
                "HttpError message length %d exceeds max length %d, truncating...", len(message), _MAX_MESSAGE
            )
            message = message[: _MAX_MESSAGE - 3] + "..."
        super().__init__(f"HTTP {code}: {message}")
        self.code = code
        """The HTTP status."""
        self.message = message
        """What the client reads."""
