"""`EtcdDiscovery`: instance records as keys in etcd, as Dynamo's `etcd` backend keeps them (runtime.md 1.4).

    v1/instances/demo/backend/generate/577eb898b1f7105e      one record, compact JSON, attached to the process's lease

The id of the lease is the connection id. etcd deletes the keys when a lease is not renewed for its TTL. A process that
lost its lease (or its keys, or the whole etcd with everything in it) asks for the same lease again and puts its keys
back; Dynamo's own worker ends then.
"""

from __future__ import annotations

import asyncio
import base64
import threading
import time
from typing import Any, NamedTuple

from dynamo_fast.config import EtcdConfig
from dynamo_fast.discovery.base import Added, Discovery, DiscoveryEvent, Listener, Removed, Watch
from dynamo_fast.discovery.etcd_client import EtcdClient, Refused, encode, prefix_range
from dynamo_fast.errors import CannotConnect, InvalidRequest, PayloadError
from dynamo_fast.logs import get_logger
from dynamo_fast.wire.address import EndpointId
from dynamo_fast.wire.instance import Instance

__all__ = ["EtcdDiscovery"]

logger = get_logger(__name__)

ROOT = "v1/instances/"
RETRY = 0.5
"""Seconds between attempts to reach an etcd that is away."""


class EtcdDiscovery(Discovery):
    """Records in etcd, on a lease that exists already: make it with `connect`."""

    def __init__(self, config: EtcdConfig, lease_id: int) -> None:
        self.connection_id = lease_id
        self._config = config
        self._owned: dict[str, bytes] = {}
        self._streams: dict[EndpointId, _Stream] = {}
        self._own_client: EtcdClient | None = None
        self._beating: asyncio.Task[None] | None = None
        self._closed = False
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return
        self._keep_beating()

    @classmethod
    def connect(cls, config: EtcdConfig | None = None) -> EtcdDiscovery:
        """With a new lease. Blocks until etcd has granted it, for `startup_timeout` at most; then CannotConnect."""
        config = EtcdConfig.from_env() if config is None else config
        return cls(config, _blocking(config))

    async def register(self, instance: Instance) -> None:
        key, value = _key(instance), instance.encode()
        self._owned[key] = value
        self._keep_beating()
        try:
            await self._put(key, value)
        except Refused:  # the lease may have been lost since the last beat
            await self._grant()
            await self._put(key, value)

    async def unregister(self, instance: Instance) -> None:
        if self._owned.pop(_key(instance), None) is None:
            raise InvalidRequest(f"{instance.endpoint_id} was not registered by this process: nothing to unregister")
        await self.client.call("kv/deleterange", {"key": encode(_key(instance))})

    async def list(self, endpoint: EndpointId | None = None) -> list[Instance]:
        _, entries = await self.read(ROOT if endpoint is None else _prefix(endpoint))
        instances = (entry.instance for entry in entries.values() if entry.instance is not None)
        return sorted(instances, key=lambda instance: instance.endpoint_instance_id)

    async def watch(self, endpoint: EndpointId, listener: Listener) -> Watch:
        self._keep_beating()
        stream = self._streams.get(endpoint)
        if stream is None:
            stream = self._streams[endpoint] = _Stream(self, endpoint)
        watch = _EtcdWatch(stream, listener)
        try:
            await stream.add(watch)
        except BaseException:
            watch.close()
            raise
        return watch

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._owned.clear()
        for stream in list(self._streams.values()):
            stream.close()
        if self._beating is not None:
            self._beating.cancel()
        try:
            await self.client.call("lease/revoke", {"ID": str(self.connection_id)}, timeout=2.0)
        except CannotConnect as error:
            logger.warning("the lease %x is left to expire: %s", self.connection_id, error)
        await self.client.close()

    @property
    def client(self) -> EtcdClient:
        """The connections to etcd; made on first use, since the event loop may not run before."""
        if self._own_client is None:
            self._own_client = EtcdClient(self._config)
        return self._own_client

    async def read(self, prefix: str) -> tuple[int, dict[str, _Entry]]:
        """etcd's revision, and what it has under `prefix`, by key. Raises CannotConnect."""
        answer = await self.client.call("kv/range", prefix_range(prefix))
        entries = {_text(pair["key"]): _entry(pair) for pair in answer.get("kvs", ())}
        return int(answer["header"]["revision"]), entries

    def forget(self, endpoint: EndpointId) -> None:
        """Nobody watches it any more."""
        self._streams.pop(endpoint, None)

    # Our lease and our keys

    def _keep_beating(self) -> None:
        if self._beating is None and not self._closed:
            self._beating = asyncio.get_running_loop().create_task(self._beat())

    async def _beat(self) -> None:
        away = False
        while True:
            try:
                await self._renew()
            except CannotConnect as error:
                if not away:
                    logger.warning("cannot renew the lease %x: %s", self.connection_id, error)
                    away = True
                await asyncio.sleep(RETRY)
                continue
            if away:
                logger.warning("the lease %x is renewed again", self.connection_id)
                away = False
                for stream in self._streams.values():
                    stream.restart()  # its connection may be dead without a word
            await asyncio.sleep(self._config.lease_ttl / 3)

    async def _renew(self) -> None:
        answer = await self.client.call("lease/keepalive", {"ID": str(self.connection_id)})
        if int(answer.get("TTL", 0)) <= 0:
            logger.warning("the lease %x was lost: asking for it again", self.connection_id)
            await self._grant()
        for key, value in list(self._owned.items()):
            await self._put_back(key, value)

    async def _grant(self) -> None:
        try:
            await self.client.call("lease/grant", {"ID": str(self.connection_id), "TTL": str(self._config.lease_ttl)})
        except Refused as refusal:
            if "already exists" not in str(refusal):
                raise

    async def _put(self, key: str, value: bytes) -> None:
        await self.client.call("kv/put", self._put_request(key, value))

    async def _put_back(self, key: str, value: bytes) -> None:
        """Put the key if it is not there."""
        absent = {"key": encode(key), "target": "VERSION", "result": "EQUAL", "version": "0"}
        put = {"requestPut": self._put_request(key, value)}
        answer = await self.client.call("kv/txn", {"compare": [absent], "success": [put]})
        if answer.get("succeeded"):
            logger.warning("the record %s had been removed: it is put back", key)

    def _put_request(self, key: str, value: bytes) -> dict[str, str]:
        return {"key": encode(key), "value": encode(value), "lease": str(self.connection_id)}


class _Entry(NamedTuple):
    """A key's value. Another `created` revision under the same key: it was deleted in between."""

    created: int
    instance: Instance | None


class _Stream:
    """What etcd says about one endpoint, for all who watch it: a list, then every change since then.

    A connection that is lost, and a revision that etcd has forgotten, come to the same: list again, and tell the
    difference.
    """

    def __init__(self, discovery: EtcdDiscovery, endpoint: EndpointId) -> None:
        self.watches: list[_EtcdWatch] = []
        self._discovery = discovery
        self._endpoint = endpoint
        self._entries: dict[str, _Entry] = {}
        self._listing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    async def add(self, watch: _EtcdWatch) -> None:
        async with self._listing:
            if self._task is None:
                revision = await self._refresh()
                self._task = asyncio.get_running_loop().create_task(self._follow(revision))
        self.watches.append(watch)
        for entry in self._entries.values():
            if entry.instance is not None:
                watch.tell(Added(entry.instance))

    def remove(self, watch: _EtcdWatch) -> None:
        if watch in self.watches:
            self.watches.remove(watch)
        if not self.watches:
            self.close()

    def close(self) -> None:
        self.watches.clear()
        if self._task is not None:
            self._task.cancel()
        self._discovery.forget(self._endpoint)

    def restart(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = asyncio.get_running_loop().create_task(self._follow(None))

    async def _refresh(self) -> int:
        revision, entries = await self._discovery.read(_prefix(self._endpoint))
        for key, entry in list(self._entries.items()):
            if key not in entries or entries[key].created != entry.created:
                self._update(key, None)
        for key, entry in entries.items():
            self._update(key, entry)
        return revision

    async def _follow(self, revision: int | None) -> None:
        away = False
        while True:
            try:
                if revision is None:
                    revision = await self._refresh()
                    away = False
                await self._watch(revision)
            except CannotConnect as error:
                self._discovery.client.forget_token()  # which may be what is wrong
                if not away:
                    logger.warning("the watch of %s is interrupted: %s", self._endpoint, error)
                    away = True
                await asyncio.sleep(RETRY)
            revision = None

    async def _watch(self, revision: int) -> None:
        """Take changes after `revision`. Returns when etcd ends the watch; raises CannotConnect if it is cut off."""
        request = {**prefix_range(_prefix(self._endpoint)), "start_revision": str(revision + 1)}
        async for answer in self._discovery.client.stream("watch", {"create_request": request}):
            if answer.get("canceled"):
                logger.warning("etcd ended the watch of %s: %s", self._endpoint, answer.get("cancel_reason", answer))
                await asyncio.sleep(RETRY)
                return
            for event in answer.get("events", ()):
                pair = event["kv"]
                self._update(_text(pair["key"]), None if event.get("type") == "DELETE" else _entry(pair))

    def _update(self, key: str, entry: _Entry | None) -> None:
        before = self._entries.pop(key, None)
        if entry is not None and entry.instance is not None and entry.instance.endpoint_id != self._endpoint:
            logger.warning("ignoring the discovery record %s: its content says %s", key, entry.instance.endpoint_id)
            entry = _Entry(entry.created, None)
        if before is not None and before.instance is not None and (entry is None or entry.instance is None):
            self._tell(Removed(before.instance))
        if entry is None:
            return
        self._entries[key] = entry
        if entry.instance is not None and (before is None or before.instance != entry.instance):
            self._tell(Added(entry.instance))

    def _tell(self, event: DiscoveryEvent) -> None:
        for watch in list(self.watches):
            watch.tell(event)


class _EtcdWatch(Watch):
    def __init__(self, stream: _Stream, listener: Listener) -> None:
        self._stream = stream
        self._listener: Listener | None = listener

    def tell(self, event: DiscoveryEvent) -> None:
        if self._listener is not None:
            self._listener(event)

    def close(self) -> None:
        self._listener = None
        self._stream.remove(self)


def _prefix(endpoint: EndpointId) -> str:
    return f"{ROOT}{endpoint}/"


def _key(instance: Instance) -> str:
    return f"{_prefix(instance.endpoint_id)}{instance.instance_id:x}"


def _text(encoded: str) -> str:
    return base64.b64decode(encoded).decode("utf-8", "replace")


def _entry(pair: dict[str, Any]) -> _Entry:
    value = base64.b64decode(pair.get("value", ""))
    try:
        instance = Instance.decode(value)
    except PayloadError as error:
        logger.warning("ignoring the discovery record %s: %s", _text(pair["key"]), error)
        return _Entry(int(pair["create_revision"]), None)
    return _Entry(int(pair["create_revision"]), instance)


# The first lease


def _blocking(config: EtcdConfig) -> int:
    """A new lease, without the event loop of the caller, which may be running and must wait."""
    outcome: list[int | BaseException] = []

    def work() -> None:
        try:
            outcome.append(asyncio.run(_first_lease(config)))
        except BaseException as error:  # for the caller's thread
            outcome.append(error)

    thread = threading.Thread(target=work, name="etcd-lease", daemon=True)
    thread.start()
    thread.join()
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


async def _first_lease(config: EtcdConfig) -> int:
    client = EtcdClient(config)
    deadline = time.monotonic() + config.startup_timeout
    try:
        while True:
            try:
                remaining = max(0.1, deadline - time.monotonic())
                answer = await client.call("lease/grant", {"TTL": str(config.lease_ttl)}, timeout=min(5.0, remaining))
                return int(answer["ID"])
            except Refused:
                raise
            except CannotConnect as error:
                if time.monotonic() + RETRY >= deadline:
                    raise CannotConnect(
                        f"etcd startup connection timed out after {config.startup_timeout:g} seconds"
                    ) from error
            await asyncio.sleep(RETRY)
    finally:
        await client.close()
