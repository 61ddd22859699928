"""`dynamo-fast instances`: who serves what, as discovery knows it."""

from __future__ import annotations

import argparse

from dynamo_fast.cli.loop import run as run_loop
from dynamo_fast.discovery.file import FileDiscovery
from dynamo_fast.wire.address import EndpointId

__all__ = ["add_parser", "run"]


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "instances",
        help="list the instances of an endpoint, or of all",
        description="List what the file store (DYN_FILE_KV) knows: one line each with the endpoint, the instance id, "
        "the address and the payload codec.",
    )
    parser.add_argument("endpoint", nargs="?", metavar="NAMESPACE.COMPONENT.ENDPOINT")
    parser.add_argument("--json", action="store_true", help="one record a line, as it is stored")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the list; the status is 1 if it is empty."""
    return run_loop(_list(options.endpoint and EndpointId.parse(options.endpoint), options.json))


async def _list(endpoint: EndpointId | None, as_json: bool) -> int:
    discovery = FileDiscovery()
    instances = await discovery.list(endpoint)
    for instance in instances:
        if as_json:
            print(instance.encode().decode())
        else:
            name = ".".join(instance.endpoint_id)
            print(f"{name}  {instance.instance_id:x}  {instance.transport.address}  {instance.payload_codec.value}")
    return 0 if instances else 1
