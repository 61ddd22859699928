"""Every setting: its variable, its type, its default and its check. No other module reads the environment.

The `DYN_*` variables are Dynamo's own, with Dynamo's meaning. The `DYNAMO_FAST_*` variables limit what Dynamo does not
limit. An invalid value raises an `InvalidConfig` that names the variable, the value and what is accepted. Unset and empty
are the same, unless a setting says otherwise. Sizes are in bytes, times in seconds.

    the codec        CodecConfig
    the router       TcpClientConfig, PushRouterConfig, ResponseServerConfig
    both ends        TlsConfig, NatsConfig
    the worker       TcpServerConfig, WorkerConfig, InstanceConfig, HealthCheckConfig
    discovery        FileConfig, EtcdConfig, KubernetesConfig
    models           EventPlaneConfig, KvEventConfig
    observability    StatusConfig, MultiprocessConfig, TracingConfig, OtelConfig, NvtxConfig, LogConfig, EngineLogConfig
    the runtime      RuntimeConfig, BackendConfig
    the gateway      GatewayConfig
    the commands     ServeConfig, CommandConfig
"""

from typing import TYPE_CHECKING

from dynamo_fast._lazy import lazy

if TYPE_CHECKING:
    from dynamo_fast.config._discovery import (
        EtcdConfig,
        FileConfig,
        KubernetesConfig,
    )
    from dynamo_fast.config._models import (
        EventPlaneConfig,
        KvEventConfig,
    )
    from dynamo_fast.config._observability import (
        EngineLogConfig,
        LogConfig,
        MultiprocessConfig,
        NvtxConfig,
        OtelConfig,
        StatusConfig,
        TracingConfig,
    )
    from dynamo_fast.config._planes import (
        CodecConfig,
        HealthCheckConfig,
        InstanceConfig,
        NatsConfig,
        PushRouterConfig,
        ResponseServerConfig,
        TcpClientConfig,
        TcpServerConfig,
        TlsConfig,
        WorkerConfig,
    )
    from dynamo_fast.config._programs import (
        BackendConfig,
        CommandConfig,
        GatewayConfig,
        RuntimeConfig,
        ServeConfig,
    )
    from dynamo_fast.config._settings import (
        ANY_PART,
        IpNetwork,
        endpoint_patterns,
        integer,
        seconds,
        set_for_subprocesses,
        setting,
        text_of_variable,
    )
else:
    __getattr__, __dir__ = lazy(
        __name__,
        {
            "dynamo_fast.config._discovery": "EtcdConfig FileConfig KubernetesConfig",
            "dynamo_fast.config._models": "EventPlaneConfig KvEventConfig",
            "dynamo_fast.config._observability": (
                "EngineLogConfig LogConfig MultiprocessConfig NvtxConfig OtelConfig StatusConfig TracingConfig"
            ),
            "dynamo_fast.config._planes": (
                "CodecConfig HealthCheckConfig InstanceConfig NatsConfig PushRouterConfig ResponseServerConfig "
                "TcpClientConfig TcpServerConfig TlsConfig WorkerConfig"
            ),
            "dynamo_fast.config._programs": "BackendConfig CommandConfig GatewayConfig RuntimeConfig ServeConfig",
            "dynamo_fast.config._settings": (
                "ANY_PART IpNetwork endpoint_patterns integer seconds set_for_subprocesses setting text_of_variable"
            ),
        },
    )

__all__ = [
    "ANY_PART",
    "BackendConfig",
    "CodecConfig",
    "CommandConfig",
    "EngineLogConfig",
    "EtcdConfig",
    "EventPlaneConfig",
    "FileConfig",
    "GatewayConfig",
    "HealthCheckConfig",
    "InstanceConfig",
    "IpNetwork",
    "KubernetesConfig",
    "KvEventConfig",
    "LogConfig",
    "MultiprocessConfig",
    "NatsConfig",
    "NvtxConfig",
    "OtelConfig",
    "PushRouterConfig",
    "ResponseServerConfig",
    "RuntimeConfig",
    "ServeConfig",
    "StatusConfig",
    "TcpClientConfig",
    "TcpServerConfig",
    "TlsConfig",
    "TracingConfig",
    "WorkerConfig",
    "endpoint_patterns",
    "integer",
    "seconds",
    "set_for_subprocesses",
    "setting",
    "text_of_variable",
]

del TYPE_CHECKING, lazy
