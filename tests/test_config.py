from __future__ import annotations

import pytest

from dynamo_fast.config import ResponseServerConfig, TcpClientConfig, TcpServerConfig, WorkerConfig
from dynamo_fast.errors import InvalidConfig

ALL = [TcpClientConfig, ResponseServerConfig, TcpServerConfig, WorkerConfig]


@pytest.mark.parametrize("config", ALL)
def test_without_any_variable_there_are_the_defaults(config: type[TcpClientConfig]) -> None:
    assert config.from_env({}) == config()


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
