"""A process that serves and calls, and is told to end: what it has accepted may still call, until it is done."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from dynamo_fast.config import TcpServerConfig, WorkerConfig
from dynamo_fast.discovery.file import FileDiscovery
from dynamo_fast.egress.push_router import PushRouter
from dynamo_fast.egress.router import AddressedPushRouter
from dynamo_fast.ingress.worker import Worker
from tests.interop.peers import ROOT, environment, peer_worker

LIMIT = 30.0
CALLS = 6
SERVED, CALLED = "middle.worker.generate", "peer.worker.generate"
ITEMS = [{"number": number} for number in range(3)]


async def count(request: dict[str, Any]) -> AsyncIterator[Any]:
    """Ours, as the peer's."""
    for number in range(request["n"]):
        yield {"number": number}
        await asyncio.sleep(request["pause"])


@asynccontextmanager
async def downstream(whose: str, folder: Path) -> AsyncIterator[None]:
    """A worker for the middle to call, that runs one request at a time."""
    if whose != "ours":
        limits = {"DYN_ENGINE_REQUEST_LIMIT": "1", "DYN_DYNAMO_REQUEST_QUEUE_LIMIT": "100"}
        with peer_worker(whose, folder, **limits):
            yield
        return
    config = TcpServerConfig(host="127.0.0.1", engine_request_limit=1, request_queue_limit=100)
    async with await Worker.start(FileDiscovery(folder), WorkerConfig(leave_delay=0.0), config) as worker:
        await worker.serve(count, CALLED)
        yield


class Middle:
    """The process, and a router of ours that calls it."""

    def __init__(self, process: asyncio.subprocess.Process, router: PushRouter) -> None:
        self.process = process
        self.router = router
        self.begun = 0
        self.all_begun = asyncio.Event()

    @classmethod
    @asynccontextmanager
    async def start(cls, kind: str, folder: Path, **settings: str) -> AsyncIterator[Middle]:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(Path(__file__).parent / "middle.py"),
            kind,
            env={**environment(folder), "PYTHONPATH": str(ROOT), **settings},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        discovery = FileDiscovery(folder)
        try:
            async with await AddressedPushRouter.create() as router:
                yield cls(process, await PushRouter.create(SERVED, discovery, router))
        finally:
            await discovery.close()
            if process.returncode is None:
                process.kill()
            await process.wait()
            process._transport.close()  # type: ignore[attr-defined]  # or its pipes outlive the loop

    async def line(self) -> str:
        assert self.process.stdout is not None
        return (await asyncio.wait_for(self.process.stdout.readline(), LIMIT)).decode().strip()

    async def call(self, running: int, **request: Any) -> list[Any]:
        """The items of one answer; `all_begun` once `running` answers have begun."""
        items = []
        async for item in await self.router.generate({"mode": "count", "n": len(ITEMS), "pause": 0.01, **request}):
            items.append(item.data())
            if len(items) == 1:
                self.begun += 1
                if self.begun == running:
                    self.all_begun.set()
        return items

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"go\n")

    async def terminate(self) -> None:
        """SIGTERM, and wait until it has left discovery."""
        gone = asyncio.Event()

        class Listener:
            def table_changed(self, entry: object) -> None:
                gone.set()

        listener = Listener()
        self.router.table.listen(listener)
        self.process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(gone.wait(), LIMIT)

    async def ended(self) -> int:
        assert await self.line() == "ended"
        return await asyncio.wait_for(self.process.wait(), LIMIT)


@pytest.mark.parametrize("whose", ["1.6.1", "ours"])
@pytest.mark.parametrize("kind", ["drop-in", "native"])
async def test_what_a_process_has_accepted_may_call_until_it_is_done(
    kind: str, whose: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DYN_TCP_RESPONSE_STREAM_HOST", "127.0.0.1")
    async with downstream(whose, tmp_path), Middle.start(kind, tmp_path) as middle:
        assert await middle.line() == "ready"
        await asyncio.wait_for(middle.router.wait_for_instances(), LIMIT)
        # Half of them have a client already; the others make one when they go on.
        calls = [asyncio.ensure_future(middle.call(CALLS, late=number % 2)) for number in range(CALLS)]
        await asyncio.wait_for(middle.all_begun.wait(), LIMIT)
        await middle.terminate()
        middle.process.send_signal(signal.SIGTERM)  # told twice, which changes nothing
        middle.go()
        answers = await asyncio.wait_for(asyncio.gather(*calls), LIMIT)
        assert answers == [["begun", *ITEMS]] * CALLS
        assert await middle.ended() == 0


@pytest.mark.parametrize("whose", ["1.6.1", "ours"])
@pytest.mark.parametrize("kind", ["drop-in", "native"])
async def test_calls_that_wait_in_a_queue_when_their_process_is_told_to_end_are_served(
    kind: str, whose: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its own queue, and in that of the worker that it calls."""
    monkeypatch.setenv("DYN_TCP_RESPONSE_STREAM_HOST", "127.0.0.1")
    running = CALLS // 2
    limits = {"DYN_ENGINE_REQUEST_LIMIT": str(running), "DYN_DYNAMO_REQUEST_QUEUE_LIMIT": "100"}
    async with downstream(whose, tmp_path), Middle.start(kind, tmp_path, **limits) as middle:
        assert await middle.line() == "ready"
        await asyncio.wait_for(middle.router.wait_for_instances(), LIMIT)
        middle.go()
        calls = [asyncio.ensure_future(middle.call(running, pause=0.2)) for _ in range(running)]
        await asyncio.wait_for(middle.all_begun.wait(), LIMIT)  # two of three wait below
        calls += [asyncio.ensure_future(middle.call(0, pause=0.0)) for _ in range(running)]
        # The news of a worker that leaves fails the calls that wait for its dial (as in Dynamo): these do not hear of it.
        middle.router.table.close()
        while len(middle.router.router.response_server.call_home) < running:  # acknowledged, and not dialled yet
            await asyncio.sleep(0)
        middle.process.send_signal(signal.SIGTERM)
        answers = await asyncio.wait_for(asyncio.gather(*calls), LIMIT)
        assert answers == [["begun", *ITEMS]] * CALLS
        assert await middle.ended() == 0
