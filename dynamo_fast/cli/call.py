"""`dynamo-fast call TARGET JSON`: send a request to a worker, and print the items of its answer as they come.

Repeated, it becomes a small load generator: the answers are counted instead of printed, and a summary says how long they
took.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import orjson

from dynamo_fast.cli.discovery import add_discovery, open_discovery
from dynamo_fast.cli.loop import run as run_loop
from dynamo_fast.cli.show import jsonable
from dynamo_fast.config import PushRouterConfig, seconds
from dynamo_fast.context import Context
from dynamo_fast.egress.call import RoutedStream
from dynamo_fast.egress.push_router import PushRouter, RouterMode
from dynamo_fast.egress.response_stream import ResponseStream
from dynamo_fast.egress.router import AddressedPushRouter, AddressedRequest
from dynamo_fast.errors import DynamoError, InvalidRequest, Unavailable
from dynamo_fast.wire.address import EndpointId
from dynamo_fast.wire.payload import Annotated, PayloadCodec
from dynamo_fast.wire.text import printable, printable_json

__all__ = ["add_parser", "run"]

Answer = ResponseStream | RoutedStream
Send = Callable[[Context], Awaitable[Answer]]
_MODES = {mode.value: mode for mode in RouterMode if mode not in (RouterMode.KV, RouterMode.Direct)}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "call",
        help="send a request to a worker, and print its answer as it comes",
        description="Send a request to a worker, a real Dynamo's included, and print each item of its answer as a line "
        "of JSON. Ctrl-C kills the request.",
    )
    parser.add_argument(
        "target", metavar="TARGET", help="an endpoint, NAMESPACE.COMPONENT.ENDPOINT; or an address, IP:PORT/PATH"
    )
    parser.add_argument("request", metavar="JSON", help="the request; - reads it from standard input")
    parser.add_argument("--id", help="the request's id (default: a random UUID)")
    parser.add_argument("--metadata", action="append", default=[], metavar="KEY=VALUE", help="may be given repeatedly")
    parser.add_argument("--raw", action="store_true", help="print the whole envelope of each item, not its data only")
    parser.add_argument(
        "--inactivity-timeout",
        type=_seconds,
        metavar="SECONDS",
        help="give up when no item comes for this long (default: DYN_HTTP_BACKEND_STREAM_TIMEOUT_SECS, else wait for ever)",
    )
    address = parser.add_argument_group("for an address")
    address.add_argument("--codec", choices=[each.value for each in PayloadCodec], default="json")
    endpoint = parser.add_argument_group("for an endpoint")
    endpoint.add_argument("--instance", type=lambda text: int(text, 16), metavar="HEX", help="this instance, no other")
    endpoint.add_argument("--mode", choices=sorted(_MODES), default="round_robin", help="how to pick one of several")
    endpoint.add_argument("--wait", type=float, default=5.0, metavar="SECONDS", help="for an instance (default: 5)")
    add_discovery(endpoint)
    load = parser.add_argument_group("as a load")
    load.add_argument("--repeat", type=_count, default=1, metavar="N", help="send it N times, and print a summary")
    load.add_argument("--concurrency", type=_count, default=1, metavar="N", help="that many at once (default: 1)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Make the call."""
    return run_loop(_call(options))


async def _call(options: argparse.Namespace) -> int:
    value = _request(options.request)
    metadata = dict(map(_pair, options.metadata))
    async with _sender(value, options) as send:
        if options.repeat > 1:
            return await _Load(send, metadata).run(options.repeat, options.concurrency)
        async with await send(Context(options.id, metadata)) as stream:
            async for item in stream:
                _print(item, options.raw)
    return 0


@asynccontextmanager
async def _sender(value: Any, options: argparse.Namespace) -> AsyncIterator[Send]:
    """The function that sends the request to where the options say."""
    patience = options.inactivity_timeout
    if "/" in options.target.removeprefix("dyn://"):
        request = AddressedRequest(value, options.target, payload_codec=PayloadCodec(options.codec))
        async with await AddressedPushRouter.create(inactivity_timeout=patience) as router:
            yield lambda context: router.generate(request, context)
        return
    endpoint = EndpointId.parse(options.target)
    config = PushRouterConfig.from_env()
    config = replace(config, inactivity_timeout=patience or config.inactivity_timeout)
    async with (
        open_discovery(options) as discovery,
        await AddressedPushRouter.create() as router,
        await PushRouter.create(endpoint, discovery, router, mode=_MODES[options.mode], config=config) as workers,
    ):
        await _wait_for(workers, endpoint, options)
        if options.instance is None:
            yield lambda context: workers.generate(value, context)
        else:
            yield lambda context: workers.direct(value, options.instance, context)


async def _wait_for(workers: PushRouter, endpoint: EndpointId, options: argparse.Namespace) -> None:
    """Wait for an instance, or for the one that was asked for. Raises Unavailable."""

    async def found() -> None:
        await workers.wait_for_instances()
        # Discovery tells of the first instance only.
        while options.instance not in (None, *workers.instance_ids()):  # noqa: ASYNC110
            await asyncio.sleep(0.02)

    try:
        await asyncio.wait_for(found(), options.wait)
    except asyncio.TimeoutError:
        wanted = "" if options.instance is None else f" with the id {options.instance:x}"
        raise Unavailable(
            f"no instance of {endpoint}{wanted} within {options.wait:g} s (discovery: {options.discovery})"
        ) from None


class _Load:
    """The same request many times, a few at once."""

    def __init__(self, send: Send, metadata: dict[str, str]) -> None:
        self._send = send
        self._metadata = metadata
        self._done = 0
        self._items = 0
        self._first_items: list[float] = []
        self._seconds: list[float] = []
        self._errors: Counter[str] = Counter()

    async def run(self, repeat: int, concurrency: int) -> int:
        """Returns the exit status: 1 if any request failed."""
        left = iter(range(repeat))
        began = time.perf_counter()
        progress = asyncio.ensure_future(self._show_progress(repeat))
        await asyncio.gather(*(self._take(left) for _ in range(min(repeat, concurrency))))
        progress.cancel()
        self._summarise(time.perf_counter() - began)
        return 1 if self._errors else 0

    async def _take(self, left: Any) -> None:
        for _ in left:
            began = time.perf_counter()
            try:
                await self._one(began)
                self._seconds.append(time.perf_counter() - began)
            except DynamoError as error:
                self._errors[f"{type(error).__name__}: {error}"] += 1
            self._done += 1

    async def _one(self, began: float) -> None:
        first = True
        async with await self._send(Context(None, self._metadata)) as stream:
            async for _ in stream:
                if first:
                    self._first_items.append(time.perf_counter() - began)
                    first = False
                self._items += 1

    async def _show_progress(self, repeat: int) -> None:
        while sys.stderr.isatty():
            await asyncio.sleep(0.2)
            print(f"\r{self._done}/{repeat} requests, {self._items} items", end="\r", file=sys.stderr)

    def _summarise(self, seconds: float) -> None:
        print(f"{self._done} requests, {sum(self._errors.values())} failed, {self._items} items in {seconds:.2f} s")
        print(f"{self._done / seconds:,.0f} requests/s, {self._items / seconds:,.0f} items/s")
        for name, times in (("first item", self._first_items), ("whole answer", self._seconds)):
            if times:
                times.sort()
                median, late = times[len(times) // 2], times[int(len(times) * 0.99)]
                print(f"{name}: median {median * 1e3:.2f} ms, 99th percentile {late * 1e3:.2f} ms")
        for text, count in self._errors.most_common():
            print(f"{count} x {printable(text)}")


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


def _seconds(text: str) -> float:
    try:
        return seconds()(text)  # type: ignore[no-any-return]  # a parser of times
    except ValueError as accepted:
        raise argparse.ArgumentTypeError(f"{text!r} is not valid: expected {accepted}") from None


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


def _print(item: Annotated, raw: bool) -> None:
    if raw:
        envelope = {"data": item.data(), "id": item.id(), "event": item.event(), "comment": item.comments() or None}
        value: Any = {name: field for name, field in envelope.items() if field is not None}
    else:
        value = item.data()
    try:
        line = orjson.dumps(value, default=list, option=orjson.OPT_NON_STR_KEYS)
    except TypeError:  # nested more deeply than orjson writes, or a number of more than 64 bits
        line = orjson.dumps(jsonable(value))
    sys.stdout.buffer.write(printable_json(line.decode()).encode() + b"\n")
    sys.stdout.buffer.flush()
