"""`dynamo-fast tap LISTEN UPSTREAM`: show the traffic of a worker while it flows, through a proxy on loopback."""

from __future__ import annotations

import argparse
import asyncio

from dynamo_fast.cli.loop import run as run_loop
from dynamo_fast.cli.output import add_format, formatter_of
from dynamo_fast.inspect import Event, Relay

__all__ = ["add_parser", "run"]


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "tap",
        help="show live traffic through a proxy on loopback",
        description="Listen on LISTEN, pass everything on to UPSTREAM, and show it frame by frame: `>` is router to "
        "worker, `<` is worker to router. The answers of a worker come back through the tap, too. Call the worker "
        "through it, e.g.: dynamo-fast call LISTEN/PATH JSON.",
    )
    parser.add_argument("listen", metavar="LISTEN", help="HOST:PORT on loopback; port 0 takes a free one")
    parser.add_argument("upstream", metavar="UPSTREAM", help="HOST:PORT of a worker's request plane (see `instances`)")
    parser.add_argument("--no-answers", action="store_true", help="let answers go straight to the router, unseen")
    add_format(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Show the traffic until the command is interrupted."""
    return run_loop(_tap(options))


async def _tap(options: argparse.Namespace) -> int:
    formatter = formatter_of(options)

    def show(event: Event) -> None:
        for line in formatter.event(event):
            print(line, flush=True)

    relay = Relay(options.upstream, show, answers=not options.no_answers)
    await relay.start(options.listen)
    print(formatter.note(f"listening on {relay.address}, passing on to {options.upstream}"), flush=True)
    try:
        await asyncio.Event().wait()  # Ctrl-C ends it
    finally:
        await relay.close()
    return 0
