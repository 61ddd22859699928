"""Addresses: of a worker's endpoint, of a router's response server, and the names of endpoints (transport.md 2.5, 4.1)."""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from typing import NamedTuple

from dynamo_fast.errors import InvalidAddress
from dynamo_fast.wire.text import printable

__all__ = [
    "EndpointId",
    "EndpointInstanceId",
    "TcpAddress",
    "endpoint_path",
    "join_host_port",
    "legacy_endpoint_path",
    "split_host_port",
]

_MAX_PORT = 0xFFFF
_PORT = re.compile(r"0{0,10}[0-9]{1,5}")
_SCOPE = re.compile(r"[A-Za-z0-9._-]{1,15}")  # an index or a name of an interface, which has 15 characters at most


class EndpointId(NamedTuple):
    """The name of an endpoint. Dynamo checks none of its parts, and neither does this."""

    namespace: str
    component: str
    name: str

    @classmethod
    def parse(cls, text: str) -> EndpointId:
        """`namespace.component.endpoint`, with or without `dyn://` in front. Raises InvalidAddress."""
        parts = text.removeprefix("dyn://").split(".")
        if len(parts) != 3:
            raise InvalidAddress(
                f"Invalid endpoint path '{printable(text)}'. Expected format: 'namespace.component.endpoint' or "
                "'dyn://namespace.component.endpoint'"
            )
        return cls(*parts)

    def __str__(self) -> str:
        return f"{self.namespace}/{self.component}/{self.name}"


class EndpointInstanceId(NamedTuple):
    """One process's instance of an endpoint."""

    namespace: str
    component: str
    endpoint: str
    instance_id: int

    def __str__(self) -> str:
        return f"{self.namespace}/{self.component}/{self.endpoint}/{self.instance_id}"


class TcpAddress(NamedTuple):
    """Where the requests for an endpoint go: `host` is an IP address without brackets, `path` is the worker's affair."""

    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, text: str) -> TcpAddress:
        """`[tcp://]IP:PORT/PATH`, IPv6 in brackets. Raises InvalidAddress: host names are none, as in Dynamo."""
        socket_address, slash, path = text.removeprefix("tcp://").partition("/")
        host, port = _parse_socket_address(text, socket_address)
        if not slash:
            raise InvalidAddress(
                f"Invalid TCP address '{printable(text)}': the endpoint path is missing",
                "expected IP:PORT/PATH, as workers publish it",
            )
        return cls(host, port, path)

    def __str__(self) -> str:
        return f"{join_host_port(self.host, self.port)}/{self.path}"


@lru_cache(maxsize=4096)  # a worker reads the addresses of the same few routers with every request
def split_host_port(text: str) -> tuple[str, int]:
    """The two halves of a response server's address. Raises InvalidAddress.

    Dynamo 1.3.1 writes IPv6 without brackets (`::1:33137`), so the last colon is the one that counts.
    """
    host, _, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    return _checked(text, host[1:-1] if bracketed else host, port, accepted="IP:PORT")


def join_host_port(host: str, port: int) -> str:
    """`host:port`, with brackets around IPv6."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def endpoint_path(endpoint: EndpointId, instance_id: int) -> str:
    """The path under which a worker of Dynamo 1.6 serves an endpoint."""
    return f"{instance_id:x}/{endpoint}"


def legacy_endpoint_path(endpoint: EndpointId, instance_id: int) -> str:
    """The path of Dynamo 1.3: two components of a process that have an endpoint of the same name share it."""
    return f"{instance_id:x}/{endpoint.name}"


def _parse_socket_address(text: str, socket_address: str) -> tuple[str, int]:
    host, _, port = socket_address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    if bracketed != (":" in host):  # IPv6 without brackets, or brackets without IPv6
        raise _invalid(text)
    return _checked(text, host, port)


def _checked(text: str, host: str, port: str, accepted: str = "IP:PORT/PATH") -> tuple[str, int]:
    if _PORT.fullmatch(port) is None or (number := int(port[-5:])) > _MAX_PORT:
        raise _invalid(text, accepted)
    address, percent, scope = host.partition("%")
    if percent and _SCOPE.fullmatch(scope) is None:
        raise _invalid(text, accepted)
    try:
        ipaddress.ip_address(address)
    except ValueError:
        raise _invalid(text, accepted) from None
    return host, number


def _invalid(text: str, accepted: str = "IP:PORT/PATH") -> InvalidAddress:
    return InvalidAddress(
        f"Invalid TCP address '{printable(text)}': invalid socket address syntax",
        f"expected {accepted}, with IPv6 in brackets",
    )
