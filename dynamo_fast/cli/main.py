"""The command `dynamo-fast`. Each command is a module of this folder, with `add_parser` and `run`.

How it fails: see `failures`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from dynamo_fast import __version__, codec
from dynamo_fast.cli import (
    bench,
    call,
    completion,
    conformance,
    decode,
    demo,
    describe,
    failures,
    gateway,
    instances,
    models,
    run,
    serve,
    tap,
    top,
)
from dynamo_fast.cli.output import discard_output
from dynamo_fast.errors import DynamoError

__all__ = ["main"]

_COMMANDS = (
    demo,
    serve,
    run,
    gateway,
    call,
    bench,
    instances,
    describe,
    models,
    top,
    decode,
    tap,
    conformance,
    completion,
)


class _Parser(argparse.ArgumentParser):
    """Fails as every command does: in one line, which names the help instead of repeating the usage."""

    def error(self, message: str) -> NoReturn:
        failures.report(self.prog, f"{message} (see {self.prog} --help)")
        raise SystemExit(failures.UNUSABLE)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. Errors are printed on standard error, without a traceback."""
    parser = _Parser(prog="dynamo-fast", description="Dynamo's request plane from the command line.")
    parser.add_argument(
        "--version", action="version", version=f"dynamo-fast {__version__} (codec backend: {codec.BACKEND})"
    )
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", dest="chosen_command")
    for command in _COMMANDS:
        command.add_parser(subparsers)
    options, unknown = parser.parse_known_args(arguments)
    if unknown:  # said by the command's own parser, which names the command and its help
        chosen = subparsers.choices.get(options.chosen_command, parser)
        chosen.error(f"unrecognized arguments: {' '.join(unknown)}")
    if options.chosen_command is None:
        parser.print_help(sys.stderr)
        return failures.UNUSABLE
    try:
        status: int = options.run(options)
    except KeyboardInterrupt:
        return failures.INTERRUPTED
    except BrokenPipeError:  # the reader of the output has stopped, as `head` does
        discard_output()
        return failures.READER_GONE
    except (DynamoError, OSError) as error:
        failures.report(f"{parser.prog} {options.chosen_command}", failures.text_of(error))
        return failures.status_of(error)
    return status
