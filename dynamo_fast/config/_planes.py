"""Settings of the codec, the router and the worker: the request plane and the response plane."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from dynamo_fast.config._settings import (
    MIB,
    PORT,
    POSITIVE,
    FromEnvironment,
    IpNetwork,
    choice,
    nats_url,
    networks,
    parse_networks,
    positive_number,
    seconds,
    setting,
    truth,
)
from dynamo_fast.config.backend import BACKENDS, VARIABLE
from dynamo_fast.errors import InvalidConfig

# The codec ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CodecConfig(FromEnvironment):
    """Which implementation of the codec is used. It is read once, when `dynamo_fast.codec` is imported."""

    backend: str = setting(VARIABLE, "", choice(*BACKENDS))
    """Empty: the compiled one if it can be imported, else the one in Python. `python` holds for all that is compiled."""


# The router -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TcpClientConfig(FromEnvironment):
    """The router's connections to workers (transport.md 2.5 and 11)."""

    max_message_size: int = setting("DYN_TCP_MAX_MESSAGE_SIZE", 32 * MIB, POSITIVE)
    """A whole request frame may have this size; a larger one is refused before it is sent."""
    request_timeout: float = setting("DYN_TCP_REQUEST_TIMEOUT", 5.0, seconds())
    """From the call until the acknowledgement: waiting for a connection, writing, and the answer."""
    connect_timeout: float = setting("DYN_TCP_CONNECT_TIMEOUT", 5.0, seconds())
    """For one connection to a worker."""
    pool_size: int = setting("DYN_TCP_POOL_SIZE", 100, POSITIVE)
    """Connections to one worker process."""
    channel_buffer: int = setting("DYN_TCP_CHANNEL_BUFFER", 1024, POSITIVE)
    """Unacknowledged requests on one connection; further requests take another connection or wait."""
    max_waiting: int = setting("DYNAMO_FAST_MAX_WAITING_REQUESTS", 100_000, POSITIVE)
    """Requests to one worker that wait for room on a connection; a further one is refused."""
    connect_limit: int = setting("DYN_TCP_GLOBAL_CONNECT_LIMIT", 64, POSITIVE)
    """Connects under way at once, to all workers together."""
    host_idle_ttl: float = setting("DYN_TCP_HOST_IDLE_TTL_SECS", 300.0, seconds())
    """The idle time after which the connections to a worker are closed."""
    user_timeout: float = setting("DYNAMO_FAST_TCP_USER_TIMEOUT", 30.0, seconds())
    """A request connection fails when the other end's kernel acknowledges no data for this long (Linux)."""


@dataclass(frozen=True)
class PushRouterConfig(FromEnvironment):
    """How workers are selected and inhibited (runtime.md 3.1 and 3.3)."""

    inhibited_duration: float = setting("DYN_RUNTIME_INHIBITED_DURATION_SECS", 5.0, seconds(zero=True))
    """How long a worker that failed gets no request; 0: it is not inhibited."""
    inactivity_timeout: float | None = setting("DYN_HTTP_BACKEND_STREAM_TIMEOUT_SECS", None, seconds())
    """How long to wait for the next item of an answer; unset: as `ResponseServerConfig.inactivity_timeout`."""
    cuda_to_cpu_ratio: float = setting("DYN_ENCODER_CUDA_TO_CPU_RATIO", 8.0, positive_number)
    """Device-aware routing: requests on an accelerator for each request on a CPU."""


@dataclass(frozen=True)
class ResponseServerConfig(FromEnvironment):
    """The server that workers dial back to (transport.md 4.1 and 11)."""

    host: str = setting("DYN_TCP_RESPONSE_STREAM_HOST", "")
    """An IP address (IPv6 with or without brackets), `0.0.0.0` or `::`, or the name of a network interface; empty: the
    machine's best address. What is bound and what is advertised: see `net.addresses`."""
    port: int = setting("DYN_TCP_RESPONSE_STREAM_PORT", 0, PORT)
    """0: chosen by the system."""
    backlog: int = setting("DYN_TCP_LISTEN_BACKLOG", 4096, POSITIVE)
    """Connections that may wait to be accepted."""
    max_message_size: int = setting("DYNAMO_FAST_MAX_RESPONSE_SIZE", 256 * MIB, POSITIVE)
    """One frame of an answer (Dynamo has no limit here)."""
    max_buffered_frames: int = setting("DYNAMO_FAST_RESPONSE_BUFFER_FRAMES", 1024, POSITIVE)
    """Frames that wait for a slow consumer before reading of its connection pauses. One read may exceed it."""
    max_buffered_bytes: int = setting("DYNAMO_FAST_RESPONSE_BUFFER_BYTES", MIB // 4, POSITIVE)
    """The same in bytes; one frame always fits. A larger buffer would not stay in the processor's cache."""
    handshake_timeout: float = setting("DYNAMO_FAST_HANDSHAKE_TIMEOUT", 10.0, seconds())
    """From a worker's connection to its handshake (10 s in Dynamo 1.6)."""
    call_home_timeout: float = setting("DYNAMO_FAST_CALL_HOME_TIMEOUT", 120.0, seconds())
    """From the acknowledgement to the worker's connection, and again from there to its prologue; for a bidirectional
    request once more from there to the connection for its input."""
    call_home_grace: float = setting("DYNAMO_FAST_CALL_HOME_GRACE", 1.0, seconds())
    """How long to wait for the worker's connection after the connection that carried the request is lost."""
    inactivity_timeout: float | None = setting("DYN_HTTP_BACKEND_STREAM_TIMEOUT_SECS", None, seconds())
    """How long to wait for the next item of an answer; unset: without a limit."""
    abandoned_after: float = setting("DYNAMO_FAST_ABANDONED_AFTER", 2.0, seconds(zero=True))
    """An answer is closed, and its worker told to stop, if a wait for an item was cancelled and nothing asks for an item
    again within this time; 0: it stays open as long as something holds it."""
    max_streams: int | None = setting("DYNAMO_FAST_MAX_STREAMS", None, POSITIVE)
    """Streams that are open or wait for their worker; a further request is refused. Unset: derived from the limit of open
    files (see `net.descriptors`)."""
    max_pending_connections: int | None = setting("DYNAMO_FAST_MAX_PENDING_CONNECTIONS", None, POSITIVE)
    """Connections that have not said which request they answer, beyond the calls that wait for one; at a further one the
    oldest silent one is reset. Unset: an eighth of the streams, 16 to 1,024."""
    mux: str = setting("DYNAMO_FAST_MUX", "auto", choice("auto", "off"))
    """`auto`: workers of this package that offer it may send all their answers on one connection (docs/spec/mux.md);
    others, and all with `off`, dial one for each answer."""


# Both ends ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TlsConfig(FromEnvironment):
    """TLS of both planes of TCP (tls.md 2). Every process is a server on one plane and a client on the other.

    Paths name PEM files. Nothing set: plain text. Discovery does not say who speaks TLS, so a fleet does, or does not.
    """

    cert_path: str = setting("DYN_TCP_TLS_CERT_PATH", "")
    """The certificate of this process as a server, with its chain. With `key_path`: listen with TLS."""
    key_path: str = setting("DYN_TCP_TLS_KEY_PATH", "")
    """The key of that certificate."""
    client_ca_cert_path: str = setting("DYN_TCP_TLS_CLIENT_CA_CERT_PATH", "")
    """Who must have signed the certificates of those that dial (mutual TLS)."""
    ca_cert_path: str = setting("DYN_TCP_TLS_CA_CERT_PATH", "")
    """Who must have signed the certificates of those that are dialled; the system's own anchors do not count. With it, or
    with `insecure`: dial with TLS."""
    insecure: bool = setting("DYN_TCP_TLS_INSECURE", False, truth)
    """Dial with TLS, and verify nothing: for tests."""
    client_cert_path: str = setting("DYN_TCP_TLS_CLIENT_CERT_PATH", "")
    """The certificate to show to those that are dialled, with `client_key_path`."""
    client_key_path: str = setting("DYN_TCP_TLS_CLIENT_KEY_PATH", "")
    """The key of that certificate."""
    server_name: str = setting("DYN_TCP_TLS_SERVER_NAME", "")
    """The name that the certificates of those that are dialled must have; empty: the address that is dialled."""
    handshake_timeout: int = setting("DYN_TCP_TLS_HANDSHAKE_TIMEOUT_SECS", 3, POSITIVE)
    """Seconds for one handshake."""

    @property
    def listens(self) -> bool:
        """Whether this process accepts TLS. Raises InvalidConfig for half an identity."""
        if bool(self.cert_path) != bool(self.key_path):
            raise InvalidConfig(
                "both DYN_TCP_TLS_CERT_PATH and DYN_TCP_TLS_KEY_PATH must be set to accept TLS, or neither: "
                f"{'DYN_TCP_TLS_KEY_PATH' if self.cert_path else 'DYN_TCP_TLS_CERT_PATH'} is missing"
            )
        if self.client_ca_cert_path and not self.cert_path:
            raise InvalidConfig(
                "DYN_TCP_TLS_CLIENT_CA_CERT_PATH requires DYN_TCP_TLS_CERT_PATH and DYN_TCP_TLS_KEY_PATH to also be set"
            )
        return bool(self.cert_path)

    @property
    def dials(self) -> bool:
        """Whether this process dials with TLS. Raises InvalidConfig for half an identity, or one without trust."""
        if bool(self.client_cert_path) != bool(self.client_key_path):
            missing = "DYN_TCP_TLS_CLIENT_KEY_PATH" if self.client_cert_path else "DYN_TCP_TLS_CLIENT_CERT_PATH"
            raise InvalidConfig(
                f"both DYN_TCP_TLS_CLIENT_CERT_PATH and DYN_TCP_TLS_CLIENT_KEY_PATH must be set, or neither: {missing} is "
                "missing"
            )
        trusts = bool(self.ca_cert_path) or self.insecure
        if self.client_cert_path and not trusts:
            raise InvalidConfig(
                "DYN_TCP_TLS_CLIENT_CERT_PATH needs DYN_TCP_TLS_CA_CERT_PATH, which says whom to trust (or "
                "DYN_TCP_TLS_INSECURE=1)"
            )
        return trusts


@dataclass(frozen=True)
class NatsConfig(FromEnvironment):
    """The NATS server that carries requests, and how this process is known to it (nats.md 7).

    The first complete one of these counts: user name and password, token, nkey, credentials file, the user and password in
    the URL. Without any, a server that asks gets Dynamo's default, the user `user` with the password `user`.
    """

    server: str = setting("NATS_SERVER", "nats://localhost:4222", nats_url, secret=True)
    """One URL. `tls://`: the server must offer TLS, before it hears who this process is."""
    username: str = setting("NATS_AUTH_USERNAME", "")
    """The name of the user, with `password`."""
    password: str = setting("NATS_AUTH_PASSWORD", "", secret=True)
    """The password of the user, with `username`."""
    token: str = setting("NATS_AUTH_TOKEN", "", secret=True)
    """A token in their place."""
    nkey: str = setting("NATS_AUTH_NKEY", "", secret=True)
    """The seed of an nkey, `SU...`."""
    credentials_file: str = setting("NATS_AUTH_CREDENTIALS_FILE", "")
    """The path of a file with a JWT and the seed of its nkey."""
    startup_timeout: float = setting("NATS_STARTUP_CONNECT_TIMEOUT_SECONDS", 120.0, seconds())
    """How long a worker that starts tries to reach the server."""
    request_timeout: float = setting("DYN_NATS_REQUEST_TIMEOUT_SECS", 10.0, seconds())
    """From the call until the acknowledgement: waiting for the server, and for the worker."""
    max_waiting: int = setting("DYNAMO_FAST_MAX_WAITING_REQUESTS", 100_000, POSITIVE)
    """Requests that wait for the server or for their acknowledgement; a further one is refused."""
    tls_ca_cert_path: str = setting("NATS_TLS_CA_CERT_PATH", "")
    """Who must have signed the server's certificate; empty: the authorities that the system trusts."""
    tls_insecure: bool = setting("NATS_TLS_INSECURE", False, truth)
    """Verify nothing: for tests."""
    tls_client_cert_path: str = setting("NATS_TLS_CLIENT_CERT_PATH", "")
    """The certificate to show to the server, with `tls_client_key_path`."""
    tls_client_key_path: str = setting("NATS_TLS_CLIENT_KEY_PATH", "")
    """The key of that certificate."""

    @property
    def address(self) -> str:
        """The server's URL without user and password."""
        url = urlsplit(self.server)
        return f"{url.scheme}://{url.netloc.rpartition('@')[2]}"

    @property
    def uses_tls(self) -> bool:
        """Whether the connection is encrypted. Raises InvalidConfig for half an identity, or TLS without `tls://`."""
        if bool(self.tls_client_cert_path) != bool(self.tls_client_key_path):
            missing = "NATS_TLS_CLIENT_KEY_PATH" if self.tls_client_cert_path else "NATS_TLS_CLIENT_CERT_PATH"
            raise InvalidConfig(
                "Both NATS_TLS_CLIENT_CERT_PATH and NATS_TLS_CLIENT_KEY_PATH must be set together to enable NATS mTLS: "
                f"{missing} is missing"
            )
        given = {
            "NATS_TLS_CA_CERT_PATH": self.tls_ca_cert_path,
            "NATS_TLS_INSECURE": self.tls_insecure,
            "NATS_TLS_CLIENT_CERT_PATH": self.tls_client_cert_path,
        }
        encrypted = self.server.startswith("tls://")
        if not encrypted and any(given.values()):
            names = ", ".join(name for name, value in given.items() if value)
            raise InvalidConfig(
                f"NATS TLS is configured ({names}) but NATS_SERVER does not use the 'tls://' scheme: {self.address}"
            )
        return encrypted


# The worker -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TcpServerConfig(FromEnvironment):
    """The worker's request-plane server (transport.md 2.1, 6.1 and 11)."""

    host: str = setting("DYN_TCP_RPC_HOST", "")
    """As `ResponseServerConfig.host`."""
    port: int = setting("DYN_TCP_RPC_PORT", 0, PORT)
    """0: chosen by the system."""
    backlog: int = setting("DYN_TCP_LISTEN_BACKLOG", 4096, POSITIVE)
    """Connections that may wait to be accepted."""
    max_message_size: int = setting("DYN_TCP_MAX_MESSAGE_SIZE", 32 * MIB, POSITIVE)
    """A whole request frame may have this size; a larger one closes its connection."""
    worker_pool_size: int = setting("DYN_TCP_WORKER_POOL_SIZE", 10_000, POSITIVE)
    """Requests that run at once."""
    work_queue_size: int = setting("DYN_TCP_WORK_QUEUE_SIZE", 40_000, POSITIVE)
    """Requests that wait for a running one to end; a further one is refused."""
    engine_request_limit: int | None = setting("DYN_ENGINE_REQUEST_LIMIT", None, POSITIVE)
    """If set, it replaces `worker_pool_size`, and `request_queue_limit` replaces `work_queue_size`."""
    request_queue_limit: int = setting("DYN_DYNAMO_REQUEST_QUEUE_LIMIT", 16, POSITIVE)
    """It includes the request that runs next: one request fewer can wait (but at least one)."""
    max_connections: int = setting("DYNAMO_FAST_MAX_REQUEST_CONNECTIONS", 10_000, POSITIVE)
    """Connections of routers; beyond it, the one that has been silent for longest is closed. At most half of the open
    files that the process may have."""
    max_new_connections: int = setting("DYNAMO_FAST_MAX_NEW_REQUEST_CONNECTIONS", 512, POSITIVE)
    """Those of them that have not sent a valid request yet; beyond it, the oldest is closed. At most an eighth of the open
    files that the process may have."""
    first_request_timeout: float = setting("DYNAMO_FAST_FIRST_REQUEST_TIMEOUT", 30.0, seconds())
    """A connection that has sent no valid request for this long after it was opened is closed."""
    max_buffered_bytes: int | None = setting("DYNAMO_FAST_MAX_BUFFERED_REQUEST_BYTES", None, POSITIVE)
    """Bytes of unfinished frames (and unread acknowledgements) on all connections together; beyond it, the connection
    that has most of them is closed. As many bytes again may be held for requests that wait; one more is refused. Unset:
    16 times `max_message_size`."""
    frame_timeout: float = setting("DYNAMO_FAST_FRAME_TIMEOUT", 60.0, seconds())
    """From the first byte of a request frame to its last."""
    idle_timeout: float = setting("DYNAMO_FAST_IDLE_TIMEOUT", 900.0, seconds())
    """A connection without a request for this long is closed. Dynamo's routers close theirs earlier (300 to 450 s)."""
    user_timeout: float = setting("DYNAMO_FAST_TCP_USER_TIMEOUT", 30.0, seconds())
    """As `TcpClientConfig.user_timeout`, for acknowledgements."""

    @property
    def buffered_bytes(self) -> int:
        """`max_buffered_bytes`, or its default."""
        return 16 * self.max_message_size if self.max_buffered_bytes is None else self.max_buffered_bytes

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.buffered_bytes < self.max_message_size:
            raise InvalidConfig(
                f"DYNAMO_FAST_MAX_BUFFERED_REQUEST_BYTES={self.buffered_bytes} is not valid: expected at least "
                f"DYN_TCP_MAX_MESSAGE_SIZE, {self.max_message_size}"
            )


@dataclass(frozen=True)
class WorkerConfig(FromEnvironment):
    """How a worker answers one request, and how it leaves (transport.md 4.2, 4.8; runtime.md 7.3)."""

    connect_timeout: float = setting("DYN_TCP_CONNECT_TIMEOUT", 5.0, seconds())
    """To the router that waits for the answer."""
    close_timeout: float = setting("DYNAMO_FAST_RESPONSE_CLOSE_TIMEOUT", 10.0, seconds())
    """How long a router may take to close a finished response connection before the worker does."""
    max_input_size: int = setting("DYNAMO_FAST_MAX_INPUT_SIZE", 32 * MIB, POSITIVE)
    """One item of the input of a bidirectional request."""
    stall_timeout: float = setting("DYNAMO_FAST_STALL_TIMEOUT", 300.0, seconds())
    """How long a router may read nothing of an answer that is ready before its request is killed."""
    cancel_grace: float = setting("DYNAMO_FAST_CANCEL_GRACE", 1.0, seconds())
    """How long a handler may take to notice that its context was stopped before it is cancelled."""
    push_buffer: int = setting("DYNAMO_FAST_MAX_PUSHED_BYTES", 64 * MIB, POSITIVE)
    """What may wait of one answer that a handler pushes (`response_sender`) while its router reads slowly."""
    handler_threads: int = setting("DYNAMO_FAST_HANDLER_THREADS", 64, POSITIVE)
    """Answers of one endpoint whose handler runs in threads, because it is a generator that is not asynchronous; further
    requests wait for the end of one."""
    leave_delay: float = setting("DYNAMO_FAST_LEAVE_DELAY", 0.2, seconds(zero=True))
    """How long a worker accepts requests after it left discovery: routers get the news with a delay."""
    response_networks: str = setting("DYNAMO_FAST_RESPONSE_NETWORKS", "", networks)
    """Networks (CIDR, separated by commas) in which the addresses must lie that a requester wants to be dialled at; a
    request with another one is refused. Empty: any address."""
    mux: str = setting("DYNAMO_FAST_MUX", "auto", choice("auto", "off"))
    """`auto`: offer routers of this package to send all answers on one connection (docs/spec/mux.md)."""
    shutdown_timeout: float | None = setting("DYN_RUNTIME_GRACEFUL_SHUTDOWN_TIMEOUT_SECS", None, seconds(zero=True))
    """How long the requests in flight may take to end when a worker shuts down; unset: as long as they need."""

    @property
    def allowed_networks(self) -> tuple[IpNetwork, ...]:
        """The parsed `response_networks`."""
        return parse_networks(self.response_networks)


@dataclass(frozen=True)
class InstanceConfig(FromEnvironment):
    """What the record of a worker says about it (runtime.md 1.2)."""

    request_plane_codec: str = setting("DYN_REQUEST_PLANE_CODEC", "")
    """The encoding of requests that the worker asks for: `json`; every other value is `msgpack`, as in Dynamo."""
    cuda_visible_devices: str | None = setting("CUDA_VISIBLE_DEVICES", None, empty_is_a_value=True)
    """The GPUs of the process. Set and empty, -1, none or void: it has none."""
    nvidia_visible_devices: str = setting("NVIDIA_VISIBLE_DEVICES", "")
    """The GPUs of the container; none or void: it has none."""

    @property
    def device_type(self) -> Literal["cuda", "cpu"]:
        """The device type, which Dynamo derives from these two variables alone: the default is `cuda`."""
        visible = self.cuda_visible_devices
        if visible is not None and visible.strip().lower() in ("", "-1", "none", "void"):
            return "cpu"
        return "cpu" if self.nvidia_visible_devices in ("none", "void") else "cuda"


@dataclass(frozen=True)
class HealthCheckConfig(FromEnvironment):
    """Health checks of silent endpoints (runtime.md 7.2)."""

    enabled: bool = setting("DYN_HEALTH_CHECK_ENABLED", False, truth)
    """Whether endpoints with a `health_check_payload` are checked."""
    canary_wait_time: float = setting("DYN_CANARY_WAIT_TIME", 10.0, seconds())
    """An endpoint that has sent no item for this long is checked."""
    request_timeout: float = setting("DYN_HEALTH_CHECK_REQUEST_TIMEOUT", 3.0, seconds())
    """From the check to the first item of its answer."""
