"""A worker that runs out of descriptors refuses requests before it acknowledges them."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from dynamo_fast.net.descriptors import Descriptors
from tests.ingress.conftest import Start, address_of
from tests.ingress.requester import Requester, request_frame, two_part
from tests.ingress.test_bidirectional import Conversation
from tests.ingress.test_push_handler import data_of
from tests.programs import ended

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit of open files")

#: Far below the 120 s for which a caller waits for a worker that never dials.
LIMIT = 30.0


def loop_name() -> str:
    return "uvloop" if type(asyncio.get_running_loop()).__module__.startswith("uvloop") else "asyncio"


@asynccontextmanager
async def few_descriptors(
    files: int, backend: str = "", environment: Mapping[str, str] | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A worker that may have `files` open files, on the event loop of this test."""
    process = await asyncio.create_subprocess_exec(
        *(
            sys.executable,
            "-m",
            "tests.ingress.few_descriptors",
            loop_name(),
            str(files),
            *([backend] if backend else []),
        ),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        env={**os.environ, **(environment or {})},
    )
    try:
        yield process
    finally:
        await ended(process)


async def address_from(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    return (await asyncio.wait_for(process.stdout.readline(), LIMIT)).decode().strip()


async def send_all(requester: Requester, count: int) -> tuple[list[str], list[str]]:
    """Send `count` requests at once. Returns the subjects that were acknowledged, and the texts of the refusals."""
    subjects = []
    for _ in range(count):
        requester.send(requester.control(), b"1")
        subjects.append(requester.subject)
    acks = [await requester.ack() for _ in range(count)]
    taken = [subject for subject, ack in zip(subjects, acks, strict=True) if not ack]
    return taken, [ack for ack in acks if ack]


async def taken_at_last(requester: Requester) -> str:
    """Send one request after the other until one is acknowledged. Returns its subject."""
    while True:
        taken, _ = await send_all(requester, 1)
        if taken:
            return taken[0]


async def test_every_acknowledged_request_is_dialled() -> None:
    async with few_descriptors(256) as process, Requester(await address_from(process)) as requester:
        taken, refusals = await send_all(requester, 600)
        answers = await asyncio.wait_for(asyncio.gather(*(requester.dialled(each) for each in taken)), LIMIT)
        assert len(taken) > 100  # a limit of 256 leaves room for these
        assert len(taken) + len(refusals) == 600
        for refusal in refusals:
            assert refusal.startswith("Server overloaded: ")
            assert "of 256 open files" in refusal
            assert "ulimit -n" in refusal
        assert process.stdin is not None
        process.stdin.write(b"\n")
        for answer in answers:
            await answer.read()
            assert await data_of(answer) == ["done"]
        # What was lost is not held against the next, as soon as the worker has closed its ends of the answers.
        await requester.dialled(await asyncio.wait_for(taken_at_last(requester), LIMIT))


async def test_a_middle_tier_answers_or_refuses_every_request(start: Start) -> None:
    """It serves and calls, so that each of its requests needs two descriptors."""
    arrived = 0
    changed = asyncio.Condition()
    released = asyncio.Event()

    async def backend(request: Any) -> AsyncIterator[Any]:
        nonlocal arrived
        arrived += 1
        async with changed:
            changed.notify_all()
        await released.wait()
        yield "done"

    refused = 0

    async def answered(requester: Requester, subject: str) -> bool:
        nonlocal refused
        answer = await requester.dialled(subject)
        await answer.read()
        item, _ = await answer.items()
        if item["data"].get("event") != "error":
            return True
        assert "ulimit -n" in str(item)
        refused += 1
        async with changed:
            changed.notify_all()
        return False

    worker = await start(backend)
    async with few_descriptors(256, address_of(worker)) as process, Requester(await address_from(process)) as requester:
        taken, refusals = await send_all(requester, 200)
        answers = [asyncio.ensure_future(answered(requester, each)) for each in taken]
        async with changed:  # every one is held by the backend, or was refused
            await asyncio.wait_for(changed.wait_for(lambda: arrived + refused == len(taken)), LIMIT)
        released.set()
        results = await asyncio.wait_for(asyncio.gather(*answers), LIMIT)
        assert all(refusal.startswith("Server overloaded: ") for refusal in refusals)
        assert results.count(True) > 50
        # What was acknowledged had room for its own call as well. (A dial that has just been accepted counts twice.)
        assert results.count(False) <= len(taken) // 4


@pytest.mark.parametrize("bidirectional", [False, True], ids=["single", "bidirectional"])
async def test_each_connection_to_the_router_counts(start: Start, bidirectional: bool) -> None:
    """Of 40 files 10 are a reserve and 10 are in use."""
    worker = await start(Conversation(), bidirectional=bidirectional)
    worker.admission._descriptors = Descriptors(lambda: 40, lambda limit: 10)
    worker.admission._descriptors.add(worker.admission, calls=False)
    async with Requester(address_of(worker)) as requester:
        frames = []
        for _ in range(24):
            changes: dict[str, Any] = {}
            if bidirectional:
                info = requester.connection_info("x", "request")
                changes = {"request_type": "many_in", "request_stream_connection_info": info}
            control = json.dumps(requester.control("x", **changes)).encode()
            frames.append(request_frame(requester.path, two_part(control, b"" if bidirectional else b"1")))
        requester.writer.write(b"".join(frames))
        acks = [await requester.ack() for _ in frames]
        assert acks.count("") == (10 if bidirectional else 20)
        assert acks[-1].startswith("Server overloaded: 10 of 40 open files are in use and 20 more promised")


@pytest.mark.parametrize("known", [False, True], ids=["silent", "known"])
async def test_connections_leave_descriptors_to_the_answers(known: bool) -> None:
    async with few_descriptors(256) as process:
        address = await address_from(process)
        requesters = [Requester(address) for _ in range(150)]
        for requester in requesters:
            await requester.__aenter__()
            if known:
                requester.send(requester.control(request_type="many_in"), b"")  # read, and answered with an error
                assert await requester.ack() == ""
                (await requester.dialled()).reset()
        async with Requester(address) as requester:
            first, _ = await send_all(requester, 1)  # meanwhile those that make way for others are closed
            await requester.dialled(first[0])
            taken, _ = await send_all(requester, 200)
            await asyncio.wait_for(asyncio.gather(*(requester.dialled(each) for each in taken)), LIMIT)
            assert len(taken) > 60
        for requester in requesters:
            await requester.__aexit__(None, None, None)


DIAL = """
import asyncio, os, resource, sys
from dynamo_fast.config import WorkerConfig
from dynamo_fast.ingress.dialler import Dialler
from dynamo_fast.wire.control import TcpStreamConnectionInfo
from tests.loops import LOOPS

async def main():
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    info = TcpStreamConnectionInfo(sys.argv[2], "subject", "context")
    copies = []
    try:
        while True:
            copies.append(os.dup(0))
    except OSError:
        asyncio.get_running_loop().call_later(0.05, lambda: [os.close(each) for each in copies])
    await Dialler(WorkerConfig()).dial(info, asyncio.Protocol())
    print("dialled")

LOOPS[sys.argv[1]]().run_until_complete(main())
"""


async def test_a_dial_waits_for_a_descriptor() -> None:
    """Other code of the process may have taken the one that was promised."""
    server = await asyncio.start_server(lambda reader, writer: writer.transport.abort(), "127.0.0.1", 0)
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", DIAL, loop_name(), address),
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    output, _ = await asyncio.wait_for(process.communicate(), LIMIT)
    assert output == b"dialled\n"
    server.close()
