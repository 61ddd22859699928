"""What the live state counts, what it keeps, and what it says of the fleet."""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import sys
import time
from pathlib import Path

import aiohttp
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_fast import FileDiscovery
from dynamo_fast.errors import CannotConnect
from dynamo_fast.gateway import state as module
from dynamo_fast.gateway.fleet import Fleet, RoutersFleet
from dynamo_fast.gateway.shares import Shares
from dynamo_fast.gateway.state import BOUNDS, EndpointView, Flight, LiveState, Share, Snapshot, quantile
from dynamo_fast.observability.histogram import Histogram
from dynamo_fast.testing import clock
from dynamo_fast.wire.address import EndpointId
from dynamo_fast.wire.instance import Instance, TransportType
from tests.gateway.conftest import Begin, Stage
from tests.waiting import happens_after, until

NAME = "a.b.c"
ENDPOINT = EndpointId.parse(NAME)


class NoSource:
    """A source of routers without any."""

    def find(self, endpoint: EndpointId) -> None:
        return None

    def find_model(self, name: str) -> tuple[()]:
        return ()

    def endpoints(self) -> dict[EndpointId, list[Instance]]:
        return {}

    models = dict


def new_state(**options: object) -> LiveState:
    return LiveState(Fleet(RoutersFleet(NoSource())), **options)  # type: ignore[arg-type]


# Counting -------------------------------------------------------------------------------------------------------------


async def test_requests_through_the_gateway_are_counted_and_timed(begin: Begin) -> None:
    state = new_state()
    stage: Stage = await begin(observers=[state])
    async with stage.post({"items": [1, 2, 3]}) as answer:
        assert answer.status == 200
        await answer.read()
    async with stage.post({"items": [1], "error": "RuntimeError"}) as answer:
        await answer.read()
    async with stage.post({"hangs": True, "items": [1]}) as answer:
        await until(lambda: state.share().endpoints[NAME].items == 5)
        sample = state.sample()
        assert state.snapshot().endpoints == [EndpointView(NAME, requests=3, items=5, errors=1, in_flight=1)]
        assert sample.in_flight == 1
        assert sample.first_p50 is not None
        assert 0 < sample.first_p50 <= (sample.first_p99 or 0) < 20
    await until(lambda: state.sample().in_flight == 0)
    (failure,) = state.failures
    assert (failure.status, failure.kind, failure.endpoint) == (500, "RemoteError", NAME)
    assert failure.message == "RuntimeError: on purpose"
    assert failure.request_id


def test_items_that_are_written_together_are_no_time_apart() -> None:
    state = new_state()
    flight = state.request_started(NAME, None, "1")
    flight.items(5)
    assert (state.first.count, state.between.count) == (1, 4)
    assert state.between.counts[0] == 4
    flight.items(1)
    assert (state.first.count, state.between.count) == (1, 5)


def test_a_client_that_has_gone_is_no_error() -> None:
    state = new_state()
    state.request_started(NAME, None, "1").ended(499, "the client has gone")
    assert state.share().endpoints[NAME] == EndpointView(NAME, requests=1)
    assert not state.failures


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        ("RemoteError: RuntimeError: /secret", "RemoteError", "RuntimeError: /secret"),
        ("ids must be unique", "", "ids must be unique"),
    ],
)
def test_texts_of_errors_are_kept_only_if_they_may_be_shown(error: str, kind: str, message: str) -> None:
    for shows in (True, False):
        state = new_state(show_errors=shows)
        state.request_started(NAME, "m", "1").ended(500, error)
        (failure,) = state.failures
        assert failure.kind == kind
        assert failure.message == (error.removeprefix(f"{kind}: ") if shows else "")


def test_what_is_kept_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ENDPOINTS", 3)
    state = new_state()
    for number in range(module.MAX_ERRORS + 10):
        state.request_started(f"a.b.{number}", None, str(number)).ended(503, "x" * 10_000)
    for _ in range(module.HISTORY + 10):
        state.sample()
    assert len(state.failures) == module.MAX_ERRORS
    assert state.failures[0].request_id == str(module.MAX_ERRORS + 9), "the newest is first"
    assert len(state.failures[0].message) < 400
    assert len(state.samples) == module.HISTORY
    counted = state.share().endpoints
    assert sorted(counted) == [module.OTHERS, "a.b.0", "a.b.1", "a.b.2"]
    assert sum(each.requests for each in counted.values()) == module.MAX_ERRORS + 10


def test_texts_of_clients_are_harmless_and_can_be_encoded() -> None:
    state = new_state()
    state.request_started(NAME, "\ud800\x1b[2J", "\u202e").ended(400, "InvalidRequest: \ud800\n\x07")
    state.sample()
    (failure,) = json.loads(msgspec.json.encode(state.snapshot()))["failures"]
    assert all(str(value).isprintable() for value in failure.values())


# Percentiles ------------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(2e-4, 90.0), min_size=1, max_size=200), st.sampled_from([0.5, 0.9, 0.99]))
def test_a_percentile_is_at_most_a_bucket_off(values: list[float], q: float) -> None:
    histogram = Histogram(BOUNDS)
    for value in values:
        histogram.observe(value)
    true = sorted(values)[math.ceil(q * len(values)) - 1]
    found = quantile(histogram.counts, q)
    assert found is not None
    assert true / 1.26 < found < true * 1.26


def test_percentiles_at_the_ends() -> None:
    counts = [0] * (len(BOUNDS) + 1)
    assert quantile(counts, 0.5) is None
    assert quantile([4, *counts[1:]], 0.5) == pytest.approx(BOUNDS[0] / 2)
    assert quantile([*counts[:-1], 1], 0.99) == BOUNDS[-1]


def test_percentiles_are_those_of_the_last_samples() -> None:
    state = new_state()
    state.request_started(NAME, None, "1").items(1)
    assert state.sample().first_p50 is not None
    for _ in range(module.WINDOW - 1):
        assert state.sample().first_p50 is not None
    assert state.sample().first_p50 is None


# Samples ----------------------------------------------------------------------------------------------------------------


@pytest.mark.turned_clock
async def test_a_sample_is_taken_each_second_until_the_end() -> None:
    state = new_state()
    state.start()
    waiting = asyncio.ensure_future(state.next_sample())
    other = asyncio.ensure_future(state.next_sample())
    await clock.advance(0)
    other.cancel()
    await happens_after(1.0, waiting.done)
    await clock.advance(4.0)
    assert len(state.samples) == 5
    waiting = asyncio.ensure_future(state.next_sample())
    await clock.advance(0)
    state.close()
    await waiting
    await state.next_sample()
    await clock.advance(10.0)
    assert len(state.samples) == 5


def test_rates_are_those_since_the_last_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    state = new_state()
    for _ in range(6):
        flight = state.request_started(NAME, None, "1")
        flight.items(10)
        flight.ended(200, None)
    now[0] += 2
    sample = state.sample()
    assert (sample.requests, sample.items, sample.errors, sample.in_flight) == (3.0, 30.0, 0.0, 0)
    now[0] += 1
    assert state.sample().items == 0
    assert state.snapshot(history=1).samples == [state.samples[-1]]
    assert len(state.snapshot().samples) == 2
    assert state.snapshot(history=0).samples == []


def test_the_shares_of_several_processes_are_added_up() -> None:
    other = new_state()
    flight = other.request_started(NAME, None, "1")
    flight.items(2)
    other.request_started("d.e.f", None, "2").ended(503, "Unavailable: none")
    shares: list[Share] = [other.share()]
    seen: list[Share] = []

    def others(own: Share) -> list[Share]:
        seen.append(own)
        return shares

    state = new_state(others=others)
    state.request_started(NAME, None, "3").items(1)
    state.sample()
    found = state.snapshot()
    assert (found.processes, found.requests, found.items, found.errors, found.in_flight) == (2, 3, 3, 1, 2)
    assert [each.name for each in found.endpoints] == [NAME, "d.e.f"]
    assert [each.kind for each in found.failures] == ["Unavailable"]
    assert seen[-1].endpoints[NAME].items == 1
    shares.clear()  # the other process has ended
    sample = state.sample()
    assert (state.snapshot().processes, state.snapshot().items, sample.items) == (1, 1, 0)


def test_a_snapshot_can_be_read_back() -> None:
    state = new_state(version="1.2.3")
    state.request_started(NAME, None, "1").ended(503, "Unavailable: none")
    state.sample()
    encoded = msgspec.json.encode(state.snapshot())
    assert msgspec.json.decode(encoded, type=Snapshot) == state.snapshot()


async def test_each_process_of_a_gateway_shows_all(stage: Stage, tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "dynamo_fast", "gateway", "--port", "0", "--workers", "2"),
        env={**os.environ, "DYN_FILE_KV": str(tmp_path), "DYN_TCP_RESPONSE_STREAM_HOST": "127.0.0.1"},
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        said = (await asyncio.wait_for(process.stdout.readline(), 30)).decode()
        url = re.findall(r"http://\S+", said)[0]
        connector = aiohttp.TCPConnector(force_close=True)  # each request may reach another process
        async with aiohttp.ClientSession(url, connector=connector) as client:

            async def get() -> Snapshot:
                async with client.get("/_state") as answer:
                    return msgspec.json.decode(await answer.read(), type=Snapshot)

            while not (await get()).instances:
                await asyncio.sleep(0)
            for _ in range(20):
                async with client.post("/a/b/c", data=b'{"items": [1]}') as answer:
                    assert answer.status == 200
            for _ in range(5):
                while (found := await get()).items < 20:
                    await asyncio.sleep(0)
                assert (found.processes, found.requests, found.items, found.in_flight) == (2, 20, 20, 0)
    finally:
        process.terminate()
        await process.communicate()
    assert process.returncode == 0


def test_shares_that_cannot_be_used_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shares = Shares(tmp_path)
    (tmp_path / "1.share").write_bytes(b"no share")
    assert shares(new_state().share()) == []
    assert not caplog.messages
    gone = Shares(tmp_path / "gone")
    for _ in range(2):
        assert gone(new_state().share()) == []
    assert len(caplog.messages) == 1


# The fleet --------------------------------------------------------------------------------------------------------------


async def test_instances_join_and_leave(stage: Stage, tmp_path: Path) -> None:
    fleet = Fleet(RoutersFleet(stage.routers))
    fleet.look()
    (view,), known = fleet.instances()
    (change,) = fleet.changes
    instance_id = f"{stage.routers.endpoints()[ENDPOINT][0].instance_id:x}"
    assert known == 1
    assert (view.endpoint, view.id, view.health, view.in_flight) == (NAME, instance_id, "ready", 0)
    assert (change.what, change.kind, change.endpoint, change.name) == ("joined", "instance", NAME, instance_id)
    fleet.look()
    assert len(fleet.changes) == 1
    assert fleet.endpoints() == {NAME: 1}

    other = FileDiscovery(tmp_path)
    await other.register(Instance(ENDPOINT, 7, TransportType("tcp", "127.0.0.1:1/7/c")))
    await until(lambda: len(stage.routers.endpoints()[ENDPOINT]) == 2)
    fleet.look()
    assert [each.id for each in fleet.instances()[0]] == sorted(["7", instance_id], key=lambda text: int(text, 16))
    await other.close()
    await until(lambda: len(stage.routers.endpoints()[ENDPOINT]) == 1)
    fleet.look()
    assert [(each.what, each.name) for each in fleet.changes] == [
        ("left", "7"),
        ("joined", "7"),
        ("joined", instance_id),
    ]
    assert fleet.instances()[0][0].since == view.since


async def test_an_instance_that_the_router_avoids(stage: Stage) -> None:
    router = stage.routers.find(ENDPOINT)
    assert router is not None
    (entry,) = router.table
    fleet = Fleet(RoutersFleet(stage.routers))
    fleet.look()
    router.selection.failed(entry, CannotConnect("on purpose"))
    assert [each.health for each in fleet.instances()[0]] == ["avoided"]


async def test_a_large_fleet_is_counted_and_shown_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    instances = [Instance(ENDPOINT, number, TransportType("tcp", "x")) for number in range(2000)]

    class Many(NoSource):
        def endpoints(self) -> dict[EndpointId, list[Instance]]:
            return {ENDPOINT: instances}

    fleet = Fleet(RoutersFleet(Many()))
    fleet.look()
    shown, known = fleet.instances()
    assert (len(shown), known, len(fleet.changes)) == (500, 2000, 50)
    assert {each.health for each in shown} == {"listed"}


async def test_without_the_page_no_state_is_kept(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    original = LiveState.request_started

    def request_started(state: LiveState, endpoint: str, model: str | None, request_id: str) -> Flight:
        asked.append(endpoint)
        return original(state, endpoint, model, request_id)

    monkeypatch.setattr(LiveState, "request_started", request_started)
    for page in (True, False):
        stage: Stage = await begin(page=page)
        async with stage.client.get("/_state") as answer:
            assert answer.status == (200 if page else 404)
        async with stage.post({"items": [1]}) as answer:
            assert answer.status == 200
    assert asked == [NAME]
