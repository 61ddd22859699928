"""No text of a peer can forge a log line, drive a terminal, or fill a disk, whichever module logs it."""

from __future__ import annotations

import ast
import io
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from dynamo_fast.logs import MAX_TRACEBACK, TRACEBACK_PREFIX, get_logger
from dynamo_fast.wire.text import MAX_SHOWN
from scripts.architecture import PACKAGE, modules

HOSTILE = "a\nERROR forged\r\x1b[2J\x07\x9b31m\u2028\u202etxet\x00\x7f\ud800"
EXEMPT = {
    "logs.py": "it makes the loggers",
    "codec.py": "it lies below, and logs no text of a peer",
    "cli/serve.py": "it sets up the log of its own process",
    "observability/log_setup.py": "the same, for programs on the native API",
    "runtime/logging.py": "it sets up the log of a program, and of engines",
}


class Unshowable:
    def __str__(self) -> str:
        raise RecursionError


@pytest.fixture
def log() -> Iterator[tuple[logging.Logger, io.StringIO]]:
    """A logger of the package, and what a handler of the program writes for it."""
    logger, stream = get_logger("dynamo_fast.of_this_test"), io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logging.getLogger().addHandler(handler)
    yield logger, stream
    logging.getLogger().removeHandler(handler)


def test_the_control_characters_of_every_text_are_escaped(log: tuple[logging.Logger, io.StringIO]) -> None:
    logger, stream = log
    logger.warning("%s %s %d %.1f %x", HOSTILE, ValueError(HOSTILE), 1, 2.0, 255)
    logger.warning("no template: " + HOSTILE)
    logger.warning("%(name)s", {"name": HOSTILE})
    logger.warning("%s", Unshowable())
    lines = stream.getvalue().removesuffix("\n").split("\n")
    assert len(lines) == 4
    assert all(line.isprintable() for line in lines)
    assert "a\\nERROR forged\\r\\x1b[2J\\x07\\x9b31m\\u2028\\u202etxet\\x00\\x7f\\ud800" in lines[0]
    assert lines[0].endswith(" 1 2.0 ff")


def test_a_text_in_a_line_has_a_limited_length(log: tuple[logging.Logger, io.StringIO]) -> None:
    logger, stream = log
    logger.warning("%s", "x" * 10_000_000)
    assert stream.getvalue() == f"WARNING {'x' * MAX_SHOWN}... ({10_000_000 - MAX_SHOWN} more characters)\n"


def test_a_traceback_cannot_begin_a_line_of_its_own(log: tuple[logging.Logger, io.StringIO]) -> None:
    logger, stream = log
    try:
        try:
            raise ValueError("WARNING forged\nWARNING forged\x1b")
        except ValueError as error:
            raise KeyError(HOSTILE) from error
    except KeyError as error:
        logger.error("it failed", exc_info=error)
    first, *others = stream.getvalue().removesuffix("\n").split("\n")
    assert first == "ERROR it failed"
    assert all(line.startswith(TRACEBACK_PREFIX) and line.isprintable() for line in others)
    assert any("WARNING forged\\x1b" in line for line in others)
    assert any("test_logs.py" in line for line in others)


@pytest.mark.parametrize("text", ["x" * 10_000_000, "x\n" * 1_000_000])
def test_a_traceback_has_a_limited_length(log: tuple[logging.Logger, io.StringIO], text: str) -> None:
    logger, stream = log
    logger.error("it failed", exc_info=ValueError(text))
    logger.error("it failed", exc_info=ValueError(Unshowable()))
    assert len(stream.getvalue()) < 4 * MAX_TRACEBACK


def test_the_exception_itself_is_left_to_handlers_that_want_it(log: tuple[logging.Logger, io.StringIO]) -> None:
    logger, _ = log
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign, assignment]
    logging.getLogger().addHandler(handler)
    error = ValueError(HOSTILE)
    logger.error("it failed with %s", error, exc_info=error)
    logging.getLogger().removeHandler(handler)
    assert records[0].exc_info == (ValueError, error, None)
    assert records[0].msg == "it failed with %s"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_module_has_its_logger_from_here(path: Path) -> None:
    name = path.relative_to(PACKAGE).as_posix()
    used = {
        node.attr
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "logging"
    }
    assert name in EXEMPT or not used & {"getLogger", "warning", "error", "info", "debug", "log", "exception", "root"}
