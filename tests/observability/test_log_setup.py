"""Logs for programs on the native API: what passes, what a line has, compared with the lines of real Dynamo 1.6.1."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dynamo_fast.context import Context
from dynamo_fast.observability import log_setup
from dynamo_fast.observability.current import current_request, request_fields
from dynamo_fast.observability.log_setup import JsonFormatter, RequestFilter, configure_logging, levels_of
from dynamo_fast.runtime import logging as drop_in
from tests.observability.test_spans import World, settings
from tests.waiting import until

__all__ = ["settings"]

LINES = Path(__file__).parents[2] / "docs" / "spec" / "planes" / "logs" / "jsonl_lines.txt"


@pytest.fixture(autouse=True)
def loggers_as_before() -> Iterator[None]:
    names = ["", "dynamo_fast", "dynamo_fast.egress", "app", "app.deep"]
    before = [(logging.getLogger(name), logging.getLogger(name).level) for name in names]
    handlers = logging.getLogger().handlers[:]
    drop_in._config.cache_clear()
    yield
    logging.getLogger().handlers[:] = handlers
    for logger, level in before:
        logger.setLevel(level)
    drop_in._config.cache_clear()


def real(side: str, message: str) -> dict[str, Any]:
    """The first line of that side with that message, as a real process wrote it."""
    for line in LINES.read_text(encoding="utf-8").splitlines():
        who, _, text = line.partition(" ")
        if who == side and f'"message":"{message}"' in text:
            found: dict[str, Any] = json.loads(text)
            return found
    raise AssertionError(message)


def lines_of(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.mark.parametrize(
    ("targets", "levels"),
    [
        ("", {"": 20}),
        ("debug", {"": 10}),
        ("warn,dynamo_fast::egress=debug", {"": 30, "dynamo_fast.egress": 10}),
        (" error , app = trace ", {"": 40, "app": 10}),
        ("off", {"": 51}),
        ("app=none,nope", {"": 20, "app": 51}),
    ],
)
def test_the_levels_of_a_filter(targets: str, levels: dict[str, int]) -> None:
    assert levels_of(targets) == levels


def test_a_filter_sets_the_levels_of_loggers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYN_LOG", "warn,app=debug")
    stream = io.StringIO()
    configure_logging(stream)
    logging.getLogger("dynamo_fast.egress").info("no")
    logging.getLogger("dynamo_fast.egress").warning("yes")
    logging.getLogger("app.deep").debug("also")
    assert [line.partition("]: ")[2] for line in stream.getvalue().splitlines()] == ["yes", "also"]


async def test_lines_of_a_request_have_dynamos_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYN_LOGGING_JSONL", "1")
    stream = io.StringIO()
    configure_logging(stream)
    async with World() as world:
        with pytest.raises(Exception, match="on purpose"):
            await world.call("bad", Context("b"))
        await world.call("x", Context("a"))
    found = lines_of(stream)
    (good,) = (line for line in found if line["message"] == "route request completed")
    expected = real("client", "route request completed")
    assert list(good) == list(expected)
    assert {name: good[name] for name in good.keys() & {"level", "otel.kind", "migration.is_retry"}} == {
        "level": "INFO",
        "otel.kind": "client",
        "migration.is_retry": "false",
    }
    (bad,) = (line for line in found if line["message"] == "route request failed")
    assert list(bad) == list(real("client", "route request failed"))
    assert (bad["level"], bad["error.type"]) == ("WARN", "backend_invalid_argument")
    worker = next(line for line in found if line["target"].startswith("dynamo_fast.ingress") and "span_id" in line)
    expected = real("worker", "request completed")
    assert set(expected) - set(worker) == set()
    assert worker["parent_id"] == bad["span_id"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", good["time"])
    assert any("ValueError: on purpose" in line.get("exception", "") for line in found)


async def test_each_record_has_the_ids_of_its_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without traces, too; in tasks and threads of the handler; and nothing of it outside."""
    monkeypatch.delenv("DYN_LOGGING_JSONL", raising=False)
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(RequestFilter())
    handler.setFormatter(logging.Formatter("%(request_id)s|%(trace_id)s|%(message)s"))
    app = logging.getLogger("app")
    app.setLevel(logging.INFO)
    app.addHandler(handler)

    async def handle(request: Any, context: Context) -> Any:
        app.info("handler")
        await asyncio.gather(asyncio.to_thread(app.info, "thread"), asyncio.create_task(say()))
        app.info("own", extra={"request_id": "mine"})
        yield request

    async def say() -> None:
        app.info("task")

    try:
        async with World() as world:
            await world.served.close()
            await until(
                lambda: not world.router.instances()
            )  # else the end of the old one fails the call to the new one
            await world.worker.serve(handle, "demo.backend.generate")
            await world.router.wait_for_instances()
            await world.call("x", Context("a"))
            app.info("outside")
    finally:
        app.removeHandler(handler)
    assert set(stream.getvalue().splitlines()) == {"a||handler", "a||thread", "a||task", "mine||own", "||outside"}
    assert request_fields() == {}


def test_the_lines_of_the_drop_in_have_the_request_and_what_a_record_was_given(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DYN_LOGGING_JSONL", "1")
    monkeypatch.setenv("DYN_LOG_USE_LOCAL_TZ", "1")
    handler = drop_in.LogHandler()
    record = logging.makeLogRecord({"msg": "m", "levelname": "INFO", "tokens": 3, "funcName": "f", "module": "app"})
    token = current_request.set(Context("a"))
    handler.emit(record)
    current_request.reset(token)
    line = json.loads(capsys.readouterr().err)
    assert list(line)[:4] == ["time", "level", "target", "message"]
    assert (line["request_id"], line["tokens"], line["log.target"]) == ("a", 3, "app.f")
    assert re.search(r"[+-]\d\d:\d\d$", line["time"])


def test_a_line_cannot_be_forged_and_any_value_can_be_written() -> None:
    record = logging.makeLogRecord({"msg": 'two\nlines"}', "levelname": "CRITICAL", "name": "app", "message": "x"})
    record.__dict__["odd"] = object
    line = JsonFormatter().format(record)
    assert "\n" not in line
    read = json.loads(line)
    assert (read["message"], read["level"], read["odd"]) == ('two\nlines"}', "ERROR", "<class 'object'>")


def test_the_id_of_a_request_forges_no_readable_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DYN_LOGGING_JSONL", raising=False)
    monkeypatch.delenv("DYN_LOG", raising=False)
    stream = io.StringIO()
    configure_logging(stream)
    token = current_request.set(Context("a\n2026-01-01 ERROR app []: forged" + "x" * 1_000))
    logging.getLogger("app").warning("red \x1b[31m\nsecond")
    current_request.reset(token)
    first, second = stream.getvalue().splitlines()
    assert "[a\\n2026-01-01 ERROR app []: forgedxxx" in first
    assert first.endswith(" more characters)]: red \\x1b[31m")
    assert second == "second"


def test_json_has_the_id_of_a_request_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYN_LOGGING_JSONL", "1")
    stream = io.StringIO()
    configure_logging(stream)
    token = current_request.set(Context("a\nb"))
    logging.getLogger("app").warning("m")
    current_request.reset(token)
    (line,) = lines_of(stream)
    assert line["request_id"] == "a\nb"


def test_an_extra_field_cannot_replace_a_field_of_the_record() -> None:
    assert json.loads(log_setup.json_line({"time": "t"}, {"time": "forged", "a": 1})) == {"time": "t", "a": 1}
