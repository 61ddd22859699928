"""Settings of the status server, metrics, traces, ranges and logs."""

from __future__ import annotations

import json
from dataclasses import dataclass

from dynamo_fast.config._settings import (
    FromEnvironment,
    choice,
    integer,
    names,
    ratio,
    setting,
    truth,
)

# Observability --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StatusConfig(FromEnvironment):
    """The system status server (runtime.md 5.3 and 7.1)."""

    port: int = setting("DYN_SYSTEM_PORT", -1, integer(-65535, 65535))
    """Negative: there is none. 0: chosen by the system."""
    host: str = setting("DYN_SYSTEM_HOST", "0.0.0.0")  # noqa: S104  # Dynamo's default, once it is switched on
    """As `ResponseServerConfig.host`, or the name of a host."""
    starting_status: str = setting("DYN_SYSTEM_STARTING_HEALTH_STATUS", "notready", choice("ready", "notready"))
    """The health of the process until the program sets it."""
    endpoints: str = setting("DYN_SYSTEM_USE_ENDPOINT_HEALTH_STATUS", "", names)
    """A JSON list of names. If it is not empty, the process is healthy when these endpoints are ready."""
    health_path: str = setting("DYN_SYSTEM_HEALTH_PATH", "/health")
    """The path of the answer whether the process is healthy."""
    live_path: str = setting("DYN_SYSTEM_LIVE_PATH", "/live")
    """The path of the answer whether the process lives."""
    self_host_metadata: bool = setting("DYN_SELF_HOST_METADATA", True, truth)
    """Whether the server, if there is one, serves the files of model cards. If not, cards name the local files."""

    @property
    def endpoint_names(self) -> list[str]:
        """The parsed `endpoints`."""
        return list(json.loads(self.endpoints or "[]"))


@dataclass(frozen=True)
class MultiprocessConfig(FromEnvironment):
    """Metrics of several processes in one answer (`observability/multiprocess.py`)."""

    folder: str = setting("PROMETHEUS_MULTIPROC_DIR", "")
    """Where the processes of a server write their metrics. prometheus-client reads it, too, when it is imported."""


@dataclass(frozen=True)
class TracingConfig(FromEnvironment):
    """Whether this process follows traces: one of the three is enough (runtime.md 6.1)."""

    json_lines: bool = setting("DYN_LOGGING_JSONL", False, truth)
    """Whether each log line is an object of JSON."""
    otel_export: bool = setting("OTEL_EXPORT_ENABLED", False, truth)
    """Whether spans are exported."""
    console_format: str = setting("DYN_LOGGING_CONSOLE_FORMAT", "")
    """`jsonl` counts; every other value does not."""

    @property
    def active(self) -> bool:
        """Whether one of them asks for it."""
        return self.json_lines or self.otel_export or self.console_format == "jsonl"


@dataclass(frozen=True)
class OtelConfig(FromEnvironment):
    """How spans are exported, if `OTEL_EXPORT_ENABLED` asks for it. The program's own tracer provider goes first.

    The exporter of OpenTelemetry's SDK reads further variables by itself: `OTEL_EXPORTER_OTLP_ENDPOINT`,
    `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`, `OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_TRACES_SAMPLER`, `OTEL_BSP_*` and others.
    """

    export: bool = setting("OTEL_EXPORT_ENABLED", False, truth)
    """Whether spans are exported."""
    service_name: str = setting("OTEL_SERVICE_NAME", "dynamo")
    """The `service.name` of the spans."""
    protocol: str = setting("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    """`http/protobuf`; everything else is `grpc`, as in Dynamo."""
    traces_protocol: str = setting("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "")
    """The same, for traces only. Empty: as `protocol`."""
    sample_ratio: float | None = setting("OTEL_TRACES_SAMPLE_RATIO", None, ratio)
    """Which part of the traces that begin here is exported. None: as `OTEL_TRACES_SAMPLER` says."""

    @property
    def over_http(self) -> bool:
        """Whether spans are sent over HTTP, and not over gRPC."""
        return (self.traces_protocol or self.protocol) == "http/protobuf"


@dataclass(frozen=True)
class NvtxConfig(FromEnvironment):
    """Whether a router marks its requests for NVIDIA's profilers: one of the two is enough."""

    dynamo: bool = setting("DYN_ENABLE_RUST_NVTX", False, truth)
    """Dynamo's own variable."""
    own: bool = setting("DYNAMO_FAST_NVTX", False, truth)
    """The same for this package alone."""

    @property
    def enabled(self) -> bool:
        """Whether one of them asks for it."""
        return self.dynamo or self.own


@dataclass(frozen=True)
class LogConfig(FromEnvironment):
    """What is logged beside the records of the loggers."""

    targets: str = setting("DYN_LOG", "")
    """Dynamo's filter, `level` or `target=level`, separated by commas. `trace` and `dynamo_fast=trace` log each
    incoming frame; the levels of loggers are set by `EngineLogConfig`."""

    @property
    def frames(self) -> bool:
        """Whether to log each incoming frame."""
        return bool({"trace", "dynamo_fast=trace"} & {each.strip() for each in self.targets.split(",")})


@dataclass(frozen=True)
class EngineLogConfig(FromEnvironment):
    """How `dynamo_fast.runtime.logging` and `observability.log_setup` set up the logs of a program and of its engine."""

    targets: str = setting("DYN_LOG", "info", empty_is_a_value=True)
    """As `LogConfig.targets`. In the drop-in, the lowest of its levels is the level of the root logger."""
    config_path: str = setting("DYN_LOGGING_CONFIG_PATH", "/opt/dynamo/etc/logging.toml", empty_is_a_value=True)
    """Dynamo's file of log filters. It is not read; where there is one, records of all levels are written."""
    json_lines: bool = setting("DYN_LOGGING_JSONL", False, truth)
    """Whether each log line is an object of JSON."""
    console_format: str = setting("DYN_LOGGING_CONSOLE_FORMAT", "")
    """`jsonl`: as `json_lines`; every other value is the readable form."""
    plain: bool = setting("DYN_SDK_DISABLE_ANSI_LOGGING", False, truth)
    """Write no colours."""
    local_time: bool = setting("DYN_LOG_USE_LOCAL_TZ", False, truth)
    """Whether the times in JSON lines are local, and not UTC."""
    vllm_level: str = setting("VLLM_LOGGING_LEVEL", "INFO")
    """The level of vLLM's loggers; `DYN_LOG` does not change it."""

    @property
    def as_json(self) -> bool:
        """Whether each line is a JSON object."""
        return self.json_lines or self.console_format == "jsonl"
