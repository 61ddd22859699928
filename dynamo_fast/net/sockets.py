"""TCP sockets of both ends: keep-alive options, and closing them in forked children."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import weakref
from collections.abc import Iterable
from typing import Protocol

__all__ = ["SocketHolder", "close_in_forked_children", "descriptors_of", "keep_alive"]


class SocketHolder(Protocol):
    """An owner of sockets: a server or a client."""

    def open_sockets(self) -> Iterable[int]:
        """The descriptor numbers of its open sockets; negative numbers are ignored."""


_holders: weakref.WeakSet[SocketHolder] = weakref.WeakSet()


def close_in_forked_children(holder: SocketHolder) -> None:
    """Close the sockets of `holder` in every child that this process forks, while `holder` exists.

    A child would keep them open after this process has died: its peers would not notice, and its ports would stay in use.
    The holder is asked at the fork, so that nothing is done for each socket.
    """
    _holders.add(holder)


def descriptors_of(transports: Iterable[asyncio.BaseTransport | None]) -> Iterable[int]:
    """The descriptor numbers of the transports that are open."""
    for transport in transports:
        if transport is not None and not transport.is_closing():  # uvloop does not forget the number of a closed one
            yield transport.get_extra_info("socket").fileno()


def _close_sockets_of_the_parent() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for holder in list(_holders):
        for number in list(holder.open_sockets()):
            if number >= 0:
                # Replaced, not closed: a transport's copy in the child may close this number when another file has it.
                os.dup2(null, number, inheritable=False)
    os.close(null)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_sockets_of_the_parent)

_KEEP_ALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, option), value)
        for option, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))
        if hasattr(socket, option)
    ),
]


def keep_alive(endpoint: socket.socket, user_timeout: float | None = None) -> None:
    """Let the kernel notice within a minute that the machine at the other end is gone. No effect on a lost connection.

    With `user_timeout`, in seconds, a connection is lost when written bytes were not acknowledged for that long, or when
    the other end had no room for them for that long (TCP_USER_TIMEOUT, Linux only). Accepted connections inherit these
    options from the listening socket.
    """
    # The event loop's wrapper would make a real socket for each of these calls, which doubles their cost. (The family
    # does not matter here, and asking for it takes time.)
    real = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=endpoint.fileno())
    try:
        with contextlib.suppress(OSError):  # some systems do not take it for a connection that was just reset
            for level, option, value in _KEEP_ALIVE:
                real.setsockopt(level, option, value)
            if user_timeout is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
                real.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(user_timeout * 1000))
    finally:
        real.detach()
