"""`dynamo-fast gateway`: HTTP before the workers that discovery knows, until told to stop."""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from dynamo_fast.cli.discovery import add_discovery, add_wait, open_discovery
from dynamo_fast.cli.loop import Termination
from dynamo_fast.cli.loop import run as run_loop
from dynamo_fast.config import GatewayConfig, ServeConfig
from dynamo_fast.discovery.base import Discovery
from dynamo_fast.egress.router import AddressedPushRouter
from dynamo_fast.wire.text import printable

if TYPE_CHECKING:
    from aiohttp import web

    from dynamo_fast.gateway.routers import RouterSource

__all__ = ["add_parser", "run"]


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "gateway",
        help="HTTP and server-sent events before the workers",
        description="Take requests over HTTP: POST /NAMESPACE/COMPONENT/ENDPOINT for any endpoint, OpenAI's routes for "
        "models whose workers take text. SIGINT or SIGTERM ends it: what runs is answered first, for at most the grace "
        "period; a second signal ends it now. Its limits are settings of the environment (DYNAMO_FAST_GATEWAY_*).",
    )
    parser.add_argument("--host", help="where to listen (default: DYNAMO_FAST_GATEWAY_HOST, else 127.0.0.1)")
    parser.add_argument("--port", type=int, help="0: any (default: DYNAMO_FAST_GATEWAY_PORT, else 8080)")
    add_discovery(parser)
    add_wait(parser)
    parser.add_argument("-v", "--verbose", action="store_true", help="log what happens")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Serve until a signal comes."""
    level = logging.INFO if options.verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s")
    given = {name: getattr(options, name) for name in ("host", "port") if getattr(options, name) is not None}
    return run_loop(_serve(replace(GatewayConfig.from_env(), **given), options))


async def _serve(config: GatewayConfig, options: argparse.Namespace) -> int:
    from dynamo_fast.gateway.routers import Routers
    from dynamo_fast.gateway.server import Server

    termination = Termination()
    async with (
        open_discovery(options) as discovery,
        await AddressedPushRouter.create() as router,
        await Routers.open(discovery, router, retries=config.retries) as routers,
    ):
        server = await Server.start(_application(routers, discovery, config), config)
        print(printable(f"gateway at {server.url}"), flush=True)
        try:
            await termination.asked.wait()
            grace = ServeConfig.from_env().grace
            print(f"leaving; {server.running} requests to finish, for at most {grace:g} s", flush=True)
            await server.leave(grace)
        finally:
            await server.close()
    return 0


def _application(routers: RouterSource, discovery: Discovery, config: GatewayConfig) -> web.Application:
    """The gateway with all that belongs to it. (Here the page adds its routes and its observer.)"""
    from dynamo_fast.gateway.app import app

    return app(routers, config)
