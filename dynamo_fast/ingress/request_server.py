"""`RequestServer`: what a transport of the request plane offers to the worker.

A transport is a kind in a record: `TransportType.kind` names it, and the caller chooses its client by that name. Here is
the worker's half. `worker.REQUEST_SERVERS` maps Dynamo's name of each request plane to the server that takes its requests.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TypeAlias

from dynamo_fast.config import TcpServerConfig, TlsConfig
from dynamo_fast.ingress.buffered_bytes import BufferedBytes
from dynamo_fast.wire.instance import TransportType

__all__ = ["Accept", "RequestServer", "RequestServerFactory"]

Accept: TypeAlias = Callable[["bytes | memoryview", Mapping[str, str]], None]
"""`accept(payload, headers)`: an endpoint takes one request, or refuses it.

`payload` is the two-part message of the request, `headers` are the texts beside it. It returns at once; the answer goes
to the caller over the response plane. Raises RequestRefused: its text goes back to the caller as the acknowledgement.
"""


class RequestServer(ABC):
    """Takes the requests for the endpoints of one worker. The worker makes it, starts it and closes it, on one event loop.

    It acknowledges every request: with an empty text if `accept` returned, with the text of the error if it raised
    RequestRefused, and with "Server unavailable: unknown endpoint <path>" if no endpoint has the path.
    """

    @abstractmethod
    async def start(self) -> None:
        """Begin to take requests. Raises OSError if the address is in use or a broker is not reached, InvalidConfig for a
        setting."""

    @abstractmethod
    def transport(self, path: str) -> TransportType:
        """How callers reach the endpoint at `path`: kind and address for its record. Call it after `start`."""

    @abstractmethod
    def register(self, path: str, accept: Accept, alias: str = "") -> None:
        """Serve `path` with `accept`, in place of an earlier one; also under `alias` while no other path has it."""

    async def listening(self) -> None:  # noqa: B027  # a server that listens itself has nothing to wait for
        """Wait until callers reach every path that is registered, which may need a broker. Raises CannotConnect."""

    @abstractmethod
    def unregister(self, path: str) -> None:
        """Refuse requests for `path` from now on. Accepted requests run on."""

    @abstractmethod
    async def close(self) -> None:
        """Take no more requests and close all connections. Accepted requests run on. May be called twice."""


RequestServerFactory: TypeAlias = Callable[[TcpServerConfig, BufferedBytes, TlsConfig], RequestServer]
"""Makes the server of a worker. The bytes that its connections hold of unfinished requests count in the `BufferedBytes`.
Raises InvalidConfig."""
