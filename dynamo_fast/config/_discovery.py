"""Settings of discovery: files, etcd, Kubernetes."""

from __future__ import annotations

from dataclasses import dataclass

from dynamo_fast.config._settings import (
    POSITIVE,
    FromEnvironment,
    choice,
    integer,
    seconds,
    setting,
)

# Discovery ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FileConfig(FromEnvironment):
    """Discovery in files (runtime.md 1.3)."""

    root: str = setting("DYN_FILE_KV", "")
    """The folder that all processes share; empty: `dynamo_store_kv` in the folder for temporary files."""


@dataclass(frozen=True)
class EtcdConfig(FromEnvironment):
    """How etcd is reached, and how long it keeps the records of a silent process (runtime.md 1.4)."""

    endpoints: str = setting("ETCD_ENDPOINTS", "http://localhost:2379")
    """URLs, separated by commas; the next one is tried when one fails."""
    lease_ttl: int = setting("ETCD_LEASE_TTL", 30, POSITIVE)
    """How long etcd keeps the records of a process that is silent."""
    startup_timeout: float = setting("ETCD_STARTUP_CONNECT_TIMEOUT_SECONDS", 120.0, seconds())
    """How long to try for the first lease."""
    username: str = setting("ETCD_AUTH_USERNAME", "")
    """The name of the user; empty: etcd asks for none."""
    password: str = setting("ETCD_AUTH_PASSWORD", "", secret=True)
    """The password of the user."""
    ca: str = setting("ETCD_AUTH_CA", "")
    """PEM text, as are the two below: not paths."""
    client_cert: str = setting("ETCD_AUTH_CLIENT_CERT", "")
    """The certificate to show to etcd, as PEM text."""
    client_key: str = setting("ETCD_AUTH_CLIENT_KEY", "", secret=True)
    """The key of that certificate, as PEM text."""


@dataclass(frozen=True)
class KubernetesConfig(FromEnvironment):
    """Which pod this process is, and where the Kubernetes API is (runtime.md 1.6, kubernetes.md 1)."""

    pod_name: str = setting("POD_NAME", "")
    """The downward-API file `pod_name`, where there is one, comes before it; so it is for the uid."""
    pod_uid: str = setting("POD_UID", "")
    """The file `pod_uid` comes before it."""
    namespace: str = setting("POD_NAMESPACE", "default")
    """Where the records of this pod are, and those that it looks for."""
    mode: str = setting("DYN_KUBE_DISCOVERY_MODE", "pod", choice("pod", "container"))
    """`pod`: one worker process in a pod. `container`: one in each container."""
    container_name: str = setting("CONTAINER_NAME", "")
    """In container mode only, and needed there."""
    kubeconfig: str = setting("KUBECONFIG", "")
    """The path of a file; `~/.kube/config` if that exists, else the service account of the pod."""
    service_host: str = setting("KUBERNETES_SERVICE_HOST", "")
    """The API server, as Kubernetes tells its pods."""
    service_port: int = setting("KUBERNETES_SERVICE_PORT", 443, integer(1, 65535))
    """The port of the API server."""
