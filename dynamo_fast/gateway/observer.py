"""`Observer`: who is told what the gateway does. The metrics are one; a page that shows it live is another."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Observer", "RequestObserver"]


class RequestObserver(Protocol):
    """Is told of one request, on the event loop. Its methods must not block and must not raise."""

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
