"""The etcd backend, against a real etcd that goes away, forgets, compacts, asks for a password and speaks TLS."""

from __future__ import annotations

import asyncio
import base64
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.frontend import free_port
from dynamo_fast.config import EtcdConfig
from dynamo_fast.discovery import background, etcd_client, etcd_lease
from dynamo_fast.discovery.base import Added, Discovery, DiscoveryEvent, Removed
from dynamo_fast.discovery.buckets import MODEL_CARDS
from dynamo_fast.discovery.connect import connect
from dynamo_fast.discovery.etcd import EtcdDiscovery, EtcdStore
from dynamo_fast.discovery.etcd_client import EtcdClient, Refused, encode, prefix_range
from dynamo_fast.discovery.etcd_messages import LeaseAnswer, RangeAnswer
from dynamo_fast.errors import CannotConnect, InvalidConfig, InvalidRequest
from dynamo_fast.wire.address import EndpointId
from tests.discovery.etcd_server import Etcd, etcd
from tests.discovery.front import front, http
from tests.discovery.records import ENDPOINT, OTHER, instance
from tests.discovery.waiting import until

LIMIT = 30


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    with etcd(tmp_path_factory.mktemp("etcd")) as running:
        yield running


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Etcd]:
    """For a test that stops it."""
    with etcd(tmp_path) as running:
        yield running


@pytest.fixture
async def client(server: Etcd) -> AsyncIterator[EtcdClient]:
    """Somebody else, who looks and meddles."""
    client = EtcdClient(config(server))
    yield client
    await client.call("kv/deleterange", prefix_range("v1/"), dict)
    await client.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "FIRST_RETRY", 0.05)
    monkeypatch.setattr(background, "LAST_RETRY", 0.2)
    monkeypatch.setattr(etcd_lease, "FIRST_RETRY", 0.05)


def config(server: Etcd, **settings: Any) -> EtcdConfig:
    return EtcdConfig(**{"endpoints": server.url, "startup_timeout": 5.0, "lease_ttl": 2, **settings})


async def keys(client: EtcdClient) -> dict[str, int]:
    """What is there, with its lease."""
    answer: dict[str, Any] = await client.call("kv/range", prefix_range("v1/"), dict)
    return {text(pair["key"]): int(pair.get("lease", 0)) for pair in answer.get("kvs", ())}


def text(encoded: str) -> str:
    return base64.b64decode(encoded).decode()


async def put_on_a_lease_that_expires(
    client: EtcdClient, endpoint: EndpointId, instance_id: int, *, lease_ttl: int
) -> None:
    """A record that etcd removes by its own clock: an event for who must wait for longer than a lease lasts."""
    lease = await client.call("lease/grant", {"TTL": str(lease_ttl)}, LeaseAnswer)
    record = instance(instance_id, endpoint)
    key = encode(f"v1/instances/{endpoint}/{instance_id:x}")
    await client.call("kv/put", {"key": key, "value": encode(record.encode()), "lease": str(lease.ID)}, dict)


class Ear:
    def __init__(self) -> None:
        self.events: asyncio.Queue[DiscoveryEvent] = asyncio.Queue()

    @classmethod
    async def open(cls, discovery: EtcdDiscovery) -> Ear:
        ear = cls()
        await discovery.watch(ENDPOINT, ear.events.put_nowait)
        return ear

    async def hear(self) -> DiscoveryEvent:
        return await asyncio.wait_for(self.events.get(), LIMIT)


async def test_a_record_is_a_plain_key_on_the_lease_that_is_the_connection_id(server: Etcd, client: EtcdClient) -> None:
    discovery = EtcdDiscovery.connect(config(server))
    ours = instance(discovery.connection_id)
    await discovery.register(ours)
    key = f"v1/instances/test/back_end/a-b.c é/{ours.instance_id:x}"
    assert await keys(client) == {key: discovery.connection_id}
    value: dict[str, Any] = (await client.call("kv/range", {"key": encode(key)}, dict))["kvs"][0]
    assert text(value["value"]).encode() == ours.encode()
    assert value["version"] == "1"
    lease: dict[str, Any] = await client.call("lease/timetolive", {"ID": str(discovery.connection_id)}, dict)
    assert lease["grantedTTL"] == "2"
    await discovery.unregister(ours)
    assert await keys(client) == {}
    with pytest.raises(InvalidRequest, match="nothing to unregister"):
        await discovery.unregister(ours)
    await discovery.register(ours)
    await discovery.close()
    await discovery.close()
    assert await keys(client) == {}


async def test_changes_are_heard_and_neighbours_are_kept_apart(server: Etcd, client: EtcdClient) -> None:
    ours, theirs = EtcdDiscovery.connect(config(server)), EtcdDiscovery.connect(config(server))
    await theirs.register(instance(1))
    first, second = await Ear.open(ours), await Ear.open(ours)  # two on one stream
    assert first.events.get_nowait() == second.events.get_nowait() == Added(instance(1))
    await theirs.register(instance(9, OTHER))
    await client.call(
        "kv/put", {"key": encode("v1/instances/test/back_end/a-b.c é/77"), "value": encode("garbage")}, dict
    )
    await theirs.register(instance(1, address="127.0.0.1:2/x"))
    await theirs.unregister(instance(1))
    await theirs.register(instance(1))
    for ear in (first, second):
        assert await ear.hear() == Added(instance(1, address="127.0.0.1:2/x"))
        assert await ear.hear() == Removed(instance(1, address="127.0.0.1:2/x"))
        assert await ear.hear() == Added(instance(1))
    assert await ours.list(ENDPOINT) == [instance(1)]
    assert await ours.list() == [instance(1), instance(9, OTHER)]
    await ours.close()
    await theirs.close()


async def test_many_records_are_listed(server: Etcd, client: EtcdClient) -> None:
    discovery = EtcdDiscovery.connect(config(server, lease_ttl=30))
    many = [instance(number) for number in range(1, 601)]
    await asyncio.gather(*map(discovery.register, many))
    assert await discovery.list(ENDPOINT) == many
    await discovery.close()


async def test_the_lease_is_kept_alive(server: Etcd, client: EtcdClient) -> None:
    discovery = EtcdDiscovery.connect(config(server))
    await discovery.register(instance(1))
    ear = await Ear.open(discovery)
    assert await ear.hear() == Added(instance(1))
    await put_on_a_lease_that_expires(client, ENDPOINT, 2, lease_ttl=2)
    assert await ear.hear() == Added(instance(2))
    assert await ear.hear() == Removed(instance(2))  # a lease that is as long, and was granted later; and nothing else
    await discovery.close()


async def test_a_lease_or_a_key_that_was_lost_is_put_back(server: Etcd, client: EtcdClient) -> None:
    discovery, other = EtcdDiscovery.connect(config(server)), EtcdDiscovery.connect(config(server))
    ours = instance(discovery.connection_id)
    await discovery.register(ours)
    ear = await Ear.open(other)
    assert await ear.hear() == Added(ours)
    await client.call("lease/revoke", {"ID": str(discovery.connection_id)}, dict)
    assert [await ear.hear(), await ear.hear()] == [Removed(ours), Added(ours)]
    assert list((await keys(client)).values()) == [discovery.connection_id]
    await client.call("kv/deleterange", prefix_range("v1/"), dict)
    assert [await ear.hear(), await ear.hear()] == [Removed(ours), Added(ours)]
    await discovery.close()
    await other.close()


@pytest.mark.parametrize("comes_back", ["as it was", "empty"])
async def test_an_etcd_that_goes_away_and_comes_back(
    own_server: Etcd, comes_back: str, caplog: pytest.LogCaptureFixture
) -> None:
    ours, theirs = EtcdDiscovery.connect(config(own_server)), EtcdDiscovery.connect(config(own_server))
    record, late = instance(theirs.connection_id), instance(5)
    for number in range(20):  # so that the revision of an empty etcd is behind
        await theirs.register(instance(1000 + number, OTHER))
    await theirs.register(record)
    ear = await Ear.open(ours)
    assert await ear.hear() == Added(record)
    own_server.stop()
    if comes_back == "empty":
        own_server.empty()
    await until(lambda: "will be tried again" in caplog.text)
    own_server.start()
    await theirs.register(late)
    seen = {record}
    while seen != {record, late}:
        event = await ear.hear()
        (seen.add if isinstance(event, Added) else seen.discard)(event.instance)
    assert {each.instance_id for each in await ours.list(ENDPOINT)} == {5, theirs.connection_id}
    await ours.close()
    await theirs.close()


async def test_a_watch_whose_revision_was_compacted_goes_on(own_server: Etcd, caplog: pytest.LogCaptureFixture) -> None:
    client = EtcdClient(config(own_server))
    with front(own_server.port) as between:
        discovery = EtcdDiscovery.connect(config(own_server, endpoints=between.url))
        ear = await Ear.open(discovery)
        await until(between.watches)
        between.deafen()
        await discovery.register(instance(1))
        await discovery.unregister(instance(1))
        await discovery.register(instance(2))
        revision: str = (await client.call("kv/range", {"key": encode("x")}, dict))["header"]["revision"]
        await client.call("kv/compaction", {"revision": revision, "physical": True}, dict)
        assert await ear.hear() == Added(instance(2))
        assert "etcd ended the watch: everything before revision" in caplog.text
        await discovery.register(instance(3))
        assert await ear.hear() == Added(instance(3))
        await client.close()
        await discovery.close()


async def test_what_was_removed_and_put_again_unseen_is_two_events(server: Etcd, client: EtcdClient) -> None:
    with front(server.port) as between:
        discovery = EtcdDiscovery.connect(config(server, endpoints=between.url))
        await discovery.register(instance(1))
        ear = await Ear.open(discovery)
        assert await ear.hear() == Added(instance(1))
        await until(between.watches)
        between.deafen()
        await discovery.unregister(instance(1))
        await discovery.register(instance(1))
        between.cut()
        assert [await ear.hear(), await ear.hear()] == [Removed(instance(1)), Added(instance(1))]
        await discovery.close()


async def test_a_watch_whose_connection_is_deaf_hears_within_one_lease_time(server: Etcd, client: EtcdClient) -> None:
    with front(server.port) as between:
        discovery = EtcdDiscovery.connect(config(server, endpoints=between.url))
        other = EtcdDiscovery.connect(config(server))
        ear = await Ear.open(discovery)
        await until(between.watches)
        between.deafen()
        for number in (1, 2):  # of which nothing is lost
            await other.register(instance(number))
        await other.unregister(instance(1))
        assert [await ear.hear() for _ in range(3)] == [Added(instance(1)), Added(instance(2)), Removed(instance(1))]
        await discovery.close()
        await other.close()


NONSENSE = {
    "gateway": http("503 Service Unavailable", b'{"message":"Service Unavailable"}'),
    "object": http("200 OK", b"{}"),
    "text": http("200 OK", b'"service unavailable"'),
    "list": http("200 OK", b"[1, 2]"),
    "number": http("200 OK", b"17"),
    "html": http("200 OK", b"<html><body>sign in</body></html>", "text/html"),
    "nothing": http("204 No Content", b""),
    "elsewhere": http("302 Found\r\nLocation: /login", b""),
    "missing": http("200 OK", b'{"header":{},"kvs":[{"value":"eA=="}],"result":{"TTL":[]}}'),
    "types": http("200 OK", b'{"result":{"header":{"revision":"x"},"ID":null,"events":[{"kv":1}],"created":true}}'),
    "no key": http("200 OK", b'{"header":{"revision":"9999999"},"result":{"events":[{"kv":{}}]}}'),
    "base64": http("200 OK", b'{"header":{"revision":"1"},"kvs":[{"key":"%%"}]}'),
    "error": http("500 Internal Server Error", b'{"error":["what"],"code":"x"}'),
    "nested": http("200 OK", b'{"a":' * 3000 + b"1" + b"}" * 3000),
    "half": http("200 OK", b'{"header":{"revision":"7"},"kv', length=1000),
    "no HTTP": b"SSH-2.0-OpenSSH_9.2\r\n",
}


async def test_nonsense_ends_neither_watch_nor_lease_nor_record(
    server: Etcd, client: EtcdClient, caplog: pytest.LogCaptureFixture
) -> None:
    with front(server.port) as between:
        discovery = EtcdDiscovery.connect(config(server, endpoints=between.url))
        other = EtcdDiscovery.connect(config(server))
        ours = instance(discovery.connection_id)
        await discovery.register(ours)
        ear = await Ear.open(discovery)
        assert await ear.hear() == Added(ours)
        for answer in NONSENSE.values():
            before = between.answered
            between.answer(answer)
            await until(lambda before=before: between.answered >= before + 2)  # type: ignore[misc]
        between.forward()  # and the lease has expired meanwhile
        seen: set[Any] = set()
        await other.register(instance(1))
        while instance(1) not in seen or ours not in seen:
            event = await ear.hear()
            (seen.add if isinstance(event, Added) else seen.discard)(event.instance)
        await until(lambda: discovery_has(client, discovery))
        assert len(caplog.records) < 30  # one for each spell of trouble, not for each attempt
        await discovery.close()
        await other.close()


async def discovery_has(client: EtcdClient, discovery: EtcdDiscovery) -> bool:
    return discovery.connection_id in (await keys(client)).values()


@pytest.mark.parametrize("answer", NONSENSE)
async def test_nonsense_is_an_error_that_names_it(server: Etcd, answer: str) -> None:
    with front(server.port) as between:
        client = EtcdClient(config(server, endpoints=between.url))
        between.answer(NONSENSE[answer])
        with pytest.raises(CannotConnect, match="Unable to connect to etcd server at http"):
            await client.call("kv/range", prefix_range("v1/"), RangeAnswer)
        between.forward()
        await client.call("kv/range", prefix_range("v1/"), RangeAnswer)
        await client.close()


async def test_another_endpoint_is_tried_when_one_is_dead(server: Etcd, client: EtcdClient) -> None:
    dead = f"http://127.0.0.1:{free_port()}"
    discovery = EtcdDiscovery.connect(EtcdConfig(endpoints=f"{dead}, {server.url}/", lease_ttl=2))
    await discovery.register(instance(1))
    assert await discovery.list() == [instance(1)]
    await discovery.close()


def test_no_etcd_is_an_error_after_the_startup_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETCD_ENDPOINTS", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("ETCD_STARTUP_CONNECT_TIMEOUT_SECONDS", "0.3")
    with pytest.raises(CannotConnect, match="etcd startup connection timed out after 0.3 seconds"):
        connect("etcd")


def test_settings_that_are_wrong_say_so() -> None:
    with pytest.raises(InvalidConfig, match="ETCD_ENDPOINTS='localhost:2379' is not valid"):
        EtcdDiscovery.connect(EtcdConfig(endpoints="localhost:2379"))
    with pytest.raises(InvalidConfig, match="expected PEM text"):
        EtcdDiscovery.connect(EtcdConfig(ca="/etc/ca.pem", client_cert="x", client_key="y"))


async def test_user_and_password(own_server: Etcd) -> None:
    client = EtcdClient(config(own_server))
    await client.call("auth/user/add", {"name": "root", "password": "secret"}, dict)
    await client.call("auth/role/add", {"name": "root"}, dict)
    await client.call("auth/user/grant", {"user": "root", "role": "root"}, dict)
    await client.call("auth/enable", {}, dict)
    with pytest.raises(Refused):
        EtcdDiscovery.connect(config(own_server, username="root", password="wrong"))
    discovery = EtcdDiscovery.connect(config(own_server, username="root", password="secret"))
    assert "secret" not in repr(discovery.store.config)
    ear = await Ear.open(discovery)
    await discovery.register(instance(1))
    assert await ear.hear() == Added(instance(1))
    discovery.store.client._token = "stale.1"  # as if it had expired
    await discovery.register(instance(2))
    assert await ear.hear() == Added(instance(2))
    await discovery.close()
    await client.close()


async def test_tls_with_a_certificate_of_the_client(tmp_path: Path) -> None:
    certificates(tmp_path)
    options = ["--cert-file", "server.pem", "--key-file", "server.key", "--trusted-ca-file", "ca.pem"]
    paths = [str(tmp_path / each) if not each.startswith("--") else each for each in options]
    with etcd(tmp_path, *paths, "--client-cert-auth", scheme="https") as server:
        texts = {name: (tmp_path / file).read_text() for name, file in TLS_FILES.items()}
        discovery = EtcdDiscovery.connect(config(server, **texts))
        await discovery.register(instance(1))
        assert await discovery.list() == [instance(1)]
        await discovery.close()
        with pytest.raises(CannotConnect):
            EtcdDiscovery.connect(EtcdConfig(endpoints=server.url, startup_timeout=0.3, ca=texts["ca"]))


TLS_FILES = {"ca": "ca.pem", "client_cert": "client.pem", "client_key": "client.key"}


def certificates(folder: Path) -> None:
    """ca.pem, and server and client certificates of it. Skips without the `openssl` program."""
    (folder / "san").write_text("subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n")

    def openssl(*arguments: str) -> None:
        try:
            subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)
        except FileNotFoundError:
            pytest.skip("no openssl program to make certificates with")

    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=ca")
    for name in ("server", "client"):
        openssl("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        authority = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"]
        openssl(
            "x509", "-req", "-in", f"{name}.csr", *authority, "-out", f"{name}.pem", "-days", "2", "-extfile", "san"
        )


async def test_a_lease_is_revoked_even_if_its_keys_cannot_be_deleted_first(
    server: Etcd, client: EtcdClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = await EtcdStore.open(config(server))
    await Discovery(store).register(instance(1))
    await store.bucket(MODEL_CARDS).put("n/c/e/1", b'{"type":"Model"}')
    monkeypatch.setattr(etcd_client, "_MAX_OPERATIONS", 0x7FFFFFFF)
    for number in range(2, 202):  # etcd refuses so many deletions at once
        await store.bucket(MODEL_CARDS).put(f"n/c/e/{number}", b'{"type":"Model"}')
    await store.close()
    assert await keys(client) == {}
    assert "left to expire" not in caplog.text
