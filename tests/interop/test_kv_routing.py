"""KV-aware routing by Dynamo's own frontends: they send a prompt to the worker that announced its prefix."""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop

from dynamo_fast.llm.kv_events import KvEventSource
from dynamo_fast.llm.load import LoadSource
from tests.interop.frontends import LIMIT, Frontend
from tests.interop.frontends import frontend as started_frontend
from tests.interop.kv_workers import BLOCK_SIZE, TOTAL_BLOCKS, KvWorker
from tests.interop.peers import VERSIONS

pytestmark = pytest.mark.frontend

_words = itertools.count(1)


def once(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test on uvloop alone: the frontend is what is asked."""

    @functools.wraps(test)
    def run(**fixtures: Any) -> None:
        uvloop.run(test(**fixtures))

    return run


@pytest.fixture(params=VERSIONS)
def frontend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Frontend]:
    """One for each test: in kv mode a frontend takes seven inotify instances for each model, and keeps them."""
    options = ["--router-mode", "kv", "--kv-cache-block-size", str(BLOCK_SIZE)]
    options += ["--active-decode-blocks-threshold", "0.5"]
    with started_frontend(request.param, tmp_path, *options, DYN_LOG="info") as started:
        yield started


@pytest.fixture(autouse=True)
def _on_this_machine(monkeypatch: pytest.MonkeyPatch, frontend: Frontend) -> None:
    monkeypatch.setenv("DYN_TCP_RPC_HOST", "127.0.0.1")
    monkeypatch.setenv("DYN_EVENT_PLANE_HOST", "127.0.0.1")


@pytest.fixture
def model() -> str:
    return f"model{next(_words)}"


@asynccontextmanager
async def two_workers(frontend: Frontend, model: str, ranks: int = 1) -> AsyncIterator[tuple[KvWorker, KvWorker]]:
    """Two, both of which the frontend knows."""
    a, b = await KvWorker.start(frontend, model, ranks), await KvWorker.start(frontend, model, ranks)

    async def both_are_asked() -> None:
        while not (a.prompts and b.prompts):
            await complete(frontend, model, new_prompt(2))

    try:
        await asyncio.to_thread(frontend.wait_for, model, kinds=["Completions"])
        await asyncio.wait_for(both_are_asked(), LIMIT)
        yield a, b
    finally:
        await asyncio.gather(a.worker.close(), b.worker.close())


async def complete(frontend: Frontend, model: str, tokens: list[int]) -> int:
    """Ask for a completion of a prompt of these tokens; returns the status."""
    prompt = " ".join(f"w{token}" for token in tokens)
    return (await asyncio.to_thread(frontend.complete, model, prompt, max_tokens=1)).status


def new_prompt(blocks: int) -> list[int]:
    """A prompt that was not asked before."""
    start = 1 + next(_words) % 250
    return [start, next(_words) % 1999 + 1] + [start + each for each in range(blocks * BLOCK_SIZE - 2)]


async def goes_to(frontend: Frontend, model: str, worker: KvWorker, prompt: list[int]) -> bool:
    """Whether a request for this prompt reaches this worker."""
    before = len(worker.prompts)
    assert await complete(frontend, model, prompt) == 200
    return len(worker.prompts) > before


async def until_bound(frontend: Frontend, model: str, worker: KvWorker, prompt: list[int]) -> None:
    """Wait until the frontend has the news: prompts with this prefix go to this worker, twenty times in a row.

    Before, each goes to it or to the other one, as it happens.
    """

    async def tried() -> None:
        row = 0
        while row < 20:
            row = row + 1 if await goes_to(frontend, model, worker, [*prompt, *new_prompt(1)]) else 0

    await asyncio.wait_for(tried(), LIMIT)


@once
async def test_prompts_go_to_the_worker_that_announced_their_prefix(frontend: Frontend, model: str) -> None:
    async with two_workers(frontend, model) as (a, b):
        of_a, of_b = await KvEventSource.open(a.served, BLOCK_SIZE), await KvEventSource.open(b.served, BLOCK_SIZE)
        for number, (source, worker) in enumerate([(of_b, b), (of_a, a), (of_b, b)]):
            prompt = new_prompt(10)
            source.stored(prompt, range(100 * number + 1, 100 * number + 11))
            await until_bound(frontend, model, worker, prompt)


@once
async def test_what_was_stored_before_the_frontend_knew_is_recovered(frontend: Frontend, model: str) -> None:
    async with two_workers(frontend, model) as (_, b):
        prompt = new_prompt(10)
        source = KvEventSource(b.served.endpoint, b.served.instance.instance_id, BLOCK_SIZE)
        source.stored(prompt[: 5 * BLOCK_SIZE], range(1, 6))
        source.stored(prompt[5 * BLOCK_SIZE :], range(6, 11), 5)
        await source.announce(b.worker)
        await until_bound(frontend, model, b, prompt)


@pytest.mark.parametrize("how", ["removed", "cleared"])
@once
async def test_prompts_whose_blocks_are_gone_are_not_bound(frontend: Frontend, model: str, how: str) -> None:
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


async def _until_another(frontend: Frontend, model: str, worker: KvWorker, prompt: list[int]) -> None:
    others = 0
    while others < 3:
        others += not await goes_to(frontend, model, worker, [*prompt, *new_prompt(1)])


@once
async def test_prompts_go_to_the_rank_that_announced_their_prefix(frontend: Frontend, model: str) -> None:
    async with two_workers(frontend, model, ranks=2) as (a, b):
        sources = [await KvEventSource.open(each.served, BLOCK_SIZE, rank) for each in (a, b) for rank in (0, 1)]
        prompt = new_prompt(10)
        sources[3].stored(prompt, range(1, 11))
        await until_bound(frontend, model, b, prompt)
        assert b.ranks[-10:] == [1] * 10  # before it had the news, some went to B by chance


@once
async def test_a_busy_worker_gets_nothing_and_529_if_all_are(frontend: Frontend, model: str) -> None:
    """Engines publish their load again and again. In kv mode a frontend's own estimate takes its place in between."""
    busy, idle = TOTAL_BLOCKS * 6 // 10, TOTAL_BLOCKS // 10
    async with two_workers(frontend, model) as (a, b):
        load_a, load_b = await LoadSource.open(a.served), await LoadSource.open(b.served)

        async def twenty_to_b() -> None:
            row = 0
            while row < 20:
                load_a.publish(active_decode_blocks=busy)
                row = row + 1 if await goes_to(frontend, model, b, new_prompt(2)) else 0

        async def until_status(status: int, of_a: int, of_b: int) -> None:
            while await complete(frontend, model, new_prompt(2)) != status:
                load_a.publish(active_decode_blocks=of_a)
                load_b.publish(active_decode_blocks=of_b)

        await asyncio.wait_for(twenty_to_b(), LIMIT)
        await asyncio.wait_for(until_status(529, busy, busy), LIMIT)
        await asyncio.wait_for(until_status(200, idle, busy), LIMIT)
        assert a.prompts
