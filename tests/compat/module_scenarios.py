"""What a program sees of the modules beside `dynamo.runtime`: logging, health checks, metric names, exceptions."""

from __future__ import annotations

import importlib
import inspect
import json
import logging
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from process import Api, attempt  # type: ignore[import-not-found]

Facts = dict[str, Any]


def module_of(api: Api, name: str) -> Any:
    """`dynamo.NAME`, or ours."""
    return importlib.import_module(f"{api.module.__name__.partition('.')[0]}.{name}")


def written(call: Callable[[], Any]) -> list[str]:
    """What a call writes to stderr, also outside Python, without the times."""
    with tempfile.TemporaryFile() as file:
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            call()
        finally:
            os.dup2(kept, 2)
            os.close(kept)
        file.seek(0)
        text = file.read().decode()
    return re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME", text).splitlines()


def write(folder: str, text: str) -> Path:
    path = Path(folder, "payload.json")
    path.write_text(text)
    return path


def taken_file() -> Any:
    """The configuration that was written for SGLang; its file is removed."""
    path = Path(os.environ["SGLANG_LOGGING_CONFIG_PATH"])
    configuration = json.loads(path.read_text())
    path.unlink()
    return configuration


async def metric_names(api: Api) -> Facts:
    def names(holder: Any, path: str) -> Facts:
        found: Facts = {}
        for name, value in vars(holder).items():
            if inspect.isclass(value):
                found |= names(value, f"{path}{name}.")
            elif isinstance(value, str) and not name.startswith("__"):
                found[path + name] = value
        return found

    return names(module_of(api, "prometheus_names"), "")


async def exceptions(api: Api) -> Facts:
    module = module_of(api, "llm.exceptions")
    known = [name for name, value in vars(module).items() if inspect.isclass(value)]
    facts: Facts = {
        "names": sorted(known),
        "the same classes": all(getattr(module, name) is getattr(api, name) for name in known if name != "HttpError"),
        "bases": {name: issubclass(getattr(module, name), module.DynamoException) for name in sorted(known)},
    }
    for code in (404, 0, 599, 600, -1, True, "404", 4.0):
        facts[f"status {code!r}"] = attempt(lambda code=code: str(module.HttpError(code, "not here")))
    facts["no text"] = attempt(lambda: module.HttpError(404, 5))
    error = module.HttpError(404, "x" * 9000)
    facts["a long text"] = [error.code, len(error.message), error.message[-5:], len(str(error))]
    return facts


async def health_checks(api: Api) -> Facts:
    module = module_of(api, "health_check")

    class Check(module.HealthCheckPayload):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            self.default_payload = {"a": 1}
            super().__init__()

    check = Check()
    facts: Facts = {
        "the key": module.HEALTH_CHECK_KEY,
        "by default": [check.to_dict(), repr(check), module.load_health_check_from_env()],
        "without a payload": attempt(module.HealthCheckPayload),
    }
    with tempfile.TemporaryDirectory() as folder:
        path = write(folder, '{"from": "file"}')
        values = {
            "an object": '{"b": 2}',
            "an empty object": "{}",
            "a list": "[1]",
            "no JSON": "{",
            "a file": f"@{path}",
            "no such file": f"@{folder}/none.json",
            "a folder": f"@{folder}",
            "empty": "",
        }
        for name, value in values.items():
            with mock.patch.dict(os.environ, {"DYN_HEALTH_CHECK_PAYLOAD": value, "OTHER": value}):
                facts[name] = [
                    attempt(module.load_health_check_from_env),
                    attempt(lambda: module.load_health_check_from_env("OTHER")),
                    Check().to_dict(),
                    check.to_dict(),
                ]
    return facts


async def logs(api: Api) -> Facts:
    module = module_of(api, "runtime.logging")
    words = ("debug", "info", "warn", "warning", "error", "critical", "trace", "INFO", "", "nope", "info,x=debug")
    filters = ("info", "warn,x=debug", "error, y = trace", "x=error,y=warn", "", "nope", "TRACE")
    facts: Facts = {
        "levels": {word: module.log_level_mapping(word) for word in words},
        "filters": {each: module.python_log_level_mapping(each) for each in filters},
        "prefixes": [
            module.construct_formatter_prefix(*each) for each in ((None, None), ("a", None), ("a", 3), (None, 3))
        ],
        "truth": {},
    }
    with mock.patch.dict(os.environ, {"DYN_LOGGING_CONFIG_PATH": __file__}):
        facts["filters, with a file"] = module.python_log_level_mapping("error")
    for value in ("true", "1", "TRUE", "false", "0", "yes", ""):
        with mock.patch.dict(os.environ, {"FLAG": value}):
            facts["truth"][value] = module.get_bool_env_var("FLAG")
    facts["truth, not set"] = [module.get_bool_env_var("UNSET"), module.get_bool_env_var("UNSET", "1")]
    module.configure_dynamo_logging("service", 7)
    log = logging.getLogger("a.b")

    def some_lines() -> None:
        log.info("hello %s", "x")
        log.warning("w")
        log.error("e")
        log.debug("d")

    def inside() -> None:
        log.info("inside")

    def fail() -> None:
        try:
            raise ValueError("oh no")
        except ValueError:
            log.exception("it failed")

    facts["lines"] = written(some_lines)
    facts["a function"] = written(inside)
    facts["an exception"] = [line for line in written(fail) if not line.startswith(("  ", " "))]
    facts["a message"] = written(lambda: module.log_message("warning", "text", "module.function", "file.py", 3))
    facts["a message of an unknown level"] = written(lambda: module.log_message("nope", "text", "m", "file.py", 3))
    root = logging.getLogger()
    facts["the root"] = [[type(each).__name__ for each in root.handlers], root.level]
    for name in ("vllm", "gpu_memory_service", "tag", "sglang"):
        logger = logging.getLogger(name)
        facts[name] = [logger.level, logger.propagate, [type(each).__name__ for each in logger.handlers]]
    record = logging.LogRecord("vllm", logging.WARNING, "f.py", 3, "text %d", (1,), None, "function")
    facts["vllm, a line"] = re.sub(r"\S+Z", "TIME", logging.getLogger("vllm").handlers[0].format(record))
    engine = logging.getLogger("vllm.v1.engine.async_llm")
    checks = [
        engine.filter(logging.LogRecord("x", level, "f.py", 3, "m", (), None, "check_health"))
        for level in (logging.DEBUG, logging.INFO)
    ]
    facts["vllm, health checks"] = [bool(each) for each in checks]
    configuration = taken_file()
    del configuration["handlers"]["dynamo"]["class"]
    facts["variables"] = [os.environ["VLLM_CONFIGURE_LOGGING"], configuration]
    module.configure_dynamo_logging()
    facts["again"] = [len(root.handlers), written(lambda: log.info("without a prefix"))]
    taken_file()
    return facts
