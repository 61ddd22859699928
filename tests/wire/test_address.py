from __future__ import annotations

import pytest

from dynamo_fast.errors import InvalidAddress
from dynamo_fast.wire.address import (
    EndpointId,
    EndpointInstanceId,
    TcpAddress,
    endpoint_path,
    join_host_port,
    legacy_endpoint_path,
    split_host_port,
)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:45921/577eb898b1f7105e/generate", ("127.0.0.1", 45921, "577eb898b1f7105e/generate")),
        (
            "127.0.0.1:1/f0b7c41ec7e1d7e7/demo/backend/generate",
            ("127.0.0.1", 1, "f0b7c41ec7e1d7e7/demo/backend/generate"),
        ),
        ("[::1]:65535/x", ("::1", 65535, "x")),
        ("tcp://127.0.0.1:80/x", ("127.0.0.1", 80, "x")),
        ("127.0.0.1:80/", ("127.0.0.1", 80, "")),
        ("127.0.0.1:80/größe/日本", ("127.0.0.1", 80, "größe/日本")),
    ],
)
def test_addresses_that_dynamo_takes(text: str, address: tuple[str, int, str]) -> None:
    parsed = TcpAddress.parse(text)
    assert tuple(parsed) == address
    assert str(parsed) == text.removeprefix("tcp://")


@pytest.mark.parametrize(
    "text",
    [
        "localhost:80/x",
        "::1:80/x",
        "[127.0.0.1]:80/x",
        "127.0.0.1/x",
        "127.0.0.1:/x",
        "127.0.0.1:65536/x",
        "127.0.0.1:+80/x",
        "127.0.0.1:8_0/x",
        "127.0.0.1:٨/x",
        " 127.0.0.1:80/x",
        "127.0.0.1 :80/x",
        "",
        "/",
        "tcp://",
        "http://127.0.0.1:80/x",
    ],
)
def test_addresses_that_dynamo_refuses(text: str) -> None:
    with pytest.raises(InvalidAddress) as caught:
        TcpAddress.parse(text)
    assert str(caught.value).startswith(f"Invalid TCP address '{text}': invalid socket address syntax")


def test_an_address_without_a_path_says_so() -> None:
    with pytest.raises(InvalidAddress, match="the endpoint path is missing"):
        TcpAddress.parse("127.0.0.1:80")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("127.0.0.1:33137", ("127.0.0.1", 33137)),
        ("::1:33137", ("::1", 33137)),  # as Dynamo 1.3.1 writes it
        ("[::1]:33137", ("::1", 33137)),
    ],
)
def test_response_addresses_split_at_the_last_colon(text: str, parts: tuple[str, int]) -> None:
    assert split_host_port(text) == parts


@pytest.mark.parametrize("text", ["", ":", "::", "127.0.0.1", "host:1", "127.0.0.1:x", "[::1:5", "127.0.0.1:99999"])
def test_response_addresses_that_are_none(text: str) -> None:
    with pytest.raises(InvalidAddress, match="invalid socket address syntax"):
        split_host_port(text)


def test_joining_puts_brackets_around_ipv6() -> None:
    assert join_host_port("127.0.0.1", 1) == "127.0.0.1:1"
    assert join_host_port("::1", 1) == "[::1]:1"


def test_endpoint_names() -> None:
    endpoint = EndpointId.parse("dyn://demo.backend.generate")
    assert endpoint == EndpointId.parse("demo.backend.generate") == ("demo", "backend", "generate")
    assert str(endpoint) == "demo/backend/generate"
    assert EndpointId.parse("a..c") == ("a", "", "c")  # Dynamo checks no characters, not even their presence
    assert str(EndpointInstanceId(*endpoint, 255)) == "demo/backend/generate/255"
    for text in ("", "a.b", "a.b.c.d", "dyn://"):
        with pytest.raises(InvalidAddress, match="Expected format: 'namespace.component.endpoint'"):
            EndpointId.parse(text)


def test_paths_of_both_releases() -> None:
    endpoint = EndpointId("demo", "backend", "generate")
    assert endpoint_path(endpoint, 0x0B7C) == "b7c/demo/backend/generate"
    assert legacy_endpoint_path(endpoint, 0x0B7C) == "b7c/generate"
