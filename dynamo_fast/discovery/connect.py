"""`connect`: a discovery backend by its name, as Dynamo spells it (runtime.md 1.1).

A new backend is two files (its store and its bucket) and a line in `_FACTORIES`.
"""

from __future__ import annotations

from collections.abc import Callable

from dynamo_fast.discovery.base import Discovery
from dynamo_fast.discovery.file import FileDiscovery
from dynamo_fast.discovery.memory import MemoryDiscovery
from dynamo_fast.errors import InvalidConfig

__all__ = ["check_kind", "connect"]


def connect(kind: str) -> Discovery:
    """The backend `file`, `mem`, `etcd` or `kubernetes`, set up as the environment says.

    For `etcd` this waits until etcd has granted a lease, whose id is the connection id: it blocks, as Dynamo's own
    constructor does. Raises InvalidConfig for another kind, or one whose library is not installed; CannotConnect if
    etcd cannot be reached.
    """
    check_kind(kind)
    return _FACTORIES[kind]()


def check_kind(kind: str) -> None:
    """Raises InvalidConfig for a name that is not one of a backend."""
    if kind not in _FACTORIES:
        raise InvalidConfig(f"Unknown key-value store type '{kind}'")


def _etcd() -> Discovery:
    from dynamo_fast.discovery.etcd import EtcdDiscovery  # needs aiohttp, which is optional

    return EtcdDiscovery.connect()


def _kubernetes() -> Discovery:
    from dynamo_fast.discovery.kubernetes import KubernetesDiscovery  # the same

    return KubernetesDiscovery()


_FACTORIES: dict[str, Callable[[], Discovery]] = {
    "file": FileDiscovery,
    "mem": MemoryDiscovery,
    "etcd": _etcd,
    "kubernetes": _kubernetes,
}
