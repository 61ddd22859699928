from __future__ import annotations

import ast
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from dynamo_fast import config as configuration
from dynamo_fast.config import (
    CommandConfig,
    InstanceConfig,
    LogConfig,
    ResponseServerConfig,
    RuntimeConfig,
    TcpClientConfig,
    TcpServerConfig,
    TracingConfig,
    WorkerConfig,
)
from dynamo_fast.errors import InvalidConfig
from scripts.architecture import PACKAGE, modules

ALL: list[Any] = [getattr(configuration, name) for name in configuration.__all__ if name.endswith("Config")]
#: File -> why it may touch `os.environ`.
ALLOWED = {
    "cli/demo.py": "it passes its environment to the worker that it starts, and sets two variables for itself",
    "cli/run.py": "it passes its environment to the program, with a folder more in PYTHONPATH",
}


NAMES = ("environ", "environb", "getenv", "getenvb")


def names_the_environment(node: ast.AST) -> bool:
    """`os.environ` and the like, however `os` is called, and their import."""
    if isinstance(node, ast.ImportFrom):
        return node.module == "os" and any(each.name in NAMES for each in node.names)
    return isinstance(node, ast.Attribute) and node.attr in NAMES and isinstance(node.value, ast.Name)


def lines_that_touch_it(path: Path) -> list[int]:
    tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return [
        node.lineno
        for node in tree
        if isinstance(node, (ast.Attribute, ast.ImportFrom)) and names_the_environment(node)
    ]


def test_only_the_configuration_reads_the_environment() -> None:
    found = {path.relative_to(PACKAGE).as_posix(): lines_that_touch_it(path) for path in modules()}
    found = {name: lines for name, lines in found.items() if lines}
    assert found.keys() == {"config/_settings.py", "config/backend.py", *ALLOWED}, found


def test_the_configuration_needs_nothing_that_is_heavy() -> None:
    """Every module may import it: the codec does, and a program that wants the codec alone must not pay for more."""
    found = set()
    nodes = [
        node
        for path in (PACKAGE / "config").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    ]
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found.add(node.module)
    assert {name for name in found if name.partition(".")[0] not in sys.stdlib_module_names} == {
        "dynamo_fast._lazy",
        "dynamo_fast.errors",
        *(f"dynamo_fast.config.{path.stem}" for path in (PACKAGE / "config").glob("*.py") if path.stem != "__init__"),
    }
    assert not found & {"asyncio", "socket", "ssl", "logging"}


#: For each setting there is one that is another than its default.
WORDS = ("40000000", "7", "1", "0", "python", "nats", "ready", "container", "auto", "off")


def test_variables_are_dynamos_ours_or_in_common_use() -> None:
    others = {"CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "NO_COLOR", "OTEL_EXPORT_ENABLED", "VLLM_LOGGING_LEVEL"}
    others |= {"OTEL_SERVICE_NAME", "OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"}
    others |= {"OTEL_TRACES_SAMPLE_RATIO"}
    others |= {"POD_NAME", "POD_UID", "POD_NAMESPACE", "CONTAINER_NAME"}
    others |= {"PROMETHEUS_MULTIPROC_DIR"}  # prometheus-client reads it
    others |= {"KUBECONFIG", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"}
    variables = {each.metadata["variable"] for config in ALL for each in fields(config)}
    assert {name for name in variables if not name.startswith(("DYN_", "DYNAMO_FAST_", "ETCD_", "NATS_"))} == others


@pytest.mark.parametrize("config", ALL)
def test_without_any_variable_there_are_the_defaults(config: Any) -> None:
    assert config.from_env({}) == config()
    empty = {each.metadata["variable"]: "" for each in fields(config) if not each.metadata["empty_is_a_value"]}
    assert config.from_env(empty) == config()


@pytest.mark.parametrize("config", ALL)
def test_each_setting_is_read_from_its_own_variable(config: Any) -> None:
    variables = [each.metadata["variable"] for each in fields(config)]
    assert len(set(variables)) == len(variables)
    for each in fields(config):
        value = next(
            text for text in (*WORDS, "[]", "10.0.0.0/8", "tls://127.0.0.1:4223", "a/b/*") if parses(each, text)
        )
        changed = config.from_env({each.metadata["variable"]: value})
        expected = each.metadata["parse"](value)
        assert getattr(changed, each.name) == expected
        others = [other.name for other in fields(config) if other.name != each.name]
        assert [getattr(changed, name) for name in others] == [getattr(config(), name) for name in others]


def parses(each: Any, text: str) -> bool:
    """Whether a setting accepts the text, and as something else than its default."""
    try:
        return bool(each.metadata["parse"](text) != each.default)
    except ValueError:
        return False


def test_secrets_are_not_shown() -> None:
    shown = repr(configuration.EtcdConfig(username="who", password="hidden", client_key="hidden"))
    assert "who" in shown
    assert "hidden" not in shown


def test_the_runtime_and_the_commands_have_defaults_of_their_own() -> None:
    assert (RuntimeConfig().discovery_backend, CommandConfig().discovery_backend) == ("etcd", "file")


@pytest.mark.parametrize(
    ("environ", "device"),
    [
        ({}, "cuda"),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, "cuda"),
        ({"CUDA_VISIBLE_DEVICES": ""}, "cpu"),
        ({"CUDA_VISIBLE_DEVICES": " NONE "}, "cpu"),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, "cpu"),
        ({"CUDA_VISIBLE_DEVICES": "0", "NVIDIA_VISIBLE_DEVICES": "void"}, "cpu"),
        ({"NVIDIA_VISIBLE_DEVICES": ""}, "cuda"),
        ({"NVIDIA_VISIBLE_DEVICES": "all"}, "cuda"),
    ],
    ids=str,
)
def test_the_device_of_a_worker_is_what_its_environment_says(environ: dict[str, str], device: str) -> None:
    assert InstanceConfig.from_env(environ).device_type == device


def test_one_of_three_variables_asks_for_traces() -> None:
    assert not TracingConfig().active
    assert not TracingConfig.from_env({"DYN_LOGGING_JSONL": "no", "DYN_LOGGING_CONSOLE_FORMAT": "readable"}).active
    assert TracingConfig(console_format="jsonl").active
    assert TracingConfig(json_lines=True).active
    assert TracingConfig(otel_export=True).active


@pytest.mark.parametrize(
    ("targets", "frames"),
    [
        ("trace", True),
        ("info, dynamo_fast=trace", True),
        ("dynamo_runtime=trace", False),
        ("debug", False),
        ("", False),
    ],
)
def test_frames_are_logged_at_the_level_trace(targets: str, frames: bool) -> None:
    assert LogConfig(targets).frames is frames


def test_dynamos_variables_are_read() -> None:
    environ = {
        "DYN_TCP_MAX_MESSAGE_SIZE": "1000",
        "DYN_TCP_REQUEST_TIMEOUT": "7",
        "DYN_TCP_POOL_SIZE": "3",
        "DYN_TCP_CHANNEL_BUFFER": "9",
    }
    config = TcpClientConfig.from_env(environ)
    assert (config.max_message_size, config.request_timeout, config.pool_size, config.channel_buffer) == (
        1000,
        7.0,
        3,
        9,
    )
    server = ResponseServerConfig.from_env(
        {"DYN_TCP_RESPONSE_STREAM_HOST": "lo", "DYN_TCP_RESPONSE_STREAM_PORT": "4242"}
    )
    assert (server.host, server.port) == ("lo", 4242)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("DYN_TCP_POOL_SIZE", "0"),
        ("DYN_TCP_POOL_SIZE", "-1"),
        ("DYN_TCP_POOL_SIZE", "many"),
        ("DYN_TCP_POOL_SIZE", "1.5"),
        ("DYN_TCP_REQUEST_TIMEOUT", "-1"),
        ("DYN_TCP_REQUEST_TIMEOUT", "soon"),
        ("DYN_TCP_REQUEST_TIMEOUT", "nan"),
        ("DYN_TCP_REQUEST_TIMEOUT", "inf"),
    ],
)
def test_a_bad_value_names_the_variable_the_value_and_what_is_accepted(variable: str, value: str) -> None:
    with pytest.raises(InvalidConfig, match=rf"^{variable}='{value}' is not valid: expected "):
        TcpClientConfig.from_env({variable: value})


@pytest.mark.parametrize("port", ["-1", "65536", "x"])
def test_a_bad_port(port: str) -> None:
    with pytest.raises(InvalidConfig, match="DYN_TCP_RPC_PORT"):
        TcpServerConfig.from_env({"DYN_TCP_RPC_PORT": port})


def test_what_is_built_by_hand_is_checked_as_well() -> None:
    with pytest.raises(InvalidConfig, match="pool_size=0 is not valid: expected"):
        TcpClientConfig(pool_size=0)


def test_a_worker_can_hold_at_least_one_request() -> None:
    assert TcpServerConfig().buffered_bytes == 16 * 32 * 1024 * 1024
    assert TcpServerConfig.from_env({"DYN_TCP_MAX_MESSAGE_SIZE": "1000"}).buffered_bytes == 16_000
    assert TcpServerConfig(max_message_size=10, max_buffered_bytes=10).buffered_bytes == 10
    with pytest.raises(
        InvalidConfig, match=r"^DYNAMO_FAST_MAX_BUFFERED_REQUEST_BYTES=9 .* DYN_TCP_MAX_MESSAGE_SIZE, 10$"
    ):
        TcpServerConfig(max_message_size=10, max_buffered_bytes=9)


def test_networks_are_read() -> None:
    config = WorkerConfig.from_env({"DYNAMO_FAST_RESPONSE_NETWORKS": "10.0.0.0/8, fd00::/8,"})
    assert [str(network) for network in config.allowed_networks] == ["10.0.0.0/8", "fd00::/8"]
    assert WorkerConfig().allowed_networks == ()
