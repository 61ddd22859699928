"""`dynamo-fast bench TARGET JSON`: a load of one request, many at once or at a rate, and what became of it.

`dynamo-fast bench codec` sends nothing: it times the frames alone.
"""

from __future__ import annotations

import argparse
import math

from dynamo_fast.cli import bench_codec
from dynamo_fast.cli.arguments import count, rate, seconds
from dynamo_fast.cli.call import Aim, add_target, aim_of, sender
from dynamo_fast.cli.load import Load
from dynamo_fast.cli.loop import run as run_loop
from dynamo_fast.cli.progress import showing
from dynamo_fast.errors import InvalidRequest
from dynamo_fast.wire.json_text import dumps, dumps_any

__all__ = ["add_parser", "run"]


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "bench",
        help="send a request again and again, and say how long the answers took",
        description="Send the same request again and again, and print a summary and a histogram. With --rate a request's "
        "time counts from when it was due. The status is 1 if a request failed. TARGET may be `codec`, without JSON: that "
        "times the frames alone, against `struct` by hand.",
    )
    add_target(parser)
    load = parser.add_argument_group("load")
    load.add_argument("--concurrency", type=count, default=32, metavar="N", help="at most N at once (default: 32)")
    load.add_argument(
        "--rate", type=rate, default=math.inf, metavar="R", help="R requests a second (default: no limit)"
    )
    end = load.add_mutually_exclusive_group()
    end.add_argument("--duration", type=seconds, default=None, metavar="SECONDS", help="for so long (default: 10)")
    end.add_argument("--count", type=count, default=None, metavar="N", help="N requests")
    parser.add_argument("--json", action="store_true", help="print one object of JSON instead; times are in seconds")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Put the load on, and print what became of it."""
    if options.target == "codec":
        return _codec(options)
    return run_loop(_bench(aim_of(options), options))


def _codec(options: argparse.Namespace) -> int:
    if options.request is not None:
        raise InvalidRequest("`bench codec` sends nothing: it takes no request")
    table = bench_codec.results()
    if options.json:
        print(dumps_any(table).decode())
    else:
        print(*bench_codec.lines(table), sep="\n")
    return 0


async def _bench(aim: Aim, options: argparse.Namespace) -> int:
    duration = options.duration or (10.0 if options.count is None else math.inf)
    async with sender(aim, options) as send:
        load = Load(send, aim.metadata)
        async with showing(lambda: load.progress(options.count)):
            await load.run(options.count, options.concurrency, seconds=duration, rate=options.rate)
    if options.json:
        print(dumps(load.figures()).decode())
    else:
        for line in (*load.summary(), *load.histogram()):
            print(line)
    return 1 if load.failed else 0
