"""`dynamo_fast.runtime.logging`, beside what tests/compat compares with Dynamo's own."""

from __future__ import annotations

import json
import logging
import logging.config
from collections.abc import Iterator
from pathlib import Path

import pytest

from dynamo_fast.config import text_of_variable
from dynamo_fast.runtime import logging as ours


@pytest.fixture(autouse=True)
def loggers_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    monkeypatch.setenv("SGLANG_LOGGING_CONFIG_PATH", "")
    monkeypatch.setenv("VLLM_CONFIGURE_LOGGING", "")
    ours._config.cache_clear()
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name in ("vllm", "gpu_memory_service", "sglang", "tag", "vllm.v1.engine.async_llm"):
        logger = logging.getLogger(name)
        logger.handlers, logger.filters, logger.propagate = [], [], True
        logger.setLevel(logging.NOTSET)
    ours._config.cache_clear()


@pytest.mark.parametrize("variable", [("DYN_LOGGING_JSONL", "1"), ("DYN_LOGGING_CONSOLE_FORMAT", "jsonl")])
def test_lines_can_be_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], variable: tuple[str, str]
) -> None:
    monkeypatch.setenv(*variable)
    ours.log_message("warning", "two\nlines", "module.function", "file.py", 3)
    line = json.loads(capsys.readouterr().err)
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "WARN",
        "target": "log",
        "message": "two\nlines",
        "log.file": "file.py",
        "log.line": 3,
        "log.target": "module.function",
    }


def test_a_line_has_colours_and_nothing_else_that_a_terminal_obeys(capsys: pytest.CaptureFixture[str]) -> None:
    ours.log_message("error", "red \x1b[31m", "target", "file.py", 3)
    line = capsys.readouterr().err
    assert line.endswith("\x1b[31mERROR\x1b[0m \x1b[2mtarget\x1b[0m\x1b[2m:\x1b[0m red \\x1b[31m\n")


def test_the_configuration_for_sglang_can_be_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DYN_LOG", "warn")
    ours.configure_dynamo_logging()
    path = Path(text_of_variable("SGLANG_LOGGING_CONFIG_PATH"))
    logging.config.dictConfig(json.loads(path.read_text(encoding="utf-8")))
    path.unlink()
    logger = logging.getLogger("sglang")
    logger.warning("told")
    logger.info("not told")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("told")


def test_sglang_is_left_alone_if_it_is_to_be_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYN_SKIP_SGLANG_LOG_FORMATTING", "true")
    ours.configure_dynamo_logging()
    assert text_of_variable("SGLANG_LOGGING_CONFIG_PATH") == ""


def test_a_record_that_cannot_be_formatted_costs_only_itself(capsys: pytest.CaptureFixture[str]) -> None:
    handler = ours.LogHandler()
    handler.handle(logging.LogRecord("x", logging.INFO, "f.py", 1, "%d", ("no number",), None))
    assert "Logging error" in capsys.readouterr().err
