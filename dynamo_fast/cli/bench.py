"""`dynamo-fast bench TARGET JSON`: a load of one request, many at once or at a rate, and what became of it."""

from __future__ import annotations

import argparse
import math

import orjson

from dynamo_fast.cli.arguments import count, seconds
from dynamo_fast.cli.call import add_target, metadata_of, sender
from dynamo_fast.cli.load import Load
from dynamo_fast.cli.loop import run as run_loop
from dynamo_fast.cli.progress import showing

__all__ = ["add_parser", "run"]


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "bench",
        help="send a request again and again, and say how long the answers took",
        description="Send the same request again and again, and print a summary and a histogram. With --rate a request's "
        "time counts from when it was due. The status is 1 if a request failed.",
    )
    add_target(parser)
    load = parser.add_argument_group("load")
    load.add_argument("--concurrency", type=count, default=32, metavar="N", help="at most N at once (default: 32)")
    load.add_argument(
        "--rate", type=seconds, default=math.inf, metavar="R", help="R requests a second (default: no limit)"
    )
    end = load.add_mutually_exclusive_group()
    end.add_argument("--duration", type=seconds, default=None, metavar="SECONDS", help="for so long (default: 10)")
    end.add_argument("--count", type=count, default=None, metavar="N", help="N requests")
    parser.add_argument("--json", action="store_true", help="print one object of JSON instead; times are in seconds")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Put the load on, and print what became of it."""
    return run_loop(_bench(options))


async def _bench(options: argparse.Namespace) -> int:
    duration = options.duration or (10.0 if options.count is None else math.inf)
    async with sender(options) as send:
        load = Load(send, metadata_of(options))
        async with showing(lambda: load.progress(options.count)):
            await load.run(options.count, options.concurrency, seconds=duration, rate=options.rate)
    if options.json:
        print(orjson.dumps(load.figures()).decode())
    else:
        for line in (*load.summary(), *load.histogram()):
            print(line)
    return 1 if load.failed else 0
