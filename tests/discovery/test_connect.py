"""A backend by its name."""

from __future__ import annotations

import pytest

from dynamo_fast.discovery.connect import check_kind, connect
from dynamo_fast.discovery.file import FileDiscovery
from dynamo_fast.discovery.memory import MemoryDiscovery
from dynamo_fast.errors import InvalidConfig


def test_a_backend_has_a_name() -> None:
    assert isinstance(connect("mem"), MemoryDiscovery)
    assert isinstance(connect("file"), FileDiscovery)
    for kind in ("file", "mem", "etcd", "kubernetes"):
        check_kind(kind)
    with pytest.raises(InvalidConfig, match="Unknown key-value store type 'zookeeper'"):
        connect("zookeeper")
