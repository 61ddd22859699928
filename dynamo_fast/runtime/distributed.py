"""`DistributedRuntime`, as `dynamo.runtime` has it (runtime.md 1.1, 4.1 and 7.3)."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable
from typing import Any

from dynamo_fast.config import NatsConfig, RuntimeConfig, TlsConfig
from dynamo_fast.discovery.connect import check_kind, connect
from dynamo_fast.errors import InvalidConfig
from dynamo_fast.ingress.worker import REQUEST_SERVERS
from dynamo_fast.runtime.endpoint import Endpoint
from dynamo_fast.runtime.exceptions import NotOffered, argument_error
from dynamo_fast.runtime.hub import Hub
from dynamo_fast.wire.address import EndpointId

__all__ = ["NATS_WARNING", "DistributedRuntime"]

NATS_WARNING = (
    "The 'enable_nats' parameter is deprecated and will be removed in a future release. NATS enablement is now determined "
    "automatically from the event-plane configuration."
)
"""Dynamo's text."""
_RESPONSE_PLANES = ("tcp", "quic")


class DistributedRuntime:
    """A process's part in a Dynamo deployment: the endpoints that it serves, and those that it calls.

    `discovery_backend` is `file`, `etcd`, `kubernetes` or `mem`; `request_plane` is how requests come to the endpoints
    that it serves, `tcp` or `nats`. (It calls workers on either, as their records say.) The constructor opens no port but
    the status server's, if `DYN_SYSTEM_PORT` asks for one; with etcd it blocks until it has a lease; a NATS server is
    connected when it is first needed. A runtime belongs to the event loop that runs when it is first used. It owns a `Hub`,
    which holds all state; `shutdown` ends both.
    """

    def __init__(
        self,
        event_loop: Any,
        discovery_backend: str,
        request_plane: str,
        enable_nats: bool | None = None,
        *,
        event_plane: str | None = None,
        response_plane: str | None = None,
    ) -> None:
        given = {"discovery_backend": discovery_backend, "request_plane": request_plane}
        optional = {"event_plane": event_plane, "response_plane": response_plane}
        given.update({name: value for name, value in optional.items() if value is not None})
        for name, value in given.items():
            if not isinstance(value, str):
                raise argument_error(name, value, "PyString")
        if enable_nats is not None:
            warnings.warn(NATS_WARNING, DeprecationWarning, stacklevel=2)
        check_kind(discovery_backend)
        tls = TlsConfig.from_env()
        _ = tls.listens, tls.dials  # raise InvalidConfig for half an identity, before anything starts
        _check_planes(request_plane, event_plane, response_plane)
        self._event_loop = event_loop
        self._hub = Hub(event_loop, connect(discovery_backend), request_plane)

    @staticmethod
    def detached() -> DistributedRuntime:
        """A runtime as the environment says: `DYN_DISCOVERY_BACKEND` (etcd), `DYN_REQUEST_PLANE` (tcp)."""
        config = RuntimeConfig.from_env()
        return DistributedRuntime(None, config.discovery_backend, config.request_plane)

    def endpoint(self, path: str) -> Endpoint:
        """The endpoint `namespace.component.endpoint`. Raises InvalidAddress, a ValueError, for any other form."""
        if not isinstance(path, str):
            raise argument_error("path", path, "PyString")
        return Endpoint(self._hub, EndpointId.parse(path))

    def event_loop(self) -> Any:
        """The `event_loop` that the constructor got."""
        return self._event_loop

    def set_health_status(self, ready: bool) -> None:
        """Say whether this process is well."""
        if not isinstance(ready, bool):
            raise argument_error("ready", ready, "PyBool")
        self._hub.status.healthy = ready

    def system_status_server_url(self) -> str | None:
        """The URL of the status server; None if there is none (`DYN_SYSTEM_PORT` is not set)."""
        return self._hub.status.url

    def register_engine_route(self, route_name: str, callback: Callable[..., Any]) -> None:
        """Answer `POST /engine/{route_name}` of the status server with `await callback(body)`, in place of an earlier
        callback. Without a server, do nothing."""
        if not isinstance(route_name, str):
            raise argument_error("route_name", route_name, "PyString")
        self._hub.status.register_engine_route(route_name, callback)

    def to_capsule(self) -> Any:
        """Not offered: it is for other Rust bindings. Raises NotOffered."""
        raise NotOffered("to_capsule is not offered: there is no Rust runtime behind dynamo_fast")

    def shutdown(self) -> None:
        """Leave discovery, answer the requests in flight, and close. May be called again.

        The records are out of discovery when this returns, even if no event loop runs any more; the rest continues in the
        background. Any thread and any signal handler may call it. The clients of this process work until the last accepted
        request has its answer, so that a handler can still call other workers.
        """
        self._hub.shutdown()

    def ended(self) -> asyncio.Future[None]:
        """A future of the running loop that is done when `shutdown` has closed everything. Dynamo has no such method."""
        return self._hub.ended()


def _check_planes(request_plane: str, event_plane: str | None, response_plane: str | None) -> None:
    if request_plane == "nats":
        _ = NatsConfig.from_env().uses_tls  # raises InvalidConfig, before anything starts
    elif request_plane not in REQUEST_SERVERS:
        raise InvalidConfig(f"Invalid request plane mode: '{request_plane}'. Valid options are: 'nats', 'tcp'")
    if event_plane not in (None, "nats", "zmq"):
        raise InvalidConfig(f"Invalid event_plane value '{event_plane}'. Valid values: 'nats', 'zmq'")
    if response_plane not in (None, "", *_RESPONSE_PLANES):
        raise InvalidConfig(f"Invalid response_plane value '{response_plane}'. Valid values: 'tcp', 'quic'")
    response_plane = response_plane or RuntimeConfig.from_env().response_plane
    if response_plane not in _RESPONSE_PLANES:
        raise InvalidConfig(f"invalid DYN_RESPONSE_PLANE value '{response_plane}'; expected 'tcp' or 'quic'")
    if response_plane == "quic":
        raise NotOffered("the response plane 'quic' is not offered: use 'tcp'")
