"""The command `dynamo-fast`. Each command is a module of this folder, with `add_parser` and `run`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from dynamo_fast import __version__, codec
from dynamo_fast.cli import bench, call, conformance, decode, demo, gateway, instances, models, run, serve, tap, top
from dynamo_fast.cli.output import discard_output
from dynamo_fast.errors import DynamoError
from dynamo_fast.wire.text import printable

__all__ = ["main"]

_COMMANDS = (demo, serve, run, gateway, call, bench, instances, models, top, decode, tap, conformance)

_MAX_ERROR = 2000
"""Characters of an error that are shown."""


class _Parser(argparse.ArgumentParser):
    """Escapes the arguments that its errors repeat: they may hold control characters."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(message, _MAX_ERROR))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. Errors are printed on standard error, without a traceback."""
    parser = _Parser(prog="dynamo-fast", description="Dynamo's request plane from the command line.")
    parser.add_argument(
        "--version", action="version", version=f"dynamo-fast {__version__} (codec backend: {codec.BACKEND})"
    )
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in _COMMANDS:
        command.add_parser(subparsers)
    options = parser.parse_args(arguments)
    try:
        status: int = options.run(options)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of the output has stopped, as `head` does
        discard_output()
        return 141
    except (DynamoError, OSError) as error:
        print(printable(f"{type(error).__name__}: {error}", _MAX_ERROR), file=sys.stderr)
        return 1
    return status
