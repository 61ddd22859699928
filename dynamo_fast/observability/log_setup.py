"""Logs with Dynamo's variables and fields, for programs on the native API: `configure_logging()`.

    DYN_LOG=info,dynamo_fast.egress=debug    levels, for all loggers and for those whose names begin so
    DYN_LOGGING_JSONL=1                      one JSON object for each line, with the keys of Dynamo 1.6.1

A program with its own handlers takes the parts: `JsonFormatter`, and `RequestFilter` for `%(request_id)s` in a format.
(Source: observability.md 4.)
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import TextIO

from dynamo_fast.config import EngineLogConfig
from dynamo_fast.observability.current import request_fields
from dynamo_fast.wire.text import printable, printable_lines

__all__ = [
    "SHOWN_LEVELS",
    "JsonFormatter",
    "RequestFilter",
    "configure_logging",
    "extra_fields",
    "json_line",
    "levels_of",
    "time_text",
]

READABLE = "%(asctime)s %(levelname)s %(name)s [%(request_id)s]: %(message)s"
SHOWN_LEVELS = {
    "debug": "DEBUG",
    "warning": "WARN",
    "error": "ERROR",
    "critical": "ERROR",
    "trace": "TRACE",
    "warn": "WARN",
}
"""Dynamo's word for a level in lower case; `INFO` for others."""
_OFF = logging.CRITICAL + 1
_LEVELS = {
    "trace": logging.DEBUG,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
    "off": _OFF,
    "none": _OFF,
}
_OF_EVERY_RECORD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
_FIELDS = ("request_id", "trace_id", "span_id")


def configure_logging(stream: TextIO | None = None) -> logging.Handler:
    """Write the records of this process to `stream`, by default stderr, as `DYN_LOG` and `DYN_LOGGING_JSONL` say.

    Adds one handler to the root logger, and sets the levels of the loggers: a record that is filtered out is never made.
    Returns the handler, so that the program can remove it. Raises InvalidConfig.
    """
    config = EngineLogConfig.from_env()
    handler = logging.StreamHandler(stream)
    if config.as_json:
        handler.setFormatter(JsonFormatter(local_time=config.local_time))
    else:
        handler.addFilter(RequestFilter())
        handler.setFormatter(_ReadableFormatter(READABLE))
    for name, level in levels_of(config.targets).items():
        logging.getLogger(name).setLevel(level)
    logging.getLogger().addHandler(handler)
    return handler


def levels_of(targets: str) -> dict[str, int]:
    """The levels of a `DYN_LOG`, by the names of their loggers; that of the root logger, INFO by default, by "".

    `target=level`: the loggers whose names begin with `target`, where `::` stands for a dot. An unknown level is INFO.
    """
    levels = {"": logging.INFO}
    for each in targets.split(","):
        target, _, word = each.rpartition("=")
        if word.strip():
            levels[target.strip().replace("::", ".")] = _LEVELS.get(word.strip().lower(), logging.INFO)
    return levels


class RequestFilter(logging.Filter):
    """Gives each record `request_id`, `trace_id` and `span_id`, of the request that is answered; empty outside of one.

    Add it to a handler: a filter of a logger does not see the records of other loggers. It drops none. A caller chooses the
    id of its request: control characters in it are escaped, and a long one is cut.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """See logging.Filter. What the record has already stays."""
        fields = request_fields()
        for name in _FIELDS:
            if not hasattr(record, name):
                setattr(record, name, printable(fields.get(name, "")))
        return True


class _ReadableFormatter(logging.Formatter):
    """Each line of a record with its control characters escaped; a message may have several lines, as in Dynamo."""

    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(super().format(record))


class JsonFormatter(logging.Formatter):
    """One JSON object for each record, with Dynamo's keys.

    `time`, `level`, `file`, `line`, `target` (the logger's name), `message`; then, by name, the fields of the request that
    is answered and those that the record was given with `extra=`. A traceback is in `exception`.
    """

    def __init__(self, *, local_time: bool = False) -> None:
        super().__init__()
        self._local_time = local_time

    def format(self, record: logging.LogRecord) -> str:
        """The line, without a line feed."""
        moment = datetime.fromtimestamp(record.created, tz=timezone.utc)
        head = {
            "time": time_text(moment, local=self._local_time),
            "level": SHOWN_LEVELS.get(record.levelname.lower(), "INFO"),
            "file": record.pathname,
            "line": record.lineno,
            "target": record.name,
            "message": record.getMessage(),
        }
        others = {**request_fields(), **extra_fields(record)}
        if record.exc_info and record.exc_info[0] is not None:
            others["exception"] = record.exc_text or self.formatException(record.exc_info)
        return json_line(head, others)


def extra_fields(record: logging.LogRecord) -> dict[str, object]:
    """What the record was given with `extra=`; an id that is empty is left out."""
    return {
        name: value
        for name, value in record.__dict__.items()
        if name not in _OF_EVERY_RECORD and not (name in _FIELDS and value == "")
    }


def json_line(head: Mapping[str, object], others: Mapping[str, object]) -> str:
    """`head` in its order, then `others` by name. What JSON does not have is written as text."""
    fields = {**head, **{name: value for name, value in sorted(others.items()) if name not in head}}
    return json.dumps(fields, separators=(",", ":"), ensure_ascii=False, default=str)


def time_text(moment: datetime, *, local: bool = False) -> str:
    """As in Dynamo: `2026-11-25T16:12:26.834567Z`, or the local time with its offset."""
    if local:
        return moment.astimezone().isoformat(timespec="microseconds")
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
