"""`--discovery` and `--wait`, for the commands that use discovery."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from dynamo_fast.cli.arguments import seconds
from dynamo_fast.config import CommandConfig, EtcdConfig
from dynamo_fast.discovery.base import Discovery
from dynamo_fast.discovery.connect import connect
from dynamo_fast.discovery.file import FileDiscovery
from dynamo_fast.errors import CannotConnect
from dynamo_fast.wire.text import printable

__all__ = ["add_discovery", "add_wait", "announced", "open_discovery", "where"]

_WAIT = 10.0
_QUIET_SECONDS = 0.3
"""What comes sooner is not said to be waited for."""


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
    with announced(f"etcd at {config.endpoints}", wait):
        try:
            return await EtcdDiscovery.open(config)
        except CannotConnect as error:
            reason = f"{error} ({error.__cause__})" if error.__cause__ is not None else str(error)
            raise CannotConnect(f"no etcd at {config.endpoints}: {reason}; see ETCD_ENDPOINTS, --wait") from error


@contextmanager
def announced(what: str, seconds: float) -> Iterator[None]:
    """Say on standard error what is waited for, and for how long at most, if the block takes longer than a moment."""

    def say() -> None:
        print(printable(f"waiting for {what} (for {seconds:g} s)"), file=sys.stderr, flush=True)

    word = asyncio.get_running_loop().call_later(_QUIET_SECONDS, say)
    try:
        yield
    finally:
        word.cancel()


def where(options: argparse.Namespace) -> str:
    """Where workers are looked for, for an error."""
    if options.discovery != "file":
        return str(options.discovery)
    return f"file, {FileDiscovery().root}; see DYN_FILE_KV, --discovery"
