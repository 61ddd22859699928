"""`dynamo-fast describe ENDPOINT`: all that discovery knows of one endpoint, and whether its workers can be reached."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Iterator
from typing import Any

import msgspec

from dynamo_fast.cli.arguments import endpoint_of, instance_id
from dynamo_fast.cli.discovery import add_discovery, add_wait, open_discovery, where
from dynamo_fast.cli.failures import text_of
from dynamo_fast.cli.loop import run as run_loop
from dynamo_fast.discovery.base import Discovery
from dynamo_fast.errors import DynamoError, Unavailable
from dynamo_fast.llm.diagnosis import Finding, diagnose
from dynamo_fast.wire.address import EndpointId, TcpAddress
from dynamo_fast.wire.instance import Instance
from dynamo_fast.wire.text import printable, printable_json

__all__ = ["add_parser", "run"]

_DIAL_SECONDS = 2.0


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "describe",
        help="show one endpoint: its instances, addresses, transports and model cards",
        description="Show what discovery knows of an endpoint or of one instance: address, transport, payload codec, "
        "device and model cards. A TCP address is dialled, to say whether it can be reached from here. The status is 1 if "
        "there is no instance, or if one cannot be reached.",
    )
    parser.add_argument("endpoint", metavar="ENDPOINT", help="NAMESPACE.COMPONENT.ENDPOINT")
    parser.add_argument("--instance", type=instance_id, metavar="HEX", help="this instance, no other")
    parser.add_argument("--json", action="store_true", help="one object of JSON")
    add_discovery(parser)
    add_wait(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print it; the status is 1 if something is missing."""
    return run_loop(_describe(options))


async def _describe(options: argparse.Namespace) -> int:
    endpoint = endpoint_of(options.endpoint)
    async with open_discovery(options) as discovery:
        instances = [
            each
            for each in await discovery.list(endpoint)
            if options.instance is None or each.instance_id == options.instance
        ]
        if not instances:
            which = "" if options.instance is None else f" with the id {options.instance:x}"
            raise Unavailable(f"no instance of {options.endpoint}{which} (discovery: {where(options)})")
        cards = await _cards(discovery, endpoint)
    found = await asyncio.gather(*(_facts(each, cards) for each in instances))
    if options.json:
        value = {"endpoint": ".".join(endpoint), "instances": found}
        print(printable_json(msgspec.json.encode(value).decode()))
    else:
        for line in _lines(options.endpoint, found):
            print(printable(line))
    return 0 if all(each["reachable"] is not False for each in found) else 1


async def _cards(discovery: Discovery, endpoint: EndpointId) -> list[Finding]:
    return [
        each for each in await diagnose(discovery) if each.record is not None and each.record.endpoint_id == endpoint
    ]


async def _facts(instance: Instance, cards: list[Finding]) -> dict[str, Any]:
    """What is printed of an instance, as it stands in the JSON."""
    reachable, reason = await _dial(instance)
    return {
        "instance": f"{instance.instance_id:x}",
        "address": instance.transport.address,
        "transport": instance.transport.kind,
        "codec": instance.payload_codec.value,
        "device": instance.device_type,
        "reachable": reachable,
        "reason": reason,
        "models": [_model(each) for each in cards if each.record and each.record.instance_id == instance.instance_id],
    }


def _model(finding: Finding) -> dict[str, Any]:
    assert finding.record is not None
    card = finding.record.card
    return {
        "name": card.display_name,
        "type": card.model_type,
        "input": card.model_input,
        "problems": finding.problems,
    }


async def _dial(instance: Instance) -> tuple[bool | None, str]:
    """Whether its address accepts connections, and how that was seen; None: not tried."""
    if instance.transport.kind != "tcp":
        return None, "not dialled: it is no TCP address"
    began = time.perf_counter()
    try:
        address = TcpAddress.parse(instance.transport.address)
        _, writer = await asyncio.wait_for(asyncio.open_connection(address.host, address.port), _DIAL_SECONDS)
    except asyncio.TimeoutError:
        return False, f"no connection within {_DIAL_SECONDS:g} s"
    except (DynamoError, OSError) as error:
        return False, text_of(error)
    writer.close()
    return True, f"connected in {(time.perf_counter() - began) * 1e3:.1f} ms"


def _lines(name: str, found: list[dict[str, Any]]) -> Iterator[str]:
    yield f"{name}: {len(found)} instance{'' if len(found) == 1 else 's'}"
    for each in found:
        word = {True: "reachable", False: "NOT REACHABLE", None: "unknown"}[each["reachable"]]
        yield f"instance {each['instance']}"
        yield f"    address    {each['address']}"
        yield f"    transport  {each['transport']}, requests in {each['codec']}"
        yield f"    device     {each['device'] or '-'}"
        yield f"    state      {word} ({each['reason']})"
        for model in each["models"]:
            yield f"    model      {model['name']}  {model['type'] or '-'}  gets {model['input']}"
            for problem in model["problems"]:
                yield f"               problem: {problem}"
