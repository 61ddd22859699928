"""`dynamo-fast call TARGET JSON`: send a request to a worker, and print the items of its answer as they come."""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from typing import Any

import orjson

from dynamo_fast.cli.loop import run as run_loop
from dynamo_fast.context import Context
from dynamo_fast.discovery.base import Added, DiscoveryEvent
from dynamo_fast.discovery.file import FileDiscovery
from dynamo_fast.egress.addressed_router import AddressedPushRouter, AddressedRequest
from dynamo_fast.errors import InvalidRequest, Unavailable
from dynamo_fast.wire.address import EndpointId
from dynamo_fast.wire.instance import Instance
from dynamo_fast.wire.payload import Annotated, PayloadCodec

__all__ = ["add_parser", "run"]


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "call",
        help="send a request to a worker, and print its answer as it comes",
        description="Send a request to a worker, a real Dynamo's included, and print each item of its answer as a line "
        "of JSON. Ctrl-C kills the request.",
    )
    parser.add_argument(
        "target",
        metavar="TARGET",
        help="an endpoint, NAMESPACE.COMPONENT.ENDPOINT, found through the file store (DYN_FILE_KV); or an address, "
        "IP:PORT/PATH",
    )
    parser.add_argument("request", metavar="JSON", help="the request; - reads it from standard input")
    parser.add_argument("--id", help="the request's id (default: a random UUID)")
    parser.add_argument("--instance", type=lambda text: int(text, 16), metavar="HEX", help="this instance, no other")
    parser.add_argument("--codec", choices=[each.value for each in PayloadCodec], help="default: what the worker wants")
    parser.add_argument("--metadata", action="append", default=[], metavar="KEY=VALUE", help="may be given repeatedly")
    parser.add_argument("--wait", type=float, default=5.0, metavar="SECONDS", help="for an instance (default: 5)")
    parser.add_argument("--raw", action="store_true", help="print the whole envelope of each item, not its data only")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Make the call."""
    return run_loop(_call(options))


async def _call(options: argparse.Namespace) -> int:
    value = _request(options.request)
    context = Context(options.id, dict(map(_pair, options.metadata)))
    request = await _addressed(value, options)
    async with await AddressedPushRouter.create() as router, await router.generate(request, context) as stream:
        async for item in stream:
            _print(item, options.raw)
    return 0


def _request(text: str) -> Any:
    try:
        return orjson.loads(sys.stdin.buffer.read() if text == "-" else text)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the request is no JSON: {error}") from None


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise InvalidRequest(f"{text!r} is no metadata: expected KEY=VALUE")
    return key, value


async def _addressed(value: Any, options: argparse.Namespace) -> AddressedRequest:
    codec = None if options.codec is None else PayloadCodec(options.codec)
    if "/" in options.target.removeprefix("dyn://"):
        return AddressedRequest(value, options.target, payload_codec=codec or PayloadCodec.JSON)
    instance = await _find(EndpointId.parse(options.target), options.instance, options.wait)
    return AddressedRequest(value, instance.tcp_address, instance.endpoint_instance_id, codec or instance.payload_codec)


async def _find(endpoint: EndpointId, instance_id: int | None, seconds: float) -> Instance:
    """An instance of the endpoint, as soon as there is one. Raises Unavailable."""
    found: asyncio.Queue[Instance] = asyncio.Queue()

    def look(event: DiscoveryEvent) -> None:
        if isinstance(event, Added) and instance_id in (None, event.instance.instance_id):
            found.put_nowait(event.instance)

    discovery = FileDiscovery()
    try:
        await discovery.watch(endpoint, look)
        first = await asyncio.wait_for(found.get(), seconds)
    except asyncio.TimeoutError:
        wanted = "" if instance_id is None else f" with the id {instance_id:x}"
        raise Unavailable(
            f"no instance of {endpoint}{wanted} within {seconds:g} s (looked in {discovery.root})"
        ) from None
    finally:
        await discovery.close()
    others = [found.get_nowait() for _ in range(found.qsize())]
    return random.choice([first, *others])  # noqa: S311  # a choice, not a secret


def _print(item: Annotated, raw: bool) -> None:
    if raw:
        envelope = {
            "data": item.data(),
            "id": item.id(),
            "event": item.event(),
            "comment": item.comments() or None,
        }
        value: Any = {name: field for name, field in envelope.items() if field is not None}
    else:
        value = item.data()
    sys.stdout.buffer.write(
        orjson.dumps(value, default=list, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS)
    )
    sys.stdout.buffer.flush()
