"""`dynamo-fast call TARGET JSON`: send a request to a worker, and print the items of its answer as they come.

With --repeat it is a small load generator: answers are counted instead of printed, and a summary says how long they took.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, NamedTuple

from dynamo_fast.cli.arguments import (
    count,
    endpoint_of,
    instance_id,
    is_address,
    pairs,
    seconds,
    seconds_or_none,
)
from dynamo_fast.cli.discovery import add_discovery, announced, open_discovery, where
from dynamo_fast.cli.load import Load, Send
from dynamo_fast.cli.loop import run as run_loop
from dynamo_fast.cli.progress import showing
from dynamo_fast.config import PushRouterConfig
from dynamo_fast.context import Context
from dynamo_fast.egress.push_router import PushRouter, RouterMode
from dynamo_fast.egress.router import AddressedPushRouter, AddressedRequest
from dynamo_fast.errors import DynamoError, InvalidRequest, ResponseTimeout, Unavailable
from dynamo_fast.inspect import jsonable
from dynamo_fast.wire.address import EndpointId
from dynamo_fast.wire.json_text import dumps, dumps_any, loads
from dynamo_fast.wire.payload import Annotated, PayloadCodec
from dynamo_fast.wire.text import UNREADABLE, printable_json, reason

__all__ = ["Aim", "add_parser", "add_target", "aim_of", "run", "sender"]

_MODES = {mode.value: mode for mode in RouterMode if mode not in (RouterMode.KV, RouterMode.Direct)}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "call",
        help="send a request to a worker, and print its answer as it comes",
        description="Send a request to a worker, a real Dynamo's included, and print each item of its answer as a line "
        "of JSON. Ctrl-C kills the request. The status is 1 if the answer is not complete.",
    )
    add_target(parser)
    parser.add_argument("--id", help="the request's id (default: a random UUID)")
    parser.add_argument(
        "--timeout",
        type=seconds,
        metavar="SECONDS",
        help="for all of it, the wait for an instance included; then the request is killed. With --repeat: for each "
        "request (default: none)",
    )
    parser.add_argument("--raw", action="store_true", help="print the whole envelope of each item, not its data only")
    load = parser.add_argument_group("as a load")
    load.add_argument("--repeat", type=count, default=1, metavar="N", help="send it N times, and print a summary")
    load.add_argument("--concurrency", type=count, default=1, metavar="N", help="that many at once (default: 1)")
    parser.set_defaults(run=run)


def add_target(parser: argparse.ArgumentParser) -> None:
    """Add the request, where it goes, and how; for `aim_of` and `sender`."""
    parser.add_argument(
        "target", metavar="TARGET", help="an endpoint, NAMESPACE.COMPONENT.ENDPOINT; or an address, IP:PORT/PATH"
    )
    parser.add_argument("request", metavar="JSON", nargs="?", help="the request (default, and -: from standard input)")
    parser.add_argument(
        "--metadata", action="append", default=[], metavar="KEY=VALUE", help="for the handler's context; repeatable"
    )
    parser.add_argument(
        "--header", action="append", default=[], metavar="KEY=VALUE", help="of the request frame; repeatable"
    )
    parser.add_argument(
        "--inactivity-timeout",
        type=seconds,
        metavar="SECONDS",
        help="give up when no item comes for this long (default: DYN_HTTP_BACKEND_STREAM_TIMEOUT_SECS, else wait for ever)",
    )
    address = parser.add_argument_group("for an address")
    address.add_argument("--codec", choices=[each.value for each in PayloadCodec], default="json")
    endpoint = parser.add_argument_group("for an endpoint")
    endpoint.add_argument("--instance", type=instance_id, metavar="HEX", help="this instance, no other")
    endpoint.add_argument("--mode", choices=sorted(_MODES), default="round_robin", help="how to pick one of several")
    endpoint.add_argument(
        "--wait", type=seconds_or_none, default=5.0, metavar="SECONDS", help="for an instance (default: 5)"
    )
    add_discovery(endpoint)


def run(options: argparse.Namespace) -> int:
    """Make the call."""
    if options.timeout is not None:
        options.wait = min(options.wait, options.timeout)
    aim = aim_of(options)
    return run_loop(_call(aim, options) if options.repeat == 1 else _call_often(aim, options))


async def _call(aim: Aim, options: argparse.Namespace) -> int:
    sent = False
    items = 0

    async def answer() -> None:
        nonlocal sent, items
        async with sender(aim, options) as send:
            sent = True
            async with await send(Context(options.id, aim.metadata)) as stream:
                async for item in stream:
                    items += 1
                    _print(item, options.raw)

    try:
        await asyncio.wait_for(answer(), options.timeout)
    except DynamoError:  # some are TimeoutErrors, too
        raise
    except asyncio.TimeoutError:
        if not sent:
            raise _no_instance(options) from None
        came = f"{items} item{'' if items == 1 else 's'} came"
        raise ResponseTimeout(f"the answer was not complete within {options.timeout:g} s ({came})") from None
    return 0


async def _call_often(aim: Aim, options: argparse.Namespace) -> int:
    """Show the progress on a terminal, and print the summary; the status is 1 if a request failed."""
    async with sender(aim, options) as send:
        load = Load(send, aim.metadata, options.timeout)
        async with showing(lambda: load.progress(options.repeat)):
            await load.run(options.repeat, options.concurrency)
    for line in load.summary():
        print(line)
    return 1 if load.failed else 0


class Aim(NamedTuple):
    """What is sent, and where to."""

    endpoint: EndpointId | None
    """None: the target is an address."""
    value: Any
    metadata: dict[str, str]
    headers: dict[str, str]


def aim_of(options: argparse.Namespace) -> Aim:
    """What the options of `add_target` ask for. May read standard input, so it is called before the event loop runs:
    Ctrl-C ends a blocking read only there.

    Raises InvalidRequest and InvalidAddress.
    """
    metadata, headers = pairs(options.metadata, "metadata"), pairs(options.header, "header")
    endpoint = None if is_address(options.target) else endpoint_of(options.target)
    return Aim(endpoint, _request(options.request), metadata, headers)


@asynccontextmanager
async def sender(aim: Aim, options: argparse.Namespace) -> AsyncIterator[Send]:
    """The function that sends the request."""
    endpoint, value, _, headers = aim
    patience = options.inactivity_timeout
    if endpoint is None:
        request = AddressedRequest(value, options.target, payload_codec=PayloadCodec(options.codec), headers=headers)
        async with await AddressedPushRouter.create(inactivity_timeout=patience) as router:
            yield lambda context: router.generate(request, context)
        return
    config = PushRouterConfig.from_env()
    config = replace(config, inactivity_timeout=patience or config.inactivity_timeout)
    async with (
        open_discovery(options) as discovery,
        await AddressedPushRouter.create() as router,
        await PushRouter.create(endpoint, discovery, router, mode=_MODES[options.mode], config=config) as workers,
    ):
        await _wait_for(workers, options)
        if options.instance is None:
            yield lambda context: workers.generate(value, context, headers)
        else:
            yield lambda context: workers.direct(value, options.instance, context, headers)


async def _wait_for(workers: PushRouter, options: argparse.Namespace) -> None:
    """Wait for an instance, or for the one that was asked for. Raises Unavailable."""

    async def found() -> None:
        await workers.wait_for_instances()
        # wait_for_instances returns with the first instance, which may be another one.
        while options.instance not in (None, *workers.instance_ids()):  # noqa: ASYNC110
            await asyncio.sleep(0.02)

    known = workers.instance_ids()
    if known and options.instance in (None, *known):
        return
    with announced(f"an instance of {_wanted(options)}", options.wait):
        try:
            await asyncio.wait_for(found(), options.wait)
        except asyncio.TimeoutError:
            raise _no_instance(options) from None


def _no_instance(options: argparse.Namespace) -> Unavailable:
    return Unavailable(f"no instance of {_wanted(options)} within {options.wait:g} s (discovery: {where(options)})")


def _wanted(options: argparse.Namespace) -> str:
    return options.target if options.instance is None else f"{options.target} with the id {options.instance:x}"


def _request(text: str | None) -> Any:
    from_stdin = text in (None, "-")
    if from_stdin and sys.stdin.isatty():
        print("the request is read from standard input: type JSON, then Ctrl-D", file=sys.stderr)
    try:
        return loads(sys.stdin.buffer.read() if from_stdin else str(text))
    except UNREADABLE as error:
        source = "of standard input " if from_stdin else ""
        raise InvalidRequest(f"the request {source}is no JSON: {reason(error)}") from None


def _print(item: Annotated, raw: bool) -> None:
    if raw:
        envelope = {"data": item.data(), "id": item.id(), "event": item.event(), "comment": item.comments() or None}
        value: Any = {name: field for name, field in envelope.items() if field is not None}
    else:
        value = item.data()
    try:
        line = dumps_any(value)
    except TypeError:  # deeper than it writes, or a number of more than 64 bits
        line = dumps(jsonable(value))
    sys.stdout.buffer.write(printable_json(line.decode()).encode() + b"\n")
    sys.stdout.buffer.flush()
