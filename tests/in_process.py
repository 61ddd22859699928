"""A transport of the request plane without sockets: `InProcessPlane` has a server for workers and a client for callers.

It shows what a transport must do, and that nothing else in the package depends on TCP for requests. Answers go over the
usual response plane.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping

from dynamo_fast.config import TcpServerConfig, TlsConfig
from dynamo_fast.egress.request_client import Ack, RequestPlaneClient
from dynamo_fast.errors import CannotConnect, RequestRefused
from dynamo_fast.ingress.buffered_bytes import BufferedBytes
from dynamo_fast.ingress.request_server import Accept, RequestServer
from dynamo_fast.wire.instance import TransportType

__all__ = ["KIND", "InProcessPlane"]

KIND = "in_process"
"""The kind in the records of workers that are reached so."""


class InProcessPlane:
    """The servers of one process, by name. Owned by a test; its servers and clients are used on one event loop."""

    def __init__(self) -> None:
        self.servers: dict[str, InProcessServer] = {}
        self.numbers = itertools.count(1)

    def server(self, config: TcpServerConfig, buffered: BufferedBytes, tls: TlsConfig) -> RequestServer:
        """A `RequestServerFactory`. (Requests come whole: there is nothing to count in `buffered`.)"""
        return InProcessServer(self)

    def client(self) -> RequestPlaneClient:
        return InProcessClient(self)


class InProcessServer(RequestServer):
    """One worker's paths. It is in the plane from `start` to `close`."""

    def __init__(self, plane: InProcessPlane) -> None:
        self._plane = plane
        self._name = f"worker-{next(plane.numbers)}"
        self._endpoints: dict[str, Accept] = {}

    async def start(self) -> None:
        self._plane.servers[self._name] = self

    def transport(self, path: str) -> TransportType:
        return TransportType(KIND, f"{self._name}/{path}")

    def register(self, path: str, accept: Accept, alias: str = "") -> None:
        self._endpoints[path] = accept

    def unregister(self, path: str) -> None:
        self._endpoints.pop(path, None)

    async def close(self) -> None:
        self._plane.servers.pop(self._name, None)

    def take(self, path: str, payload: bytes, headers: Mapping[str, str]) -> str:
        """The text of the acknowledgement."""
        accept = self._endpoints.get(path)
        if accept is None:
            return f"Server unavailable: unknown endpoint {path}"
        try:
            accept(payload, headers)
        except RequestRefused as refusal:
            return str(refusal)
        return ""


class InProcessClient(RequestPlaneClient):
    """Hands requests to the servers of its plane. The acknowledgement comes in a later turn of the loop."""

    def __init__(self, plane: InProcessPlane) -> None:
        self._plane = plane
        self._is_closed = False

    def send_request(self, address: str, payload: bytes, headers: Mapping[str, str]) -> asyncio.Future[Ack]:
        ack: asyncio.Future[Ack] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(self._deliver, ack, address, payload, dict(headers))
        return ack

    async def close(self) -> None:
        self._is_closed = True

    def _deliver(self, ack: asyncio.Future[Ack], address: str, payload: bytes, headers: Mapping[str, str]) -> None:
        if ack.done():
            return
        name, _, path = address.partition("/")
        server = self._plane.servers.get(name)
        if self._is_closed or server is None:
            ack.set_exception(CannotConnect(f"no worker {name} in this process"))
        else:
            ack.set_result(Ack(server.take(path, payload, headers).encode()))
