"""`Observer`: who is told what the gateway does. The metrics are one; a page that shows it live is another."""

from __future__ import annotations

from typing import Protocol

from dynamo_fast.logs import get_logger

__all__ = ["Guarded", "Observer", "RequestObserver"]

logger = get_logger(__name__)


class RequestObserver(Protocol):
    """Is told of one request, on the event loop. Its methods must not block and should not raise."""

    def items(self, count: int) -> None:
        """`count` items came and leave in one write. The first call is the first item."""

    def ended(self, status: int, error: str | None) -> None:
        """The request is over. Called once, last.

        `status`: the HTTP status; for an error after the head of the answer the status that the error has; 499 if the
        client has gone. `error`: its whole text, which the client may not have seen.
        """


class Observer(Protocol):
    """Is told of every request that reaches a worker's endpoint."""

    def request_started(self, endpoint: str, model: str | None, request_id: str) -> RequestObserver:
        """A request begins. `endpoint` is `namespace.component.endpoint`; `model` is given for OpenAI's routes."""


class Guarded:
    """An observer of the program, whose errors do not become errors of requests. Owned by the application.

    An observer that raises hears no more of that request. Its first error is logged.
    """

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._has_failed = False

    def request_started(self, endpoint: str, model: str | None, request_id: str) -> RequestObserver:
        """See Observer."""
        try:
            return _GuardedRequest(self, self._observer.request_started(endpoint, model, request_id))
        except Exception as error:
            self.failed(error)
            return _GuardedRequest(self, None)

    def failed(self, error: Exception) -> None:
        """The observer has raised `error`."""
        if not self._has_failed:
            self._has_failed = True
            logger.warning(
                "an observer of the gateway raises, and misses what it raises for; its further errors are not logged",
                exc_info=error,
            )


class _GuardedRequest:
    """See RequestObserver. `told` is None after an error."""

    __slots__ = ("_guarded", "_told")

    def __init__(self, guarded: Guarded, told: RequestObserver | None) -> None:
        self._guarded = guarded
        self._told = told

    def items(self, count: int) -> None:
        if self._told is not None:
            try:
                self._told.items(count)
            except Exception as error:
                self._told = None
                self._guarded.failed(error)

    def ended(self, status: int, error: str | None) -> None:
        if self._told is not None:
            try:
                self._told.ended(status, error)
            except Exception as failure:
                self._guarded.failed(failure)
