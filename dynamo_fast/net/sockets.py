"""Options of TCP sockets that both ends set."""

from __future__ import annotations

import contextlib
import socket

__all__ = ["keep_alive"]

_KEEP_ALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, option), value)
        for option, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))
        if hasattr(socket, option)
    ),
]


def keep_alive(endpoint: socket.socket, user_timeout: float | None = None) -> None:
    """Have the kernel notice within a minute that the machine at the other end is gone. Does nothing if it is known to be.

    With `user_timeout` a connection is lost when what was written has not been acknowledged for so many seconds, or when
    the other end has had no room for it for as long (TCP_USER_TIMEOUT: Linux only). Connections that are accepted inherit
    all of this from the listening socket.
    """
    # An event loop's stand-in for a socket would make a real one for each of these calls, and so cost as much as they.
    # (Of which family is of no matter here, and takes a while to ask.)
    real = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=endpoint.fileno())
    try:
        with contextlib.suppress(OSError):  # some systems do not take it for a connection that was just reset
            for level, option, value in _KEEP_ALIVE:
                real.setsockopt(level, option, value)
            if user_timeout is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
                real.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(user_timeout * 1000))
    finally:
        real.detach()
