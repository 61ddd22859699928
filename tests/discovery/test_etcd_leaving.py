"""The etcd backend when a process leaves, when a registration does not end well, and when hosts have names."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator

import pytest

from benchmarks.frontend import free_port
from dynamo_fast.config import EtcdConfig
from dynamo_fast.discovery.base import Added
from dynamo_fast.discovery.etcd import EtcdDiscovery
from dynamo_fast.discovery.etcd_client import EtcdClient, Refused, prefix_range
from dynamo_fast.errors import CannotConnect, InvalidRequest
from tests.discovery.etcd_server import Etcd, etcd
from tests.discovery.records import ENDPOINT, instance
from tests.discovery.test_etcd import LIMIT, Ear, config, keys
from tests.discovery.waiting import until


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    """One for all tests: those that stop or freeze it start it again."""
    with etcd(tmp_path_factory.mktemp("etcd")) as running:
        yield running


@pytest.fixture
async def client(server: Etcd) -> AsyncIterator[EtcdClient]:
    client = EtcdClient(config(server))
    yield client
    await client.call("kv/deleterange", prefix_range("v1/"), dict)
    await client.close()


@pytest.fixture
async def discovery(server: Etcd) -> AsyncIterator[EtcdDiscovery]:
    discovery = await EtcdDiscovery.open(config(server))
    yield discovery
    await asyncio.wait_for(discovery.close(), LIMIT)


async def test_a_process_that_left_registers_nothing_more(discovery: EtcdDiscovery, client: EtcdClient) -> None:
    ours = instance(discovery.connection_id)
    await discovery.register(ours)
    assert len(await keys(client)) == 1
    discovery.withdraw()
    assert await keys(client) == {}
    with pytest.raises(InvalidRequest, match="this process has left discovery"):
        await discovery.register(ours)
    await discovery.unregister(ours)  # it is gone already
    discovery.withdraw()
    assert await keys(client) == {}
    assert await discovery.list() == []  # it may still look


async def test_withdrawing_after_the_end_does_nothing(server: Etcd) -> None:
    discovery = await EtcdDiscovery.open(config(server))
    await discovery.close()
    discovery.withdraw()
    await discovery.close()


async def test_only_what_was_registered_can_be_unregistered(
    server: Etcd, client: EtcdClient, discovery: EtcdDiscovery
) -> None:
    other = await EtcdDiscovery.open(config(server))
    theirs = instance(other.connection_id)
    await other.register(theirs)
    with pytest.raises(InvalidRequest, match="was not registered by this process"):
        await discovery.unregister(theirs)
    assert await discovery.list(ENDPOINT) == [theirs]
    await other.close()


@pytest.mark.parametrize("trouble", ["stop", "freeze"])
async def test_a_lease_that_cannot_be_revoked_is_left_to_expire(
    server: Etcd, client: EtcdClient, trouble: str, caplog: pytest.LogCaptureFixture
) -> None:
    discovery = await EtcdDiscovery.open(config(server))
    await discovery.register(instance(discovery.connection_id))
    getattr(server, trouble)()
    with caplog.at_level(logging.WARNING):
        discovery.withdraw()  # returns, though there is no answer
    assert f"the lease {discovery.connection_id:x} is left to expire" in caplog.text
    server.thaw() if trouble == "freeze" else server.start()
    await asyncio.wait_for(discovery.close(), LIMIT)


async def test_a_lease_that_has_expired_already_is_no_trouble(
    discovery: EtcdDiscovery, client: EtcdClient, caplog: pytest.LogCaptureFixture
) -> None:
    await client.call("lease/revoke", {"ID": str(discovery.connection_id)}, dict)
    discovery.withdraw()
    assert "left to expire" not in caplog.text


@pytest.mark.parametrize("is_new", [True, False])
async def test_a_cancelled_registration_leaves_what_was_there_before(
    server: Etcd, discovery: EtcdDiscovery, client: EtcdClient, is_new: bool
) -> None:
    before = instance(discovery.connection_id, address="127.0.0.1:1/before")
    if not is_new:
        await discovery.register(before)
    ear = await Ear.open(discovery)
    if not is_new:
        assert await ear.hear() == Added(before)
    server.freeze()
    registering = asyncio.ensure_future(
        discovery.register(instance(discovery.connection_id, address="127.0.0.1:1/new"))
    )
    await asyncio.sleep(0)
    registering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await registering
    server.thaw()
    expected = [] if is_new else [before]

    async def settled() -> bool:
        return await discovery.list(ENDPOINT) == expected

    await until(settled)
    marker = instance(7)
    other = await EtcdDiscovery.open(config(server))
    await other.register(marker)  # after it, nothing of the registration is still on its way
    await until(lambda: _lists(discovery, [*expected, marker]))
    await other.close()


async def _lists(discovery: EtcdDiscovery, expected: list[object]) -> bool:
    return sorted(map(str, await discovery.list(ENDPOINT))) == sorted(map(str, expected))


async def test_a_lease_that_is_lost_is_taken_again_by_the_next_registration(
    discovery: EtcdDiscovery, client: EtcdClient
) -> None:
    await client.call("lease/revoke", {"ID": str(discovery.connection_id)}, dict)
    await discovery.register(instance(discovery.connection_id))
    assert list((await keys(client)).values()) == [discovery.connection_id]


async def test_a_watch_that_is_closed_hears_no_more(discovery: EtcdDiscovery, client: EtcdClient) -> None:
    heard: list[object] = []
    watch = await discovery.watch(ENDPOINT, heard.append)
    ear = await Ear.open(discovery)
    watch.close()
    ours = instance(discovery.connection_id)
    await discovery.register(ours)
    assert await ear.hear() == Added(ours)
    assert heard == []


async def test_the_keys_of_others_are_left_when_one_leaves(server: Etcd, client: EtcdClient) -> None:
    one, two = await EtcdDiscovery.open(config(server)), await EtcdDiscovery.open(config(server))
    await one.register(instance(one.connection_id))
    await two.register(instance(two.connection_id))
    one.withdraw()
    assert list((await keys(client)).values()) == [two.connection_id]
    await one.close()
    await two.close()


async def test_a_host_name_is_looked_up(server: Etcd, client: EtcdClient) -> None:
    discovery = await EtcdDiscovery.open(config(server, endpoints=f"http://localhost:{server.port}"))
    ours = instance(discovery.connection_id)
    await discovery.register(ours)
    assert await discovery.list() == [ours]
    await discovery.close()


async def test_a_host_name_that_nobody_knows(server: Etcd) -> None:
    unknown = EtcdConfig(endpoints=f"http://no-such-host.invalid:{free_port()}", startup_timeout=0.3)
    with pytest.raises(CannotConnect, match=r"etcd startup connection timed out after 0\.3 seconds") as caught:
        await EtcdDiscovery.open(unknown)
    assert "no-such-host.invalid" in str(caught.value.__cause__)
    # The next server is asked instead, if there is one.
    discovery = await EtcdDiscovery.open(config(server, endpoints=f"{unknown.endpoints},{server.url}"))
    assert await discovery.list() == []
    await discovery.close()


async def test_a_call_that_is_refused_says_why(client: EtcdClient) -> None:
    with pytest.raises(Refused, match="etcd refused: .*lease not found") as caught:
        await client.call("kv/put", {"key": "YQ==", "value": "", "lease": "7"}, dict)
    assert caught.value.code == 5
    with pytest.raises(Refused, match="etcd refused: .*key is not provided"):
        await client.call("kv/put", {"value": ""}, dict)
    assert await client.call("kv/range", prefix_range("v1/"), dict)
