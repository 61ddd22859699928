"""`dynamo-fast conformance -- COMMAND`: check another implementation of the frames against Dynamo's."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections import Counter
from fnmatch import fnmatchcase

import msgspec

from dynamo_fast.cli.arguments import seconds
from dynamo_fast.cli.progress import Progress
from dynamo_fast.conformance import Case, Outcome, cases, check
from dynamo_fast.errors import InvalidRequest
from dynamo_fast.wire.text import printable, printable_json

__all__ = ["add_parser", "run"]

_RESULTS = ("passed", "differs", "unsupported")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "conformance",
        help="check any implementation of the frames, in any language, against captured ones",
        description="Ask COMMAND to decode and encode the frames that Dynamo wrote, and the edges of the formats: a line "
        "of JSON on its standard input for each question, a line on its standard output for each answer (see "
        "docs/conformance.md). The exit status is 1 if an answer differs.",
    )
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="and its arguments, after --")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="only cases of such names, e.g. 'two_part/*'")
    parser.add_argument("--timeout", type=seconds, default=10.0, metavar="SECONDS", help="for an answer (default: 10)")
    parser.add_argument("--verbose", action="store_true", help="name the cases that pass, too")
    parser.add_argument("--json", action="store_true", help="a JSON object for each case, and one with the counts")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Check every case that was chosen; the status is 1 if an answer differs or is missing."""
    chosen = [case for case in cases() if fnmatchcase(case.name, options.only)]
    if not chosen:
        raise InvalidRequest(f"no case has a name like {options.only!r}: they are such as {cases()[0].name}")
    return asyncio.run(_run(chosen, options))


async def _run(chosen: list[Case], options: argparse.Namespace) -> int:
    counts: Counter[str] = Counter()
    progress = Progress(hidden=sys.stdout.isatty() and options.verbose)
    unsupported: Counter[str] = Counter()
    async for outcome in check(options.command, chosen, options.timeout):
        result = _result(outcome)
        counts[result] += 1
        if outcome.unsupported is not None:
            unsupported[outcome.unsupported] += 1
        progress.show(f"{counts.total()} of {len(chosen)} cases, {counts['differs']} differ")
        if result != "passed" or options.verbose:
            progress.close()
            _print(outcome, result, as_json=options.json)
    progress.close()
    left = len(chosen) - counts.total()
    if left:
        print(f"gave up: no answer three times in a row, {left} of {len(chosen)} cases were not tried", file=sys.stderr)
    if options.json:
        print(msgspec.json.encode({name: counts[name] for name in _RESULTS} | {"not_tried": left}).decode())
        return int(bool(left or counts["differs"]))
    what = "".join(f" ({count} {name})" for name, count in unsupported.items())
    print(f"{counts['passed']} passed, {counts['differs']} differ, {counts['unsupported']} unsupported{what}")
    return int(bool(left or counts["differs"]))


def _print(outcome: Outcome, result: str, *, as_json: bool) -> None:
    if as_json:
        facts = {"case": outcome.case.name, "result": result, "differences": outcome.differences}
        print(printable_json(msgspec.json.encode(facts).decode()))
        return
    print(f"{result:11} {outcome.case.name}")
    for difference in outcome.differences:
        print(f"            {printable(difference)}")


def _result(outcome: Outcome) -> str:
    if outcome.unsupported is not None:
        return "unsupported"
    return "differs" if outcome.differences else "passed"
