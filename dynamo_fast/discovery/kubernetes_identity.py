"""Who a process is in Kubernetes: its pod, its custom resource, its instance id (runtime.md 1.6, kubernetes.md 1)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dynamo_fast.config import KubernetesConfig
from dynamo_fast.errors import InvalidConfig

__all__ = ["PodIdentity", "instance_id"]

PODINFO = Path("/etc/podinfo")
"""Where pods mount the downward API, by Dynamo's custom."""
MAIN_CONTAINER = "main"
"""The container whose resource has the name of the pod, without a suffix."""

_MASK = 0xFFFF_FFFF_FFFF_FFFF


@dataclass(frozen=True)
class PodIdentity:
    """One process of a pod. In a namespace, no two processes may have the same `resource`."""

    namespace: str
    pod: str
    uid: str
    resource: str
    """The name of the custom resource with the records of this process."""

    @classmethod
    def find(cls, config: KubernetesConfig, podinfo: Path = PODINFO) -> PodIdentity:
        """From the files of the downward API, else from the environment. Raises InvalidConfig for what is missing."""
        pod = _fact(podinfo / "pod_name", config.pod_name, "POD_NAME")
        uid = _fact(podinfo / "pod_uid", config.pod_uid, "POD_UID")
        if config.mode == "container" and not config.container_name:
            raise InvalidConfig("CONTAINER_NAME is required when DYN_KUBE_DISCOVERY_MODE=container")
        container = config.container_name if config.mode == "container" else MAIN_CONTAINER
        return cls(config.namespace, pod, uid, resource_name(pod, container))

    @property
    def is_whole_pod(self) -> bool:
        """Whether the resource stands for the pod, and not for one of its containers."""
        return self.resource == self.pod


def resource_name(pod: str, container: str) -> str:
    """The name of the custom resource of a container; the container `main` has the name of the pod."""
    return pod if container == MAIN_CONTAINER else f"{pod}-{container}"


def instance_id(resource: str) -> int:
    """The id of every endpoint that the process of this resource serves: 53 bits, the same after a restart.

    SipHash-1-3 with a zero key over the name and the byte 0xFF: so Rust hashes a `str` by default.
    """
    return _siphash13(resource.encode() + b"\xff") & 0x1F_FFFF_FFFF_FFFF


def _fact(file: Path, given: str, variable: str) -> str:
    try:
        text = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        text = ""
    if not (text or given):
        raise InvalidConfig(f"{variable} not available from file or environment: set it, or mount {file}")
    return text or given


def _siphash13(data: bytes) -> int:
    v0, v1, v2, v3 = 0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573

    def turn(rounds: int) -> None:
        nonlocal v0, v1, v2, v3
        for _ in range(rounds):
            v0 = (v0 + v1) & _MASK
            v2 = (v2 + v3) & _MASK
            v1 = _rotate(v1, 13) ^ v0
            v3 = _rotate(v3, 16) ^ v2
            v0 = _rotate(v0, 32)
            v2 = (v2 + v1) & _MASK
            v0 = (v0 + v3) & _MASK
            v1 = _rotate(v1, 17) ^ v2
            v3 = _rotate(v3, 21) ^ v0
            v2 = _rotate(v2, 32)

    whole = len(data) - len(data) % 8
    words = [int.from_bytes(data[at : at + 8], "little") for at in range(0, whole, 8)]
    words.append((len(data) & 0xFF) << 56 | int.from_bytes(data[whole:], "little"))
    for word in words:
        v3 ^= word
        turn(1)
        v0 ^= word
    v2 ^= 0xFF
    turn(3)
    return v0 ^ v1 ^ v2 ^ v3


def _rotate(word: int, bits: int) -> int:
    return ((word << bits) | (word >> (64 - bits))) & _MASK
