"""Every setting: its variable, its type, its default and its check. No other module reads the environment.

The `DYN_*` variables are Dynamo's own, with Dynamo's meaning. The `DYNAMO_FAST_*` variables limit what Dynamo does not
limit. An invalid value raises an `InvalidConfig` that names the variable, the value and what is accepted. Unset and empty
are the same, unless a setting says otherwise. Sizes are in bytes, times in seconds.

    the codec        CodecConfig
    the router       TcpClientConfig, PushRouterConfig, ResponseServerConfig
    both ends        TlsConfig, NatsConfig
    the worker       TcpServerConfig, WorkerConfig, InstanceConfig, HealthCheckConfig
    discovery        FileConfig, EtcdConfig, KubernetesConfig
    models           EventPlaneConfig, KvEventConfig
    observability    StatusConfig, MultiprocessConfig, TracingConfig, OtelConfig, NvtxConfig, LogConfig, EngineLogConfig
    the runtime      RuntimeConfig, BackendConfig
    the commands     ServeConfig, CommandConfig
"""

from __future__ import annotations

import ipaddress
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

from dynamo_fast.errors import InvalidConfig

__all__ = [
    "BackendConfig",
    "CodecConfig",
    "CommandConfig",
    "EngineLogConfig",
    "EtcdConfig",
    "EventPlaneConfig",
    "FileConfig",
    "HealthCheckConfig",
    "InstanceConfig",
    "KubernetesConfig",
    "KvEventConfig",
    "LogConfig",
    "MultiprocessConfig",
    "NatsConfig",
    "NvtxConfig",
    "OtelConfig",
    "PushRouterConfig",
    "ResponseServerConfig",
    "RuntimeConfig",
    "ServeConfig",
    "StatusConfig",
    "TcpClientConfig",
    "TcpServerConfig",
    "TlsConfig",
    "TracingConfig",
    "WorkerConfig",
    "set_for_subprocesses",
    "setting",
    "text_of_variable",
]

_Config = TypeVar("_Config", bound="_FromEnvironment")
Parser = Callable[[str], Any]
IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

MIB = 1024 * 1024

# How a value is parsed ------------------------------------------------------------------------------------------------


def integer(minimum: int, maximum: int | None = None) -> Parser:
    """A parser of whole numbers from `minimum` to `maximum`."""
    accepted = f"a whole number of at least {minimum}" if maximum is None else f"a whole number, {minimum} to {maximum}"

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise ValueError(accepted) from None
        if value < minimum or (maximum is not None and value > maximum):
            raise ValueError(accepted)
        return value

    return parse


def seconds(*, zero: bool = False) -> Parser:
    """A parser of times in seconds, finite and positive; `zero` is accepted where it means "at once"."""
    accepted = "a number of seconds, 0 or more" if zero else "a number of seconds above 0"

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise ValueError(accepted) from None
        if not (0.0 < value < float("inf") or (zero and value == 0.0)):
            raise ValueError(accepted)
        return value

    return parse


def positive_number(text: str) -> float:
    """A finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < float("inf"):
        raise ValueError("a number above 0")
    return value


def ratio(text: str) -> float:
    """A number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 1.0:
        raise ValueError("a number from 0 to 1")
    return value


def choice(*words: str) -> Parser:
    """A parser of one of `words`, exactly."""

    def parse(text: str) -> str:
        if text not in words:
            raise ValueError("one of " + ", ".join(repr(word) for word in words))
        return text

    return parse


_FALSE = ("0", "false", "off", "no")


def truth(text: str) -> bool:
    """Dynamo's truth words."""
    word = text.strip().lower()
    if word in ("1", "true", "on", "yes"):
        return True
    if word in _FALSE:
        return False
    raise ValueError("one of 1, true, on, yes, 0, false, off, no")


def names(text: str) -> str:
    """A JSON list of texts, as it stands."""
    accepted = """a JSON list of names, such as ["generate"]"""
    try:
        value = json.loads(text)
    except ValueError:
        raise ValueError(accepted) from None
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ValueError(accepted)
    return text


def networks(text: str) -> str:
    """IP networks, separated by commas, as they stand; empty: none."""
    parse_networks(text)
    return text


def parse_networks(text: str) -> tuple[IpNetwork, ...]:
    """The networks of `text`, in CIDR notation; one address is a network. Raises ValueError with what is accepted."""
    try:
        return tuple(ipaddress.ip_network(part.strip()) for part in text.split(",") if part.strip())
    except ValueError:
        raise ValueError("IP networks without host bits, such as 10.0.0.0/8,fd00::/8,192.0.2.7") from None


def nats_url(text: str) -> str:
    """The URL of one NATS server, as it stands."""
    accepted = "one URL, nats://HOST:PORT or tls://HOST:PORT"
    try:
        url = urlsplit(text)
        known = url.scheme in ("nats", "tls") and url.hostname and "," not in url.netloc and url.port != 0
    except ValueError:
        raise ValueError(accepted) from None
    if not known or any(character.isspace() for character in text):
        raise ValueError(accepted)
    return text


PORT = integer(0, 65535)
POSITIVE = integer(1)


# How a configuration is read ------------------------------------------------------------------------------------------


def text_of_variable(name: str, default: str = "", environ: Mapping[str, str] = os.environ) -> str:
    """The text of any variable, for those functions of Dynamo's API whose caller names the variable."""
    return environ.get(name, default)


def set_for_subprocesses(name: str, value: str) -> None:
    """Set a variable of this process, for the libraries that it has and for the processes that it starts."""
    os.environ[name] = value


def setting(
    variable: str, default: Any, parse: Parser = str, *, empty_is_a_value: bool = False, secret: bool = False
) -> Any:
    """A field of a configuration that `from_env` reads from `variable`. The repr does not show a secret."""
    metadata = {"variable": variable, "parse": parse, "empty_is_a_value": empty_is_a_value}
    return field(default=default, repr=not secret, metadata=metadata)


def _read(environ: Mapping[str, str], each: Field[Any]) -> Any:
    text = environ.get(each.metadata["variable"])
    if text is None or (not text and not each.metadata["empty_is_a_value"]):
        return each.default
    try:
        return each.metadata["parse"](text)
    except ValueError as accepted:
        raise InvalidConfig(f"{each.metadata['variable']}={text!r} is not valid: expected {accepted}") from None


class _FromEnvironment:
    """A configuration whose fields `setting` made. The constructor checks its values with the same parsers."""

    __slots__ = ()

    @classmethod
    def from_env(cls: type[_Config], environ: Mapping[str, str] = os.environ) -> _Config:
        """Read every field from its variable; raises InvalidConfig."""
        settings: tuple[Field[Any], ...] = fields(cls)  # type: ignore[arg-type]  # each subclass is a dataclass
        return cls(**{each.name: _read(environ, each) for each in settings})

    def __post_init__(self) -> None:
        for each in fields(self):  # type: ignore[arg-type]  # each subclass is a dataclass
            value = getattr(self, each.name)
            if value != each.default:
                try:
                    each.metadata["parse"](str(value))
                except ValueError as accepted:
                    raise InvalidConfig(f"{each.name}={value!r} is not valid: expected {accepted}") from None


# The codec ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CodecConfig(_FromEnvironment):
    """Which implementation of the codec is used. It is read once, when `dynamo_fast.codec` is imported."""

    backend: str = setting("DYNAMO_FAST_BACKEND", "", choice("cython", "python"))
    """Empty: the compiled one if it can be imported, else the one in Python. `python` holds for all that is compiled."""


# The router -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TcpClientConfig(_FromEnvironment):
    """The router's connections to workers (transport.md 2.5 and 11)."""

    max_message_size: int = setting("DYN_TCP_MAX_MESSAGE_SIZE", 32 * MIB, POSITIVE)
    """A whole request frame may have this size; a larger one is refused before it is sent."""
    request_timeout: float = setting("DYN_TCP_REQUEST_TIMEOUT", 5.0, seconds())
    """From the call until the acknowledgement: waiting for a connection, writing, and the answer."""
    connect_timeout: float = setting("DYN_TCP_CONNECT_TIMEOUT", 5.0, seconds())
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
class PushRouterConfig(_FromEnvironment):
    """How workers are selected and inhibited (runtime.md 3.1 and 3.3)."""

    inhibited_duration: float = setting("DYN_RUNTIME_INHIBITED_DURATION_SECS", 5.0, seconds(zero=True))
    """How long a worker that failed gets no request; 0: it is not inhibited."""
    inactivity_timeout: float | None = setting("DYN_HTTP_BACKEND_STREAM_TIMEOUT_SECS", None, seconds())
    """How long to wait for the next item of an answer; unset: as `ResponseServerConfig.inactivity_timeout`."""
    cuda_to_cpu_ratio: float = setting("DYN_ENCODER_CUDA_TO_CPU_RATIO", 8.0, positive_number)
    """Device-aware routing: requests on an accelerator for each request on a CPU."""


@dataclass(frozen=True)
class ResponseServerConfig(_FromEnvironment):
    """The server that workers dial back to (transport.md 4.1 and 11)."""

    host: str = setting("DYN_TCP_RESPONSE_STREAM_HOST", "")
    """An IP address (IPv6 with or without brackets), `0.0.0.0` or `::`, or the name of a network interface; empty: the
    machine's best address. What is bound and what is advertised: see `net.addresses`."""
    port: int = setting("DYN_TCP_RESPONSE_STREAM_PORT", 0, PORT)
    """0: chosen by the system."""
    backlog: int = setting("DYN_TCP_LISTEN_BACKLOG", 4096, POSITIVE)
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
    max_streams: int | None = setting("DYNAMO_FAST_MAX_STREAMS", None, POSITIVE)
    """Streams that are open or wait for their worker; a further request is refused. Unset: derived from the limit of open
    files (see `net.descriptors`)."""
    max_pending_connections: int | None = setting("DYNAMO_FAST_MAX_PENDING_CONNECTIONS", None, POSITIVE)
    """Connections that have not said which request they answer, beyond the calls that wait for one; at a further one the
    oldest silent one is reset. Unset: an eighth of the streams, 16 to 1,024."""


# Both ends ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TlsConfig(_FromEnvironment):
    """TLS of both planes of TCP (tls.md 2). Every process is a server on one plane and a client on the other.

    Paths name PEM files. Nothing set: plain text. Discovery does not say who speaks TLS, so a fleet does, or does not.
    """

    cert_path: str = setting("DYN_TCP_TLS_CERT_PATH", "")
    """The certificate of this process as a server, with its chain. With `key_path`: listen with TLS."""
    key_path: str = setting("DYN_TCP_TLS_KEY_PATH", "")
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
class NatsConfig(_FromEnvironment):
    """The NATS server that carries requests, and how this process is known to it (nats.md 7).

    The first complete one of these counts: user name and password, token, nkey, credentials file, the user and password in
    the URL. Without any, a server that asks gets Dynamo's default, the user `user` with the password `user`.
    """

    server: str = setting("NATS_SERVER", "nats://localhost:4222", nats_url, secret=True)
    """One URL. `tls://`: the server must offer TLS, before it hears who this process is."""
    username: str = setting("NATS_AUTH_USERNAME", "")
    password: str = setting("NATS_AUTH_PASSWORD", "", secret=True)
    token: str = setting("NATS_AUTH_TOKEN", "", secret=True)
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
class TcpServerConfig(_FromEnvironment):
    """The worker's request-plane server (transport.md 2.1, 6.1 and 11)."""

    host: str = setting("DYN_TCP_RPC_HOST", "")
    """As `ResponseServerConfig.host`."""
    port: int = setting("DYN_TCP_RPC_PORT", 0, PORT)
    backlog: int = setting("DYN_TCP_LISTEN_BACKLOG", 4096, POSITIVE)
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
class WorkerConfig(_FromEnvironment):
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
    leave_delay: float = setting("DYNAMO_FAST_LEAVE_DELAY", 0.2, seconds(zero=True))
    """How long a worker accepts requests after it left discovery: routers get the news with a delay."""
    response_networks: str = setting("DYNAMO_FAST_RESPONSE_NETWORKS", "", networks)
    """Networks (CIDR, separated by commas) in which the addresses must lie that a requester wants to be dialled at; a
    request with another one is refused. Empty: any address."""
    shutdown_timeout: float | None = setting("DYN_RUNTIME_GRACEFUL_SHUTDOWN_TIMEOUT_SECS", None, seconds(zero=True))
    """How long the requests in flight may take to end when a worker shuts down; unset: as long as they need."""

    @property
    def allowed_networks(self) -> tuple[IpNetwork, ...]:
        """The parsed `response_networks`."""
        return parse_networks(self.response_networks)


@dataclass(frozen=True)
class InstanceConfig(_FromEnvironment):
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
class HealthCheckConfig(_FromEnvironment):
    """Health checks of silent endpoints (runtime.md 7.2)."""

    enabled: bool = setting("DYN_HEALTH_CHECK_ENABLED", False, truth)
    canary_wait_time: float = setting("DYN_CANARY_WAIT_TIME", 10.0, seconds())
    """An endpoint that has sent no item for this long is checked."""
    request_timeout: float = setting("DYN_HEALTH_CHECK_REQUEST_TIMEOUT", 3.0, seconds())
    """From the check to the first item of its answer."""


# Discovery ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FileConfig(_FromEnvironment):
    """Discovery in files (runtime.md 1.3)."""

    root: str = setting("DYN_FILE_KV", "")
    """The folder that all processes share; empty: `dynamo_store_kv` in the folder for temporary files."""


@dataclass(frozen=True)
class EtcdConfig(_FromEnvironment):
    """How etcd is reached, and how long it keeps the records of a silent process (runtime.md 1.4)."""

    endpoints: str = setting("ETCD_ENDPOINTS", "http://localhost:2379")
    """URLs, separated by commas; the next one is tried when one fails."""
    lease_ttl: int = setting("ETCD_LEASE_TTL", 30, POSITIVE)
    startup_timeout: float = setting("ETCD_STARTUP_CONNECT_TIMEOUT_SECONDS", 120.0, seconds())
    """How long to try for the first lease."""
    username: str = setting("ETCD_AUTH_USERNAME", "")
    password: str = setting("ETCD_AUTH_PASSWORD", "", secret=True)
    ca: str = setting("ETCD_AUTH_CA", "")
    """PEM text, as are the two below: not paths."""
    client_cert: str = setting("ETCD_AUTH_CLIENT_CERT", "")
    client_key: str = setting("ETCD_AUTH_CLIENT_KEY", "", secret=True)


@dataclass(frozen=True)
class KubernetesConfig(_FromEnvironment):
    """Which pod this process is, and where the Kubernetes API is (runtime.md 1.6, kubernetes.md 1)."""

    pod_name: str = setting("POD_NAME", "")
    """The downward-API file `pod_name`, where there is one, comes before it; so it is for the uid."""
    pod_uid: str = setting("POD_UID", "")
    namespace: str = setting("POD_NAMESPACE", "default")
    mode: str = setting("DYN_KUBE_DISCOVERY_MODE", "pod", choice("pod", "container"))
    """`pod`: one worker process in a pod. `container`: one in each container."""
    container_name: str = setting("CONTAINER_NAME", "")
    """In container mode only, and needed there."""
    kubeconfig: str = setting("KUBECONFIG", "")
    """The path of a file; `~/.kube/config` if that exists, else the service account of the pod."""
    service_host: str = setting("KUBERNETES_SERVICE_HOST", "")
    service_port: int = setting("KUBERNETES_SERVICE_PORT", 443, integer(1, 65535))


# Models ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EventPlaneConfig(_FromEnvironment):
    """Where a worker publishes events to frontends (model_card.md 7)."""

    plane: str = setting("DYN_EVENT_PLANE", "zmq", choice("zmq", "nats"))
    """`nats` is refused: it is not offered. It is Dynamo's own default on etcd and Kubernetes, so a frontend there needs
    `DYN_EVENT_PLANE=zmq` too."""
    host: str = setting("DYN_EVENT_PLANE_HOST", "")
    """As `ResponseServerConfig.host`. (Dynamo binds every address, and takes this for what it advertises alone.)"""
    broker_enabled: bool = setting("DYN_ZMQ_BROKER_ENABLED", False, truth)
    """Refused if it is true: a broker is not offered."""
    broker_url: str = setting("DYN_ZMQ_BROKER_URL", "")
    """Refused if it is set."""
    queue: int = setting("DYNAMO_FAST_EVENT_QUEUE", 100_000, POSITIVE)
    """Messages that wait for one slow frontend; it loses further ones, notices, and asks for them."""

    def check_offered(self) -> None:
        """Raises InvalidConfig if these settings ask for something that is not offered."""
        if self.plane == "nats":
            raise InvalidConfig("DYN_EVENT_PLANE='nats' is not offered: set it to 'zmq', in the frontend too")
        for name, value in (("ENABLED", self.broker_enabled), ("URL", self.broker_url)):
            if value:
                raise InvalidConfig(
                    f"DYN_ZMQ_BROKER_{name}={value!r} is not offered: unset it, frontends connect directly"
                )


@dataclass(frozen=True)
class KvEventConfig(_FromEnvironment):
    """What a worker keeps of its KV events, for frontends that come late or miss some (model_card.md 7.3)."""

    history: int = setting("DYNAMO_FAST_KV_EVENT_HISTORY", 1024, POSITIVE)
    """The newest events. A frontend that missed more gets all blocks instead."""
    max_blocks: int = setting("DYNAMO_FAST_MAX_KV_BLOCKS", 1_000_000, POSITIVE)
    """Blocks that are remembered as stored, of about 300 bytes each; beyond it the oldest are forgotten, and a frontend
    that comes late does not hear of them."""


# Observability --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StatusConfig(_FromEnvironment):
    """The system status server (runtime.md 5.3 and 7.1)."""

    port: int = setting("DYN_SYSTEM_PORT", -1, integer(-65535, 65535))
    """Negative: there is none. 0: chosen by the system."""
    host: str = setting("DYN_SYSTEM_HOST", "0.0.0.0")  # noqa: S104  # Dynamo's default, once it is switched on
    """As `ResponseServerConfig.host`, or the name of a host."""
    starting_status: str = setting("DYN_SYSTEM_STARTING_HEALTH_STATUS", "notready", choice("ready", "notready"))
    """The health of the process until the program sets it."""
    endpoints: str = setting("DYN_SYSTEM_USE_ENDPOINT_HEALTH_STATUS", "", names)
    """A JSON list of names. If it is not empty, the process is healthy when these endpoints are ready."""
    health_path: str = setting("DYN_SYSTEM_HEALTH_PATH", "/health")
    live_path: str = setting("DYN_SYSTEM_LIVE_PATH", "/live")
    self_host_metadata: bool = setting("DYN_SELF_HOST_METADATA", True, truth)
    """Whether the server, if there is one, serves the files of model cards. If not, cards name the local files."""

    @property
    def endpoint_names(self) -> list[str]:
        """The parsed `endpoints`."""
        return list(json.loads(self.endpoints or "[]"))


@dataclass(frozen=True)
class MultiprocessConfig(_FromEnvironment):
    """Metrics of several processes in one answer (`observability/multiprocess.py`)."""

    folder: str = setting("PROMETHEUS_MULTIPROC_DIR", "")
    """Where the processes of a server write their metrics. prometheus-client reads it, too, when it is imported."""


@dataclass(frozen=True)
class TracingConfig(_FromEnvironment):
    """Whether this process follows traces: one of the three is enough (runtime.md 6.1)."""

    json_lines: bool = setting("DYN_LOGGING_JSONL", False, truth)
    otel_export: bool = setting("OTEL_EXPORT_ENABLED", False, truth)
    console_format: str = setting("DYN_LOGGING_CONSOLE_FORMAT", "")
    """`jsonl` counts; every other value does not."""

    @property
    def active(self) -> bool:
        """Whether one of them asks for it."""
        return self.json_lines or self.otel_export or self.console_format == "jsonl"


@dataclass(frozen=True)
class OtelConfig(_FromEnvironment):
    """How spans are exported, if `OTEL_EXPORT_ENABLED` asks for it. The program's own tracer provider goes first.

    The exporter of OpenTelemetry's SDK reads further variables by itself: `OTEL_EXPORTER_OTLP_ENDPOINT`,
    `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`, `OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_TRACES_SAMPLER`, `OTEL_BSP_*` and others.
    """

    export: bool = setting("OTEL_EXPORT_ENABLED", False, truth)
    service_name: str = setting("OTEL_SERVICE_NAME", "dynamo")
    protocol: str = setting("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    """`http/protobuf`; everything else is `grpc`, as in Dynamo."""
    traces_protocol: str = setting("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "")
    """The same, for traces only. Empty: as `protocol`."""
    sample_ratio: float | None = setting("OTEL_TRACES_SAMPLE_RATIO", None, ratio)
    """Which part of the traces that begin here is exported. None: as `OTEL_TRACES_SAMPLER` says."""

    @property
    def over_http(self) -> bool:
        """Whether spans are sent over HTTP, and not over gRPC."""
        return (self.traces_protocol or self.protocol) == "http/protobuf"


@dataclass(frozen=True)
class NvtxConfig(_FromEnvironment):
    """Whether a router marks its requests for NVIDIA's profilers: one of the two is enough."""

    dynamo: bool = setting("DYN_ENABLE_RUST_NVTX", False, truth)
    own: bool = setting("DYNAMO_FAST_NVTX", False, truth)

    @property
    def enabled(self) -> bool:
        """Whether one of them asks for it."""
        return self.dynamo or self.own


@dataclass(frozen=True)
class LogConfig(_FromEnvironment):
    """What is logged beside the records of the loggers."""

    targets: str = setting("DYN_LOG", "")
    """Dynamo's filter, `level` or `target=level`, separated by commas. `trace` and `dynamo_fast=trace` log each
    incoming frame; the levels of loggers are set by `EngineLogConfig`."""

    @property
    def frames(self) -> bool:
        """Whether to log each incoming frame."""
        return bool({"trace", "dynamo_fast=trace"} & {each.strip() for each in self.targets.split(",")})


@dataclass(frozen=True)
class EngineLogConfig(_FromEnvironment):
    """How `dynamo_fast.runtime.logging` and `observability.log_setup` set up the logs of a program and of its engine."""

    targets: str = setting("DYN_LOG", "info", empty_is_a_value=True)
    """As `LogConfig.targets`. In the drop-in, the lowest of its levels is the level of the root logger."""
    config_path: str = setting("DYN_LOGGING_CONFIG_PATH", "/opt/dynamo/etc/logging.toml", empty_is_a_value=True)
    """Dynamo's file of log filters. It is not read; where there is one, records of all levels are written."""
    json_lines: bool = setting("DYN_LOGGING_JSONL", False, truth)
    console_format: str = setting("DYN_LOGGING_CONSOLE_FORMAT", "")
    """`jsonl`: as `json_lines`; every other value is the readable form."""
    plain: bool = setting("DYN_SDK_DISABLE_ANSI_LOGGING", False, truth)
    """Write no colours."""
    local_time: bool = setting("DYN_LOG_USE_LOCAL_TZ", False, truth)
    """Whether the times in JSON lines are local, and not UTC."""
    vllm_level: str = setting("VLLM_LOGGING_LEVEL", "INFO")
    """The level of vLLM's loggers; `DYN_LOG` does not change it."""

    @property
    def as_json(self) -> bool:
        """Whether each line is a JSON object."""
        return self.json_lines or self.console_format == "jsonl"


# The runtime ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RuntimeConfig(_FromEnvironment):
    """The parts of a `DistributedRuntime`. Its constructor checks the values, with Dynamo's own texts (runtime.md 1.1)."""

    discovery_backend: str = setting("DYN_DISCOVERY_BACKEND", "etcd")
    request_plane: str = setting("DYN_REQUEST_PLANE", "tcp")
    response_plane: str = setting("DYN_RESPONSE_PLANE", "tcp")


@dataclass(frozen=True)
class BackendConfig(_FromEnvironment):
    """How a `backend.Worker` leaves, after the first signal."""

    grace_period: float = setting("DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS", 5.0, seconds(zero=True))
    """How long it takes requests after it has left discovery: frontends hear of that a moment later."""
    prefill_drain_timeout: float = setting("DYN_PREFILL_DRAIN_TIMEOUT_S", 25.0, seconds(zero=True))
    """How long a prefill worker waits for its engine to be quiescent, before the engine is released."""


# The commands ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ServeConfig(_FromEnvironment):
    """How the command `dynamo-fast serve` and a `backend.Worker` end."""

    grace: float = setting("DYNAMO_FAST_GRACE", 20.0, seconds(zero=True))
    """How long the requests in flight may take after the first signal, unless `WorkerConfig.shutdown_timeout` is set.
    Kubernetes kills a container 30 s after its first signal."""


@dataclass(frozen=True)
class CommandConfig(_FromEnvironment):
    """Defaults of the options that the commands share."""

    discovery_backend: str = setting("DYN_DISCOVERY_BACKEND", "file")
    request_plane: str = setting("DYN_REQUEST_PLANE", "tcp")
    no_color: str = setting("NO_COLOR", "")
    """Any value: no colours, unless an option asks for them (https://no-color.org)."""
