"""`--discovery` and `--wait`, for the commands that use discovery."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from dynamo_fast.cli.arguments import seconds
from dynamo_fast.config import CommandConfig, EtcdConfig
from dynamo_fast.discovery.base import Discovery
from dynamo_fast.discovery.connect import connect
from dynamo_fast.errors import CannotConnect

__all__ = ["add_discovery", "add_wait", "open_discovery"]

_WAIT = 10.0
_QUIET_SECONDS = 0.3
"""If etcd answers sooner, nothing is printed."""


def add_discovery(parser: argparse._ActionsContainer) -> None:
    """Add the option `--discovery`."""
    parser.add_argument(
        "--discovery",
        choices=["file", "etcd", "kubernetes"],
        default=CommandConfig.from_env().discovery_backend,
        help="where workers are found: files in DYN_FILE_KV, etcd at ETCD_ENDPOINTS, or custom resources of Kubernetes "
        "(default: DYN_DISCOVERY_BACKEND, else file)",
    )


def add_wait(parser: argparse._ActionsContainer) -> None:
    """Add the option `--wait`."""
    parser.add_argument(
        "--wait",
        type=seconds,
        default=_WAIT,
        metavar="SECONDS",
        help=f"how long to wait for etcd, if discovery is in etcd (default: {_WAIT:g})",
    )


@asynccontextmanager
async def open_discovery(options: argparse.Namespace) -> AsyncIterator[Discovery]:
    """The backend that was chosen, closed at the end. Raises CannotConnect if etcd does not answer in time."""
    if options.discovery == "etcd":
        discovery = await _open_etcd(getattr(options, "wait", _WAIT))
    else:
        discovery = connect(options.discovery)
    try:
        yield discovery
    finally:
        await discovery.close()


async def _open_etcd(wait: float) -> Discovery:
    from dynamo_fast.discovery.etcd import EtcdDiscovery

    config = dataclasses.replace(EtcdConfig.from_env(), startup_timeout=wait)
    word = asyncio.get_running_loop().call_later(_QUIET_SECONDS, _say_waiting, config.endpoints, wait)
    try:
        return await EtcdDiscovery.open(config)
    except CannotConnect as error:
        reason = f"{error} ({error.__cause__})" if error.__cause__ is not None else str(error)
        raise CannotConnect(f"no etcd at {config.endpoints}: {reason}; see ETCD_ENDPOINTS, --wait") from error
    finally:
        word.cancel()


def _say_waiting(endpoints: str, wait: float) -> None:
    print(f"waiting for etcd at {endpoints} (for {wait:g} s)", file=sys.stderr, flush=True)
