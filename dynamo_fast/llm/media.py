"""`MediaDecoder` and `MediaFetcher`: how a frontend fetches and decodes images for a model. Plain data of its card."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

from dynamo_fast.runtime.exceptions import argument_error

__all__ = ["MediaDecoder", "MediaFetcher"]

_MAX_U32, _MAX_U64 = (1 << 32) - 1, (1 << 64) - 1
_LIMITS = {"max_image_width": _MAX_U32, "max_image_height": _MAX_U32, "max_alloc": _MAX_U64}
_DEFAULT_MAX_ALLOC = 128 * 1024 * 1024  # bytes


class MediaDecoder:
    """What the frontend decodes before it calls the worker: nothing, until `enable_image`."""

    def __init__(self) -> None:
        self._image: dict[str, Any] | None = None

    def enable_image(self, decoder_options: dict[str, Any]) -> None:
        """Decode images: `{"limits": {"max_image_width": pixels, "max_image_height": pixels, "max_alloc": bytes}}`.

        A limit that is left out is none; without `limits`, `max_alloc` is 128 MiB. Raises TypeError for no dict, ValueError
        for options that Dynamo does not know.
        """
        if not isinstance(decoder_options, dict):
            raise argument_error("decoder_options", decoder_options, "PyDict")
        _check_names(decoder_options, ["limits"])
        limits = decoder_options.get("limits", {"max_alloc": _DEFAULT_MAX_ALLOC})
        if not isinstance(limits, Mapping):
            raise _unreadable(f"unexpected type: '{type(limits).__name__}' object cannot be converted to 'Mapping'")
        _check_names(limits, list(_LIMITS))
        self._image = {"limits": {name: _limit(limits.get(name), most) for name, most in _LIMITS.items()}}

    def to_card(self) -> dict[str, Any]:
        """The field `media_decoder` of a model card."""
        return {} if self._image is None else {"image": self._image}


class MediaFetcher:
    """How the frontend fetches what a request names by a URL. A new one has Dynamo's own defaults."""

    def __init__(self) -> None:
        self._fields: dict[str, Any] = {
            "user_agent": "dynamo-ai/dynamo",
            "allow_direct_ip": False,
            "allow_direct_port": False,
            "allow_private_ips": False,
            "allowed_media_domains": None,
            "timeout": {"secs": 30, "nanos": 0},
        }

    def user_agent(self, user_agent: str) -> None:
        """The header `User-Agent`."""
        if not isinstance(user_agent, str):
            raise argument_error("user_agent", user_agent, "PyString")
        self._fields["user_agent"] = user_agent

    def allow_direct_ip(self, allow: bool) -> None:
        """Whether a URL may have an IP address in place of a name."""
        self._allow("allow_direct_ip", allow)

    def allow_direct_port(self, allow: bool) -> None:
        """Whether a URL may have a port."""
        self._allow("allow_direct_port", allow)

    def allow_private_ips(self, allow: bool) -> None:
        """Whether the host of a URL may be in a private network."""
        self._allow("allow_private_ips", allow)

    def allowed_media_domains(self, domains: Sequence[str]) -> None:
        """The only domains from which to fetch; by default from all."""
        if isinstance(domains, str):
            raise TypeError("argument 'domains': Can't extract `str` to `Vec`")
        if not isinstance(domains, Sequence):
            raise argument_error("domains", domains, "Sequence")
        for each in domains:
            if not isinstance(each, str):
                raise argument_error("domains", each, "PyString")
        self._fields["allowed_media_domains"] = list(dict.fromkeys(domains))

    def timeout_ms(self, timeout_ms: int) -> None:
        """The time limit of one fetch, in milliseconds."""
        try:
            number = operator.index(timeout_ms)
        except TypeError:
            kind = type(timeout_ms).__name__
            raise TypeError(f"argument 'timeout_ms': '{kind}' object cannot be interpreted as an integer") from None
        if number < 0:
            raise OverflowError("can't convert negative int to unsigned")
        if number > _MAX_U64:
            raise OverflowError("int too big to convert")
        seconds, rest = divmod(number, 1000)
        self._fields["timeout"] = {"secs": seconds, "nanos": rest * 1_000_000}

    def to_card(self) -> dict[str, Any]:
        """The field `media_fetcher` of a model card."""
        return dict(self._fields)

    def _allow(self, name: str, allow: bool) -> None:
        if not isinstance(allow, bool):
            raise argument_error("allow", allow, "PyBool")
        self._fields[name] = allow


def _check_names(given: Mapping[str, Any], known: list[str]) -> None:
    for name in given:
        if name not in known:
            names = ", ".join(f"`{each}`" for each in known)
            raise _unreadable(f"unknown field `{name}`, expected {names if len(known) == 1 else f'one of {names}'}")


def _limit(value: Any, most: int) -> int | None:
    if value is None:
        return None
    try:
        number = operator.index(value)
    except TypeError:
        kind = type(value).__name__
        raise _unreadable(f"TypeError: '{kind}' object cannot be interpreted as an integer") from None
    if number < 0:
        raise _unreadable("OverflowError: can't convert negative int to unsigned")
    if number > most:
        raise _unreadable("OverflowError: out of range integral type conversion attempted")
    return number


def _unreadable(problem: str) -> ValueError:
    return ValueError(f"Failed to parse image decoder config: {problem}")
