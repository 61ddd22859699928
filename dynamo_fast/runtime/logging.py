"""The drop-in for `dynamo.runtime.logging`: one place that sets up the logs of a program and of its engine.

    from dynamo_fast.runtime.logging import configure_dynamo_logging    # was: from dynamo.runtime.logging import ...
    configure_dynamo_logging()

In Dynamo, `LogHandler` hands each record to Rust, which writes it. Here it writes the same line itself, to stderr: in a
readable form with colours, or as JSON (`DYN_LOGGING_JSONL`).
"""

from __future__ import annotations

import functools
import json
import logging
import logging.config
import sys
import tempfile
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path

from dynamo_fast.config import EngineLogConfig, set_for_subprocesses, text_of_variable
from dynamo_fast.observability.current import request_fields
from dynamo_fast.observability.log_setup import SHOWN_LEVELS, extra_fields, json_line, time_text
from dynamo_fast.wire.text import printable_lines

__all__ = [
    "LogHandler",
    "VllmColorFormatter",
    "configure_dynamo_logging",
    "configure_logger",
    "configure_sglang_logging",
    "configure_vllm_logging",
    "construct_formatter_prefix",
    "get_bool_env_var",
    "log_level_mapping",
    "log_message",
    "python_log_level_mapping",
]

_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}
_COLOURS = {"DEBUG": "\x1b[34m", "INFO": "\x1b[32m", "WARN": "\x1b[33m", "ERROR": "\x1b[31m", "TRACE": "\x1b[35m"}
_DIM, _RESET = "\x1b[2m", "\x1b[0m"
_ENGINES = ("sglang", "gpu_memory_service")
_MAX_MESSAGE = 1 << 20  # characters


# Setting up -----------------------------------------------------------------------------------------------------------


def configure_dynamo_logging(service_name: str | None = None, worker_id: int | None = None) -> None:
    """Send every record of this process to one `LogHandler`, in place of the root logger's handlers.

    `DYN_LOG` sets the level. The engines vLLM and SGLang are told to log in the same way; vLLM's level is
    `VLLM_LOGGING_LEVEL`. Unless `DYN_SKIP_SGLANG_LOG_FORMATTING` is true, this writes a configuration for SGLang into a
    temporary file, which stays: SGLang's own processes read it.
    """
    targets = EngineLogConfig.from_env().targets
    root = logging.getLogger()
    for handler in root.handlers[:]:
        root.removeHandler(handler)
    configure_logger(service_name, worker_id, python_log_level_mapping(targets))
    level = log_level_mapping(targets)
    configure_vllm_logging(level)
    if not get_bool_env_var("DYN_SKIP_SGLANG_LOG_FORMATTING"):
        configure_sglang_logging(level)
    tag = logging.getLogger("tag")
    tag.handlers = []
    tag.setLevel(logging.ERROR)
    tag.propagate = True


def configure_logger(service_name: str | None, worker_id: int | None, level: int = logging.INFO) -> None:
    """Add a `LogHandler` of that level to the root logger. Its lines begin with `[service_name:worker_id]`, if given."""
    prefix = construct_formatter_prefix(service_name, worker_id)
    handler = LogHandler(level)
    handler.setFormatter(logging.Formatter(f"[{prefix.replace('%', '%%')}] %(message)s" if prefix else "%(message)s"))
    root = logging.getLogger()
    root.setLevel(level)
    root.addHandler(handler)


def construct_formatter_prefix(service_name: str | None, worker_id: int | None) -> str:
    """`service_name:worker_id`, or the part of it that is given."""
    service = "" if service_name is None else service_name
    worker = "" if worker_id is None else f":{worker_id}"
    return f"{service}{worker}".strip()


def configure_vllm_logging(dyn_level: int) -> None:
    """Send the records of vLLM, in this process, to stderr in the form of `VllmColorFormatter`.

    vLLM's own processes are told to log as vLLM does by default. `dyn_level` has no effect, as in Dynamo.
    """
    set_for_subprocesses("VLLM_CONFIGURE_LOGGING", "1")
    logger = {"handlers": ["stderr"], "level": EngineLogConfig.from_env().vllm_level.upper(), "propagate": False}
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"vllm": {"()": VllmColorFormatter}},
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "vllm", "stream": sys.stderr}},
            "loggers": {"vllm": logger, "gpu_memory_service": logger},
        }
    )
    engine = logging.getLogger("vllm.v1.engine.async_llm")
    if _is_no_health_check not in engine.filters:
        engine.addFilter(_is_no_health_check)


def configure_sglang_logging(dyn_level: int) -> None:
    """Write a configuration file for the logs of SGLang, and name it in `SGLANG_LOGGING_CONFIG_PATH`."""
    level = logging.getLevelName(dyn_level)
    logger = {"handlers": ["dynamo"], "level": level, "propagate": False}
    handler = {"class": f"{__name__}.LogHandler", "formatter": "simple", "level": level}
    configuration = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"simple": {"format": "%(message)s"}},
        "handlers": {"dynamo": handler},
        "loggers": dict.fromkeys(_ENGINES, logger),
    }
    with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False, encoding="utf-8") as file:
        json.dump(configuration, file)
    set_for_subprocesses("SGLANG_LOGGING_CONFIG_PATH", file.name)


# Levels and variables -------------------------------------------------------------------------------------------------


def log_level_mapping(level: str) -> int:
    """The level of Python's `logging` for a word of `DYN_LOG`. INFO for `trace` and for every unknown word."""
    return _LEVELS.get(level, logging.INFO)


def python_log_level_mapping(filters: str) -> int:
    """The lowest level that any part of a `DYN_LOG` lets pass: `level` or `target=level`, separated by commas.

    DEBUG for `trace`, which Python does not have, and if there is a file of log filters (`EngineLogConfig`).
    """
    path = EngineLogConfig.from_env().config_path
    if (path and Path(path).is_file()) or Path(EngineLogConfig.config_path).is_file():
        return logging.DEBUG
    words = [each.rpartition("=")[2].strip().lower() for each in filters.split(",")]
    return min(logging.DEBUG if word == "trace" else log_level_mapping(word) for word in words)


def get_bool_env_var(name: str, default: str = "false") -> bool:
    """Whether the variable is `true` or `1`, in any case. Logs a warning for a value other than these, `false` and `0`."""
    value = text_of_variable(name, default).lower()
    if value not in ("true", "1", "false", "0"):
        logging.getLogger().warning(
            "The environment variable %s has an unrecognized value=%s, treating as false", name, value
        )
    return value in ("true", "1")


# Writing --------------------------------------------------------------------------------------------------------------


class LogHandler(logging.Handler):
    """Writes each record with `log_message`. The target is `module.function`."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        try:
            level, message = record.levelname.lower(), self.format(record)
            _write(level, message, _target(record), record.pathname, record.lineno or 0, extra=extra_fields(record))
        except Exception:
            self.handleError(record)


class VllmColorFormatter(logging.Formatter):
    """The line of `log_message` in its readable form, with colours and with Python's name of the level."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, and the traceback below it."""
        shown = SHOWN_LEVELS.get(record.levelname.lower(), record.levelname)
        moment = datetime.fromtimestamp(record.created, tz=timezone.utc)
        line = _readable(moment, record.levelname, shown, _target(record), record.getMessage(), colours=True)
        if record.exc_info and record.exc_info[0] is not None:
            line += "\n" + self.formatException(record.exc_info)
        return line


def log_message(level: str, message: str, module: str, file: str, line: int) -> None:
    """Write one line to stderr. A `level` that is unknown counts as `info`."""
    _write(level, message, module, file, line, extra={})


def _write(level: str, message: str, module: str, file: str, line: int, *, extra: Mapping[str, object]) -> None:
    """As `log_message`. A JSON line also has `extra`, and the fields of the request that is answered here."""
    config = _config()
    message = message[:_MAX_MESSAGE]
    moment = datetime.now(tz=timezone.utc)
    shown = SHOWN_LEVELS.get(level, "INFO")
    if config.as_json:
        head = {"time": time_text(moment, local=config.local_time), "level": shown, "target": "log", "message": message}
        source = {"log.file": file, "log.line": line, "log.target": module}
        text = json_line(head, {**request_fields(), **extra, **source})
    else:
        text = _readable(moment, shown, shown, module, message, colours=not config.plain)
    # One write, so that lines of several threads do not mix.
    sys.stderr.write(text + "\n")


@functools.cache
def _config() -> EngineLogConfig:
    """Read once, as in Dynamo."""
    return EngineLogConfig.from_env()


def _readable(moment: datetime, level: str, colour: str, target: str, message: str, *, colours: bool) -> str:
    """`TIME LEVEL target: message`. Each line of the message has its control characters escaped."""
    message = printable_lines(message)
    if not colours:
        return f"{time_text(moment)} {level:>5} {target}: {message}"
    return (
        f"{_DIM}{time_text(moment)}{_RESET} {_COLOURS.get(colour, '')}{level:>5}{_RESET} "
        f"{_DIM}{target}{_RESET}{_DIM}:{_RESET} {message}"
    )


def _target(record: logging.LogRecord) -> str:
    return record.module if record.funcName in (None, "<module>") else f"{record.module}.{record.funcName}"


def _is_no_health_check(record: logging.LogRecord) -> bool:
    """A monitor asks vLLM for its health every 2 s, and vLLM writes a DEBUG record each time."""
    return not (record.funcName == "check_health" and record.levelno <= logging.DEBUG)
