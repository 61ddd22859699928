"""`dynamo-fast demo`: a worker and a router, two processes, and a few requests at once.

One is cancelled half-way, and one fails on purpose. The exit status is 0 only if each ends as expected. Last it
says what to try next. `dynamo-fast demo --stay` is the same worker behind the gateway, until Ctrl-C.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import os
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynamo_fast import codec
from dynamo_fast.cli.loop import Termination, run_until_told
from dynamo_fast.cli.loop import run as run_loop
from dynamo_fast.config import ResponseServerConfig
from dynamo_fast.context import Context
from dynamo_fast.discovery.base import DiscoveryEvent
from dynamo_fast.discovery.file import FileDiscovery
from dynamo_fast.egress.response_server import TcpStreamServer
from dynamo_fast.egress.router import AddressedPushRouter, AddressedRequest
from dynamo_fast.errors import Disconnected, DynamoError, InvalidRequest, RemoteError, ResponseTimeout
from dynamo_fast.wire.address import EndpointId
from dynamo_fast.wire.instance import Instance
from dynamo_fast.wire.text import printable

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["add_parser", "handler", "run"]

ENDPOINT = "demo.backend.generate"
_LIMIT = 30.0
"""Seconds after which the demo gives up."""
_WORDS = ["One", "small", "frame", "for", "every", "token", "of", "the", "answer", "."]


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "demo",
        help="a worker and a router, two processes, and a few requests at once",
        description="A worker and a router on this machine, with discovery in a temporary folder.",
    )
    parser.add_argument(
        "--stay", action="store_true", help="a worker behind the gateway instead, for your own requests, until Ctrl-C"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Show it."""
    if options.stay:
        return run_until_told(_stay)
    try:
        import rich  # noqa: F401  # before anything is started
    except ImportError:
        raise InvalidRequest("the demo shows its requests with rich: pip install 'dynamo-fast[cli]'") from None
    return run_loop(_in_time())


async def _in_time() -> int:
    try:
        return await asyncio.wait_for(_demo(), _LIMIT)
    except asyncio.TimeoutError:
        raise ResponseTimeout(f"the demo did not end within {_LIMIT:g} s; it usually takes two") from None


# The worker -----------------------------------------------------------------------------------------------------------


async def handler(request: dict[str, Any], context: Context) -> AsyncIterator[dict[str, Any]]:
    """Stream `tokens` words, with `pause` seconds after each; fail after `fail_after` of them."""
    for number in range(request["tokens"]):
        if number == request.get("fail_after"):
            raise RuntimeError("this request fails on purpose")
        if context.is_stopped():
            return
        yield {"token": number, "text": _WORDS[number % len(_WORDS)]}
        if request["pause"]:
            await asyncio.sleep(request["pause"])


@asynccontextmanager
async def _worker_process(folder: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Another process that serves the handler above. It is terminated at the end, and waited for."""
    with _log(folder).open("w") as log:
        async with _process(
            folder, "serve", f"{__name__}:handler", "--endpoint", ENDPOINT, stdout=log, stderr=log
        ) as it:
            yield it


@asynccontextmanager
async def _process(folder: str, *command: str, stdout: Any, stderr: Any) -> AsyncIterator[asyncio.subprocess.Process]:
    """One command of this program on loopback, with discovery in the folder; terminated at the end, and waited for."""
    local = {"DYN_FILE_KV": folder, "DYN_TCP_RPC_HOST": "127.0.0.1", "DYN_TCP_RESPONSE_STREAM_HOST": "127.0.0.1"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "dynamo_fast", *command),
        env={**os.environ, **local},
        stdout=stdout,
        stderr=stderr,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


def _last_line(log: Path) -> str:
    """The last line of the log: in a traceback it names the error."""
    return log.read_text().strip().rpartition("\n")[2]


def _log(folder: str) -> Path:
    return Path(folder) / "worker.log"


# The router -----------------------------------------------------------------------------------------------------------


@dataclass
class _Call:
    """One request, its expected outcome, and what has come of it so far. Times are in seconds."""

    name: str
    request: dict[str, Any]
    expected: str
    stop_after: int | None = None
    items: int = 0
    text: str = ""
    first_item: float = 0.0
    seconds: float = 0.0
    outcome: str = ""

    async def run(self, router: AddressedPushRouter, instance: Instance) -> None:
        context = Context()
        began = time.perf_counter()
        try:
            stream = await router.generate(AddressedRequest.for_instance(self.request, instance), context)
            async for item in stream:
                self.first_item = self.first_item or time.perf_counter() - began
                self.items += 1
                self.text = f"{self.text} {item.data()['text']}"[-300:]
                if self.items == self.stop_after:
                    context.stop_generating()
            self.outcome = "stopped" if context.is_stopped() else "complete"
        except RemoteError as error:
            self.outcome = f"{type(error).__name__}: {error}"
        except DynamoError as error:
            self.outcome = f"unexpected {type(error).__name__}: {error}"
        self.seconds = time.perf_counter() - began


def _calls() -> list[_Call]:
    slow = {"tokens": 48, "pause": 0.03}
    return [
        _Call("slow", slow, "complete"),
        _Call("slower", {"tokens": 32, "pause": 0.05}, "complete"),
        _Call("cancelled half-way", slow, "stopped", stop_after=24),
        _Call("fails", {**slow, "fail_after": 16}, "RemoteError: RuntimeError: this request fails on purpose"),
        _Call("fast, 20,000 items", {"tokens": 20_000, "pause": 0}, "complete"),
    ]


async def _demo() -> int:
    from rich.console import Console
    from rich.live import Live

    console = Console()
    calls = _calls()
    with tempfile.TemporaryDirectory() as folder:
        console.print(f"A worker that serves [bold]{ENDPOINT}[/], discovery in {folder}")
        async with _worker_process(folder) as worker:
            instance = await _discover(worker, folder)
            console.print(f"Found at {instance.tcp_address}; {len(calls)} requests at once:\n")
            config = replace(ResponseServerConfig.from_env(), host="127.0.0.1")
            server = await TcpStreamServer.create(config)
            async with await AddressedPushRouter.create(response_server=server) as router:
                tasks = [asyncio.ensure_future(call.run(router, instance)) for call in calls]
                with Live(_progress(calls), console=console, refresh_per_second=12, transient=True) as live:
                    while (await asyncio.wait(tasks, timeout=0.08))[1]:
                        live.update(_progress(calls))
                await asyncio.gather(*tasks)
    console.print(_summary(calls))
    console.print(f"Codec backend: [bold]{codec.BACKEND}[/]")
    wrong = [call for call in calls if call.outcome != call.expected]
    for call in wrong:
        console.print(f"[red]{call.name}[/]: expected {call.expected!r}, got {_shown(call.outcome)}")
    console.print(f"\n{_next_steps()}", highlight=False, soft_wrap=True)
    return 1 if wrong else 0


# What to do next ------------------------------------------------------------------------------------------------------


def _next_steps() -> str:
    return f"""[bold]Try it yourself.[/] In one terminal, the same worker behind the gateway:
    {_this_command()} demo --stay
In another one, and in a browser:
    {_curl("http://127.0.0.1:8080")}
    http://127.0.0.1:8080
[bold]Then write a handler of your own:[/] docs/quickstart.md"""


def _curl(url: str) -> str:
    request = '{"tokens": 8, "pause": 0.2}'
    return f"curl -N {url}/{ENDPOINT.replace('.', '/')} -d '{request}'"


def _this_command() -> str:
    """How to call this program here: by its name, if the shell finds it; else by its path."""
    beside = Path(sys.executable).with_name("dynamo-fast")
    found = shutil.which("dynamo-fast")
    if found is not None and Path(found) == beside:
        return "dynamo-fast"
    with contextlib.suppress(ValueError):
        return str(beside.relative_to(Path.cwd()))
    return str(beside)


async def _stay(termination: Termination) -> int:
    """The worker and the gateway, until a signal comes or one of the two ends. Raises Disconnected if one ends."""
    if importlib.util.find_spec("aiohttp") is None:
        raise InvalidRequest("the gateway needs aiohttp: pip install 'dynamo-fast[gateway]'")
    with tempfile.TemporaryDirectory() as folder:
        async with (
            _worker_process(folder) as worker,
            _process(folder, "gateway", stdout=asyncio.subprocess.PIPE, stderr=None) as gateway,
        ):
            await _discover(worker, folder)
            assert gateway.stdout is not None
            if said := (await gateway.stdout.readline()).decode().split():
                url = said[-1]
                told = f"{ENDPOINT} is behind {url}: open it in a browser, or\n\n    {_curl(url)}\n\nCtrl-C ends it."
                print(told, flush=True)
            termination.began()
            ends = [asyncio.ensure_future(wait) for wait in (termination.asked.wait(), worker.wait(), gateway.wait())]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for end in ends:
                end.cancel()
            if termination.asked.is_set():  # Ctrl-C reaches the two as well: they may have ended already
                return 0
            if worker.returncode is not None:
                raise Disconnected(f"the worker ended with status {worker.returncode}: {_last_line(_log(folder))}")
            raise Disconnected(f"the gateway ended with status {gateway.returncode}; it says why above")


async def _discover(worker: asyncio.subprocess.Process, folder: str) -> Instance:
    """The worker's record, once it has registered. Raises Disconnected if the worker ends before that."""
    found: asyncio.Future[Instance] = asyncio.get_running_loop().create_future()

    def look(event: DiscoveryEvent) -> None:
        if not found.done():
            found.set_result(event.instance)

    discovery = FileDiscovery(folder)
    await discovery.watch(EndpointId.parse(ENDPOINT), look)
    ended = asyncio.ensure_future(worker.wait())
    try:
        waits: list[asyncio.Future[Any]] = [found, ended]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if not found.done():
            raise Disconnected(f"the worker ended with status {worker.returncode}: {_last_line(_log(folder))}")
        return found.result()
    finally:
        ended.cancel()
        await discovery.close()


def _progress(calls: list[_Call]) -> Table:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("request", style="bold", no_wrap=True)
    table.add_column("items", justify="right")
    table.add_column("as they come", overflow="ellipsis", no_wrap=True)
    for call in calls:
        table.add_row(call.name, str(call.items), _shown(call.outcome) or call.text[-60:])
    return table


def _summary(calls: list[_Call]) -> Table:
    from rich.table import Table

    table = Table(title="How they ended")
    table.add_column("request", style="bold")
    table.add_column("ended", overflow="fold")
    table.add_column("items", justify="right")
    table.add_column("first item", justify="right")
    table.add_column("items/s", justify="right")
    for call in calls:
        rate = call.items / call.seconds if call.seconds else 0.0
        table.add_row(
            call.name, _shown(call.outcome), f"{call.items:,}", f"{call.first_item * 1e3:.1f} ms", f"{rate:,.0f}"
        )
    return table


def _shown(outcome: str) -> str:
    from rich.markup import escape

    colour = {"complete": "green", "stopped": "yellow", "": ""}.get(outcome, "red")
    return f"[{colour}]{escape(printable(outcome))}[/]" if outcome else ""
