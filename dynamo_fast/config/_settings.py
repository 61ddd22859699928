"""How a setting is read: its variable, its type, its default and its check. The only module that reads the environment."""

from __future__ import annotations

import ipaddress
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import Field, field, fields
from typing import Any, TypeVar
from urllib.parse import urlsplit

from dynamo_fast.errors import InvalidConfig

_Config = TypeVar("_Config", bound="FromEnvironment")
Parser = Callable[[str], Any]
IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

MIB = 1024 * 1024

# How a value is parsed ------------------------------------------------------------------------------------------------


def integer(minimum: int, maximum: int | None = None) -> Parser:
    """A parser of whole numbers from `minimum` to `maximum`."""
    accepted = f"a whole number of at least {minimum}" if maximum is None else f"a whole number, {minimum} to {maximum}"

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise ValueError(accepted) from None
        if value < minimum or (maximum is not None and value > maximum):
            raise ValueError(accepted)
        return value

    return parse


def seconds(*, zero: bool = False) -> Parser:
    """A parser of times in seconds, finite and positive; `zero` is accepted where it means "at once"."""
    accepted = "a number of seconds, 0 or more" if zero else "a number of seconds above 0"

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise ValueError(accepted) from None
        if not (0.0 < value < float("inf") or (zero and value == 0.0)):
            raise ValueError(accepted)
        return value

    return parse


def positive_number(text: str) -> float:
    """A finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < float("inf"):
        raise ValueError("a number above 0")
    return value


def ratio(text: str) -> float:
    """A number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 1.0:
        raise ValueError("a number from 0 to 1")
    return value


def choice(*words: str) -> Parser:
    """A parser of one of `words`, exactly."""

    def parse(text: str) -> str:
        if text not in words:
            raise ValueError("one of " + ", ".join(repr(word) for word in words))
        return text

    return parse


_FALSE = ("0", "false", "off", "no")


def truth(text: str) -> bool:
    """Dynamo's truth words."""
    word = text.strip().lower()
    if word in ("1", "true", "on", "yes"):
        return True
    if word in _FALSE:
        return False
    raise ValueError("one of 1, true, on, yes, 0, false, off, no")


def names(text: str) -> str:
    """A JSON list of texts, as it stands."""
    accepted = """a JSON list of names, such as ["generate"]"""
    try:
        value = json.loads(text)
    except ValueError:
        raise ValueError(accepted) from None
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ValueError(accepted)
    return text


ANY_PART = "*"
"""In place of a part of an endpoint's name: every name."""


def endpoint_patterns(text: str) -> str:
    """Patterns of endpoints, separated by commas, as they stand."""
    parse_endpoint_patterns(text)
    return text


def parse_endpoint_patterns(text: str) -> frozenset[tuple[str, ...]]:
    """The patterns of `text`: namespace, component and endpoint, each a name or `ANY_PART`.

    Raises ValueError with what is accepted.
    """
    texts = [each.strip() for each in text.split(",")]
    patterns = frozenset(tuple(each.split("/" if "/" in each else ".")) for each in texts)
    for pattern in patterns:
        if len(pattern) != 3 or not all(pattern) or any(ANY_PART in part and part != ANY_PART for part in pattern):
            raise ValueError("endpoints separated by commas, such as demo/backend/generate,demo/router/*,public/*/*")
    return patterns


def networks(text: str) -> str:
    """IP networks, separated by commas, as they stand; empty: none."""
    parse_networks(text)
    return text


def parse_networks(text: str) -> tuple[IpNetwork, ...]:
    """The networks of `text`, in CIDR notation; one address is a network. Raises ValueError with what is accepted."""
    try:
        return tuple(ipaddress.ip_network(part.strip()) for part in text.split(",") if part.strip())
    except ValueError:
        raise ValueError("IP networks without host bits, such as 10.0.0.0/8,fd00::/8,192.0.2.7") from None


def nats_url(text: str) -> str:
    """The URL of one NATS server, as it stands."""
    accepted = "one URL, nats://HOST:PORT or tls://HOST:PORT"
    try:
        url = urlsplit(text)
        known = url.scheme in ("nats", "tls") and url.hostname and "," not in url.netloc and url.port != 0
    except ValueError:
        raise ValueError(accepted) from None
    if not known or any(character.isspace() for character in text):
        raise ValueError(accepted)
    return text


PORT = integer(0, 65535)
POSITIVE = integer(1)


# How a configuration is read ------------------------------------------------------------------------------------------


def text_of_variable(name: str, default: str = "", environ: Mapping[str, str] = os.environ) -> str:
    """The text of any variable, for those functions of Dynamo's API whose caller names the variable."""
    return environ.get(name, default)


def set_for_subprocesses(name: str, value: str) -> None:
    """Set a variable of this process, for the libraries that it has and for the processes that it starts."""
    os.environ[name] = value


def setting(
    variable: str, default: Any, parse: Parser = str, *, empty_is_a_value: bool = False, secret: bool = False
) -> Any:
    """A field of a configuration that `from_env` reads from `variable`. The repr does not show a secret."""
    metadata = {"variable": variable, "parse": parse, "empty_is_a_value": empty_is_a_value}
    return field(default=default, repr=not secret, metadata=metadata)


def _read(environ: Mapping[str, str], each: Field[Any]) -> Any:
    text = environ.get(each.metadata["variable"])
    if text is None or (not text and not each.metadata["empty_is_a_value"]):
        return each.default
    try:
        return each.metadata["parse"](text)
    except ValueError as accepted:
        raise InvalidConfig(f"{each.metadata['variable']}={text!r} is not valid: expected {accepted}") from None


class FromEnvironment:
    """A configuration whose fields `setting` made. The constructor checks its values with the same parsers."""

    __slots__ = ()

    @classmethod
    def from_env(cls: type[_Config], environ: Mapping[str, str] = os.environ) -> _Config:
        """Read every field from its variable; raises InvalidConfig."""
        settings: tuple[Field[Any], ...] = fields(cls)  # type: ignore[arg-type]  # each subclass is a dataclass
        return cls(**{each.name: _read(environ, each) for each in settings})

    def __post_init__(self) -> None:
        for each in fields(self):  # type: ignore[arg-type]  # each subclass is a dataclass
            value = getattr(self, each.name)
            if value != each.default:
                try:
                    each.metadata["parse"](str(value))
                except ValueError as accepted:
                    raise InvalidConfig(f"{each.name}={value!r} is not valid: expected {accepted}") from None
