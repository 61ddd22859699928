"""Standard output of the commands: the options that say what frames look like, and a reader that stops early."""

from __future__ import annotations

import argparse
import os
import sys

from dynamo_fast.config import CommandConfig
from dynamo_fast.inspect import Formatter

__all__ = ["add_format", "discard_output", "formatter_of"]


def add_format(parser: argparse.ArgumentParser) -> None:
    """Add the options `--json`, `--full` and `--colour`."""
    parser.add_argument("--json", action="store_true", help="a JSON object a line, with everything in it")
    parser.add_argument("--full", action="store_true", help="elide nothing")
    parser.add_argument("--colour", "--color", choices=["auto", "always", "never"], default="auto")


def formatter_of(options: argparse.Namespace) -> Formatter:
    """The formatter that the options ask for. `auto` means colours on a terminal, unless NO_COLOR is set."""
    is_coloured = sys.stdout.isatty() and not CommandConfig.from_env().no_color
    colour = options.colour == "always" or (options.colour == "auto" and is_coloured)
    return Formatter(as_json=options.json, colour=colour and not options.json, full=options.full)


def discard_output() -> None:
    """Discard what is still written to standard output, of which the reader has gone.

    Otherwise Python complains when it flushes at exit.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
