"""The loggers of this package. Every module takes its logger from here, so that no log line can be forged.

    logger = get_logger(__name__)

Peers choose request ids, endpoint names and error texts. Each text in a record has its control characters escaped and is
cut after `MAX_SHOWN` characters (`wire.text.printable`); each line of a traceback begins with `TRACEBACK_PREFIX`, so that
a line feed in an exception's text cannot begin a line of its own.

A filter of a parent logger does not see the records of its children, and handlers belong to the program: the filter is
therefore on each logger.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Mapping

from dynamo_fast.wire.text import MAX_SHOWN, printable

__all__ = ["MAX_TRACEBACK", "TRACEBACK_PREFIX", "get_logger"]

MAX_TRACEBACK = 20_000
"""Characters of a traceback that are logged: its beginning and its end."""
TRACEBACK_PREFIX = "  | "
_NUMBERS = (int, float)


def get_logger(name: str) -> logging.Logger:
    """The logger of that name, whose records are safe to write to a file or a terminal."""
    logger = logging.getLogger(name)
    if _escape not in logger.filters:
        logger.addFilter(_escape)
    return logger


class _Escape(logging.Filter):
    """Changes records in place; drops none."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg = printable(str(record.msg))
        if isinstance(record.args, Mapping):
            record.args = {name: _safe(value) for name, value in record.args.items()}
        elif record.args:
            record.args = tuple(map(_safe, record.args))
        if record.exc_info and record.exc_info[1] is not None:
            record.exc_text = _traceback(record.exc_info[1])  # which formatters write in place of their own
        return True


_escape = _Escape()


def _safe(value: object) -> object:
    if isinstance(value, _NUMBERS):
        return value
    try:
        return printable(str(value), MAX_SHOWN)
    except Exception as error:  # a text that cannot be had must not cost the log line
        return f"<{type(value).__name__}, whose text raises {type(error).__name__}>"


def _traceback(error: BaseException) -> str:
    try:
        text = "".join(traceback.format_exception(type(error), error, error.__traceback__)).rstrip("\n")
    except Exception as another:  # e.g. RecursionError, on a nearly full stack
        text = f"{type(error).__name__} (its traceback raises {type(another).__name__})"
    left = len(text) - MAX_TRACEBACK
    if left > 0:
        half = MAX_TRACEBACK // 2
        text = f"{text[:half]}\n... ({left} more characters)\n{text[-half:]}"
    return "\n".join(TRACEBACK_PREFIX + printable(line.expandtabs(), MAX_TRACEBACK) for line in text.split("\n"))
