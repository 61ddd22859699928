"""`RequestPlaneClient`: what a transport of the request plane offers to the router."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

import msgspec

from dynamo_fast.errors import DynamoError

__all__ = ["Ack", "AckListener", "RequestConnection", "RequestPlaneClient"]


class RequestConnection(Protocol):
    """The connection that carried a request: as long as it lives, so does the worker."""

    @property
    def host(self) -> str:
        """The address of the worker."""

    def on_lost(self, callback: Callable[[], None]) -> None:
        """Call `callback()` when the connection is lost; at once if it is lost already."""

    def off_lost(self, callback: Callable[[], None]) -> None:
        """Do not call it any more."""


class Ack(msgspec.Struct, frozen=True):
    """A worker's acknowledgement of one request."""

    text: bytes
    """Empty: the request is taken. Anything else is a refusal, in words."""
    connection: RequestConnection | None = None
    """The connection that carried the request; None for a transport that has no such thing."""


class AckListener(Protocol):
    """What is told how a request was taken, at once and without a future."""

    def acknowledged(self, text: bytes, connection: RequestConnection) -> None:
        """The acknowledgement has come on `connection`. An empty `text`: the request is taken."""

    def unacknowledged(self, error: DynamoError) -> None:
        """It does not come, because of `error`."""

    def is_settled(self) -> bool:
        """Whether neither matters any more."""


@runtime_checkable
class RequestPlaneClient(Protocol):
    """Sends requests to workers by one kind of transport. See `transports` for the choice of a client.

    A router owns its clients, calls them on its event loop, and closes them.
    """

    @abstractmethod
    def send_request(self, address: str, payload: bytes, headers: Mapping[str, str]) -> asyncio.Future[Ack]:
        """Send one two-part `payload` to `address`; the future is the worker's acknowledgement.

        `address` is that of the worker's record, in the form of this transport. A client that has to connect first does
        so behind the future. Raises InvalidAddress or RequestTooLarge, with nothing sent. The future always ends; its
        errors are CannotConnect, ConnectionTimeout and ResourceExhausted (too many requests wait already).
        """

    @abstractmethod
    async def close(self) -> None:
        """Close every connection; requests that wait for their acknowledgement fail with CannotConnect."""
