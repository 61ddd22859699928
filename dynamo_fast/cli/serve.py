"""`dynamo-fast serve MODULE:HANDLER --endpoint NAMESPACE.COMPONENT.ENDPOINT`: serve a handler until told to stop."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import logging
import os
import signal
import sys
from typing import cast

from dynamo_fast.cli.discovery import add_discovery, open_discovery
from dynamo_fast.cli.loop import run as run_loop
from dynamo_fast.errors import InvalidRequest
from dynamo_fast.ingress.push_handler import Handler
from dynamo_fast.ingress.worker import serve
from dynamo_fast.wire.address import EndpointId

__all__ = ["add_parser", "run"]


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "serve",
        help="serve a handler: an async generator function of a request",
        description="Serve a handler. SIGINT or SIGTERM ends it: it leaves discovery, and every request that was "
        "accepted gets its answer first. The settings are Dynamo's, from the environment (DYN_TCP_RPC_HOST, "
        "DYN_FILE_KV, ...).",
    )
    parser.add_argument("handler", metavar="MODULE:HANDLER", help="where the handler is, e.g. my_engine:generate")
    parser.add_argument("--endpoint", required=True, metavar="NAMESPACE.COMPONENT.ENDPOINT")
    add_discovery(parser)
    parser.add_argument("-v", "--verbose", action="store_true", help="a line for each request at its end")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Serve until a signal comes."""
    level = logging.INFO if options.verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s")
    return run_loop(_serve(load(options.handler), options))


def load(name: str) -> Handler:
    """The handler that `MODULE:HANDLER` names, looked for in the current folder, too. Raises InvalidRequest."""
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise InvalidRequest(f"{name!r} is no handler: expected MODULE:HANDLER, e.g. my_engine:generate")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        value = importlib.import_module(module_name)
        for part in attribute.split("."):
            value = getattr(value, part)
    except (ImportError, AttributeError) as error:
        raise InvalidRequest(f"the handler {name!r} cannot be imported: {error}") from error
    if not callable(value):
        raise InvalidRequest(f"the handler {name!r} is a {type(value).__name__}, which cannot be called")
    return cast(Handler, value)


async def _serve(handler: Handler, options: argparse.Namespace) -> int:
    endpoint = EndpointId.parse(options.endpoint)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with open_discovery(options) as discovery:
        worker = await serve(handler, endpoint, discovery)
        (served,) = worker.endpoints.values()
        print(f"serving {options.endpoint} at {served.address}", flush=True)
        if worker.status.url is not None:
            print(f"status at {worker.status.url}", flush=True)
        await stop.wait()
        running = served.metrics.inflight
        print(f"leaving; {running} request{'' if running == 1 else 's'} to finish", flush=True)
        await worker.close()
    return 0
