"""Workers of three kinds under one name, and callers of three kinds: Dynamo 1.3.1, Dynamo 1.6.1 and ours."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from dynamo_fast.config import PushRouterConfig, ResponseServerConfig, TcpClientConfig, TcpServerConfig
from dynamo_fast.discovery.base import Discovery
from dynamo_fast.discovery.connect import connect
from dynamo_fast.egress.push_router import PushRouter, RouterMode
from dynamo_fast.egress.response_server import TcpStreamServer
from dynamo_fast.egress.router import AddressedPushRouter
from dynamo_fast.egress.tcp_client import TcpRequestClient
from dynamo_fast.errors import Disconnected, DynamoError, ResourceExhausted, ResponseTimeout
from dynamo_fast.ingress.worker import Worker
from dynamo_fast.wire.payload import PayloadCodec
from tests.discovery.etcd_server import etcd
from tests.interop.peers import VERSIONS, Peer, PeerClient, peer_worker
from tests.waiting import until

LIMIT = 60.0
ENDPOINT = "peer.worker.generate"
WHO = {"mode": "eval", "source": "os.getpid()"}


@dataclass
class Store:
    """One discovery store, for us and for the peers."""

    kind: str
    folder: Path
    settings: dict[str, str] = field(default_factory=dict)

    def connect(self) -> Discovery:
        return connect(self.kind)


@pytest.fixture(params=["file", "etcd"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setenv("DYN_FILE_KV", str(tmp_path))
    if request.param == "file":
        yield Store("file", tmp_path)
        return
    with etcd(tmp_path) as server:
        monkeypatch.setenv("ETCD_ENDPOINTS", server.url)
        yield Store("etcd", tmp_path, {"PEER_DISCOVERY": "etcd", "ETCD_ENDPOINTS": server.url})


async def generate(request: dict[str, Any]) -> AsyncIterator[Any]:
    """Ours; it knows those requests of `peer_worker.py` that are used here."""
    if request["mode"] == "eval":
        yield -1  # all of ours are in one process
    for number in range(request.get("n", 0)):
        yield {"number": number}
        await asyncio.sleep(request["pause"])


@asynccontextmanager
async def our_worker(store: Store) -> AsyncIterator[Worker]:
    worker = await Worker.start(store.connect(), server_config=TcpServerConfig(host="127.0.0.1"))
    try:
        await worker.serve(generate, ENDPOINT)
        yield worker
    finally:
        await worker.close()


@asynccontextmanager
async def our_router(
    store: Store,
    mode: RouterMode = RouterMode.RoundRobin,
    retries: int = 0,
    config: PushRouterConfig | None = None,
    client: TcpClientConfig | None = None,
) -> AsyncIterator[PushRouter]:
    server = await TcpStreamServer.create(ResponseServerConfig(host="127.0.0.1"))
    discovery = store.connect()
    try:
        async with (
            await AddressedPushRouter.create(TcpRequestClient(client), server) as addressed,
            await PushRouter.create(
                ENDPOINT, discovery, addressed, mode=mode, retries=retries, config=config
            ) as router,
        ):
            yield router
    finally:
        await discovery.close()


@asynccontextmanager
async def fleet(store: Store) -> AsyncIterator[dict[str, int]]:
    """A worker of each kind; the process of each, as it answers `WHO`."""
    with ExitStack() as stack:
        peers = [stack.enter_context(peer_worker(version, store.folder, **store.settings)) for version in VERSIONS]
        async with our_worker(store):
            yield {"ours": -1, **{peer.version: peer.process.pid for peer in peers}}


async def see(router: PushRouter, count: int) -> None:
    """Wait until the router knows that many workers."""
    await until(lambda: len(router.instance_ids()) == count)


async def call(router: PushRouter, request: Any) -> tuple[list[Any], DynamoError | None]:
    """The items of the answer, and what it ended with, if it did not end well."""
    items: list[Any] = []
    try:
        async for item in await router.generate(request):
            items.append(item.data())  # noqa: PERF401  # what came before an error counts
    except DynamoError as error:
        return items, error
    return items, None


async def test_our_router_reads_and_writes_what_each_worker_of_a_mixed_fleet_does(store: Store) -> None:
    async with fleet(store) as who, our_router(store) as router:
        await see(router, 3)
        assert Counter(each.payload_codec for each in router.instances()) == {
            PayloadCodec.JSON: 1,
            PayloadCodec.MSGPACK: 2,
        }
        answers = [await asyncio.wait_for(call(router, WHO), LIMIT) for _ in range(9)]
        assert [error for _, error in answers if error] == []
        assert Counter(items[0] for items, _ in answers) == dict.fromkeys(who.values(), 3)


async def test_a_hundred_answers_at_once_from_a_mixed_fleet(store: Store) -> None:
    async with fleet(store), our_router(store, RouterMode.LeastLoaded) as router:
        await see(router, 3)
        answers = await asyncio.wait_for(
            asyncio.gather(*(call(router, {"mode": "count", "n": 20, "pause": 0.001}) for _ in range(100))), LIMIT
        )
        assert all(answer == ([{"number": number} for number in range(20)], None) for answer in answers)
        assert router.table.other.total == 0


@pytest.mark.parametrize("version", VERSIONS)
async def test_their_client_finds_everybody_in_a_mixed_fleet(version: str, store: Store) -> None:
    async with fleet(store) as who:
        client = await PeerClient.start(version, store.folder, **store.settings)
        try:
            ids = await client.wait_for(ENDPOINT, 3)
            found: Counter[int] = Counter()
            for instance_id in ids:
                items, error = await client.call(ENDPOINT, WHO, method="direct", instance=instance_id)
                assert error is None
                found[items[0]] += 1
            for _ in range(9):
                items, error = await client.call(ENDPOINT, WHO)
                assert error is None
                found[items[0]] += 1
            assert found == dict.fromkeys(who.values(), 4)
        finally:
            await client.close()


class Load:
    """Callers that call again and again, and what became of each call."""

    REQUEST = {"mode": "count", "n": 10, "pause": 0.005}  # noqa: RUF012
    WHOLE = [{"number": number} for number in range(10)]  # noqa: RUF012
    CALLERS = 8

    def __init__(self, router: PushRouter) -> None:
        self.router = router
        self.whole = 0
        self.cut: list[tuple[list[Any], DynamoError]] = []
        self._going = True
        self._callers = [asyncio.ensure_future(self._call()) for _ in range(self.CALLERS)]

    async def _call(self) -> None:
        while self._going:
            items, error = await call(self.router, self.REQUEST)
            if error is not None:
                self.cut.append((items, error))
            else:
                assert items == self.WHOLE
                self.whole += 1

    async def more(self, count: int = 50) -> None:
        """Wait until that many further calls were answered."""
        target = self.whole + count

        def answered() -> bool:
            for caller in self._callers:
                assert not caller.done(), caller
            return self.whole >= target

        await until(answered)

    async def end(self) -> None:
        self._going = False
        await asyncio.wait_for(asyncio.gather(*self._callers), LIMIT)


async def test_workers_come_and_go_and_nothing_is_lost_but_what_a_dead_one_had_begun(store: Store) -> None:
    with ExitStack() as stack:
        old: Peer = stack.enter_context(peer_worker("1.3.1", store.folder, **store.settings))
        new: Peer = stack.enter_context(peer_worker("1.6.1", store.folder, **store.settings))
        async with our_router(store, retries=3) as router:
            await see(router, 2)
            load = Load(router)
            await load.more()
            async with our_worker(store):
                await see(router, 3)
                await load.more()
                old.process.kill()
                await load.more()
            await load.more()  # ours has left
            assert len(load.cut) <= load.CALLERS
            async with our_worker(store) as again:
                await load.more()
                new.process.kill()
                await load.more()
                await load.end()
                assert again.discovery.connection_id in router.instance_ids()
    assert len(load.cut) <= 2 * load.CALLERS
    for items, error in load.cut:
        assert isinstance(error, Disconnected), error
        assert 0 < len(items) <= len(load.WHOLE)


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_frozen_worker_holds_nobody_up_and_is_used_again_when_it_thaws(version: str, store: Store) -> None:
    # Longer than a worker on a busy machine keeps silent for want of a processor.
    config = PushRouterConfig(inhibited_duration=1.0, inactivity_timeout=3.0)
    client = TcpClientConfig(request_timeout=2.0)
    with peer_worker(version, store.folder, **store.settings) as peer:
        async with our_worker(store), our_router(store, retries=1, config=config, client=client) as router:
            await see(router, 2)
            load = Load(router)
            await load.more()
            peer.process.send_signal(signal.SIGSTOP)
            await load.more(200)
            peer.process.send_signal(signal.SIGCONT)
            await load.end()
            for items, error in load.cut:
                assert isinstance(error, ResponseTimeout), error
                assert items  # one that had not begun went elsewhere
            assert len(load.cut) <= load.CALLERS
            pids: set[int] = set()

            async def meet_both() -> None:
                while pids != {-1, peer.process.pid}:
                    items, _ = await call(router, WHO)
                    pids.update(items)

            await asyncio.wait_for(meet_both(), LIMIT)


# When a worker leaves discovery, Dynamo's client gives up the calls that it was about to answer, and those that it was
# about to send there. It does the same to a worker of Dynamo: no worker can help it.
GIVEN_UP = (
    "Worker disconnected before response stream was established",
    "Worker removed before request could be sent (tombstoned instance)",
)


@pytest.mark.parametrize("version", VERSIONS)
async def test_no_answer_that_their_client_has_is_cut_when_our_workers_come_and_go(version: str, store: Store) -> None:
    client = await PeerClient.start(version, store.folder, **store.settings)
    answers: list[tuple[list[Any], list[str] | None]] = []
    leaves = 3
    going = True

    async def calls(number: int) -> None:
        while going:
            request = {**Load.REQUEST, "pause": 0.003 + number / 1000}  # so that they do not all call in one moment
            answers.append(await client.call(ENDPOINT, request))

    try:
        async with our_worker(store):
            await client.wait_for(ENDPOINT, 1)
            callers = [asyncio.ensure_future(calls(number)) for number in range(Load.CALLERS)]
            for _ in range(leaves):
                async with our_worker(store):
                    await client.wait_for(ENDPOINT, 2)
                await client.wait_for(ENDPOINT, 1)
            going = False
            await asyncio.wait_for(asyncio.gather(*callers), LIMIT)
        given_up = [error for items, error in answers if error is not None and not items]
        for error in given_up:
            assert error[0] == "Exception"  # raised by the call, not by its answer
            assert error[1].endswith(GIVEN_UP)
        assert len(given_up) <= leaves * Load.CALLERS
        assert answers.count((Load.WHOLE, None)) == len(answers) - len(given_up) > 3 * Load.CALLERS
    finally:
        await client.close()


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_worker_of_theirs_that_is_busy_is_left_alone_until_it_has_room(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DYN_FILE_KV", str(tmp_path))
    limits = {"DYN_ENGINE_REQUEST_LIMIT": "1", "DYN_DYNAMO_REQUEST_QUEUE_LIMIT": "1"}
    with peer_worker(version, tmp_path, **limits):
        async with our_router(Store("file", tmp_path)) as router:
            await see(router, 1)
            slow = {"mode": "count", "n": 4, "pause": 0.05}
            answers = await asyncio.wait_for(asyncio.gather(*(call(router, slow) for _ in range(8))), LIMIT)
            refused = [error for _, error in answers if error is not None]
            assert refused
            for error in refused:
                assert isinstance(error, ResourceExhausted)
                assert str(error) == "Server overloaded: worker at capacity"
            assert router.free_ids() == router.instance_ids()  # an answer of ours has ended there since
            assert await asyncio.wait_for(call(router, slow), LIMIT) == ([{"number": n} for n in range(4)], None)
