"""How a command fails: one line on standard error, and an exit status that says whose fault it was.

0    done
1    it failed: no worker, an error of the worker, a broken connection; or a check found something
2    nothing was done: the command line, an input or a setting cannot be used, or an extra is not installed
130  interrupted (Ctrl-C)
141  the reader of the output has stopped, as `head` does
143  SIGTERM, while a command that serves was still starting
"""

from __future__ import annotations

import sys

from dynamo_fast.errors import InvalidRequest
from dynamo_fast.wire.text import printable

__all__ = ["FAILED", "INTERRUPTED", "READER_GONE", "TERMINATED", "UNUSABLE", "report", "status_of", "text_of"]

FAILED, UNUSABLE, INTERRUPTED, READER_GONE, TERMINATED = 1, 2, 130, 141, 143

_MAX_ERROR = 2000
"""Characters of an error that are shown."""


def report(program: str, text: str) -> None:
    """Print the line: `dynamo-fast call: error: ...`."""
    print(printable(f"{program}: error: {text}", _MAX_ERROR), file=sys.stderr)


def status_of(error: Exception) -> int:
    """The exit status for an error that ended the command."""
    unusable = isinstance(error, (InvalidRequest, FileNotFoundError, IsADirectoryError, NotADirectoryError))
    return UNUSABLE if unusable else FAILED


def text_of(error: Exception) -> str:
    """What went wrong, without the name of a class where there is a text."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    text, cause = str(error) or type(error).__name__, error.__cause__
    return f"{text}: {cause.strerror}" if isinstance(cause, OSError) and cause.strerror else text
