"""`--discovery`, for the commands that look for workers or are to be found."""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from dynamo_fast.discovery.base import Discovery
from dynamo_fast.discovery.connect import connect

__all__ = ["add_discovery", "open_discovery"]


def add_discovery(parser: argparse._ActionsContainer) -> None:
    """Add the option."""
    parser.add_argument(
        "--discovery",
        choices=["file", "etcd"],
        default=os.environ.get("DYN_DISCOVERY_BACKEND") or "file",
        help="where workers are found: files in DYN_FILE_KV, or etcd at ETCD_ENDPOINTS (default: "
        "DYN_DISCOVERY_BACKEND, else file)",
    )


@asynccontextmanager
async def open_discovery(options: argparse.Namespace) -> AsyncIterator[Discovery]:
    """The backend that was chosen, closed at the end."""
    # Connecting to etcd blocks: elsewhere, so that Ctrl-C is heard.
    discovery = await asyncio.get_running_loop().run_in_executor(None, connect, options.discovery)
    try:
        yield discovery
    finally:
        await discovery.close()
