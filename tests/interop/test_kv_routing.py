"""KV-aware routing by Dynamo's own frontends: they send a prompt to the worker that announced its prefix."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from dynamo_fast.llm.kv_events import KvEventSource
from dynamo_fast.llm.load import LoadSource
from tests.interop.kv_frontend import BLOCK_SIZE, TOTAL_BLOCKS, KvFrontend, KvWorker, kv_frontend
from tests.interop.peers import VERSIONS
from tests.waiting import LIMIT, until

pytestmark = pytest.mark.frontend

_words = itertools.count(1)


@pytest.fixture(scope="module", params=VERSIONS)
def frontend(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KvFrontend]:
    """One for each release."""
    folder = tmp_path_factory.mktemp(f"frontend-{request.param}")
    with kv_frontend(request.param, folder, "--active-decode-blocks-threshold", "0.5") as started:
        yield started


@pytest.fixture(autouse=True)
def _on_this_machine(monkeypatch: pytest.MonkeyPatch, frontend: KvFrontend) -> None:
    monkeypatch.setenv("DYN_TCP_RPC_HOST", "127.0.0.1")
    monkeypatch.setenv("DYN_EVENT_PLANE_HOST", "127.0.0.1")


@pytest.fixture
def model() -> str:
    return f"model{next(_words)}"


@asynccontextmanager
async def two_workers(frontend: KvFrontend, model: str) -> AsyncIterator[tuple[KvWorker, KvWorker]]:
    """Two, both of which the frontend knows."""
    a, b = await KvWorker.start(frontend, model), await KvWorker.start(frontend, model)
    try:
        await until(lambda: frontend.lists(model))
        async for prompt in endless(frontend, model):
            if a.prompts and b.prompts:
                assert prompt
                break
        yield a, b
    finally:
        await asyncio.gather(a.worker.close(), b.worker.close())


async def endless(frontend: KvFrontend, model: str) -> AsyncIterator[list[int]]:
    """Ask with one new prompt after another."""
    for _ in range(200):
        prompt = new_prompt(2)
        await frontend.complete(model, prompt)
        yield prompt
    raise AssertionError("it did not happen in 200 requests")


def new_prompt(blocks: int) -> list[int]:
    """A prompt that was not asked before."""
    start = 1 + next(_words) % 250
    return [start, next(_words) % 1999 + 1] + [start + each for each in range(blocks * BLOCK_SIZE - 2)]


async def goes_to(frontend: KvFrontend, model: str, worker: KvWorker, prompt: list[int]) -> bool:
    """Whether a request for this prompt reaches this worker."""
    before = len(worker.prompts)
    assert await frontend.complete(model, prompt) == 200
    return len(worker.prompts) > before


async def until_bound(frontend: KvFrontend, model: str, worker: KvWorker, prompt: list[int]) -> None:
    """Wait until the frontend has the news: prompts with this prefix go to this worker, six times in a row."""

    async def tried() -> None:
        row = 0
        while row < 6:
            row = row + 1 if await goes_to(frontend, model, worker, [*prompt, *new_prompt(1)]) else 0

    await asyncio.wait_for(tried(), LIMIT)


async def test_prompts_go_to_the_worker_that_announced_their_prefix(frontend: KvFrontend, model: str) -> None:
    async with two_workers(frontend, model) as (a, b):
        of_a, of_b = await KvEventSource.open(a.served, BLOCK_SIZE), await KvEventSource.open(b.served, BLOCK_SIZE)
        for number, (source, worker) in enumerate([(of_b, b), (of_a, a), (of_b, b)]):
            prompt = new_prompt(10)
            source.stored(prompt, range(100 * number + 1, 100 * number + 11))
            await until_bound(frontend, model, worker, prompt)
            found = [await goes_to(frontend, model, worker, [*prompt, *new_prompt(1)]) for _ in range(14)]
            assert found == [True] * 14


async def test_what_was_stored_before_the_frontend_knew_is_recovered(frontend: KvFrontend, model: str) -> None:
    async with two_workers(frontend, model) as (_, b):
        prompt = new_prompt(10)
        source = KvEventSource(b.served.endpoint, b.served.instance.instance_id, BLOCK_SIZE)
        source.stored(prompt[: 5 * BLOCK_SIZE], range(1, 6))
        source.stored(prompt[5 * BLOCK_SIZE :], range(6, 11), 5)
        await source.announce(b.worker)
        await until_bound(frontend, model, b, prompt)


@pytest.mark.parametrize("how", ["removed", "cleared"])
async def test_prompts_whose_blocks_are_gone_are_not_bound(frontend: KvFrontend, model: str, how: str) -> None:
    async with two_workers(frontend, model) as (_, b):
        source = await KvEventSource.open(b.served, BLOCK_SIZE)
        prompt = new_prompt(10)
        source.stored(prompt, range(1, 11))
        await until_bound(frontend, model, b, prompt)
        if how == "removed":
            source.removed(range(1, 11))
        else:
            source.cleared()
        # Bound, all go to B; else about one in two. Each asks for other blocks beyond the prefix.
        await asyncio.wait_for(_until_another(frontend, model, b, prompt), LIMIT)


async def _until_another(frontend: KvFrontend, model: str, worker: KvWorker, prompt: list[int]) -> None:
    others = 0
    while others < 3:
        others += not await goes_to(frontend, model, worker, [*prompt, *new_prompt(1)])


async def test_a_busy_worker_gets_nothing_and_529_if_all_are(frontend: KvFrontend, model: str) -> None:
    async with two_workers(frontend, model) as (a, b):
        load_a, load_b = await LoadSource.open(a.served), await LoadSource.open(b.served)
        load_a.publish(active_decode_blocks=TOTAL_BLOCKS * 6 // 10)

        async def eight_to_b() -> None:
            row = 0
            while row < 8:
                row = row + 1 if await goes_to(frontend, model, b, new_prompt(2)) else 0

        await asyncio.wait_for(eight_to_b(), LIMIT)
        load_b.publish(active_decode_blocks=TOTAL_BLOCKS * 6 // 10)
        await _until_status(frontend, model, 529)
        load_a.publish(active_decode_blocks=TOTAL_BLOCKS // 10)
        await _until_status(frontend, model, 200)
        assert await goes_to(frontend, model, a, new_prompt(2))


async def _until_status(frontend: KvFrontend, model: str, status: int) -> None:
    async def asked() -> None:
        while await frontend.complete(model, new_prompt(2)) != status:
            pass

    await asyncio.wait_for(asked(), LIMIT)
