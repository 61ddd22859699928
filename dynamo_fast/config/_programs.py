"""Settings of the drop-in's runtime and of the commands."""

from __future__ import annotations

from dataclasses import dataclass

from dynamo_fast.config._settings import (
    FromEnvironment,
    seconds,
    setting,
)

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
