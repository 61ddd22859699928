"""`dynamo-fast gateway`: HTTP before the workers that discovery knows, until told to stop."""

from __future__ import annotations

import argparse
import asyncio
import logging
import tempfile
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dynamo_fast.cli import failures
from dynamo_fast.cli.arguments import count, patterns, port, seconds_or_none
from dynamo_fast.cli.discovery import add_discovery, add_wait, open_discovery
from dynamo_fast.cli.loop import Termination, run_until_told
from dynamo_fast.config import GatewayConfig, MultiprocessConfig, ServeConfig, set_for_subprocesses
from dynamo_fast.egress.router import AddressedPushRouter
from dynamo_fast.errors import DynamoError
from dynamo_fast.net.addresses import resolve
from dynamo_fast.observability.metrics import REQUEST_PLANE
from dynamo_fast.wire.text import printable

if TYPE_CHECKING:
    from dynamo_fast.gateway.processes import Child

__all__ = ["add_parser", "run"]

_PROGRAM = "dynamo-fast gateway"
_SETTINGS = ("host", "port", "tls_cert", "tls_key", "cors", "endpoints")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "gateway",
        help="HTTP and server-sent events before the workers",
        description="Take requests over HTTP: POST /NAMESPACE/COMPONENT/ENDPOINT for any endpoint, OpenAI's routes for "
        "models whose workers take text. SIGINT or SIGTERM ends it: what runs is answered first, for at most the grace "
        "period; a second signal ends it now. Its limits, and the token that clients must send, are settings of the "
        "environment (DYNAMO_FAST_GATEWAY_*).",
    )
    parser.add_argument("--host", help="where to listen (default: DYNAMO_FAST_GATEWAY_HOST, else 127.0.0.1)")
    parser.add_argument("--port", type=port, help="0: any (default: DYNAMO_FAST_GATEWAY_PORT, else 8080)")
    parser.add_argument("--tls-cert", metavar="FILE", help="HTTPS with this certificate and its chain (PEM)")
    parser.add_argument("--tls-key", metavar="FILE", help="the key of the certificate (PEM)")
    parser.add_argument("--cors", metavar="ORIGINS", help="whose pages may call: origins, separated by commas, or *")
    parser.add_argument(
        "--endpoints",
        type=patterns,
        metavar="LIST",
        help="what clients may call: NAMESPACE/COMPONENT/ENDPOINT, separated by commas, * for any part (default: "
        "DYNAMO_FAST_GATEWAY_ENDPOINTS, else all)",
    )
    parser.add_argument(
        "--workers", type=count, default=1, metavar="N", help="processes that share the port (default: 1)"
    )
    parser.add_argument(
        "--grace",
        type=seconds_or_none,
        metavar="SECONDS",
        help="how long the requests in flight may take after the first signal (default: DYNAMO_FAST_GRACE, else "
        f"{ServeConfig.grace:g})",
    )
    add_discovery(parser)
    add_wait(parser)
    parser.add_argument("-v", "--verbose", action="store_true", help="log what happens")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Serve until a signal comes."""
    level = logging.INFO if options.verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s")
    given = {name: getattr(options, name) for name in _SETTINGS if getattr(options, name) is not None}
    config = replace(GatewayConfig.from_env(), **given)
    options.grace = (ServeConfig.from_env() if options.grace is None else ServeConfig(grace=options.grace)).grace
    if options.workers > 1:
        return _run_several(config, options)
    return run_until_told(lambda termination: _serve(config, options, termination))


def _run_several(config: GatewayConfig, options: argparse.Namespace) -> int:
    """Processes that share a port, and their metrics."""
    from dynamo_fast.gateway.processes import Processes, reserve_port

    ip = resolve(config.host, "DYNAMO_FAST_GATEWAY_HOST", names=True).bind_ip
    with (
        _shared_metrics(),
        tempfile.TemporaryDirectory(prefix="dynamo-fast-gateway-") as folder,
        reserve_port(ip, config.port) as kept,
    ):
        shared = replace(config, port=kept.getsockname()[1])
        processes = Processes(options.workers, lambda child: _serve_as(child, shared, options, Path(folder)))
        if processes.wait_ready():
            print(printable(f"gateway at {_url(shared, ip)} ({options.workers} processes)"), flush=True)
        for why in processes.failures:
            failures.report(_PROGRAM, why)
        status = processes.wait()
        return max(processes.failures.values(), default=status)


def _serve_as(child: Child, config: GatewayConfig, options: argparse.Namespace, folder: Path) -> int:
    """One process of several. What goes wrong is said by the parent, once for all, or here if it serves already."""
    try:
        return run_until_told(lambda termination: _serve(config, options, termination, child=child, folder=folder))
    except (DynamoError, OSError) as error:
        status, text = failures.status_of(error), failures.text_of(error)
        if child.is_ready:
            failures.report(_PROGRAM, text)
        else:
            child.say_failed(text, status)
        return status


def _url(config: GatewayConfig, ip: str) -> str:
    return f"{'https' if config.listens_with_tls else 'http'}://{f'[{ip}]' if ':' in ip else ip}:{config.port}"


@contextmanager
def _shared_metrics() -> Iterator[None]:
    """A folder in which the processes share their metrics, if the environment names none.

    prometheus_client, which reads the variable when it is imported, is imported by the children.
    """
    if MultiprocessConfig.from_env().folder:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="dynamo-fast-metrics-") as folder:
        set_for_subprocesses("PROMETHEUS_MULTIPROC_DIR", folder)
        yield


async def _serve(
    config: GatewayConfig,
    options: argparse.Namespace,
    termination: Termination,
    *,
    child: Child | None = None,
    folder: Path | None = None,
) -> int:
    """One process. `child`: if it is one of several; `folder`: what they share."""
    from dynamo_fast.gateway.app import GATEWAY, app
    from dynamo_fast.gateway.routers import Routers
    from dynamo_fast.gateway.server import Server
    from dynamo_fast.observability.multiprocess import share

    if child is not None:
        asyncio.get_running_loop().add_reader(child.parent, termination.end)
    async with AsyncExitStack() as stack:
        discovery = await stack.enter_async_context(open_discovery(options))
        router = await stack.enter_async_context(await AddressedPushRouter.create())
        routers = await stack.enter_async_context(await Routers.open(discovery, router, retries=config.retries))
        application = app(routers, config, shared=folder)
        if MultiprocessConfig.from_env().folder:
            stack.callback(share(application[GATEWAY].metrics, REQUEST_PLANE).close)
        server = await Server.start(application, config, reuse_port=child is not None)
        stack.push_async_callback(server.close)
        termination.began()
        if child is None:
            print(printable(f"gateway at {server.url}"), flush=True)
        else:
            child.say_ready()
        await termination.asked.wait()
        if child is None:
            running = server.running
            limit = f", for at most {options.grace:g} s; another signal ends it now" if running else ""
            print(f"leaving; {running} request{'' if running == 1 else 's'} to finish{limit}", flush=True)
        else:
            asyncio.get_running_loop().remove_reader(child.parent)
        await server.leave(options.grace)
    return 0
