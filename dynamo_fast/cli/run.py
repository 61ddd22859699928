"""`dynamo-fast run -m MODULE ...`: run a program that was written for Dynamo's own packages on this project."""

from __future__ import annotations

import argparse
import os
import sys

from dynamo_fast.errors import InvalidRequest
from dynamo_fast.standin import FOLDER

__all__ = ["add_parser", "run"]

_NO_PREFIX = "\0"
"""A character that no argument has: every argument is the program's."""
_USAGE = "dynamo-fast run (-m MODULE | -c CODE | SCRIPT) [ARGUMENT ...]"
_DESCRIPTION = """\
Run a Python program that imports dynamo.runtime, dynamo.llm or dynamo._core on dynamo_fast, without a change to the
program: these modules resolve to dynamo_fast, everything else of an installed ai-dynamo to itself. ai-dynamo-runtime need
not be installed. The arguments are those of Python itself, and so are the program's sys.argv, its exit status, its
tracebacks and its signals. The Python processes that it starts run on dynamo_fast, too.

example: dynamo-fast run -m dynamo.common.backend.sample_main --model-name PATH --discovery-backend file
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "run",
        help="run a program that was written for Dynamo's own packages",
        usage=_USAGE,
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        prefix_chars=_NO_PREFIX,
        add_help=False,
    )
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    parser.set_defaults(run=run, show_help=parser.print_help)


def run(options: argparse.Namespace) -> int:
    """Become that program: this process is replaced by Python, which has the stand-ins in its path."""
    arguments: list[str] = options.arguments
    if not arguments:
        raise InvalidRequest(f"no program to run: {_USAGE}")
    if arguments[0] not in ("-h", "--help"):
        paths = [str(FOLDER), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        sys.stdout.flush()  # what this process has printed would be lost
        sys.stderr.flush()
        os.execve(sys.executable, [sys.executable, *arguments], environment)  # noqa: S606  # no shell
    options.show_help()
    return 0
