"""Types of options that several commands have. An invalid value is an error that says what is accepted."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from dynamo_fast import config

__all__ = ["count", "seconds"]


def count(text: str) -> int:
    """A whole number of at least 1."""
    return int(_parsed(config.integer(1), text))


def seconds(text: str) -> float:
    """A time in seconds above 0."""
    return float(_parsed(config.seconds(), text))


def _parsed(parse: Callable[[str], Any], text: str) -> Any:
    try:
        return parse(text)
    except ValueError as accepted:
        raise argparse.ArgumentTypeError(f"{text!r} is not valid: expected {accepted}") from None
