"""What etcd answers, as msgspec reads it. Numbers come as JSON texts; fields that are not needed are left out."""

from __future__ import annotations

import msgspec

__all__ = ["Change", "Done", "KeyValue", "LeaseAnswer", "RangeAnswer", "Token", "TransactionAnswer", "WatchAnswer"]


class Header(msgspec.Struct):
    """Of every answer about keys."""

    revision: int


class WatchHeader(msgspec.Struct, frozen=True):
    """Of a watch's answers; that a watch is refused comes without a revision."""

    revision: int = 0


class KeyValue(msgspec.Struct):
    """One key; its value is empty in the event that it was deleted."""

    key: bytes
    value: bytes = b""
    create_revision: int = 0
    mod_revision: int = 0


class RangeAnswer(msgspec.Struct):
    """To `kv/range`."""

    header: Header
    kvs: list[KeyValue] = []


class Done(msgspec.Struct):
    """To `kv/put` and `kv/deleterange`."""

    header: Header


class TransactionAnswer(msgspec.Struct):
    """To `kv/txn`."""

    header: Header
    succeeded: bool = False


class LeaseAnswer(msgspec.Struct):
    """To `lease/grant` and `lease/keepalive`; a TTL of 0 is that of a lease that is lost."""

    ID: int
    TTL: int = 0


class Token(msgspec.Struct):
    """To `auth/authenticate`."""

    token: str


class Change(msgspec.Struct):
    """One event of a watch."""

    kv: KeyValue
    type: str = "PUT"


class WatchAnswer(msgspec.Struct):
    """One message of `watch`."""

    header: WatchHeader = WatchHeader()
    created: bool = False
    canceled: bool = False
    cancel_reason: str = ""
    compact_revision: int = 0
    events: list[Change] = []
