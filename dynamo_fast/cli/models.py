"""`dynamo-fast models`: the model cards that discovery knows, and what is wrong with them."""

from __future__ import annotations

import argparse

import msgspec

from dynamo_fast.cli.discovery import add_discovery, add_wait, open_discovery, where
from dynamo_fast.cli.loop import run as run_loop
from dynamo_fast.errors import Unavailable
from dynamo_fast.llm.diagnosis import Finding, diagnose
from dynamo_fast.wire.text import printable, printable_json

__all__ = ["add_parser", "run"]


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "models",
        help="list the models that frontends see, and what is wrong with them",
        description="List the model cards: one line each with the model's name, the endpoint, the instance id, the kinds "
        "of requests and what the handler gets; then a line for each problem: a card without instance, a file that is "
        "missing, a checksum that differs, a field that a frontend refuses. The status is 1 if there is a problem, or "
        "nothing.",
    )
    parser.add_argument("--json", action="store_true", help="one model a line: its record, and its problems")
    add_discovery(parser)
    add_wait(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the list; the status is 1 if it is empty, or if something is wrong."""
    return run_loop(_list(options))


async def _list(options: argparse.Namespace) -> int:
    async with open_discovery(options) as discovery:
        found = await diagnose(discovery)
    for finding in found:
        if options.json:
            print(printable_json(_as_json(finding)))
        else:
            print("  ".join(_cells(finding)))
            for problem in finding.problems:
                print(printable(f"    {problem}"))
    if not found:
        raise Unavailable(f"no model (discovery: {where(options)})")
    return 0 if not any(finding.problems for finding in found) else 1


def _cells(finding: Finding) -> list[str]:
    record = finding.record
    if record is None:
        return [printable(finding.key), "unreadable"]
    names = [record.card.display_name, *(record.card.aliases or ())]
    return [
        printable(", ".join(names)),
        printable(".".join(record.endpoint_id)),
        f"{record.instance_id:x}",
        record.card.model_type or "-",
        record.card.model_input,
    ]


def _as_json(finding: Finding) -> str:
    record = None if finding.record is None else msgspec.Raw(finding.content)
    return msgspec.json.encode({"key": finding.key, "problems": finding.problems, "record": record}).decode()
