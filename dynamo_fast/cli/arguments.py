"""Types of arguments that several commands have. An invalid value is an error that says what is accepted."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from dynamo_fast import config
from dynamo_fast.errors import InvalidAddress, InvalidRequest
from dynamo_fast.wire.address import EndpointId

__all__ = [
    "count",
    "endpoint_of",
    "instance_id",
    "is_address",
    "pairs",
    "patterns",
    "port",
    "rate",
    "seconds",
    "seconds_or_none",
]


def count(text: str) -> int:
    """A whole number of at least 1."""
    return int(_parsed(config.integer(1), text))


def port(text: str) -> int:
    """A port of TCP; 0 where the system may choose."""
    return int(_parsed(config.integer(0, 65535), text))


def seconds(text: str) -> float:
    """A time in seconds above 0."""
    return float(_parsed(config.seconds(), text))


def seconds_or_none(text: str) -> float:
    """A time in seconds, 0 or more."""
    return float(_parsed(config.seconds(zero=True), text))


def rate(text: str) -> float:
    """A number of requests a second, above 0."""
    try:
        return seconds(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not valid: expected a number of requests a second above 0"
        ) from None


def patterns(text: str) -> str:
    """Patterns of endpoints, separated by commas, at least one."""
    return str(_parsed(config.endpoint_patterns, text))


def instance_id(text: str) -> int:
    """The id of an instance, in hex, as `instances` prints it."""
    try:
        return int(text, 16)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no instance id: expected hex digits, as `instances` prints them"
        ) from None


def pairs(texts: list[str], what: str) -> dict[str, str]:
    """The values of an option that is given as KEY=VALUE, repeatedly. Raises InvalidRequest."""
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise InvalidRequest(f"{text!r} is no {what}: expected KEY=VALUE")
        found[key] = value
    return found


def is_address(text: str) -> bool:
    """Whether this is the address of a worker, IP:PORT/PATH, and not the name of an endpoint."""
    return ":" in text.removeprefix("dyn://")


def endpoint_of(text: str) -> EndpointId:
    """The endpoint of a name, `a.b.c` or `a/b/c`, with or without `dyn://`. Raises InvalidAddress."""
    name = text.removeprefix("dyn://")
    parts = name.split("/" if "/" in name and "." not in name else ".")
    if len(parts) != 3 or not all(parts):
        raise InvalidAddress(
            f"{text!r} is no endpoint: expected NAMESPACE.COMPONENT.ENDPOINT, such as demo.backend.generate"
        )
    return EndpointId(*parts)


def _parsed(parse: Callable[[str], Any], text: str) -> Any:
    try:
        return parse(text)
    except ValueError as accepted:
        raise argparse.ArgumentTypeError(f"{text!r} is not valid: expected {accepted}") from None
