"""docs/gateway.md: its commands are run, its programs serve, and its tables have every setting."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
import uvicorn
from aiohttp import web

from benchmarks.frontend import free_port
from dynamo_fast import FileDiscovery, serve
from dynamo_fast.config import GatewayConfig
from dynamo_fast.llm import ModelCard
from tests.cli.test_main import LIMIT, settings
from tests.gateway.chats import chats
from tests.gateway.conftest import staged
from tests.test_guides import example, names_of, run
from tests.waiting import until, until_in_thread

GUIDE = Path(__file__).parents[2] / "docs" / "gateway.md"
TEXT = GUIDE.read_text(encoding="utf-8")


async def words(request: Any, context: Any) -> Any:
    """As in the guide."""
    for word in request["prompt"].split():
        yield {"word": word}


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in settings(tmp_path / "store").items():
        monkeypatch.setenv(name, value)


def steps() -> list[tuple[str, str]]:
    """Each command of the guide, and what it prints."""
    (block,) = re.findall(r"```console\n(.*?)```", TEXT, re.DOTALL)
    return [(command, output) for command, output in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE)]


@contextlib.contextmanager
def shell(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A shell that has the command `dynamo-fast`."""
    binaries = folder / "bin"
    binaries.mkdir()
    (binaries / "dynamo-fast").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m dynamo_fast "$@"\n')
    (binaries / "dynamo-fast").chmod(0o755)
    path = os.pathsep.join([str(binaries), os.environ["PATH"]])
    process = subprocess.Popen(
        ["bash"],
        env={**settings(folder / "store"), "PATH": path},
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            yield process
        finally:
            os.killpg(process.pid, signal.SIGTERM)


def test_the_commands_print_what_the_guide_says(tmp_path: Path) -> None:
    (tmp_path / "engine.py").write_text(example("gateway.md", "# engine.py"))
    port = str(free_port())
    environ = f"export DYNAMO_FAST_GATEWAY_PORT={port}\n"
    with shell(tmp_path) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(environ)
        for command, output in steps():
            if command.startswith("curl"):
                url = f"http://localhost:{port}/v1/endpoints"
                until_in_thread(lambda url=url: "demo.backend" in _printed(["curl", "-s", url]), pause=0.1)  # type: ignore[misc]
            process.stdin.write(command.replace("8080", port) + "\n")
            process.stdin.flush()
            for expected in output.replace("8080", port).splitlines(keepends=True):
                if command.startswith("curl -s ") and output.count("\n") == 1:  # JSON ends without a line feed
                    process.stdin.write("echo\n")
                    process.stdin.flush()
                line = process.stdout.readline()
                assert line.startswith(expected.partition("...")[0].rstrip("\n")), command
    assert len(steps()) == 6


def _printed(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False).stdout


@pytest.mark.usefixtures("environment")
async def test_the_application_of_aiohttp_serves() -> None:
    worker = await serve(words, "demo.backend.generate", FileDiscovery())
    make = names_of(example("gateway.md", "add_subapp"), __name__="guide")["gateway_application"]
    runner = web.AppRunner(await make(), handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    (address,) = runner.addresses
    async with aiohttp.ClientSession(f"http://127.0.0.1:{address[1]}") as client:

        async def listed() -> bool:
            async with client.get("/workers/v1/endpoints") as response:
                return "demo.backend.generate" in await response.text()

        while not await listed():
            await asyncio.sleep(0)
        async with client.post("/workers/demo/backend/generate", json={"prompt": "a b"}) as response:
            assert await response.text() == 'data: {"word":"a"}\n\ndata: {"word":"b"}\n\ndata: [DONE]\n\n'
    await runner.cleanup()
    await worker.close()


@pytest.mark.usefixtures("environment")
async def test_the_service_of_fastapi_streams_and_stops_its_worker() -> None:
    stopped = asyncio.Event()

    async def endless(request: Any, context: Any) -> Any:
        yield request
        await context.async_killed_or_stopped()
        stopped.set()

    async with contextlib.AsyncExitStack() as stack:
        worker = await serve(endless, "demo.backend.generate", FileDiscovery())
        stack.push_async_callback(worker.close)
        app = names_of(example("gateway.md", "FastAPI("))["app"]
        port = free_port()
        server = uvicorn.Server(uvicorn.Config(app, "127.0.0.1", port, log_level="error", lifespan="on", ws="none"))
        serving = asyncio.ensure_future(server.serve())
        await until(lambda: server.started or serving.done())
        await app.state.workers.wait_for_instances()
        client = await stack.enter_async_context(aiohttp.ClientSession())
        async with client.post(f"http://127.0.0.1:{port}/generate", json={"a": 1}) as response:
            assert await response.content.readline() == b'data: {"a": 1}\n'
        await asyncio.wait_for(stopped.wait(), LIMIT)
        server.should_exit = True
        await serving


async def test_openais_client(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with staged(tmp_path, chats) as stage:
        await stage.worker.serve(chats, "a.b.m", model=ModelCard.text("shout"))
        await until(lambda: "shout" in stage.routers.models())
        source = example("gateway.md", "AsyncOpenAI").replace("http://127.0.0.1:8080", stage.server.url)
        names = await run(source, openai=openai)
        assert capsys.readouterr().out == "a\nb\n"
        await names["client"].close()


def test_every_setting_of_the_gateway_is_in_the_guide() -> None:
    variables = {each.metadata["variable"] for each in fields(GatewayConfig)}
    assert {name for name in variables if name not in TEXT} == set()
