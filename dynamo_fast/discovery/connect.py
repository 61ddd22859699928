"""`connect`: a discovery backend by its name, as Dynamo spells it (runtime.md 1.1)."""

from __future__ import annotations

from dynamo_fast.discovery.base import Discovery
from dynamo_fast.discovery.file import FileDiscovery
from dynamo_fast.discovery.memory import MemoryDiscovery
from dynamo_fast.errors import InvalidConfig

__all__ = ["check_kind", "connect"]

_OFFERED = ("file", "mem", "etcd")


def connect(kind: str) -> Discovery:
    """The backend `file`, `mem` or `etcd`, set up as the environment says.

    For `etcd` this waits until etcd has granted a lease, whose id is the connection id: it blocks, as Dynamo's own
    constructor does. Raises InvalidConfig for another kind, or one whose library is not installed; CannotConnect if
    etcd cannot be reached.
    """
    check_kind(kind)
    if kind == "mem":
        return MemoryDiscovery()
    if kind == "etcd":
        from dynamo_fast.discovery.etcd import EtcdDiscovery

        return EtcdDiscovery.connect()
    return FileDiscovery()


def check_kind(kind: str) -> None:
    """Raises InvalidConfig for what is no backend's name, or the name of one that is not offered."""
    if kind == "kubernetes":
        raise InvalidConfig("the discovery backend 'kubernetes' is not offered: use 'etcd' or 'file'")
    if kind not in _OFFERED:
        raise InvalidConfig(f"Unknown key-value store type '{kind}'")
