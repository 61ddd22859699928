"""`dynamo-fast instances`: the workers that discovery knows."""

from __future__ import annotations

import argparse
import asyncio
import sys
from typing import TYPE_CHECKING

from dynamo_fast.cli.arguments import endpoint_of
from dynamo_fast.cli.discovery import add_discovery, add_wait, open_discovery, where
from dynamo_fast.cli.loop import run as run_loop
from dynamo_fast.discovery.base import Discovery
from dynamo_fast.errors import InvalidRequest, Unavailable
from dynamo_fast.wire.address import EndpointId
from dynamo_fast.wire.instance import Instance
from dynamo_fast.wire.text import printable, printable_json

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["add_parser", "run"]

_LOOK_SECONDS = 0.25


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "instances",
        help="list the instances of an endpoint, or of all",
        description="List what discovery knows: one line each with the endpoint, the instance id, the address and the "
        "payload codec. The status is 1 if there is nothing.",
    )
    parser.add_argument(
        "endpoint", nargs="?", metavar="ENDPOINT", help="NAMESPACE.COMPONENT.ENDPOINT (default: all endpoints)"
    )
    parser.add_argument("--json", action="store_true", help="one record a line, as it is stored")
    parser.add_argument(
        "--watch",
        action="store_true",
        help="follow every change until Ctrl-C: a table on a terminal; else, and with --json, a line for each change",
    )
    add_discovery(parser)
    add_wait(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the list; the status is 1 if it is empty."""
    return run_loop(_list(options))


async def _list(options: argparse.Namespace) -> int:
    endpoint = options.endpoint and endpoint_of(options.endpoint)
    async with open_discovery(options) as discovery:
        if options.watch:
            await _watch(discovery, endpoint, options)
        instances = await discovery.list(endpoint)
        for instance in instances:
            print(printable_json(instance.encode().decode()) if options.json else "  ".join(_cells(instance)))
    if not instances:
        of_it = f" of {options.endpoint}" if endpoint else ""
        raise Unavailable(f"no instance{of_it} (discovery: {where(options)})")
    return 0


async def _watch(discovery: Discovery, endpoint: EndpointId | None, options: argparse.Namespace) -> None:
    """Show every change until the command is interrupted."""
    if options.json or not sys.stdout.isatty():
        await _follow(discovery, endpoint, as_json=options.json)
    try:
        from rich.live import Live
    except ImportError:
        raise InvalidRequest(
            "--watch shows a table with rich: pip install 'dynamo-fast[cli]'; or take --json"
        ) from None
    with Live(auto_refresh=False) as live:
        while True:
            live.update(_table(await discovery.list(endpoint)), refresh=True)
            await asyncio.sleep(_LOOK_SECONDS)


async def _follow(discovery: Discovery, endpoint: EndpointId | None, *, as_json: bool) -> None:
    """A line for each instance that is there, comes or goes; one that changes goes and comes."""
    known: dict[bytes, Instance] = {}
    while True:
        present = {each.encode(): each for each in await discovery.list(endpoint)}
        for change, before, after in (("removed", known, present), ("added", present, known)):
            for record, instance in before.items():
                if record not in after:
                    print(_change(change, record, instance, as_json), flush=True)
        known = present
        await asyncio.sleep(_LOOK_SECONDS)


def _change(change: str, record: bytes, instance: Instance, as_json: bool) -> str:
    if as_json:
        return printable_json(f'{{"change":"{change}","instance":{record.decode()}}}')
    return "  ".join((f"{change:7}", *_cells(instance)))


def _cells(instance: Instance) -> tuple[str, str, str, str]:
    name = ".".join(instance.endpoint_id)
    address = printable(instance.transport.address)
    return printable(name), f"{instance.instance_id:x}", address, instance.payload_codec.value


def _table(instances: list[Instance]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"{len(instances)} instance{'' if len(instances) == 1 else 's'}")
    for column in ("endpoint", "instance", "address", "codec"):
        table.add_column(column, overflow="fold")
    for instance in instances:
        table.add_row(*map(Text, _cells(instance)))  # Text: markup in a name is not obeyed
    return table
