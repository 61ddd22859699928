"""How `dynamo-fast serve` ends: real processes, real signals."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from dynamo_fast import AddressedPushRouter, AddressedRequest
from dynamo_fast.egress.response_stream import ResponseStream
from dynamo_fast.errors import DynamoError
from tests.cli.test_main import LIMIT, run, settings
from tests.programs import started

ENGINE = """
import asyncio, contextlib, time

async def endless(request):
    yield 1
    await asyncio.Event().wait()

async def stubborn(request):
    yield 1
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

async def blocking(request):
    yield 1
    await asyncio.sleep(0)
    print("blocked", flush=True)
    time.sleep(3600)
"""


@contextmanager
def serving(handler: str, folder: Path, *options: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    (folder / "engine.py").write_text(ENGINE)
    command = [sys.executable, "-m", "dynamo_fast", "serve", f"engine:{handler}", "--endpoint", "a.b.c", *options]
    with started(command, {**settings(folder), **environment}, folder, stderr=subprocess.PIPE) as process:
        yield process


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def rest(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    return process.stderr.read()


@asynccontextmanager
async def begun(process: subprocess.Popen[str]) -> AsyncIterator[ResponseStream]:
    """An answer whose first item is there."""
    address = (await asyncio.to_thread(line, process)).split()[-1]
    async with await AddressedPushRouter.create() as router:
        stream = await router.generate(AddressedRequest.new(None, address))
        assert (await asyncio.wait_for(stream.__anext__(), LIMIT)).data() == 1
        yield stream


async def error_of(stream: ResponseStream) -> DynamoError:
    with pytest.raises(DynamoError) as raised:
        await asyncio.wait_for(stream.__anext__(), LIMIT)
    return raised.value


@pytest.fixture(autouse=True)
def loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYN_TCP_RESPONSE_STREAM_HOST", "127.0.0.1")


@pytest.mark.parametrize(
    ("options", "environment", "limit"),
    [
        (("--grace", "0.3"), {}, "0.3"),
        ((), {"DYNAMO_FAST_GRACE": "0.2"}, "0.2"),
        (("--grace", "3600"), {"DYN_RUNTIME_GRACEFUL_SHUTDOWN_TIMEOUT_SECS": "0.1"}, "0.1"),
    ],
)
async def test_one_signal_ends_an_endless_handler_after_the_grace_period(
    tmp_path: Path, options: tuple[str, ...], environment: dict[str, str], limit: str
) -> None:
    with serving("endless", tmp_path, *options, **environment) as process:
        async with begun(process) as stream:
            process.send_signal(signal.SIGTERM)
            leaving = await asyncio.to_thread(line, process)
            assert leaving == f"leaving; 1 request to finish, for at most {limit} s; another signal ends it now\n"
            error = await error_of(stream)
            assert str(error) == "engine shutting down"
            assert error.migratable
        assert await asyncio.to_thread(process.wait, LIMIT) == 0
        assert "Traceback" not in rest(process)


def test_the_grace_period_has_a_default(tmp_path: Path) -> None:
    assert "20" in run(tmp_path, "serve", "--help").stdout
    refused = run(tmp_path, "serve", "os:getcwd", "--endpoint", "a.b.c", "--grace", "-1")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "argument --grace: '-1' is not valid: expected a number of seconds, 0 or more" in refused.stderr


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("handler", ["endless", "stubborn"])
async def test_the_second_signal_ends_it_now(tmp_path: Path, handler: str, second: signal.Signals) -> None:
    with serving(handler, tmp_path, "--grace", "3600") as process:
        async with begun(process) as stream:
            process.send_signal(signal.SIGTERM)
            assert (await asyncio.to_thread(line, process)).startswith("leaving; 1 request to finish")
            while list((tmp_path / "v1" / "instances").iterdir()):  # until it has left discovery
                await asyncio.sleep(0.01)
            process.send_signal(second)
            assert (await error_of(stream)).migratable
        assert await asyncio.to_thread(process.wait, LIMIT) == 128 + second
        assert rest(process) == ""


async def test_the_second_signal_ends_it_though_a_handler_blocks_the_loop(tmp_path: Path) -> None:
    with serving("blocking", tmp_path) as process:
        async with begun(process) as stream:
            assert await asyncio.to_thread(line, process) == "blocked\n"
            process.send_signal(signal.SIGINT)
            failing = asyncio.ensure_future(error_of(stream))
            while not failing.done():  # Python may go on sleeping if a signal comes just before it sleeps
                process.send_signal(signal.SIGTERM)
                await asyncio.wait([failing], timeout=0.2)
            assert failing.result().migratable
        assert await asyncio.to_thread(process.wait, LIMIT) in (128 + signal.SIGTERM, 128 + signal.SIGINT)
        assert "Traceback" not in rest(process)


async def test_a_handler_that_ignores_its_cancellation_does_not_keep_the_process(tmp_path: Path) -> None:
    settings = {"DYNAMO_FAST_CANCEL_GRACE": "0.1", "DYN_TCP_CONNECT_TIMEOUT": "0.1"}
    with serving("stubborn", tmp_path, "--grace", "0.1", **settings) as process:
        async with begun(process) as stream:
            process.send_signal(signal.SIGTERM)
            assert (await error_of(stream)).migratable
        assert await asyncio.to_thread(process.wait, LIMIT) == 1
        told = rest(process)
        assert "1 requests for a/b/c go on though cancelled" in told
        assert "Traceback" not in told
