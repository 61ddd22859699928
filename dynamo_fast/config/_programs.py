"""Settings of the drop-in's runtime and of the commands."""

from __future__ import annotations

from dataclasses import dataclass

from dynamo_fast.config._settings import (
    MIB,
    PORT,
    POSITIVE,
    FromEnvironment,
    endpoint_patterns,
    integer,
    parse_endpoint_patterns,
    seconds,
    setting,
    truth,
)
from dynamo_fast.errors import InvalidConfig

# The runtime ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RuntimeConfig(FromEnvironment):
    """The parts of a `DistributedRuntime`. Its constructor checks the values, with Dynamo's own texts (runtime.md 1.1)."""

    discovery_backend: str = setting("DYN_DISCOVERY_BACKEND", "etcd")
    """`file`, `mem`, `etcd` or `kubernetes`."""
    request_plane: str = setting("DYN_REQUEST_PLANE", "tcp")
    """How requests come to a worker: `tcp` or `nats`."""
    response_plane: str = setting("DYN_RESPONSE_PLANE", "tcp")
    """How answers travel: `tcp`."""


@dataclass(frozen=True)
class BackendConfig(FromEnvironment):
    """How a `backend.Worker` leaves, after the first signal."""

    grace_period: float = setting("DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS", 5.0, seconds(zero=True))
    """How long it takes requests after it has left discovery: frontends hear of that a moment later."""
    prefill_drain_timeout: float = setting("DYN_PREFILL_DRAIN_TIMEOUT_S", 25.0, seconds(zero=True))
    """How long a prefill worker waits for its engine to be quiescent, before the engine is released."""


# The gateway ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GatewayConfig(FromEnvironment):
    """The HTTP server before workers: `dynamo-fast gateway`, and `dynamo_fast.gateway.app` in other programs.

    The limits of requests hold for one process: with `--workers N` each of N processes has its own.
    """

    host: str = setting("DYNAMO_FAST_GATEWAY_HOST", "127.0.0.1")
    """Where the command listens. By default only programs of this machine reach it."""
    port: int = setting("DYNAMO_FAST_GATEWAY_PORT", 8080, PORT)
    """0: chosen by the system."""
    tls_cert: str = setting("DYNAMO_FAST_GATEWAY_TLS_CERT", "")
    """A PEM file with the certificate and its chain. With `tls_key`: HTTPS."""
    tls_key: str = setting("DYNAMO_FAST_GATEWAY_TLS_KEY", "")
    """The key of that certificate."""
    token: str = setting("DYNAMO_FAST_GATEWAY_TOKEN", "", secret=True)
    """Clients must send `Authorization: Bearer TOKEN`; empty: anyone may call. `GET /health` is open in any case."""
    cors: str = setting("DYNAMO_FAST_GATEWAY_CORS", "")
    """Origins whose pages may call, separated by commas, or `*`; empty: none."""
    endpoints: str = setting("DYNAMO_FAST_GATEWAY_ENDPOINTS", "", endpoint_patterns)
    """The endpoints that clients may call, separated by commas: `NAMESPACE/COMPONENT/ENDPOINT`, each part a name or `*`;
    empty: all. For clients the others do not exist: they get the status 404, and neither lists nor the page show them."""
    max_body: int = setting("DYNAMO_FAST_GATEWAY_MAX_BODY", 16 * MIB, POSITIVE)
    """Bytes of the longest request; a longer one gets the status 413."""
    max_answer: int = setting("DYNAMO_FAST_GATEWAY_MAX_ANSWER", 64 * MIB, POSITIVE)
    """Bytes of the longest answer that is collected, because the client does not stream. Streams have no limit."""
    max_requests: int = setting("DYNAMO_FAST_GATEWAY_MAX_REQUESTS", 4096, POSITIVE)
    """Requests at once; a further one gets the status 503."""
    max_requests_per_client: int = setting("DYNAMO_FAST_GATEWAY_MAX_REQUESTS_PER_CLIENT", 0, integer(0))
    """Requests at once from one IP address; a further one gets the status 429. 0: no limit of its own."""
    max_connections: int = setting("DYNAMO_FAST_GATEWAY_MAX_CONNECTIONS", 0, integer(0))
    """Connections of clients at once, idle ones included; a further one gets the status 503. 0: half of the descriptors
    that the process may open."""
    retries: int = setting("DYNAMO_FAST_GATEWAY_RETRIES", 2, integer(0))
    """On how many other workers a request is tried that failed before its first item."""
    body_timeout: float = setting("DYNAMO_FAST_GATEWAY_BODY_TIMEOUT", 30.0, seconds())
    """How long a client may take to send the body of a request."""
    write_timeout: float = setting("DYNAMO_FAST_GATEWAY_WRITE_TIMEOUT", 60.0, seconds())
    """How long a client may leave what was sent to it unread, before its connection is cut and the worker is told."""
    idle_timeout: float = setting("DYNAMO_FAST_GATEWAY_IDLE_TIMEOUT", 75.0, seconds())
    """How long a connection may stay open without a request."""
    keep_alive: float = setting("DYNAMO_FAST_GATEWAY_KEEP_ALIVE", 15.0, seconds())
    """After this time without an item a stream gets a comment line, which keeps proxies from closing it. A first item
    that takes longer than this can no longer become an error status: the head of the answer is sent before it."""
    show_errors: bool = setting("DYNAMO_FAST_GATEWAY_SHOW_ERRORS", False, truth)
    """Whether clients, and the page, get the text of errors that are not theirs. They may name addresses and files: for
    development."""
    page: bool = setting("DYNAMO_FAST_GATEWAY_PAGE", True, truth)
    """Whether `GET /` is a page that shows the gateway live, fed by `/_state` and `/_events`. Those need the token, too."""

    @property
    def permitted(self) -> frozenset[tuple[str, ...]]:
        """The patterns of `endpoints`: three parts each. Empty: all endpoints."""
        return parse_endpoint_patterns(self.endpoints) if self.endpoints else frozenset()

    @property
    def listens_with_tls(self) -> bool:
        """Raises InvalidConfig for half an identity."""
        if bool(self.tls_cert) != bool(self.tls_key):
            missing = "DYNAMO_FAST_GATEWAY_TLS_KEY" if self.tls_cert else "DYNAMO_FAST_GATEWAY_TLS_CERT"
            raise InvalidConfig(f"HTTPS needs a certificate and its key: {missing} is missing")
        return bool(self.tls_cert)


# The commands ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ServeConfig(FromEnvironment):
    """How the command `dynamo-fast serve` and a `backend.Worker` end."""

    grace: float = setting("DYNAMO_FAST_GRACE", 20.0, seconds(zero=True))
    """How long the requests in flight may take after the first signal, unless `WorkerConfig.shutdown_timeout` is set.
    Kubernetes kills a container 30 s after its first signal."""


@dataclass(frozen=True)
class CommandConfig(FromEnvironment):
    """Defaults of the options that the commands share."""

    discovery_backend: str = setting("DYN_DISCOVERY_BACKEND", "file")
    """`file`, `etcd` or `kubernetes`."""
    request_plane: str = setting("DYN_REQUEST_PLANE", "tcp")
    """How requests come to a worker: `tcp` or `nats`."""
    no_color: str = setting("NO_COLOR", "")
    """Any value: no colours, unless an option asks for them (https://no-color.org)."""
