"""`dynamo-fast top`: a gateway, or discovery alone, in the terminal, as it changes."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING

import msgspec

from dynamo_fast.cli.discovery import add_discovery, add_wait, open_discovery
from dynamo_fast.cli.loop import run as run_loop
from dynamo_fast.config import CommandConfig, GatewayConfig
from dynamo_fast.discovery.base import Discovery
from dynamo_fast.discovery.buckets import MODEL_CARDS
from dynamo_fast.errors import CannotConnect, InvalidRequest, PayloadError
from dynamo_fast.wire.address import EndpointId
from dynamo_fast.wire.instance import Instance
from dynamo_fast.wire.model_card import Card, ModelRecord
from dynamo_fast.wire.text import printable_json

if TYPE_CHECKING:
    from rich.console import RenderableType

    from dynamo_fast.gateway.fleet import Load
    from dynamo_fast.gateway.state import Snapshot

__all__ = ["add_parser", "run"]

_CONNECT_SECONDS = 10.0
_SILENT_SECONDS = 10.0
"""A gateway sends a snapshot each second."""
_LOOK_SECONDS = 1.0
_MAX_EVENT = 64 * 1024 * 1024


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "top",
        help="endpoints, instances, models and traffic, as they change",
        description="With the URL of a gateway: what its page shows. Without: the endpoints, instances and models that "
        "discovery lists, and how they come and go. Ctrl-C ends it. The token of the gateway is read from "
        "DYNAMO_FAST_GATEWAY_TOKEN.",
    )
    parser.add_argument("url", nargs="?", metavar="URL", help="the gateway, as http://127.0.0.1:8080")
    parser.add_argument("--once", action="store_true", help="show it once, and end")
    parser.add_argument("--json", action="store_true", help="one snapshot a line, as /_state of a gateway has it")
    add_discovery(parser)
    add_wait(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Show it until Ctrl-C."""
    return run_loop(_show(options))


async def _show(options: argparse.Namespace) -> int:
    if options.url is None:
        async with open_discovery(options) as discovery, aclosing(_of_discovery(discovery)) as snapshots:
            return await _print(snapshots, options, discovery_only=True)
    async with aclosing(_of_gateway(options.url, once=options.once)) as snapshots:
        return await _print(snapshots, options, discovery_only=False)


async def _print(snapshots: AsyncIterator[Snapshot], options: argparse.Namespace, *, discovery_only: bool) -> int:
    if options.json:
        async for snapshot in snapshots:
            print(printable_json(msgspec.json.encode(snapshot).decode()), flush=True)
            if options.once:
                break
        return 0
    try:
        from rich.console import Console
        from rich.live import Live
    except ImportError:
        raise InvalidRequest("top draws with rich (or use --json): pip install 'dynamo-fast[cli]'") from None
    from dynamo_fast.cli import top_screen

    console = Console(no_color=True if CommandConfig.from_env().no_color else None)
    screen = top_screen.Screen("discovery" if discovery_only else options.url)
    if options.once:
        async for snapshot in snapshots:
            console.print(screen.draw(snapshot, console.width))
            break
        return 0
    with Live(console=console, screen=console.is_terminal, auto_refresh=False) as live:
        async for snapshot in snapshots:
            drawn: RenderableType = screen.draw(snapshot, *(console.size if console.is_terminal else (console.width,)))
            live.update(drawn, refresh=True)
    return 0


# Where snapshots come from --------------------------------------------------------------------------------------------


async def _of_gateway(url: str, *, once: bool) -> AsyncGenerator[Snapshot, None]:
    """The snapshots of a gateway, until it ends; the first has the samples of the last minutes, the others the newest.

    Raises CannotConnect and InvalidRequest.
    """
    try:
        import aiohttp
    except ImportError:
        raise InvalidRequest("top asks a gateway with aiohttp: pip install 'dynamo-fast[gateway]'") from None
    from dynamo_fast.gateway.page import EVENTS_PATH, STATE_PATH

    if not url.startswith(("http://", "https://")):
        raise InvalidRequest(f"{url!r} is not valid: expected the URL of a gateway, as http://127.0.0.1:8080")
    token = GatewayConfig.from_env().token
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    timeout = aiohttp.ClientTimeout(total=None, connect=_CONNECT_SECONDS, sock_read=_SILENT_SECONDS)
    path = url.rstrip("/") + (STATE_PATH if once else EVENTS_PATH)
    try:
        async with (
            aiohttp.ClientSession(headers=headers, timeout=timeout, read_bufsize=_MAX_EVENT) as client,
            client.get(path) as answer,
        ):
            _check(answer.status, url)
            if once:
                yield _decoded(await answer.read(), url)
                return
            async for line in answer.content:
                if line.startswith(b"data: "):
                    yield _decoded(line.removeprefix(b"data: "), url)
    except InvalidRequest:
        raise
    except (aiohttp.ClientError, asyncio.TimeoutError, ValueError) as error:
        raise CannotConnect(f"no gateway at {url}: {error or 'it is silent'}") from None
    raise CannotConnect(f"the gateway at {url} has ended")


def _check(status: int, url: str) -> None:
    if status == 401:
        raise InvalidRequest(f"the gateway at {url} asks for a token: set DYNAMO_FAST_GATEWAY_TOKEN")
    if status == 404:
        raise InvalidRequest(f"{url} shows no state: it is no gateway, or DYNAMO_FAST_GATEWAY_PAGE is off there")
    if status != 200:
        raise CannotConnect(f"the gateway at {url} answered with the status {status}")


def _decoded(data: bytes, url: str) -> Snapshot:
    from dynamo_fast.gateway.state import Snapshot

    try:
        return msgspec.json.decode(data, type=Snapshot)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"what {url} shows is not the state of a gateway of this version: {error}") from None


async def _of_discovery(discovery: Discovery) -> AsyncGenerator[Snapshot, None]:
    """What discovery lists, each second."""
    from dynamo_fast import __version__
    from dynamo_fast.gateway.fleet import Fleet
    from dynamo_fast.gateway.state import LiveState

    listed = _Listed()
    state = LiveState(Fleet(listed), version=__version__)
    while True:
        await listed.read(discovery)
        state.sample()
        yield state.snapshot(history=1)
        await asyncio.sleep(_LOOK_SECONDS)


class _Listed:
    """What discovery listed last: a `FleetSource`."""

    def __init__(self) -> None:
        self._instances: list[Instance] = []
        self._models: list[tuple[EndpointId, Card]] = []

    async def read(self, discovery: Discovery) -> None:
        """See what there is now. Raises what the backend raises."""
        self._instances = await discovery.list()
        self._models = list(_cards([each.value for each in await discovery.store.bucket(MODEL_CARDS).list()]))

    def instances(self) -> list[Instance]:
        """See FleetSource."""
        return self._instances

    def models(self) -> list[tuple[EndpointId, Card]]:
        """See FleetSource."""
        return self._models

    def loads(self, endpoint: EndpointId) -> Mapping[int, Load]:
        """See FleetSource: discovery knows of none."""
        return {}


def _cards(contents: list[bytes]) -> Iterator[tuple[EndpointId, Card]]:
    """Cards that a frontend can read. (`dynamo-fast models` says what is wrong with the others.)"""
    for content in contents:
        try:
            record = ModelRecord.decode(content)
        except PayloadError:
            continue
        yield record.endpoint_id, record.card
