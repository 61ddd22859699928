"""`DYN_LOG=trace`: each frame that comes in, as a line on standard error.

    12:00:00.123 < 127.0.0.1:45921 TwoPartMessage(header=b'"sentinel"', data=b'')

Decided once, at import: without it, each read costs one look at a constant. `dynamo-fast tap` shows both directions, also
of programs that are running already.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Iterable

from dynamo_fast.config import LogConfig
from dynamo_fast.logs import get_logger

__all__ = ["ENABLED", "log_frames"]

#: Whether DYN_LOG asks for it: the level `trace`, for all targets or for this package.
ENABLED = LogConfig.from_env().frames

_logger = get_logger("dynamo_fast.frames")
if ENABLED:
    _handler = logging.StreamHandler(sys.stderr)
    _handler.setFormatter(logging.Formatter("%(asctime)s.%(msecs)03d %(message)s", "%H:%M:%S"))
    _logger.addHandler(_handler)
    _logger.setLevel(logging.DEBUG)
    _logger.propagate = False


def log_frames(transport: asyncio.BaseTransport | None, messages: Iterable[object]) -> None:
    """One line for each message that came from the other end of `transport`."""
    name = transport.get_extra_info("peername") if transport is not None else None
    peer = f"{name[0]}:{name[1]}" if name else "?"
    for message in messages:
        _logger.debug("< %s %s", peer, message)
